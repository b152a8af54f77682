"""The rules by which runs decide a claim: against a number, by pairs of runs, and within the noise that seeds make."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from bnlib.analysis import percent_dead
from bnlib.config import Config
from bnlib.profiles import seedless
from bnlib.store import Run
from bnlib.wording import gained, listed, name

REPRODUCED, PARTLY, NOT, NOT_RUN = "reproduced", "partly", "not reproduced", "not yet run"
AGREES, DISAGREES = "agrees so far", "disagrees so far"        # fewer runs than ENOUGH
UNDECIDED = "undecided"                                        # nothing beyond what a change of seeds makes
VERDICTS = [REPRODUCED, PARTLY, NOT, AGREES, DISAGREES, UNDECIDED, NOT_RUN]      # as the table sorts them
PAPER, OURS = "the paper", "this report"       # where a claim is made: how the paper's places begin; nowhere else
#: What a claim of our own is called where another's would be reproduced or not.
OF_OUR_OWN = {REPRODUCED: "holds", NOT: "does not hold", AGREES: "holds so far", DISAGREES: "does not hold so far"}
ENOUGH = 3         # networks, depths, widths, or seeds of one network, below which nothing is reproduced, nor is it not
LITTLE = 2.0       # points of accuracy that count as little, and by which ours may be away from a published number


def percent_right(run: Run) -> float:
    return 100 * run.metrics["test_accuracy"]


#: What is compared in points, and has a deviation between seeds.
MEASURES = (percent_right, percent_dead)


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


def seed_noise(*sets: Iterable[Run]) -> dict[Callable, float]:
    """Measure → its standard deviation, in points, between runs that differ in seed alone, pooled over all configs and
    precisions that have several, of each set by itself; without the measures that none has."""
    runs = [(number, run) for number, each in enumerate(sets) for run in each]
    pooled = {}
    for measure in MEASURES:
        alike: dict[tuple[int, Config, str], list[float]] = {}
        for number, run in runs:
            trains_gamma = run.status == "done" and run.config.trainable in ("bn", "all") and run.gamma
            if measure is percent_right or trains_gamma:
                alike.setdefault((number, seedless(run.config), run.provenance["precision"]), []).append(measure(run))
        several = [values for values in alike.values() if len(values) > 1]
        if several:
            squares = sum((len(values) - 1) * np.var(values, ddof=1) for values in several)
            pooled[measure] = float(np.sqrt(squares / sum(len(values) - 1 for values in several)))
    return pooled


def against_number(mean: float, seeds: int, value: float, noise: float) -> tuple[str, str]:
    """By how many points a mean over seeds is away from a published number, and the verdict.

    Where seeds deviate by `noise`, all within two standard errors of the mean has to be within LITTLE of the number,
    or all beyond.
    """
    unsure, away = 2 * noise / np.sqrt(seeds), mean - value
    verdict = UNDECIDED
    if abs(away) + unsure <= LITTLE:
        verdict = REPRODUCED if seeds >= ENOUGH else AGREES
    elif abs(away) - unsure > LITTLE:
        verdict = NOT if seeds >= ENOUGH else DISAGREES
    return f"away {_give_or_take(away, unsure)}", verdict


def _give_or_take(mean: float, unsure: float) -> str:
    """`−0.3 ± 1.9 points`."""
    return gained(mean).replace(" points", f" ± {unsure:.1f} points" if unsure else " points")


def of_pairs(holds: list[bool], units: set, against: set | None = None) -> str:
    """units: networks, or seeds, in which the pairs differ, of which a claim must hold on enough; against: if others,
    those of which it must fail on enough."""
    if not holds:
        return NOT_RUN
    if np.mean(holds) > 0.5:
        return AGREES if len(units) < ENOUGH else REPRODUCED if all(holds) else PARTLY
    return NOT if len(units if against is None else against) >= ENOUGH else DISAGREES


def judged(holds: list[bool], said: str, pairs: Sequence[tuple[Run, ...]], units: set | None = None) -> tuple[str, str]:
    """What is stated of pairs, or of other groups of runs that are compared, and their verdict.

    units: None for the networks or seeds of the pairs' first.
    """
    if not holds:
        return "–", NOT_RUN
    runs = [first for first, *_ in pairs]
    seeds, epochs = (listed(getattr(run.config, field) for run in runs) for field in ("seed", "epochs"))
    images = {run.config.n_train for run in runs}
    mixed = sum(len({run.provenance["precision"] for run in pair}) > 1 for pair in pairs)
    stated = (f"in {sum(holds)} of {len(holds)} pairs; {said}; seed{'s' * (',' in seeds)} {seeds}; "
              f"{epochs} epoch{'s' * (epochs != '1')}" + (f" of {min(images):,} images" if all(images) else "")
              + (f"; bf16 beside fp32 in {mixed}" if mixed else ""))
    either = networks_or_seeds(map(model_and_seed, runs))       # a claim on networks fails as well in seeds of one
    units = either if units is None else units
    return stated, of_pairs(holds, units, max(units, either, key=len))


@dataclasses.dataclass(frozen=True)
class Distance:
    """By how many points of a measure a pair of runs is on the side of a claim, below 0 on the other; and how many of
    them a point more of either run makes."""

    points: float
    runs: tuple[Run, Run]
    weights: tuple[float, float]
    measure: Callable[[Run], float]


def judged_by_distance(distances: list[float], said: str, pairs: list[tuple[Run, Run]], units: set | None = None,
                       weights: Sequence[tuple[float, float]] | None = None,
                       measure: Callable[[Run], float] = percent_right) -> tuple[str, str, list[Distance]]:
    """`judged`, and the distances, by which `decided` says whether they are more than what seeds make.

    weights: of each pair's runs in its distance; None: that is the second less the first. A run that diverged counts
    by what its network still guesses right.
    """
    diverged = {run.id for pair in pairs for run in pair if run.status == "diverged"}
    said += f"; {len(diverged)} of these runs diverged" * bool(diverged)
    stated, verdict = judged([distance >= 0 for distance in distances], said, pairs, units)
    weights = [(-1, 1)] * len(pairs) if weights is None else weights
    return stated, verdict, [Distance(*each, measure) for each in zip(distances, pairs, weights, strict=True)]


def decided(stated: str, verdict: str, distances: Sequence[Distance] = (), *,
            noise: dict[Callable, float]) -> tuple[str, str]:
    """What is stated, with the mean of the distances and two standard errors of what seeds make of it; and the verdict
    as it is, or undecided where the mean is within them, or on the other side than most of the pairs."""
    if not distances:
        return stated, verdict
    weight: Counter = Counter()
    for distance in distances:
        for run, share in zip(distance.runs, distance.weights, strict=True):
            weight[run.id] += share                  # pairs that share a run go up and down together
    spread = noise.get(distances[0].measure, 0.0)
    unsure = 2 * spread * np.sqrt(sum(np.square([*weight.values()]))) / len(distances)
    mean = np.mean([distance.points for distance in distances])
    most = np.mean([distance.points >= 0 for distance in distances]) > 0.5
    if abs(mean) < unsure or bool(mean > 0) != bool(most):
        verdict = UNDECIDED
    return f"{stated}; ahead {_give_or_take(mean, unsure)}", verdict


def paired(pairs: list[tuple[Run, Run]], lower: str, upper: str, measure: Callable[[Run], float],
           margin: float = 0.0, units: Callable[[Iterable], set] = networks) -> tuple:
    """What is stated and the verdict, on whether the second run of each pair measures more than the first."""
    ahead = [measure(high) - measure(low) + margin for low, high in pairs]
    return judged_by_distance(ahead, f"{upper} against {lower}: {side_by_side(pairs, measure)}", pairs,
                              units(model_and_seed(low) for low, _ in pairs), measure=measure)


def side_by_side(pairs: list[tuple[Run, Run]], measure: Callable[[Run], float]) -> str:
    """`ResNet-14 84.9 against 44.6 %`: the means of both sides' measures over seeds, for each pair of networks and
    number of epochs, which is told where it is more than the least."""
    table = pd.DataFrame([(low.config.epochs, low.config.model, high.config.model, measure(low), measure(high))
                          for low, high in pairs], columns=["epochs", "below", "above", "low", "high"])
    said = []
    for (epochs, below, above), row in table.groupby(["epochs", "below", "above"], sort=False).mean().iterrows():
        when = f" after {epochs} epochs" if epochs > table["epochs"].min() else ""
        other = f"{name(below)} " if below != above else ""
        said.append(f"{name(above)}{when} {row['high']:.1f} against {other}{row['low']:.1f} %")
    return ", ".join(said)
