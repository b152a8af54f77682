"""Claims judged by pairs of runs: of two depths or widths, of two things trained, or with and without one change."""

import re
from collections.abc import Callable, Iterable
from itertools import pairwise

import pandas as pd

from bnlib import freeze
from bnlib.analysis import DEAD, plain
from bnlib.names import random_weights
from bnlib.profiles import variant
from bnlib.store import Run
from bnlib.verdicts.rules import (
    LITTLE,
    NOT_RUN,
    OURS,
    distance,
    judged_by_distance,
    model_and_seed,
    networks,
    networks_or_seeds,
    of_pairs,
    over_seeds,
    paired,
    percent_dead,
    percent_right,
    side_by_side,
)
from bnlib.wording import changed, gained, listed, name, trained

MANY = 4           # times as many parameters, which count as many times more
AS_MANY = 1.25     # factor by which numbers of parameters differ at most that count as about as many
NOTHING = 0.5      # points by which accuracy may change where it is said not to


def claims(runs: list[Run], sequences: list[Run], thresholds: pd.DataFrame | None) -> list[tuple]:
    """runs: those on the paper's images; sequences: those on sequences, where one claim is asked again."""
    protocol = plain(runs)
    return [
        _rises("BN only: deeper is better", "the paper, Fig. 2", protocol, "depth", fixed="width"),
        _rises("BN only: wider is better", "the paper, Fig. 2", protocol, "width", fixed="depth"),
        _beats("Training all parameters beats BN only", "the paper, Fig. 2", "everywhere", protocol, "bn", "all",
               percent_right),
        _beats("BN only beats two random weights a channel, as many parameters", "the paper, Sec. 4.2", "everywhere",
               protocol, "random2", "bn", percent_right),
        _random_weights_to_match(protocol),
        _beats(f"Freezing γ and β costs full training at most {LITTLE:g} points", "the paper, Fig. 1",
               "0.5 to 2 points", protocol, "all", "weights", percent_right, margin=LITTLE),
        *(_beats(title, OURS, "–", protocol, lower, upper, percent_right, units=networks_or_seeds) for
          title, lower, upper in (("γ alone does more than β alone", "beta", "gamma"),
                                  ("BN only does more than the output layer alone", "output", "bn"),
                                  ("BN only does more than shortcuts alone, weights, γ and β", "shortcut", "bn"))),
        _beats("Full training switches off fewer features", "the paper, Sec. 5", "fewer",
               [run for run in protocol if run.status == "done"], "all", "bn", percent_dead),
        _thresholds(thresholds),
        _matters_little(runs, "bn_init", "How γ and β start matters little"),
        _matters_little(runs, "conv_init", "How convolutions start matters little"),
        _differs("Training γ and β first, then everything, beats training everything for as many epochs", runs, "all",
                 "bn_first"),
        _differs(f"γ and β of group or layer norm alone do as well (within {LITTLE:g} points)", runs, "bn", "norm",
                 margin=LITTLE),
        _beats("On sequences too, γ and β do more than the output layer", OURS, "–", plain(sequences), "output", "bn",
               percent_right, units=networks_or_seeds),
        _as_many("At about as many parameters, a narrow network (two channels or more) trained in full beats BN only",
                 OURS, "–", _alone_or_narrow(protocol)),
        _as_many("BN only: at about as many parameters, deeper beats wider", "the paper, Fig. 3", "deeper",
                 _deeper_or_wider([run for run in protocol if run.config.trainable == "bn"])),
    ]


