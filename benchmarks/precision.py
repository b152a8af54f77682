"""Whether the fast engine ends where plain float32 does: `python -m benchmarks.precision` (half an hour on two cores).

ResNet-14, BN only, `short` profile, three seeds, once as `bnlib.run` trains it and once with torch's own modules in
float32. The records of the second kind stand in `results/checks/fp32`, so that no table of the report takes them in.
"""

import os

import pandas as pd

from bnlib import Config, profile, run_all
from bnlib.config import resolve

FOLDERS = {"fast": "results", "plain float32": "results/checks/fp32"}


def compare(missing: str = "train") -> pd.DataFrame:
    """Accuracy in % of each seed on each path, one row a path; the last columns are their mean and deviation."""
    p, rows = profile("short"), {}
    configs = [Config(seed=seed, **p.training) for seed in p.seeds]
    for path, folder in FOLDERS.items():
        runs = run_all(configs, missing=missing if path != "fast" else "skip", results=folder, precision="fp32")
        rows[path] = {f"seed {r.config.seed}": 100 * r.metrics["test_accuracy"] for r in runs} | {
            "precision": runs[0].provenance["precision"], "bn": runs[0].provenance["bn_path"].split(" (")[0]}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("path")
    seeds = table.filter(like="seed")
    return table.assign(mean=seeds.mean(axis=1), std=seeds.std(axis=1))


def main() -> None:
    os.environ["BNLIB_CPP"] = "0"           # for what is trained here; the fast records are there already
    table = compare()
    print(table.to_string(float_format=lambda x: f"{x:.2f}"))
    away, deviation = abs(table["mean"].diff().iloc[-1]), table["std"].max()
    print(f"the means are {away:.2f} points apart; one standard deviation over seeds is {deviation:.2f}")
    table.to_csv(resolve("results/tables/check-fp32.csv"), float_format="%.6g")


if __name__ == "__main__":
    main()
