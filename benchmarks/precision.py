"""Whether the fast engine ends where plain float32 does: `python -m benchmarks.precision` (an hour on two cores).

ResNet-14, BN only, `short` profile, three seeds: the records of the report, whose convolutions are oneDNN's in bf16; as
`bnlib.run` trains it on this machine, by Winograd's algorithm or AMX; and with torch's own modules in float32. The
records of all but the first stand in `results/checks`, so that no table of the report takes them in.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pandas as pd

from bnlib import Config, convolution, profile, residual, run_all
from bnlib.config import resolve

FOLDERS = {"fast": "results", "fast, Winograd": "results/checks/winograd", "fast, AMX": "results/checks/amx",
           "plain float32": "results/checks/fp32"}


def configs() -> list[Config]:
    p = profile("short")
    return [Config(seed=seed, **p.training) for seed in p.seeds]


def compare() -> pd.DataFrame:
    """Accuracy in % of each seed on each path that has records, one row a path; then their mean and deviation."""
    rows = {}
    for path, folder in FOLDERS.items():
        runs = run_all(configs(), missing="skip", results=folder)
        if not runs:
            continue
        made = runs[0].provenance
        rows[path] = {f"seed {r.config.seed}": 100 * r.metrics["test_accuracy"] for r in runs} | {
            "precision": made["precision"], "bn": made["bn_path"].split(" (")[0], "conv": made["conv_path"]}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("path")
    seeds = table.filter(like="seed")
    return table.assign(mean=seeds.mean(axis=1), std=seeds.std(axis=1))


def of_this_machine() -> str:
    """The fast path that this machine trains by, if it is not that of the report's records."""
    if not residual.why_not_amx():
        return "fast, AMX"
    if not convolution.why_not("bf16"):
        return "fast, Winograd"
    raise SystemExit("this machine trains as the records of the report were, or not in bf16")


def train(folder: str, precision: str | None) -> None:
    run_all(configs(), results=folder, precision=precision)


def main() -> None:
    for path, precision, ours in ((of_this_machine(), "bf16", "1"), ("plain float32", "fp32", "0")):
        os.environ["BNLIB_CPP"] = ours      # read when a process starts to train
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            process.submit(train, FOLDERS[path], precision).result()
    table = compare()
    print(table.to_string(float_format=lambda x: f"{x:.2f}"))
    apart = table["mean"].max() - table["mean"].min()
    print(f"the means are up to {apart:.2f} points apart; a standard deviation over seeds is {table['std'].max():.2f}")
    table.to_csv(resolve("results/tables/check-fp32.csv"), float_format="%.6g")


if __name__ == "__main__":
    main()