def _rises(title: str, where: str, runs: list[Run], by: str, fixed: str) -> tuple:
    """Whether BN-only accuracy rises with `by` from value to value, at one value of `fixed`, epochs and seed."""
    values, pairs, said = set(), [], []
    lines: dict[tuple, dict] = {}
    for run in runs:
        if run.config.trainable == "bn":
            key = (getattr(run.config, fixed), run.config.epochs, run.config.seed)
            lines.setdefault(key, {})[getattr(run.config, by)] = run
    for (_, epochs, seed), line in sorted(lines.items()):
        steps = [*pairwise(sorted(line))]
        values |= {value for step in steps for value in step}
        pairs += [(line[low], line[high]) for low, high in steps]
        gains = (f"{low} → {high} {gained(distance([(line[low], line[high])]).points)}" for low, high in steps)
        said += [f"{', '.join(gains)} ({epochs} epochs, seed {seed})"] if steps else []
    return title, where, "rises", *judged_by_distance(
        [distance([pair]) for pair in pairs], f"{by} {'; '.join(said)}", pairs, values)


def _beats(title: str, where: str, claim: str, runs: list[Run], lower: str, upper: str,
           measure: Callable[[Run], float], margin: float = 0.0, units: Callable[[Iterable], set] = networks) -> tuple:
    """Whether training `upper` measures more than training `lower` less a margin, by network, seed and epochs."""
    found = {(r.config.trainable, r.config.model, r.config.epochs, r.config.seed): r for r in runs}
    pairs = [(run, found[upper, *key]) for (what, *key), run in found.items()
             if what == lower and (upper, *key) in found]
    return title, where, claim, *paired(pairs, trained(lower), trained(upper), measure, margin, units)


def _deeper_or_wider(alone: list[Run]) -> list[tuple[Run, Run]]:
    """Each wide BN-only run beside the one of width 1 whose trained parameters are most nearly as many, where there is
    one with about as many, of one seed and number of epochs."""
    pairs = []
    for wide in (run for run in alone if run.config.width > 1):
        found = [run for run in alone if run.config.width == 1 and _when(run) == _when(wide)
                 and _factor(wide, run) <= AS_MANY]
        pairs += [(wide, min(found, key=lambda deep: _factor(wide, deep)))] if found else []
    return pairs


def _alone_or_narrow(runs: list[Run]) -> list[tuple[Run, Run]]:
    """Each BN-only run of width 1 beside the narrow network of `freeze.narrow`, trained in full, of one seed and number
    of epochs, where that has about as many parameters."""
    full = {(run.config.model, *_when(run)): run for run in runs if run.config.trainable == "all"}
    alone = [run for run in runs if run.config.trainable == "bn" and run.config.width == 1]
    partners = ((run, full.get((freeze.narrow(run.config.model), *_when(run)))) for run in alone)
    return [(run, partner) for run, partner in partners if partner and _factor(run, partner) <= AS_MANY]


def _factor(one: Run, other: Run) -> float:
    """By which the numbers of parameters that train differ."""
    either = one.metrics["parameters_trained"] / other.metrics["parameters_trained"]
    return max(either, 1 / either)


def _when(run: Run) -> tuple[int, int]:
    return run.config.epochs, run.config.seed


def _as_many(title: str, where: str, claim: str, pairs: list[tuple[Run, Run]]) -> tuple:
    """Whether the second run of each pair is more accurate, of two that train about as many parameters."""
    return title, where, claim, *judged_by_distance(
        [distance([pair]) for pair in pairs], side_by_side(pairs, percent_right), pairs,
        networks(model_and_seed(low) for low, _ in pairs))


