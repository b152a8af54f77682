"""Runs in, tables out: accuracies, statistics of γ and β, comparison with published numbers, verdicts."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from bnlib.config import Config, InputError
from bnlib.store import Run

DEAD = 0.01            # |γ| below which the paper counts a feature as switched off (Sec. 5)

PAPER_EPOCHS = Config().epochs      # after which the paper reports its numbers


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
    for row in table[table["n"] > 0].itertuples():
        same = (published["dataset"] == row.dataset) & (published["model"] == row.model) & (
            published["trainable"] == row.trainable)
        for other in published[same].itertuples():
            said.append(f"{name(row.model)}, {trained(row.trainable)}: {spread(row)} after {row.epochs} epochs; "
                        f"{other.source} ({other.where}): {other.value:g} %; "
                        f"difference {row.mean - other.value:+.1f} points.")
    if not said:
        said.append("None of these settings has been published; the numbers stand for themselves.")
    return said


def compare_dead(table: pd.DataFrame) -> Sentences:
    """What share of γ is switched off, from `dead_features`, beside the published one."""
    claim = published("share of features disabled").iloc[0]
    return Sentences(
        f"{name(row.model)}, {trained(row.trainable)}: {row.mean:.1f} % of all |γ| below {DEAD} after {row.epochs} "
        f"epochs ({_seeds(row.n)}); {claim['source']} for {trained(claim['trainable'])} after {PAPER_EPOCHS}: "
        f"about {claim['value']:g} %." for row in table.itertuples())


def trained(what: str) -> str:
    """How a choice of `trainable` is called in sentences and legends: `bn` → `BN only`."""
    names = {"all": "all parameters", "bn": "BN", "gamma": "γ", "beta": "β", "output": "output layer",
             "none": "nothing trained"}
    parts = what.split("+")
    return " and ".join(names[part] for part in parts) + (" only" if parts[0] not in ("all", "none") else "")


def name(model: str) -> str:
    """`resnet14x8` → `ResNet-14-8`, the paper's spelling."""
    return model.replace("resnet", "ResNet-").replace("x", "-")


#: How a dataset is called in sentences.
SHOWN = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "digits": "scikit-learn's digits"}


def spread(row) -> str:
    """`43.4 ± 0.3 % (3 seeds)`, or what there is of it."""
    if not row.n:
        return f"diverged ({_seeds(row.diverged)})"
    deviation = "" if np.isnan(row.std) else f" ± {row.std:.1f}"
    return f"{row.mean:.1f}{deviation} % ({_seeds(row.n)})"


