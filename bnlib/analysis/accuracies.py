"""Which runs can stand beside each other, how accurate they are, and what was published."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from bnlib import data
from bnlib.config import Config
from bnlib.names import DEEPOBS, InputError, parse_model
from bnlib.profiles import OF_THE_PAPER, PROFILES, seedless, variant
from bnlib.store import Run
from bnlib.wording import Sentences, changed, gained, listed, machine, name, plus_minus, shown, spread, trained

PAPER_EPOCHS = Config().epochs      # after which the paper reports its numbers


def epochs_of_the_paper(dataset: str) -> int:
    """After how many epochs the paper reports its numbers on a set of images."""
    large = PROFILES["paper"]["large"]
    return large["epochs"] if dataset == large["dataset"] else PAPER_EPOCHS


def plain(runs: Iterable[Run]) -> list[Run]:
    """The runs of the protocol, without those that vary it, be it by a network of another study (09, 10)."""
    return [run for run in runs
            if not variant(run.config, OF_THE_PAPER)
            and parse_model(run.config.model).family not in ("plain", *DEEPOBS)]


def varied(runs: Iterable[Run], *fields: str) -> list[Run]:
    """The runs of the protocol, and those that vary these fields of `Config` and nothing else."""
    return [run for run in runs
            if variant(run.config).keys() <= set(fields)]


def pair(runs: Iterable[Run]) -> list[Run]:
    """A BN-only run and one of full training that can stand side by side, in this order, or what there is of them.

    Of one network; the longest training that both have, else the longest; of these the first seed.
    """
    done = sorted((run for run in runs if run.status == "done"), key=lambda run: (-run.config.epochs, run.config.seed))
    of = {what: [run for run in done if run.config.trainable == what] for what in ("bn", "all")}
    shared = {run.config.epochs for run in of["bn"]} & {run.config.epochs for run in of["all"]}
    return [next(run for run in found if run.config.epochs == max(shared, default=run.config.epochs))
            for found in of.values() if found]


def comparable(table: pd.DataFrame, of: str = "model", kinds: Iterable[str] = ("trainable", "variant")) -> pd.DataFrame:
    """Of each network (or another column) the rows of one number of epochs, so that 16 and 160 are not compared in it;
    two networks may differ, and the figure says so.

    The one of which there is most to compare, by default settings and what trains; of equals the longest training.
    """
    kinds = [column for column in kinds if column in table]
    settings = table.drop_duplicates([of, "epochs", *kinds]).value_counts([of, "epochs"]).reset_index()
    best = settings.sort_values(["count", "epochs"]).drop_duplicates(of, keep="last").set_index(of)["epochs"]
    return table[table["epochs"] == table[of].map(best)]


def accuracy(runs: Iterable[Run], metric: str = "test_accuracy") -> pd.DataFrame:
    """Final test accuracy (or another share among the metrics) in %, a row a setting: mean and deviation over seeds,
    which are all that the runs of a row differ in. A run that is given twice counts once.

    Columns: dataset, model, depth, width, trainable, variant (in words), epochs, parameters (trained), mean, std (of
    the sample, NaN for one seed), n (finished seeds), diverged (seeds that diverged), seeds, precision, devices.
    """
    keys = ["dataset", "depth", "width", "model", "trainable", "variant", "epochs", "parameters"]
    rows = pd.DataFrame([{
        "dataset": run.config.dataset, "depth": run.config.depth, "width": run.config.width, "model": run.config.model,
        "trainable": run.config.trainable, "variant": changed(variant(run.config)), "epochs": run.config.epochs,
        "parameters": run.metrics["parameters_trained"], "setting": seedless(run.config).id, "seed": run.config.seed,
        "accuracy": 100 * run.metrics[metric] if run.status == "done" else np.nan,
        "diverged": run.status == "diverged",
        "precision": run.provenance["precision"], "device": run.provenance["device"],
    } for run in {f"{run.config} {run.metrics} {run.provenance}": run for run in runs}.values()],
        columns=[*keys, "setting", "seed", "accuracy", "diverged", "precision", "device"])
    table = rows.groupby([*keys, "setting"], as_index=False).agg(
        mean=("accuracy", "mean"), std=("accuracy", "std"), n=("accuracy", "count"), diverged=("diverged", "sum"),
        seeds=("seed", listed), precision=("precision", listed), devices=("device", _machines))
    return table.drop(columns="setting").sort_values(keys, key=_by_number, ignore_index=True)


def _machines(devices: Iterable[str]) -> str:
    """Each once: their names hold commas."""
    return " and ".join(sorted({machine(device) for device in devices}))


def _by_number(column: pd.Series) -> pd.Series:
    """What `sort_values` goes by, so that 8 random weights come before 16."""
    if column.name != "trainable":
        return column
    return column.str.replace(r"\d+", lambda number: number[0].zfill(9), regex=True)


def top1_and_top5(runs: Iterable[Run]) -> pd.DataFrame:
    """`accuracy` by the most probable class (`top` 1) and by the five most probable (5), and what chance gives.

    Columns top and chance (%) beside those of `accuracy`. Of ten classes or fewer the five are not recorded.
    """
    runs = list(runs)
    classes = {run.config.dataset: run.record["classes"] for run in runs}
    tables = [accuracy((run for run in runs if metric in run.metrics), metric).assign(top=top) for top, metric in (
        (1, "test_accuracy"), (5, "test_top5_accuracy"))]
    both = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    return both.assign(chance=100 * both["top"] / both["dataset"].map(classes))


def sizes(runs: Iterable[Run]) -> pd.DataFrame:
    """The table of `accuracy`, and what a trained network takes to store, `bytes`.

    Four for each parameter that trained, each running mean and each running variance; eight for the seed that gives
    back what was frozen.
    """
    runs = list(runs)
    stored = {(run.config.model, run.config.trainable): 4 * (
        run.metrics["parameters_trained"] + sum(len(row) for part in (run.running_mean, run.running_var)
                                                for row in part.values())
    ) + 8 * (run.metrics["parameters_trained"] < run.metrics["parameters"]) for run in runs}
    table = accuracy(runs)
    return table.assign(bytes=[stored[row.model, row.trainable] for row in table.itertuples()])


def published(metric: str = "test accuracy", dataset: str | None = None) -> pd.DataFrame:
    """The published values of a metric: source, where, dataset, model, trainable, value, unit, note.

    Raises InputError for a metric that `published.csv` does not hold.
    """
    table = pd.read_csv(Path(__file__).parent.with_name("published.csv"))
    if metric not in set(table["metric"]):
        raise InputError(f"metric={metric!r}: not one of {', '.join(sorted(set(table['metric'])))}")
    table = table[table["metric"] == metric]
    return (table if dataset is None else table[table["dataset"] == dataset]).reset_index(drop=True)


def compare(table: pd.DataFrame, published: pd.DataFrame) -> Sentences:
    """One sentence a setting of `accuracy`'s table that is published: ours, theirs, the difference; where ours trained
    for fewer epochs than the paper, after how many."""
    said = Sentences()
    for row in table[table["n"] > 0].itertuples():
        same = (published["dataset"] == row.dataset) & (published["model"] == row.model) & (
            published["trainable"] == row.trainable)
        for other in published[same].itertuples():
            theirs = epochs_of_the_paper(row.dataset)
            short = f", after {row.epochs} of {theirs} epochs" if row.epochs < theirs else ""
            said.append(f"{name(row.model)}, {trained(row.trainable)}: {spread(row)} after {row.epochs} epochs; "
                        f"{other.source} ({other.where}): {other.value:g} %; "
                        f"difference {gained(row.mean - other.value)}{short}.")
    if not said and (table["n"] > 0).any():
        said.append("None of these settings has been published; the numbers stand for themselves.")
    return said


def by_precision(runs: Iterable[Run], repeats: Iterable[Run]) -> Sentences:
    """One sentence a config that was trained once more in another way (`store.repeats`): its accuracy by each precision
    and path of batch norm and convolution, of the seeds that were trained in both; seed by seed where not each way has
    them all; and how far apart one seed ends by another way."""
    runs, repeats = list(runs), list(repeats)
    both = {run.config for run in runs} & {run.config for run in repeats}
    alike: dict[Config, list[Run]] = {}
    for run in [*runs, *repeats]:
        if run.config in both:
            alike.setdefault(seedless(run.config), []).append(run)
    said = Sentences()
    for config, of_one in alike.items():
        ways: dict[str, list[Run]] = {}
        for run in of_one:
            made = run.provenance
            way = f"{made['precision']}, batch norm by {made['bn_path'].split(' (')[0]}"
            if made["conv_path"] != "torch":
                way += f", convolution by {made['conv_path'].split(', ')[0]}"
            ways.setdefault(way, []).append(run)
        if len({tuple(sorted(run.config.seed for run in made)) for made in ways.values()}) == 1:
            of_way = {way: spread(next(accuracy(made).itertuples())) for way, made in ways.items()}
        else:
            of_way = {way: _by_seed(made) for way, made in ways.items()}
        found = "; ".join(f"{accuracies} in {way}" for way, accuracies in of_way.items())
        right = pd.Series([100 * run.metrics["test_accuracy"] for run in of_one])
        of_a_seed = right.groupby([run.config.seed for run in of_one])
        said.append(f"{name(config.model)}, {trained(config.trainable)}, {config.epochs} epochs, the same seeds: "
                    f"{found}; all {len(right)} together {plus_minus(right.mean(), right.std())} %; "
                    f"one seed ends up to {(of_a_seed.max() - of_a_seed.min()).max():.1f} points apart.")
    return said


def _by_seed(runs: list[Run]) -> str:
    """The accuracies of runs that differ in seed alone, one by one."""
    found = {run.config.seed: 100 * run.metrics["test_accuracy"] for run in runs}
    return (", ".join(f"{found[seed]:.1f}" for seed in sorted(found))
            + f" % (seed{'s' * (len(found) > 1)} {listed(found)})")


def about_images(name: str) -> Sentences:
    """Whether a set of images is here, and what to do if it is not."""
    if data.at_hand(name):
        return Sentences([f"{shown(name)}: the images are here."])
    return Sentences([f"{shown(name)}: the images are not here, so nothing can be trained on them. Put the "
                      f"folders `train/` and `val/`, with a folder of images for each class, into `$BNLIB_DATA/{name}` "
                      "and run this notebook again."])


def provenance(runs: Iterable[Run]) -> pd.DataFrame:
    """Where the numbers come from, one row a network, mode and device: epochs, runs, seeds, hours, images/s,
    versions."""
    rows = pd.DataFrame([{
        "network": run.config.model, "trained": run.config.trainable,
        "epochs": run.config.epochs, "seed": run.config.seed, "hours": run.provenance["seconds"] / 3600,
        "images/s": run.provenance["images_per_second"], "device": run.provenance["device"],
        "precision": run.provenance["precision"], "torch": run.provenance["torch"],
        "code": str(run.provenance["commit"]),
    } for run in runs], columns=["network", "trained", "epochs", "seed", "hours", "images/s", "device", "precision",
                                 "torch", "code"])
    return rows.groupby(["network", "trained", "epochs", "device", "precision", "torch"], as_index=False).agg(
        runs=("seed", "size"), seeds=("seed", listed), hours=("hours", "sum"), code=("code", listed),
        **{"images/s": ("images/s", "median")})


def machines(runs: Iterable[Run]) -> pd.DataFrame:
    """Compute spent: a row a device, precision and version of torch, with runs and hours; those that moved from one to
    another together."""
    table = provenance(runs)
    moved = table["device"].str.contains("; ")
    table.loc[moved, ["device", "precision", "torch"]] = "several, one after another", "–", "–"
    return table.groupby(["device", "precision", "torch"], as_index=False)[["runs", "hours"]].sum()