def _random_weights_to_match(runs: list[Run]) -> tuple:
    """Whether it takes MANY times BN only's two, or more random weights a channel, to do more in the same seed.

    Judged by the smallest number below that does, or half of that number; else by the smallest from there on that
    does not. Where neither was tried, nothing is told.
    """
    enough = 2 * MANY
    title = f"Matching BN only takes many times more random weights ({enough} a channel or more)"
    where, claim = "the paper, Sec. 4.2", "many times"
    of_seed: dict[tuple, dict[int | str, Run]] = {}
    for run in runs:
        what = run.config.trainable
        if what == "bn" or re.fullmatch(r"random\d+", what):
            found = of_seed.setdefault((*model_and_seed(run), run.config.epochs), {})
            found[what if what == "bn" else random_weights(what)] = run
    pairs, said = [], []
    for (model, seed, epochs), found in of_seed.items():
        alone, tried = found.pop("bn", None), sorted(found)
        if alone is None or not tried:
            continue
        matching = [k for k in tried if percent_right(found[k]) > percent_right(alone)]
        less = [k for k in tried if not matching or k < matching[0]]
        telling = [k for k in matching if k < enough] or [k for k in tried if k == enough // 2]
        telling = telling or [k for k in less if k >= enough]
        if telling:
            pairs.append((found[telling[0]], alone))
            bounds = [f"more than {k}" for k in less[-1:]] + [f"at most {k}" for k in matching[:1]]
            said.append(f"{name(model)}, seed {seed}: {', '.join(bounds)} a channel, {epochs} epochs")
    return title, where, claim, *judged_by_distance(
        [distance([pair]) for pair in pairs], "; ".join(said), pairs, networks_or_seeds(map(model_and_seed, (
            alone for _, alone in pairs))))


def _thresholds(thresholds: pd.DataFrame | None) -> tuple:
    """Whether no BN-only network that has |γ| < 0.01 gains or loses over half a point when these are set to zero."""
    title = f"BN only: setting |γ| < {DEAD} to zero changes accuracy by {NOTHING:g} points or less"
    where = "the paper, Sec. 5"
    if thresholds is None or not len(thresholds):
        return title, where, "no change", "–", NOT_RUN
    of_bn = thresholds[thresholds["trainable"] == "bn"].set_index("run")
    without = of_bn[(of_bn["threshold"] == DEAD) & (of_bn["zeroed"] > 0)]
    change = (without["accuracy"] - of_bn[of_bn["threshold"] == 0]["accuracy"]).dropna().abs()
    if change.empty:
        return title, where, "no change", "–", NOT_RUN
    models = without["model"].unique()
    stated = (f"at most {change.max():.2f} points, over {len(change)} runs of {', '.join(map(name, models))}; "
              f"{listed(without['epochs'])} epochs")
    return title, where, "no change", stated, of_pairs([*(change <= NOTHING)], set(models))


def _changed(runs: list[Run], trainable: str, field: str) -> list[tuple[Run, Run]]:
    """Pairs of a run of the protocol and one that differs from it in this field alone, of one seed and epochs."""
    same = {(*model_and_seed(r), r.config.epochs): r for r in plain(runs) if r.config.trainable == trainable}
    return [(same[key], run) for run in runs
            if run.config.trainable == trainable and [*variant(run.config)] == [field]
            and (key := (*model_and_seed(run), run.config.epochs)) in same]


def _differs(title: str, runs: list[Run], trainable: str, field: str, margin: float = 0.0) -> tuple:
    """Whether runs that differ from the protocol in one field measure more than it, less a margin, seed by seed."""
    pairs = _changed(runs, trainable, field)
    values = listed(changed(variant(run.config)) for _, run in pairs)
    return title, OURS, "–", *paired(pairs, "the protocol", values, percent_right, margin, networks_or_seeds)


def _matters_little(runs: list[Run], field: str, title: str) -> tuple:
    """Whether BN-only accuracy stays, in the mean over seeds, within a margin of the protocol's as one field varies."""
    pairs = _changed(runs, "bn", field)
    within, said = [], []
    for group in over_seeds(pairs):
        away, config = distance(group).points, group[0][1].config
        within.append(distance(group, weights=(1, -1) if away > 0 else (-1, 1), margin=LITTLE))
        said.append(f"{changed(variant(config))}, {name(config.model)} {gained(away)}")
    return title, "the paper, appendix", f"under {LITTLE:g} points", *judged_by_distance(
        within, "; ".join(sorted(said)), pairs)
