"""The rules by which runs decide a claim: against a number, by pairs of runs, and within the noise that seeds make."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from bnlib.config import Config
from bnlib.profiles import seedless
from bnlib.store import Run
from bnlib.wording import gained, listed, name

REPRODUCED, PARTLY, NOT, UNDECIDED, NOT_RUN = "reproduced", "partly", "not reproduced", "undecided", "not yet run"
VERDICTS = [REPRODUCED, PARTLY, NOT, UNDECIDED, NOT_RUN]       # as the table sorts them
OURS = "this report"       # where a claim is made that is nobody else's
#: What a claim of our own is called where another's would be reproduced or not.
OF_OUR_OWN = {REPRODUCED: "holds", NOT: "does not hold"}
ENOUGH = 3         # networks, depths, widths, or seeds of one network, below which nothing is reproduced, nor is it not
LITTLE = 2.0       # points of accuracy that count as little


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


def against_number(row, value: float) -> str:
    if not row.n:                                      # all seeds diverged
        return NOT
    allowed = 2 * (0 if np.isnan(row.std) else row.std / np.sqrt(row.n)) + 2
    away = abs(row.mean - value)
    if away <= 2 * allowed:
        return REPRODUCED if away <= allowed and row.n >= ENOUGH else PARTLY
    return NOT if row.n >= ENOUGH else UNDECIDED


def of_pairs(holds: list[bool], units: set, against: set | None = None) -> str:
    """units: networks, or seeds, in which the pairs differ, of which a claim must hold on enough; against: if others,
    those of which it must fail on enough."""
    if not holds:
        return NOT_RUN
    if np.mean(holds) > 0.5:
        return REPRODUCED if all(holds) and len(units) >= ENOUGH else PARTLY
    return NOT if len(units if against is None else against) >= ENOUGH else UNDECIDED


def judged(holds: list[bool], said: str, runs: list[Run], units: set | None = None) -> tuple[str, str]:
    """What is stated of pairs and their verdict. runs: one of each pair; units: None for its networks or seeds."""
    if not holds:
        return "–", NOT_RUN
    seeds, epochs = (listed(getattr(run.config, field) for run in runs) for field in ("seed", "epochs"))
    images = {run.config.n_train for run in runs}
    stated = (f"in {sum(holds)} of {len(holds)} pairs; {said}; seed{'s' * (',' in seeds)} {seeds}; "
              f"{epochs} epoch{'s' * (epochs != '1')}" + (f" of {min(images):,} images" if all(images) else ""))
    either = networks_or_seeds(map(model_and_seed, runs))       # a claim on networks fails as well in seeds of one
    units = either if units is None else units
    return stated, of_pairs(holds, units, max(units, either, key=len))


@dataclasses.dataclass(frozen=True)
class Distance:
    """By how many points of accuracy a pair of runs is on the side of a claim, below 0 on the other; and how many of
    them a point more of either run makes."""

    points: float
    runs: tuple[Run, Run]
    weights: tuple[float, float]


def judged_by_accuracy(distances: list[float], said: str, pairs: list[tuple[Run, Run]], units: set | None = None,
                       weights: Sequence[tuple[float, float]] | None = None) -> tuple[str, str, list[Distance]]:
    """`judged`, and the distances, by which `decided` says whether they are more than what seeds make.

    weights: of each pair's runs in its distance; None: that is the second less the first. A run that diverged counts
    by what its network still guesses right.
    """
    diverged = {run.id for pair in pairs for run in pair if run.status == "diverged"}
    said += f"; {len(diverged)} of these runs diverged" * bool(diverged)
    stated, verdict = judged([distance >= 0 for distance in distances], said, [first for first, _ in pairs], units)
    weights = [(-1, 1)] * len(pairs) if weights is None else weights
    return stated, verdict, [Distance(*each) for each in zip(distances, pairs, weights, strict=True)]


def seed_noise(runs: Iterable[Run]) -> dict[str, float]:
    """What trains → the standard deviation of test accuracy, in points, between runs that differ in seed alone, pooled
    over all configs and precisions that have several; under "" over all of these."""
    alike: dict[tuple[Config, str], list[float]] = {}
    for run in runs:
        key = seedless(run.config), run.provenance["precision"]
        alike.setdefault(key, []).append(percent_right(run))
    several = [(config.trainable, len(right) - 1, np.var(right, ddof=1))
               for (config, _), right in alike.items() if len(right) > 1]
    pooled = pd.DataFrame([(what, *found) for trainable, *found in several for what in (trainable, "")],
                          columns=["trainable", "weight", "variance"])
    return {what: float(np.sqrt(np.average(part["variance"], weights=part["weight"])))
            for what, part in pooled.groupby("trainable")}


def decided(stated: str, verdict: str, distances: Sequence[Distance] = (), *,
             noise: dict[str, float]) -> tuple[str, str]:
    """What is stated and the verdict as they are, or undecided, where accuracy judged: because the mean of the
    distances is within two standard errors of what seeds make of it, or on the other side than most of them."""
    if not distances or not noise:
        return stated, verdict
    variance: dict[str, float] = {}
    weight: Counter = Counter()
    for distance in distances:
        for run, share in zip(distance.runs, distance.weights, strict=True):
            variance[run.id] = noise.get(run.config.trainable, noise[""]) ** 2
            weight[run.id] += share                  # pairs that share a run go up and down together
    allowed = 2 * np.sqrt(sum(weight[run] ** 2 * variance[run] for run in weight)) / len(distances)
    mean = np.mean([distance.points for distance in distances])
    if abs(mean) <= allowed:
        return f"{stated}; a change of seeds alone makes {allowed:.1f} points", UNDECIDED
    if (mean > 0) is not (np.mean([distance.points >= 0 for distance in distances]) > 0.5):
        return f"{stated}; but {gained(mean)} in the mean of the pairs", UNDECIDED
    return stated, verdict


def paired(pairs: list[tuple[Run, Run]], lower: str, upper: str, measure: Callable[[Run], float],
            margin: float = 0.0, units: Callable[[Iterable], set] = networks) -> tuple:
    """What is stated and the verdict, on whether the second run of each pair measures more than the first."""
    lows, highs = ([measure(run) for run in side] for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    ahead = [high - low + margin for low, high in zip(lows, highs, strict=True)]
    models = [low.config.model for low, _ in pairs]
    means = ", ".join(f"{name(model)} {row['high']:.1f} against {row['low']:.1f} %" for model, row in pd.DataFrame(
        {"low": lows, "high": highs}, dtype=float).groupby(models, sort=False).mean().iterrows())
    runs, said = [low for low, _ in pairs], f"{upper} against {lower}: {means}"
    if measure is percent_right:
        return judged_by_accuracy(ahead, said, pairs, units(map(model_and_seed, runs)))
    return judged([points > 0 for points in ahead], said, runs, units(map(model_and_seed, runs)))
