"""Runs in, tables out: accuracies, statistics of γ and β, comparison with published numbers, verdicts."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from bnlib.config import PROFILES, InputError
from bnlib.store import Run

DEAD = 0.01            # |γ| below which the paper counts a feature as switched off (Sec. 5)

#: How many epochs a profile trains on CIFAR-10, for naming runs by their profile.
PROTOCOL_EPOCHS = {"paper": 160, "short": PROFILES["short"]["training"]["epochs"]}


class Sentences(list):
    """Sentences with computed numbers; a notebook shows them as a list."""

    def _repr_markdown_(self) -> str:
        return "\n".join(f"* {sentence}" for sentence in self)


# ------------------------------------------------------------------------------------------- accuracy

def accuracy(runs: Iterable[Run]) -> pd.DataFrame:
    """Final test accuracy in %, one row a setting: mean and standard deviation over its seeds.

    Columns: dataset, model, depth, width, trainable, epochs, parameters (trained), mean, std (of the sample, NaN for
    one seed), n (finished seeds), diverged (seeds that diverged), seeds, devices.
    """
    rows = pd.DataFrame([{
        "dataset": run.config.dataset, "depth": run.config.depth, "width": run.config.width, "model": run.config.model,
        "trainable": run.config.trainable, "epochs": run.config.epochs,
        "parameters": run.metrics["parameters_trained"], "seed": run.config.seed,
        "accuracy": 100 * run.metrics["test_accuracy"] if run.status == "done" else np.nan,
        "diverged": run.status == "diverged", "device": run.provenance["device"],
    } for run in runs], columns=["dataset", "depth", "width", "model", "trainable", "epochs", "parameters", "seed",
                                 "accuracy", "diverged", "device"])
    keys = ["dataset", "depth", "width", "model", "trainable", "epochs", "parameters"]
    return rows.groupby(keys, as_index=False).agg(
        mean=("accuracy", "mean"), std=("accuracy", "std"), n=("accuracy", "count"), diverged=("diverged", "sum"),
        seeds=("seed", _listed), devices=("device", _listed))


def _listed(values: Iterable) -> str:
    return ", ".join(map(str, sorted(set(values))))


def published(metric: str = "test accuracy", dataset: str | None = None) -> pd.DataFrame:
    """The published values of a metric: source, where, dataset, model, trainable, value, unit, note.

    Raises InputError for a metric that `published.csv` does not hold.
    """
    table = pd.read_csv(Path(__file__).with_name("published.csv"))
    if metric not in set(table["metric"]):
        raise InputError(f"metric={metric!r}: not one of {', '.join(sorted(set(table['metric'])))}")
    table = table[table["metric"] == metric]
    return (table if dataset is None else table[table["dataset"] == dataset]).reset_index(drop=True)


def compare(table: pd.DataFrame, published: pd.DataFrame) -> Sentences:
    """One sentence a setting of `accuracy`'s table that is published: ours, theirs, the difference."""
    said = Sentences()
    for row in table.itertuples():
        same = (published["dataset"] == row.dataset) & (published["model"] == row.model) & (
            published["trainable"] == row.trainable)
        for other in published[same].itertuples():
            said.append(f"{name(row.model)}, {TRAINED[row.trainable]}: {spread(row)} after {row.epochs} epochs; "
                        f"{other.source} ({other.where}): {other.value:g} %; "
                        f"difference {row.mean - other.value:+.1f} points.")
    if not said:
        said.append("None of these settings has been published; the numbers stand for themselves.")
    return said


#: How a choice of `trainable` is called in sentences and legends.
TRAINED = {"all": "all parameters", "bn": "BN only", "gamma": "γ only", "beta": "β only", "output": "output layer only",
           "bn+output": "BN and output", "none": "nothing trained"}


def name(model: str) -> str:
    """`resnet14x8` → `ResNet-14-8`, the paper's spelling."""
    return model.replace("resnet", "ResNet-").replace("x", "-")


