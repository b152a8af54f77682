"""Runs in, sentences out: what was found, with every number computed."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from bnlib.analysis import (
    DEAD,
    PAPER_EPOCHS,
    accuracy,
    by_positions,
    dead_features,
    percent_dead,
    plain,
    published,
    residual_and_plain,
    taken_apart,
    varied,
)
from bnlib.store import Run
from bnlib.wording import SYMBOL, Sentences, half, listed, name, seeds_of, shown, spread, trained


def summary(runs: Iterable[Run], dataset: str = "cifar10") -> Sentences:
    """The answer on one set of images in at most five sentences, the longest training of each network and mode; every
    number computed."""
    everything = [run for run in runs if run.config.dataset == dataset]
    runs = [run for run in plain(everything) if run.config.width >= 1]             # not the narrow ones of 08_beyond
    table = accuracy(runs)
    table = table[table["n"] > 0].sort_values("epochs")
    of_bn = table[table["trainable"] == "bn"]
    if of_bn.empty:
        return Sentences(["No BN-only run is there yet."])
    return Sentences([*_alone(runs, table), *_scaling(of_bn), *_parts(table, everything), *_switched_off(everything),
                      *_without_shortcuts(everything)])


def progress(runs: Iterable[Run], planned: int) -> Sentences:
    """How many of the planned runs are there, how long each trained, and the hours they took."""
    runs = list(runs)
    epochs = pd.Series([run.config.epochs for run in runs], dtype=int).value_counts().sort_index()
    lengths = [f"{n} run{'s' * (n > 1)} of {e} epoch{'s' * (e > 1)}" for e, n in epochs.items()]
    lengths += [] if PAPER_EPOCHS in epochs else [f"none of the paper's {PAPER_EPOCHS} yet"]
    hours = sum(run.provenance["seconds"] for run in runs) / 3600
    return Sentences([f"{len(runs):,} of {planned:,} planned runs are there: {', '.join(lengths)}; {hours:.1f} hours."])


def _alone(runs: list[Run], table: pd.DataFrame) -> list[str]:
    """How far BN-only training carries the smallest network, and full training beside it."""
    row = next(table[table["trainable"] == "bn"].sort_values(["depth", "width"]).itertuples())
    of_model = table[table["model"] == row.model].iloc[::-1]                  # the longest training first
    alone, full = (", ".join(f"{spread(r)} after {r.epochs} epochs" for r in of_one.itertuples())
                   for of_one in (of_model[of_model["trainable"] == what] for what in ("bn", "all")))
    papers = published().query("source == 'Frankle et al. 2021' and trainable == 'bn'")
    theirs = papers[(papers["model"] == row.model) & (papers["dataset"] == row.dataset)]["value"].tolist()
    beside = [f"the paper: {theirs[0]:g} % after {PAPER_EPOCHS}"] if theirs else []
    classes = next(run.record["classes"] for run in runs)
    beside += [f"guessing: {100 / classes:.3g} %"]
    rest = f"; training all of them, {full}" if full else ""
    total = next(run.metrics["parameters"] for run in runs if run.config.model == row.model)
    share = f"{row.parameters:,} of its {total:,} parameters ({100 * row.parameters / total:.1f} %)"
    return [f"{name(row.model)} on {shown(row.dataset)}, training only γ and β, {share}, "
            f"reaches {alone} ({'; '.join(beside)}){rest}."]


def _scaling(of_bn: pd.DataFrame) -> list[str]:
    """How BN-only accuracy goes with depth and with width: for each length of training the line of most networks."""
    said = []
    for by, fixed, of in (("depth", "width", "layers"), ("width", "depth", "times the width")):
        lines = [max((group.sort_values(by) for _, group in of_one.groupby(fixed)), key=len)
                 for _, of_one in of_bn.groupby("epochs")]
        lines = [line for line in lines if len(line) > 1]
        if not lines:
            continue
        steps = np.concatenate([line["mean"].diff().dropna() for line in lines])
        goes = "rises" if (steps > 0).all() else "falls" if (steps < 0).all() else "rises and falls"
        found = "; ".join(f"{_row(line['mean'].map('{:.1f}'.format))} % at {_row(line[by])} {of} "
                          f"({line['epochs'].iloc[0]} epochs; seeds: {_row(line['n'])})" for line in reversed(lines))
        said.append(f"**with {by} it {goes}**: {found}")
    return [f"BN-only accuracy: {'; '.join(said)}."] if said else []


def _row(values: Iterable) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _parts(table: pd.DataFrame, everything: list[Run]) -> list[str]:
    """What γ alone, β alone and two random weights a channel reach, where most of these were trained for as long; and
    what normalisation and γ and β do where all else trains."""
    parts = table[table["trainable"].isin(("bn", "gamma", "beta", "random2", "output"))]
    (model, epochs), of_one = max(parts.groupby(["model", "epochs"]), key=lambda found: (len(found[1]), found[0][1]))
    if len(of_one) < 2:
        return []
    of_one = of_one.sort_values("mean", ascending=False)
    stated = ", ".join(f"{trained(row.trainable)} {spread(row)}" for row in of_one.itertuples())
    halves = [what for what in of_one["trainable"] if what in SYMBOL]
    more, less = (SYMBOL[what] for what in halves) if len(halves) == 2 else ("", "")
    lead = f"**{more} alone does more than {less} alone**" if more else "Part by part"
    return [f"{lead}: {name(model)}, {epochs} epochs: {stated}.{_halves(everything)}"]


def _halves(runs: list[Run]) -> str:
    """What normalisation alone and all of batch norm reach where all other weights train too, beside no batch norm."""
    table = by_positions(taken_apart(runs))
    parts = ("vanilla", "fixed_bn", "trained_bn")
    late = dict(zip(table["modification"], table["mean"], strict=True)) if len(table) else {}
    if not late.keys() >= {*parts} or table["model"].nunique() > 1:
        return ""
    stated = ", ".join(f"{half(part)} {late[part]:.1f} %" for part in parts)
    return (f" Where all other weights train too ({name(table['model'].iloc[0])}, {listed(table['epochs'])} epochs, "
            f"{seeds_of(table['n'].min())}): {stated}.")


def _switched_off(runs: list[Run]) -> list[str]:
    """The share of small |γ| after each length of training, in the mean over seeds: from the network with the fewest to
    that with most; and by the learning rate."""
    dead, shares = dead_features(run for run in plain(runs) if run.config.width >= 1), []
    for what in ("bn", "all"):
        found = [f"{_range(of_one['mean'])} % after {epochs} epochs{_alone_there(of_one)}"
                 for epochs, of_one in dead[dead["trainable"] == what].groupby("epochs")]
        shares += [f"training {trained(what)}, {' and '.join(found)}"] if found else []
    paper = published("share of features disabled").iloc[0]["value"]
    ours = dead[(dead["trainable"] == "bn") & (dead["epochs"] == PAPER_EPOCHS)]["mean"]
    fewer = ", more than in any of these" * bool(ours.max() < paper)
    return [f"**Features switched off**, |γ| below {DEAD} (at the start {100 * DEAD:g} % of channels): "
            f"{'; '.join(shares)}. The paper: about {paper:g} %, BN only, {PAPER_EPOCHS} epochs{fewer}.{_by_rate(runs)}"
            ] if shares else []


def _by_rate(runs: list[Run]) -> str:
    """The share under the lowest and the highest learning rate that the same network was trained with for as long."""
    rates = {(run.config.model, run.config.epochs, run.config.lr): run for run in varied(runs, "lr")
             if run.config.trainable == "bn" and run.status == "done"}
    most = Counter((model, epochs) for model, epochs, _ in rates).most_common(1)
    if not most or most[0][1] < 2:
        return ""
    model, epochs = most[0][0]
    ends = sorted(key for key in rates if key[:2] == (model, epochs))
    low, high = (f"{percent_dead(rates[key]):.1f} % at {key[2]:g}" for key in (ends[0], ends[-1]))
    return f" It goes with the learning rate: {low}, {high} ({name(model)}, {epochs} epochs, one seed)."


def _alone_there(dead: pd.DataFrame) -> str:
    """Of which network a share is, where it is of one."""
    return f" (of {name(dead['model'].iloc[0])} only, {seeds_of(dead['n'].iloc[0])})" if len(dead) == 1 else ""


def _without_shortcuts(runs: list[Run]) -> list[str]:
    """BN-only accuracy with shortcuts and without, at the depths at which both were trained for as long."""
    table = residual_and_plain(run for run in runs if run.config.trainable == "bn")
    both = table.dropna(subset=["residual, ours", "plain, ours"])
    if both.empty:
        return []
    longest = both[both["epochs"] == both["epochs"].max()]
    helped = (longest["residual, ours"] > longest["plain, ours"]).mean()
    lead = {1: "Shortcuts help", 0: "Shortcuts do not help"}.get(helped, "Shortcuts help at some depths")
    stated = "; ".join(f"at depth {row['depth']} {row['plain, ours']:.1f} % without them, "
                       f"{row['residual, ours']:.1f} % with them" for _, row in longest.iterrows())
    return [f"**{lead}**: training only γ and β reaches {stated} ({longest['epochs'].iloc[0]} epochs, "
            f"{seeds_of(longest['seeds'].min())})."]


def _range(values: pd.Series) -> str:
    return " to ".join(dict.fromkeys([f"{values.min():.1f}", f"{values.max():.1f}"]))
