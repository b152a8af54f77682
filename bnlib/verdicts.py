"""The verdict table: each claim of the paper, the rule by which runs decide it, and what they decide."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from bnlib.analysis import (
    DEAD,
    PAPER_EPOCHS,
    accuracy,
    alone_logged,
    course,
    dead_features,
    last_loss,
    optimizers,
    own_decay,
    percent_dead,
    plain,
    published,
    root_mean_square,
)
from bnlib.config import Config, parse_model, random_weights
from bnlib.freeze import narrow
from bnlib.profiles import PROFILES, variant
from bnlib.store import Run
from bnlib.wording import DECAY, NORM, OPTIMIZER, Sentences, changed, listed, machine, name, seeds_of, spread, trained

REPRODUCED, PARTLY, NOT, UNDECIDED, NOT_RUN = "reproduced", "partly", "not reproduced", "undecided", "not yet run"
ENOUGH = 3         # networks, depths, widths, or seeds of one network, on which an ordering must have been seen to hold
MANY = 4           # times as many parameters, which count as many times more
DEEP = 44          # layers from which depth may harm a plain network: He et al. 2015 compare 20 with 32, 44 and 56
CHANCE = 10.0      # percent right by guessing among CIFAR-10's classes
LITTLE = 2.0       # points of accuracy that count as little
FASTER = 0.05      # nats of training loss that count as ahead
WITH_AND_WITHOUT = ("batch", "none")       # values of `norm`: with batch norm and without


def table(runs: Iterable[Run], dataset: str = "cifar10", thresholds: pd.DataFrame | None = None,
          equality: pd.DataFrame | None = None) -> pd.DataFrame:
    """The verdict table: claim, where the paper makes it, its number, ours, verdict; every verdict by a rule in code.

    A published number is reproduced if our mean over three seeds or more, at the paper's 160 epochs, is within two
    standard errors plus two points; partly, within twice that, or of fewer seeds. An ordering is reproduced if it holds
    in every pair of runs of one seed and one number of epochs, on three networks or more; where the report asks it of
    one network, in three seeds or more; partly, in more than half of the pairs, or on fewer; else it is not, be it by
    one pair. That something matters little, or changes nothing, is an ordering with a margin. It is undecided, whatever
    the pairs say, where their mean distance in accuracy from the line between yes and no is within two standard errors
    of such a mean, by the deviation of runs that differ in seed alone. Of speed, the training loss after the same steps
    decides, on one network; sets of images count there as networks do.
    The paper's numbers are those of CIFAR-10, and one of ImageNet, which is judged from the runs on ImageNet, after the
    90 epochs of its protocol; on another dataset only the orderings are judged.
    thresholds: from `features.thresholds`, for the claim that needs the networks and the images. equality: from
    `numpy_nn.check.bars`, for the one that needs the networks in NumPy.
    """
    runs = list(runs)
    large = accuracy((run for run in plain(runs) if run.config.dataset == "imagenet"
                      and "test_top5_accuracy" in run.metrics), "test_top5_accuracy")
    sequences = [run for run in plain(runs) if run.config.dataset == "sequences" and run.status == "done"]
    deep = _four_ways(runs)
    runs = [run for run in runs if run.config.dataset == dataset]
    done = [run for run in runs if run.status == "done"]
    protocol = plain(done)
    paper = published().query("source == 'Frankle et al. 2021' and dataset == @dataset").iloc[::-1]
    rows = [_number(accuracy(plain(runs)), claim) for claim in paper.itertuples()]
    rows += [_number(large, claim, PROFILES["paper"]["large"]["epochs"])
             for claim in published("top-5 accuracy", "imagenet").itertuples()]
    rows += [
        _rises("BN only: deeper is better", "Fig. 2", protocol, "depth", fixed="width"),
        _rises("BN only: wider is better", "Fig. 3", protocol, "width", fixed="depth"),
        _beats("Training all parameters beats BN only", "Fig. 2", "everywhere", protocol, "bn", "all", percent_right),
        _beats("BN only beats two random weights a channel, as many parameters", "Sec. 4.2", "everywhere", protocol,
               "random2", "bn", percent_right),
        _random_weights_to_match(protocol),
        _beats(f"Freezing γ and β costs full training little (under {LITTLE:g} points)", "Sec. 4", "everywhere",
               protocol, "all", "weights", percent_right, margin=LITTLE),
        _beats("γ alone does more than β alone", "this report", "–", protocol, "beta", "gamma", percent_right,
               units=networks_or_seeds),
        _dead_share(protocol),
        _beats("Full training switches off fewer features", "Sec. 5", "fewer", protocol, "all", "bn", percent_dead),
        _thresholds(thresholds),
        *(_matters_little(done, field, title) for field, title in (
            ("bn_init", "How γ and β start matters little"), ("conv_init", "How convolutions start matters little"))),
        _differs("Training γ and β first, then everything, beats training everything", done, "all", "bn_first"),
        _differs(f"γ and β of group or layer norm alone do as well (within {LITTLE:g} points)", done, "bn", "norm",
                 margin=LITTLE),
        _beats("On sequences too, γ and β do more than the output layer", "this report", "–", sequences, "output",
               "bn", percent_right, units=networks_or_seeds),
        _narrow_beats(protocol),
        _fewer_passes(runs),
        _no_more_accurate(runs),
        _norm_matters_most(deep),
        _no_faster(deep),
        _decay_restrains(done),
        *_shortcuts(done),
        _equal(equality),
    ]
    noise = seed_noise(done)
    rows = [(*row[:3], *_decided(*row[3:], noise=noise)) for row in rows]
    table = pd.DataFrame(rows, columns=["claim", "where", "published", "ours", "verdict"])
    decided_first = table.sort_values(
        "verdict", key=lambda v: v.map([REPRODUCED, PARTLY, NOT, UNDECIDED, NOT_RUN].index), kind="stable")
    return decided_first[["claim", "verdict", "ours", "published", "where"]].reset_index(drop=True)


def open_questions(table: pd.DataFrame) -> Sentences:
    """The claims that the verdict table does not call reproduced, each with what there is on it; last, in one sentence,
    those on which there is nothing yet."""
    nothing = table["ours"] == "–"
    said = Sentences(f"**{row.claim}**: {row.verdict}; {row.ours}." for verdict in (NOT, PARTLY, UNDECIDED, NOT_RUN)
                     for row in table[(table["verdict"] == verdict) & ~nothing].itertuples())
    if nothing.any():
        said.append(f"**Nothing yet on**: {'; '.join(table['claim'][nothing])}.")
    return said


def percent_right(run: Run) -> float:
    return 100 * run.metrics["test_accuracy"]


def networks(pairs: Iterable[tuple[str, int]]) -> set:
    """The networks of pairs of network and seed."""
    return {model for model, _ in pairs}


def networks_or_seeds(pairs: Iterable[tuple[str, int]]) -> set:
    """The networks, or the seeds of one network, whichever are more: two networks in two seeds are neither three
    networks nor three seeds."""
    pairs = set(pairs)
    seeds = [{seed for other, seed in pairs if other == model} for model in networks(pairs)]
    return max(networks(pairs), *seeds, key=len) if pairs else set()


def model_and_seed(run: Run) -> tuple[str, int]:
    return run.config.model, run.config.seed


# ------------------------------------------------------------------------------------- published numbers

def _number_verdict(row, value: float) -> str:
    if not row.n:                                      # all seeds diverged
        return NOT
    allowed = 2 * (0 if np.isnan(row.std) else row.std / np.sqrt(row.n)) + 2
    away = abs(row.mean - value)
    return REPRODUCED if away <= allowed and row.n >= ENOUGH else PARTLY if away <= 2 * allowed else NOT


def _number(table: pd.DataFrame, claim, epochs: int = PAPER_EPOCHS) -> tuple:
    title = f"{name(claim.model)}, {trained(claim.trainable)}: {claim.metric}"
    ours = table[(table["model"] == claim.model) & (table["trainable"] == claim.trainable)].sort_values("epochs")
    at_the_papers = ours[ours["epochs"] == epochs]
    row = next((at_the_papers if len(at_the_papers) else ours.iloc[::-1]).itertuples(), None)
    stated = f"{spread(row)} after {row.epochs} epochs on {machine(row.devices)}" if row else "–"
    verdict = _number_verdict(row, claim.value) if len(at_the_papers) else NOT_RUN
    return title, claim.where, f"{claim.value:g} %", stated, verdict


def _dead_share(runs: list[Run]) -> tuple:
    """The share in each BN-only network of the longest training, judged as a published number; the worst counts."""
    claim = published("share of features disabled").iloc[0]
    title = f"BN only switches features off: share of |γ| < {DEAD}"
    table = dead_features([r for r in runs if r.config.trainable == "bn"])
    table = table[table["epochs"] == table["epochs"].max()]
    if table.empty:
        return title, claim["where"], f"{claim['value']:g} %", "–", NOT_RUN
    epochs = table["epochs"].iloc[0]
    stated = "; ".join(f"{name(r.model)} {r.mean:.1f} % ({seeds_of(r.n)})"
                       for r in table.sort_values(["depth", "width"]).itertuples()) + f"; after {epochs} epochs"
    found = {_number_verdict(row, claim["value"]) for row in table.itertuples()}
    worst = next(verdict for verdict in (NOT, PARTLY, REPRODUCED) if verdict in found)
    verdict = NOT_RUN if epochs != PAPER_EPOCHS else PARTLY if worst == REPRODUCED and len(table) < ENOUGH else worst
    return title, claim["where"], f"{claim['value']:g} %", stated, verdict


# --------------------------------------------------------------------------------------------- orderings

def _pairs_verdict(holds: list[bool], units: set) -> str:
    """units: networks, or seeds, in which the pairs differ."""
    if not holds:
        return NOT_RUN
    if all(holds) and len(units) >= ENOUGH:
        return REPRODUCED
    return PARTLY if np.mean(holds) > 0.5 else NOT


def _judged(holds: list[bool], said: str, runs: list[Run], units: set | None = None) -> tuple[str, str]:
    """What is stated of pairs and their verdict. runs: one of each pair; units: None for its networks or seeds."""
    if not holds:
        return "–", NOT_RUN
    seeds, epochs = (listed(getattr(run.config, field) for run in runs) for field in ("seed", "epochs"))
    images = {run.config.n_train for run in runs}
    stated = (f"in {sum(holds)} of {len(holds)} pairs; {said}; seed{'s' * (',' in seeds)} {seeds}; "
              f"{epochs} epoch{'s' * (epochs != '1')}" + (f" of {min(images):,} images" if all(images) else ""))
    return stated, _pairs_verdict(holds, networks_or_seeds(map(model_and_seed, runs)) if units is None else units)


@dataclasses.dataclass(frozen=True)
class Distance:
    """By how many points of accuracy a pair of runs is on the side of a claim, below 0 on the other; and what of each
    run trained."""

    points: float
    trained: tuple[str, str]


def _judged_by_accuracy(distances: list[float], said: str, pairs: list[tuple[Run, Run]],
                        units: set | None = None) -> tuple[str, str, list[Distance]]:
    """`_judged`, and the distances, by which `_decided` says whether they are more than what seeds make."""
    stated, verdict = _judged([distance >= 0 for distance in distances], said, [first for first, _ in pairs], units)
    return stated, verdict, [Distance(distance, (a.config.trainable, b.config.trainable))
                             for distance, (a, b) in zip(distances, pairs, strict=True)]


def seed_noise(runs: Iterable[Run]) -> dict[str, float]:
    """What trains → the standard deviation of test accuracy, in points, between runs that differ in seed alone, pooled
    over all configs that have several; under "" over all of these."""
    of_config: dict[Config, list[float]] = {}
    for run in runs:
        of_config.setdefault(dataclasses.replace(run.config, seed=0), []).append(percent_right(run))
    several = [(config.trainable, len(right) - 1, np.var(right, ddof=1))
               for config, right in of_config.items() if len(right) > 1]
    pooled = pd.DataFrame([(what, *found) for trainable, *found in several for what in (trainable, "")],
                          columns=["trainable", "weight", "variance"])
    return {what: float(np.sqrt(np.average(part["variance"], weights=part["weight"])))
            for what, part in pooled.groupby("trainable")}


def _decided(stated: str, verdict: str, distances: Sequence[Distance] = (), *,
             noise: dict[str, float]) -> tuple[str, str]:
    """What is stated and the verdict as they are, or undecided: the mean of the distances, where accuracy judged, is
    within two standard errors of a mean of so many differences."""
    if not distances or not noise:
        return stated, verdict
    variances = [noise.get(what, noise[""]) ** 2 for distance in distances for what in distance.trained]
    allowed = 2 * np.sqrt(np.sum(variances)) / len(distances)
    if abs(np.mean([distance.points for distance in distances])) > allowed:
        return stated, verdict
    return f"{stated}; seeds alone make {allowed:.1f} points", UNDECIDED


def _rises(title: str, where: str, runs: list[Run], by: str, fixed: str) -> tuple:
    """Whether BN-only accuracy rises with `by` from value to value, at one value of `fixed`, epochs and seed."""
    rises, values, pairs = [], set(), []
    lines: dict[tuple, dict] = {}
    for run in runs:
        if run.config.trainable == "bn":
            key = (getattr(run.config, fixed), run.config.epochs, run.config.seed)
            lines.setdefault(key, {})[getattr(run.config, by)] = run
    for line in lines.values():
        for low, high in pairwise(sorted(line)):
            rises.append(percent_right(line[high]) - percent_right(line[low]))
            values |= {low, high}
            pairs.append((line[low], line[high]))
    return title, where, "rises", *_judged_by_accuracy(rises, f"{by} {listed(values)}", pairs, values)


def _beats(title: str, where: str, claim: str, runs: list[Run], lower: str, upper: str,
           measure: Callable[[Run], float], margin: float = 0.0, units: Callable[[Iterable], set] = networks) -> tuple:
    """Whether training `upper` measures more than training `lower` less a margin, by network, seed and epochs."""
    found = {(r.config.trainable, r.config.model, r.config.epochs, r.config.seed): r for r in runs}
    pairs = [(run, found[upper, *key]) for (what, *key), run in found.items()
             if what == lower and (upper, *key) in found]
    return title, where, claim, *_paired(pairs, trained(lower), trained(upper), measure, margin, units)


def _paired(pairs: list[tuple[Run, Run]], lower: str, upper: str, measure: Callable[[Run], float],
            margin: float = 0.0, units: Callable[[Iterable], set] = networks) -> tuple:
    """What is stated and the verdict, on whether the second run of each pair measures more than the first."""
    lows, highs = ([measure(run) for run in side] for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    ahead = [high - low + margin for low, high in zip(lows, highs, strict=True)]
    models = [low.config.model for low, _ in pairs]
    means = ", ".join(f"{name(model)} {row['high']:.1f} against {row['low']:.1f} %" for model, row in pd.DataFrame(
        {"low": lows, "high": highs}, dtype=float).groupby(models, sort=False).mean().iterrows())
    runs, said = [low for low, _ in pairs], f"{upper} against {lower}: {means}"
    if measure is percent_right:
        return _judged_by_accuracy(ahead, said, pairs, units(map(model_and_seed, runs)))
    return _judged([points > 0 for points in ahead], said, runs, units(map(model_and_seed, runs)))


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
    return title, "this report", "–", *_paired(pairs, "the protocol", values, percent_right, margin,
                                               networks_or_seeds)


def _narrow_beats(runs: list[Run]) -> tuple:
    """Whether a narrow network of which all trains beats BN-only training of about as many parameters."""
    full = {(r.config.model, r.config.epochs, r.config.seed): r for r in runs if r.config.trainable == "all"}
    pairs = [(run, full[key]) for run in runs
             if run.config.trainable == "bn" and run.config.width == 1
             and (key := (narrow(run.config.model), run.config.epochs, run.config.seed)) in full]
    return ("At about as many trained parameters, a narrow network trained in full beats BN only", "this report", "–",
            *_paired(pairs, "BN only", "narrow", percent_right))


# ------------------------------------------------------------------------------------------ shortcuts

def _shortcuts(runs: list[Run]) -> list[tuple]:
    """What shortcuts are good for: claims of He et al. 2015 on full training, and the question of BN only without them.

    Depth is judged between the shallowest and the deepest network of a line of one seed and one number of epochs, at
    the depths that both kinds were trained at, the deepest DEEP layers or more. BN only survives without shortcuts if
    the plain network keeps half of what the residual one has above chance.
    """
    where, unvaried = "He et al. 2015", [run for run in runs if not variant(run.config)]
    plain_ones, residual = ([run for run in unvaried if parse_model(run.config.model).family == family]
                            for family in ("plain", "resnet"))
    option_a = [run for run in runs if variant(run.config) == {"shortcut": "A"}]
    both = set(map(_place, plain_ones)) & set(map(_place, residual))

    def survives(low: float, high: float) -> float:
        return low - CHANCE - (high - CHANCE) / 2

    return [
        _ends("Full training of plain networks: the deepest loses to the shallowest", where, "loses",
              [run for run in plain_ones if _place(run) in both], lambda shallow, deep: shallow - deep),
        _ends("Full training of residual networks: the deepest does not lose to it", where, "does not",
              [run for run in residual if _place(run) in both], lambda shallow, deep: deep - shallow),
        _matched("Shortcuts with a convolution (B) do at least as well as with zeros (A)",
                 "He et al. 2015, on ImageNet", "B ≥ A", option_a,
                 residual, ("model", "trainable"), ("A", "B"), lambda a, b: b - a),
        _matched("BN only survives without shortcuts", "this report", "–",
                 *([r for r in side if r.config.trainable == "bn"] for side in (plain_ones, residual)),
                 ("depth", "width"), ("plain", "residual"), survives),
    ]


def _ends(title: str, where: str, claim: str, runs: list[Run], ahead: Callable[[float, float], float]) -> tuple:
    """Whether a claim on the shallowest and the deepest network holds, of width 1, at one seed and number of epochs.

    ahead: by how many points the two accuracies are on the side of the claim.
    """
    lines: dict[tuple, list[Run]] = {}
    for run in runs:
        if run.config.trainable == "all" and run.config.width == 1:
            lines.setdefault((run.config.epochs, run.config.seed), []).append(run)
    ordered = [sorted(line, key=lambda run: run.config.depth) for line in lines.values()]
    used = [line for line in ordered if line[0].config.depth < DEEP <= line[-1].config.depth]
    found = [ahead(percent_right(line[0]), percent_right(line[-1])) for line in used]
    ends = [(line[0], line[-1]) for line in used]
    said = "; ".join(f"depth {low.config.depth} {percent_right(low):.1f} %, {high.config.depth} "
                     f"{percent_right(high):.1f} %" for low, high in ends)
    return title, where, claim, *_judged_by_accuracy(found, said, ends, {low.config.seed for low, _ in ends})


def _matched(title: str, where: str, claim: str, lower: list[Run], upper: list[Run], alike: tuple[str, ...],
             names: tuple[str, str], ahead: Callable[[float, float], float]) -> tuple:
    """Whether a claim holds on each pair of runs, a lower and an upper, that are `alike`, of one seed and epochs.

    ahead: as of `_ends`.
    """
    def key(run: Run) -> tuple:
        return tuple(getattr(run.config, field) for field in (*alike, "epochs", "seed"))

    others = {key(run): run for run in upper}
    pairs = [(run, others[key(run)]) for run in lower if key(run) in others]
    numbers = [tuple(map(percent_right, pair)) for pair in pairs]
    found = [ahead(low, high) for low, high in numbers]
    means = np.mean(numbers, 0) if pairs else ()
    said = ", ".join(f"{side} {mean:.1f} %" for side, mean in zip(names, means, strict=False))
    return title, where, claim, *_judged_by_accuracy(found, f"in the mean {said}", pairs)


def _place(run: Run) -> tuple:
    """Where a run stands in a comparison of two kinds of networks."""
    return run.config.depth, run.config.width, run.config.trainable, run.config.epochs, run.config.seed


# ------------------------------------------------------------------------------------------ other claims

def _random_weights_to_match(runs: list[Run]) -> tuple:
    """How many random weights a channel reach BN only of the same seed: four times its two, or more.

    Told only where half as many were tried and did not; or where none matches and four times two were tried.
    """
    title, where, claim = "Matching BN only takes many times more random weights", "Sec. 4.2", "many times"
    of_seed: dict[tuple, dict[str, float]] = {}
    for run in runs:
        of_seed.setdefault((*model_and_seed(run), run.config.epochs), {})[run.config.trainable] = percent_right(run)
    many, said, units = [], [], set()
    for (model, seed, epochs), right in of_seed.items():
        tried = sorted(random_weights(what) for what in right if re.fullmatch(r"random\d+", what))
        if "bn" not in right or not tried:
            continue
        matching = [k for k in tried if right[f"random{k}"] >= right["bn"]]
        skipped = matching and matching[0] > 2 and matching[0] // 2 not in tried
        if skipped or (not matching and tried[-1] < MANY * 2):
            continue
        many.append(not matching or matching[0] >= MANY * 2)
        less = [k for k in tried if not matching or k < matching[0]]
        bounds = [f"more than {k}" for k in less[-1:]] + [f"at most {k}" for k in matching[:1]]
        said.append(f"{name(model)}, seed {seed}: {', '.join(bounds)} a channel, {epochs} epochs")
        units.add((model, seed))
    return title, where, claim, "; ".join(said) or "–", _pairs_verdict(many, networks_or_seeds(units))


def _thresholds(thresholds: pd.DataFrame | None) -> tuple:
    """Whether no BN-only network that has |γ| < 0.01 gains or loses over half a point when these are set to zero."""
    title, where = f"BN only: setting |γ| < {DEAD} to zero changes nothing", "Sec. 5"
    if thresholds is None or not len(thresholds):
        return title, where, "no change", "–", NOT_RUN
    of_bn = thresholds[thresholds["trainable"] == "bn"].set_index("run")
    without = of_bn[(of_bn["threshold"] == DEAD) & (of_bn["zeroed"] > 0)]
    change = (without["accuracy"] - of_bn[of_bn["threshold"] == 0]["accuracy"]).dropna().abs()
    if change.empty:
        return title, where, "no change", "–", NOT_RUN
    networks = without["model"].unique()
    stated = (f"at most {change.max():.2f} points, over {len(change)} runs of {', '.join(map(name, networks))}; "
              f"{listed(without['epochs'])} epochs")
    return title, where, "no change", stated, _pairs_verdict([*(change <= 0.5)], set(networks))


def _equal(equality: pd.DataFrame | None) -> tuple:
    """NumPy equals torch: reproduced if no deviation is larger than its bar."""
    title, where, claim = "Outputs, gradients and training of the networks in NumPy equal torch's", "this report", "–"
    if equality is None or not {"outputs", "gradients", "training"} <= set(equality["compared"]):
        return title, where, claim, "–", NOT_RUN
    stated = "; ".join(f"{row.compared} to {row.deviation:.0e} (bar {row.bar:.0e})" for row in equality.itertuples())
    return title, where, claim, stated, REPRODUCED if (equality["deviation"] <= equality["bar"]).all() else NOT


def _matters_little(runs: list[Run], field: str, title: str) -> tuple:
    """Whether BN-only accuracy stays within a margin of the protocol's, seed by seed, when one field is varied."""
    pairs = _changed(runs, "bn", field)
    away = pd.Series({run.id: percent_right(run) - percent_right(same) for same, run in pairs}, dtype=float)
    means = away.groupby([f"{changed(variant(run.config))}, {name(run.config.model)}" for _, run in pairs]).mean()
    said = "; ".join(f"{what} {points:+.1f}" for what, points in means.items()) + " points"
    return title, "appendix", f"under {LITTLE:g} points", *_judged_by_accuracy(
        [*(LITTLE - away.abs())], said, pairs)


