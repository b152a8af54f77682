"""What workers gain on one machine, and what they cost a run: `python -m benchmarks.workers`.

The demo's grid is trained by this process and by so many local workers, each time into an empty folder; then very short
runs by this process and by one worker, whose difference is what a run costs to hand out. Nobody else should use the
machine meanwhile.
"""

import argparse
import tempfile
import time
from dataclasses import replace

import pandas as pd

from bnlib import campaign, grid
from bnlib.config import Config
from bnlib.connect import connect

#: Half a second of training: what is measured with it is the rest.
SHORT = Config(model="resnet8", dataset="digits", epochs=1, n_train=128, batch_size=64, warmup_epochs=0)


def seconds(configs: list[Config], to=None) -> float:
    """Wall seconds that a grid takes into an empty folder: in this process, or on workers that are already there."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        runs = grid.run_all(configs, results=folder, cluster=to)
        took = time.perf_counter() - began
    if runs.missing:
        raise SystemExit(f"{len(runs.missing)} of {len(configs)} runs failed: {runs.failed}")
    return took


def gained(configs: list[Config], workers: int, rounds: int) -> pd.DataFrame:
    """Seconds of a grid by one process and by workers, in turns: a row a round, and their ratio."""
    rows = []
    with connect(workers) as client:
        for place in (None, client):                          # libraries and images loaded before anything is timed
            seconds(configs[:workers], place)
        for _ in range(rounds):
            alone, together = seconds(configs), seconds(configs, client)
            rows.append({"runs": len(configs), "one process (s)": alone, f"{workers} workers (s)": together,
                         "throughput ×": alone / together})
    return pd.DataFrame(rows)


def overhead(runs: int, rounds: int) -> pd.DataFrame:
    """Seconds that each of so many short runs takes in this process and by one worker: a row a round."""
    configs, rows = [replace(SHORT, seed=seed) for seed in range(runs)], []
    with connect(1) as client:
        for place in (None, client):
            seconds(configs[:2], place)
        for _ in range(rounds):
            alone, together = seconds(configs) / runs, seconds(configs, client) / runs
            rows.append({"runs": runs, "one process (s a run)": alone, "one worker (s a run)": together,
                         "overhead (s a run)": together - alone})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="local workers (2)")
    parser.add_argument("--every", type=int, default=1, help="take each so many-th run of the demo's grid (1: all)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each is timed (2)")
    parser.add_argument("--runs", type=int, default=30, help="short runs that are timed for the overhead (30)")
    options = parser.parse_args()
    pd.set_option("display.float_format", "{:,.2f}".format)
    print(overhead(options.runs, options.rounds).to_string(index=False))
    configs = campaign.profile_configs("demo")[::options.every]
    print(gained(configs, options.workers, options.rounds).to_string(index=False))


if __name__ == "__main__":
    main()