def spread(row) -> str:
    """`43.4 ± 0.3 % (3 seeds)`, or what there is of it."""
    if not row.n:
        return f"diverged ({row.diverged} {'seed' if row.diverged == 1 else 'seeds'})"
    deviation = "" if np.isnan(row.std) else f" ± {row.std:.1f}"
    return f"{row.mean:.1f}{deviation} % ({row.n} {'seed' if row.n == 1 else 'seeds'})"


# --------------------------------------------------------------------------------------- γ and β of a run

def affine(runs: Iterable[Run]) -> pd.DataFrame:
    """γ and β of every channel: one row a channel, with run, dataset, model, depth, width, trainable, epochs, seed,
    number of its layer (1 for the first), layer, channel, gamma and beta. Runs that diverged are left out."""
    parts = []
    for run in runs:
        if run.status != "done":
            continue
        about = {"run": run.id, "dataset": run.config.dataset, "model": run.config.model, "depth": run.config.depth,
                 "width": run.config.width, "trainable": run.config.trainable, "epochs": run.config.epochs,
                 "seed": run.config.seed}
        gamma, beta = run.gamma, run.beta
        parts += [pd.DataFrame(about | {"number": number, "layer": layer, "channel": range(len(gamma[layer])),
                                        "gamma": gamma[layer], "beta": beta[layer]})
                  for number, layer in enumerate(gamma, 1)]
    columns = ["run", "dataset", "model", "depth", "width", "trainable", "epochs", "seed", "number", "layer", "channel",
               "gamma", "beta"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def dead_share(gamma: dict[str, np.ndarray], below: float = DEAD) -> pd.Series:
    """Share of channels in each layer whose |γ| is under `below`.

    The paper counts a feature as switched off at 0.01 (Sec. 5): accuracy stays the same when such γ are set to zero.
    Returns one value in [0, 1] a layer, indexed by layer name, first layer first.
    Raises InputError for a negative threshold.
    """
    if below < 0:
        raise InputError(f"below={below}: must be at least 0")
    return pd.Series({layer: float((np.abs(values) < below).mean()) for layer, values in gamma.items()}, dtype=float)


def dead_features(runs: Iterable[Run], below: float = DEAD) -> pd.DataFrame:
    """Share of all channels with |γ| < `below`, in %: mean and standard deviation over seeds, one row a setting."""
    channels = affine(runs)
    channels["dead"] = 100.0 * (channels["gamma"].astype(float).abs() < below)
    keys = ["dataset", "depth", "width", "model", "trainable", "epochs"]
    by_run = channels.groupby([*keys, "seed"], as_index=False)["dead"].mean()
    return by_run.groupby(keys, as_index=False).agg(mean=("dead", "mean"), std=("dead", "std"), n=("dead", "count"))


# ------------------------------------------------------------------------------------------- findings

def findings(runs: Iterable[Run]) -> Sentences:
    """What the runs say in a few sentences, the longest training of each network and mode; every number computed."""
    runs = list(runs)
    table = accuracy(runs)
    table = table[table["n"] > 0].sort_values("epochs").drop_duplicates(["model", "trainable"], keep="last")
    alone = table[table["trainable"] == "bn"].sort_values(["depth", "width"])
    said = Sentences()
    if alone.empty:
        return Sentences(["No BN-only run is there yet."])
    total = {run.config.model: run.metrics["parameters"] for run in runs}
    of_all = {row.model: row for row in table[table["trainable"] == "all"].itertuples()}
    for row in alone.iloc[sorted({0, alone["mean"].argmax()})].itertuples():
        rest = f"; all of them reach {spread(of_all[row.model])}" if row.model in of_all else ""
        said.append(f"{name(row.model)} on {row.dataset}, training only γ and β, {row.parameters:,} of its "
                    f"{total[row.model]:,} parameters ({row.parameters / total[row.model]:.1%}), reaches {spread(row)} "
                    f"after {row.epochs} epochs{rest}.")
    for by, fixed in (("depth", "width"), ("width", "depth")):
        line = max((group.sort_values(by) for _, group in alone.groupby([fixed, "epochs"])), key=len)
        if len(line) > 1:
            first, last = line.iloc[0], line.iloc[-1]
            said.append(f"From {by} {first[by]} to {by} {last[by]} BN-only accuracy goes from {first['mean']:.1f} to "
                        f"{last['mean']:.1f} % ({first.epochs} epochs).")
    dead = dead_features(runs).sort_values("epochs").drop_duplicates(["model", "trainable"], keep="last")
    for trainable in ("bn", "all"):
        share = dead[dead["trainable"] == trainable]["mean"]
        if len(share):
            reach = " to ".join(dict.fromkeys([f"{share.min():.1f}", f"{share.max():.1f}"]))
            said.append(f"Training {TRAINED[trainable]} leaves {reach} % of all |γ| below {DEAD}.")
    return said


# ------------------------------------------------------------------------------------------- verdicts

REPRODUCED, PARTLY, NOT, NOT_RUN = "reproduced", "partly", "not reproduced", "not yet run"


def verdicts(runs: Iterable[Run], dataset: str = "cifar10") -> pd.DataFrame:
    """The verdict table: claim, where the paper makes it, its number, ours, verdict; every verdict by a rule in code.

    A published accuracy is reproduced if our mean over seeds, at the same 160 epochs, is within two standard errors
    plus two points; partly, within twice that. An ordering is reproduced if it holds in every pair of runs of one seed
    and one number of epochs; partly, in more than half of them. The paper's numbers are those of CIFAR-10; on another
    dataset only its orderings are judged.
    """
    runs = [run for run in runs if run.config.dataset == dataset]
    done = [run for run in runs if run.status == "done"]
    paper = published().query("source == 'Frankle et al. 2021' and dataset == @dataset")
    rows = [_number_claim(accuracy(runs), claim) for claim in paper.itertuples()]
    rows += [
        _ordering_claim("BN only: deeper is better", "Fig. 2", done, "depth", "bn", fixed="width"),
        _ordering_claim("BN only: wider is better", "Fig. 3", done, "width", "bn", fixed="depth"),
        _training_all_wins(done),
        _dead_share_claim(done),
        _fewer_dead_in_full_training(done),
    ]
    return pd.DataFrame(rows, columns=["claim", "where", "published", "ours", "verdict"])


def _number_claim(table: pd.DataFrame, claim) -> tuple:
    title = f"{name(claim.model)}, {TRAINED[claim.trainable]}: test accuracy"
    ours = table[(table["model"] == claim.model) & (table["trainable"] == claim.trainable)]
    verdict, stated = NOT_RUN, "–"
    for row in ours.sort_values("epochs").itertuples():
        stated = f"{spread(row)} after {row.epochs} epochs on {row.devices}"
        if row.epochs == PROTOCOL_EPOCHS["paper"] and row.n:
            allowed = 2 * (0 if np.isnan(row.std) else row.std / np.sqrt(row.n)) + 2
            away = abs(row.mean - claim.value)
            verdict = REPRODUCED if away <= allowed else PARTLY if away <= 2 * allowed else NOT
    return title, claim.where, f"{claim.value:g} %", stated, verdict


def _pairs_verdict(holds: list[bool]) -> str:
    share = np.mean(holds) if holds else np.nan
    return NOT_RUN if not holds else REPRODUCED if share == 1 else PARTLY if share > 0.5 else NOT


def _ordering_claim(title: str, where: str, runs: list[Run], by: str, trainable: str, fixed: str) -> tuple:
    """Whether accuracy rises with `by` from each value to the next, at one value of `fixed`, epochs and seed."""
    holds, values = [], set()
    lines: dict[tuple, list] = {}
    for run in runs:
        if run.config.trainable == trainable:
            key = (getattr(run.config, fixed), run.config.epochs, run.config.seed)
            lines.setdefault(key, []).append((getattr(run.config, by), run.metrics["test_accuracy"]))
    for line in lines.values():
        line.sort()
        for (low, a), (high, b) in pairwise(line):
            holds.append(b > a)
            values |= {low, high}
    ours = f"{sum(holds)} of {len(holds)} pairs; {by} {', '.join(map(str, sorted(values)))}" if holds else "–"
    return title, where, "rises", ours, _pairs_verdict(holds)


def _partners(runs: list[Run]) -> list[tuple[Run, Run]]:
    """(BN only, all parameters) of one network, seed and number of epochs."""
    found = {(r.config.trainable, r.config.model, r.config.epochs, r.config.seed): r for r in runs}
    return [(run, found["all", *key]) for (trainable, *key), run in found.items()
            if trainable == "bn" and ("all", *key) in found]


def _training_all_wins(runs: list[Run]) -> tuple:
    holds = [all_.metrics["test_accuracy"] > bn.metrics["test_accuracy"] for bn, all_ in _partners(runs)]
    ours = f"{sum(holds)} of {len(holds)} pairs" if holds else "–"
    return "Training all parameters beats BN only", "Fig. 2", "at every depth and width", ours, _pairs_verdict(holds)


def _dead_share_claim(runs: list[Run]) -> tuple:
    """At the paper's 160 epochs: a quarter to a third of all γ, five points either way."""
    table = dead_features([r for r in runs if r.config.trainable == "bn"])
    claim = published("share of features disabled", "cifar10").iloc[0]
    ours = ", ".join(f"{name(row.model)}: {row.mean:.0f} % ({row.epochs} epochs)"
                     for row in table.sort_values(["epochs", "depth", "width"]).itertuples()) or "–"
    final = table[table["epochs"] == PROTOCOL_EPOCHS["paper"]]["mean"]
    holds = list((final >= 25 - 5) & (final <= claim["value"] + 5))
    title = f"BN only switches features off: share of |γ| < {DEAD}"
    return title, claim["where"], f"{claim['value']:g} %", ours, _pairs_verdict(holds)


def _fewer_dead_in_full_training(runs: list[Run]) -> tuple:
    pairs = [tuple(100 * float(np.mean(np.abs(np.concatenate(list(run.gamma.values()))) < DEAD)) for run in pair)
             for pair in _partners(runs)]
    holds = [in_all < in_bn for in_bn, in_all in pairs]
    ours = "–"
    if pairs:
        in_bn, in_all = np.mean(pairs, axis=0)
        ours = f"{sum(holds)} of {len(holds)} pairs; {in_all:.1f} % against {in_bn:.1f} %"
    return "Full training switches off fewer", "Sec. 5", "far fewer", ours, _pairs_verdict(holds)


# ----------------------------------------------------------------------------------------- provenance

def provenance(runs: Iterable[Run]) -> pd.DataFrame:
    """Where the numbers come from, one row a network, mode and device: epochs, seeds, hours, images/s, versions."""
    rows = pd.DataFrame([{
        "network": run.config.model, "trained": run.config.trainable,
        "epochs": run.config.epochs, "seed": run.config.seed, "hours": run.provenance["seconds"] / 3600,
        "images/s": run.provenance["images_per_second"], "device": run.provenance["device"],
        "precision": run.provenance["precision"], "torch": run.provenance["torch"], "code": run.provenance["commit"],
    } for run in runs], columns=["network", "trained", "epochs", "seed", "hours", "images/s", "device", "precision",
                                 "torch", "code"])
    return rows.groupby(["network", "trained", "epochs", "device", "precision", "torch"], as_index=False).agg(
        seeds=("seed", _listed), hours=("hours", "sum"), **{"images/s": ("images/s", "median")}, code=("code", _listed))