# ------------------------------------------------------------------------------------------- optimizers

def _of_two(runs: list[Run], first: str, second: str) -> list[tuple[Run, Run]]:
    """Pairs of runs of two optimizers, each at what the validation images chose, at the same task and seed."""
    by_id, table = {run.id: run for run in runs}, optimizers(own_decay(runs))
    found = {(row.optimizer, row.task, row.length, row.seed): by_id[row.run]
             for row in table[table["chosen"]].itertuples()}
    return [(run, found[second, *key]) for (kind, *key), run in found.items()
            if kind == first and (second, *key) in found]


def _fewer_passes(runs: list[Run]) -> tuple:
    """Whether LBFGS comes in fewer passes to the test loss that both reach, BN only: the higher of their last."""
    pairs = _of_two([run for run in runs if run.config.trainable == "bn"], "lbfgs", "sgd")
    holds, said = [], []
    for courses in ([course(run) for run in pair] for pair in pairs):
        level = max(each["test_loss"].iloc[-1] for each in courses)
        took = [each[each["test_loss"] <= level]["passes"].iloc[0] for each in courses]
        holds.append(took[0] < took[1])
        said.append(f"{took[0]:.0f} passes, SGD {took[1]:.0f}, to a test loss of {level:.2f}")
    return ("LBFGS converges in fewer passes, BN only", "LBFGS study", "faster",
            *_judged(holds, "; ".join(said), [lbfgs for lbfgs, _ in pairs]))