def _seeds(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"


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
    keys = ["dataset", "depth", "width", "model", "trainable", "epochs"]
    by_run = pd.DataFrame([{**{key: getattr(run.config, key) for key in keys}, "seed": run.config.seed,
                            "dead": 100 * dead_share({"all": np.concatenate(list(run.gamma.values()))}, below)["all"]}
                           for run in runs if run.status == "done"], columns=[*keys, "seed", "dead"])
    return by_run.groupby(keys, as_index=False).agg(mean=("dead", "mean"), std=("dead", "std"), n=("dead", "count"))


# ------------------------------------------------------------------------------------------- findings

def findings(runs: Iterable[Run]) -> Sentences:
    """What the runs say in a few sentences, the longest training of each network and mode; every number computed."""
    runs = list(runs)
    table = accuracy(runs)
    table = table[table["n"] > 0].sort_values("epochs")
    of_bn = table[table["trainable"] == "bn"]
    table = table.drop_duplicates(["model", "trainable"], keep="last")
    alone = table[table["trainable"] == "bn"].sort_values(["depth", "width"])
    said = Sentences()
    if alone.empty:
        return Sentences(["No BN-only run is there yet."])
    total = {run.config.model: run.metrics["parameters"] for run in runs}
    of_all = {row.model: row for row in table[table["trainable"] == "all"].itertuples()}
    for row in alone.iloc[sorted({0, alone["mean"].argmax()})].itertuples():
        full = of_all.get(row.model)
        rest = f"; all of them reach {spread(full)} after {full.epochs}" if full else ""
        said.append(f"{name(row.model)} on {SHOWN.get(row.dataset, row.dataset)}, training only γ and β, "
                    f"{row.parameters:,} of its {total[row.model]:,} parameters "
                    f"({row.parameters / total[row.model]:.1%}), reaches {spread(row)} "
                    f"after {row.epochs} epochs{rest}.")
    for by, fixed in (("depth", "width"), ("width", "depth")):
        line = max((group.sort_values(by) for _, group in of_bn.groupby([fixed, "epochs"])), key=len)
        if len(line) > 1:
            first, last = line.iloc[0], line.iloc[-1]
            said.append(f"From {by} {first[by]} to {by} {last[by]} BN-only accuracy goes from {first['mean']:.1f} to "
                        f"{last['mean']:.1f} % ({first.epochs} epochs).")
    dead = dead_features(runs).sort_values("epochs").drop_duplicates(["model", "trainable"], keep="last")
    for trainable in ("bn", "all"):
        share = dead[dead["trainable"] == trainable]["mean"]
        if len(share):
            reach = " to ".join(dict.fromkeys([f"{share.min():.1f}", f"{share.max():.1f}"]))
            said.append(f"Training {trained(trainable)} leaves {reach} % of all |γ| below {DEAD}.")
    return said


# ------------------------------------------------------------------------------------------- verdicts

REPRODUCED, PARTLY, NOT, NOT_RUN = "reproduced", "partly", "not reproduced", "not yet run"
ENOUGH = 3         # networks, depths or widths that an ordering must have been seen on before it counts as reproduced


def verdicts(runs: Iterable[Run], dataset: str = "cifar10") -> pd.DataFrame:
    """The verdict table: claim, where the paper makes it, its number, ours, verdict; every verdict by a rule in code.

    A published number is reproduced if our mean over seeds, at the paper's 160 epochs, is within two standard errors
    plus two points; partly, within twice that. An ordering is reproduced if it holds in every pair of runs of one seed
    and one number of epochs, on three networks or more; partly, in more than half of the pairs, or on fewer networks.
    The paper's numbers are those of CIFAR-10; on another dataset only its orderings are judged.
    """
    runs = [run for run in runs if run.config.dataset == dataset]
    done = [run for run in runs if run.status == "done"]
    paper = published().query("source == 'Frankle et al. 2021' and dataset == @dataset").iloc[::-1]
    rows = [_number_claim(accuracy(runs), claim) for claim in paper.itertuples()]
    rows += [
        _ordering_claim("BN only: deeper is better", "Fig. 2", done, "depth", fixed="width"),
        _ordering_claim("BN only: wider is better", "Fig. 3", done, "width", fixed="depth"),
        _pair_claim("Training all parameters beats BN only", "Fig. 2", "at every depth and width", done,
                    lambda run: 100 * run.metrics["test_accuracy"]),
        _dead_share_claim(done),
        _pair_claim("Full training switches off fewer features", "Sec. 5", "fewer", done,
                    lambda run: -100 * dead_share({"all": np.concatenate(list(run.gamma.values()))})["all"]),
    ]
    return pd.DataFrame(rows, columns=["claim", "where", "published", "ours", "verdict"])


def _number_verdict(row, value: float) -> str:
    allowed = 2 * (0 if np.isnan(row.std) else row.std / np.sqrt(row.n)) + 2
    away = abs(row.mean - value)
    return REPRODUCED if away <= allowed else PARTLY if away <= 2 * allowed else NOT


def _number_claim(table: pd.DataFrame, claim) -> tuple:
    title = f"{name(claim.model)}, {trained(claim.trainable)}: test accuracy"
    ours = table[(table["model"] == claim.model) & (table["trainable"] == claim.trainable)].sort_values("epochs")
    at_the_papers = ours[(ours["epochs"] == PAPER_EPOCHS) & (ours["n"] > 0)]
    row = next((at_the_papers if len(at_the_papers) else ours.iloc[::-1]).itertuples(), None)
    stated = f"{spread(row)} after {row.epochs} epochs on {row.devices}" if row else "–"
    verdict = _number_verdict(row, claim.value) if len(at_the_papers) else NOT_RUN
    return title, claim.where, f"{claim.value:g} %", stated, verdict


def _pairs_verdict(holds: list[bool], networks: set) -> str:
    if not holds:
        return NOT_RUN
    if all(holds) and len(networks) >= ENOUGH:
        return REPRODUCED
    return PARTLY if np.mean(holds) > 0.5 else NOT


def _pairs_stated(holds: list[bool], what: str, runs: list[Run]) -> str:
    if not holds:
        return "–"
    seeds, epochs = (_listed(getattr(run.config, field) for run in runs) for field in ("seed", "epochs"))
    return f"in {sum(holds)} of {len(holds)} pairs; {what}; seeds {seeds}; {epochs} epochs"


def _ordering_claim(title: str, where: str, runs: list[Run], by: str, fixed: str) -> tuple:
    """Whether BN-only accuracy rises with `by` from value to value, at one value of `fixed`, epochs and seed."""
    holds, values, used = [], set(), []
    lines: dict[tuple, dict] = {}
    for run in runs:
        if run.config.trainable == "bn":
            key = (getattr(run.config, fixed), run.config.epochs, run.config.seed)
            lines.setdefault(key, {})[getattr(run.config, by)] = run
    for line in lines.values():
        for low, high in pairwise(sorted(line)):
            holds.append(line[high].metrics["test_accuracy"] > line[low].metrics["test_accuracy"])
            values |= {low, high}
            used += [line[low], line[high]]
    stated = _pairs_stated(holds, f"{by} {_listed(values)}", used)
    return title, where, "rises", stated, _pairs_verdict(holds, values)


def _pair_claim(title: str, where: str, claim: str, runs: list[Run], measure) -> tuple:
    """Whether full training measures higher than BN only, network by network, at one seed and number of epochs."""
    found = {(r.config.trainable, r.config.model, r.config.epochs, r.config.seed): r for r in runs}
    pairs = [(run, found["all", *key]) for (what, *key), run in found.items()
             if what == "bn" and ("all", *key) in found]
    measured = [(measure(bn), measure(full)) for bn, full in pairs]
    holds = [of_full > of_bn for of_bn, of_full in measured]
    means = "{:.1f} % against {:.1f} %".format(*np.abs(np.mean(measured, axis=0))[::-1]) if pairs else ""
    stated = _pairs_stated(holds, f"in the mean {means}", [bn for bn, _ in pairs])
    return title, where, claim, stated, _pairs_verdict(holds, {bn.config.model for bn, _ in pairs})


def _dead_share_claim(runs: list[Run]) -> tuple:
    """The share over all BN-only networks of the longest training; judged as a published number."""
    claim = published("share of features disabled").iloc[0]
    title = f"BN only switches features off: share of |γ| < {DEAD}"
    table = dead_features([r for r in runs if r.config.trainable == "bn"])
    table = table[table["epochs"] == table["epochs"].max()]
    if table.empty:
        return title, claim["where"], f"{claim['value']:g} %", "–", NOT_RUN
    over_networks = pd.DataFrame({"mean": [table["mean"].mean()], "std": [table["mean"].std()], "n": [len(table)]})
    epochs = table["epochs"].iloc[0]
    stated = "; ".join(f"{name(r.model)} {r.mean:.1f} % ({_seeds(r.n)})"
                       for r in table.sort_values(["depth", "width"]).itertuples()) + f"; after {epochs} epochs"
    verdict = _number_verdict(next(over_networks.itertuples()), claim["value"]) if epochs == PAPER_EPOCHS else NOT_RUN
    return title, claim["where"], f"{claim['value']:g} %", stated, verdict


# ----------------------------------------------------------------------------------------- provenance

def provenance(runs: Iterable[Run]) -> pd.DataFrame:
    """Where the numbers come from, one row a network, mode and device: epochs, seeds, hours, images/s, versions."""
    rows = pd.DataFrame([{
        "network": run.config.model, "trained": run.config.trainable,
        "epochs": run.config.epochs, "seed": run.config.seed, "hours": run.provenance["seconds"] / 3600,
        "images/s": run.provenance["images_per_second"], "device": run.provenance["device"],
        "precision": run.provenance["precision"], "torch": run.provenance["torch"],
        "code": str(run.provenance["commit"]),
    } for run in runs], columns=["network", "trained", "epochs", "seed", "hours", "images/s", "device", "precision",
                                 "torch", "code"])
    return rows.groupby(["network", "trained", "epochs", "device", "precision", "torch"], as_index=False).agg(
        seeds=("seed", _listed), hours=("hours", "sum"), **{"images/s": ("images/s", "median")}, code=("code", _listed))