def _no_more_accurate(runs: list[Run]) -> tuple:
    """Whether AdaBound's test accuracy is at most LITTLE above Adam's, each at what the validation images chose."""
    pairs = _of_two(runs, "adabound", "adam")
    ahead = [percent_right(adam) + LITTLE - percent_right(adabound) for adabound, adam in pairs]
    said = "; ".join(f"{trained(a.config.trainable)}: {percent_right(a):.1f} %, Adam {percent_right(b):.1f} %"
                     for a, b in pairs)
    return (f"AdaBound is no better than Adam (within {LITTLE:g} points)", "NumPy ResNet-101 study", "no gain seen",
            *_judged_by_accuracy(ahead, said, pairs))


def _no_faster(deep: list[dict[tuple[str, str], Run]]) -> tuple:
    """Whether AdaBound's loss after the same steps is at most FASTER below Adam's, where either is below guessing."""
    def learns(run: Run) -> bool:
        return last_loss(run) < np.log(run.record["classes"]) - FASTER

    pairs = [(four[norm, "adabound"], four[norm, "adam"]) for four in deep for norm in WITH_AND_WITHOUT]
    pairs = [pair for pair in pairs if any(map(learns, pair))]
    holds = [last_loss(adabound) >= last_loss(adam) - FASTER for adabound, adam in pairs]
    said = "; ".join(f"{NORM[a.config.norm]}: loss {last_loss(a):.2f}, Adam {last_loss(b):.2f}" for a, b in pairs)
    return (f"AdaBound is no faster than Adam where they learn (within {FASTER:g} nats)", "NumPy ResNet-101 study",
            "no gain seen", *_judged(holds, said, [a for a, _ in pairs], {a.config.dataset for a, _ in pairs}))


def _four_ways(runs: list[Run]) -> list[dict[tuple[str, str], Run]]:
    """(norm, optimizer) → the run of the lowest `last_loss`, of those that differ in the optimizer's setting alone: a
    dict for each comparison of all four."""
    found: dict[Config, dict] = {}
    for run in alone_logged(runs):
        c = run.config
        if c.norm in WITH_AND_WITHOUT and c.optimizer in ("adam", "adabound"):
            of_one = found.setdefault(dataclasses.replace(
                c, norm="batch", optimizer="adam", optimizer_options="", lr=None), {})
            best = of_one.setdefault((c.norm, c.optimizer), run)
            of_one[c.norm, c.optimizer] = min(best, run, key=last_loss)
    return [four for four in found.values() if len(four) == 4]


def _norm_matters_most(deep: list[dict[tuple[str, str], Run]]) -> tuple:
    """Whether batch norm lowers the loss after the same steps by more than either optimizer is ahead of the other."""
    holds, said, used = [], [], []
    for four in deep:
        loss = {key: last_loss(run) for key, run in four.items()}
        pairs = [(loss[norm, "adam"], loss[norm, "adabound"]) for norm in WITH_AND_WITHOUT]
        between = max(0 if adam == adabound else abs(adam - adabound) for adam, adabound in pairs)
        for optimizer in ("adam", "adabound"):
            holds.append(loss["none", optimizer] - loss["batch", optimizer] > between)
            said.append(f"{OPTIMIZER[optimizer]}: loss {loss['batch', optimizer]:.2f}, without batch norm "
                        f"{loss['none', optimizer]:.2f}")
            used.append(four["batch", optimizer])
    return ("Batch norm matters more for speed than the choice of Adam or AdaBound", "NumPy ResNet-101 study", "most",
            *_judged(holds, "; ".join(said), used, {run.config.dataset for run in used}))


def _decay_restrains(runs: list[Run]) -> tuple:
    """Whether BN only ends with a smaller β (root mean square) where weight decay acts on β than where on nothing."""
    def key(config, decay):
        return dataclasses.replace(config, decay=decay)

    found = {run.config: run for run in runs if run.config.trainable == "bn"}
    pairs = [(run, found[key(run.config, "none")]) for run in found.values()
             if run.config.decay in ("beta", "all") and key(run.config, "none") in found]
    sizes = [[root_mean_square(run.beta) for run in pair] for pair in pairs]
    holds = [with_it < without for with_it, without in sizes]
    means = "; ".join(f"β {with_it:.2f} with decay {DECAY[run.config.decay]}, "
                      f"{without:.2f} without" for (run, _), (with_it, without) in zip(pairs, sizes, strict=True))
    return ("Weight decay on β restrains its growth, BN only", "LBFGS study", "β too large",
            *_judged(holds, means, [run for run, _ in pairs]))
