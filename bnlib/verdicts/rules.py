"""The rules by which runs decide a claim: against a number, by pairs of runs, and within the noise that seeds make."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from bnlib.analysis import percent_dead
from bnlib.config import Config
from bnlib.profiles import seedless, variant
from bnlib.store import Run
from bnlib.wording import changed, gained, listed, name, trained

REPRODUCED, PARTLY, NOT, NOT_RUN = "reproduced", "partly", "not reproduced", "not yet run"
AGREES, DISAGREES = "agrees so far", "disagrees so far"        # fewer runs than ENOUGH
UNDECIDED = "undecided"                                        # nothing beyond what a change of seeds makes
VERDICTS = [REPRODUCED, PARTLY, NOT, AGREES, DISAGREES, UNDECIDED, NOT_RUN]      # as the table sorts them
PAPER, OURS = "the paper", "this report"       # where a claim is made: how the paper's places begin; nowhere else
SO_FAR = {REPRODUCED: AGREES, PARTLY: UNDECIDED, NOT: DISAGREES}            # where nobody knows what seeds make
#: What a claim of our own is called where another's would be reproduced or not.
OF_OUR_OWN = {REPRODUCED: "holds", NOT: "does not hold", AGREES: "holds so far", DISAGREES: "does not hold so far"}
ENOUGH = 3         # networks, depths, widths, or seeds of one network, below which nothing is reproduced, nor is it not
LITTLE = 2.0       # points of accuracy that count as little, and by which ours may be away from a published number


def percent_right(run: Run) -> float:
    return 100 * run.metrics["test_accuracy"]


def percent_among_five(run: Run) -> float:
    return 100 * run.metrics["test_top5_accuracy"]


#: What is compared in points, and has a deviation between seeds; of which runs.
MEASURES = {
    percent_right: lambda run: True,
    percent_among_five: lambda run: "test_top5_accuracy" in run.metrics,
    percent_dead: lambda run: run.status == "done" and run.config.trainable in ("bn", "all") and run.gamma,
}


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


#: Images and measure → its standard deviation between runs that differ in seed, in points.
Noise = dict[tuple[str, Callable], float]


def seed_noise(*sets: Iterable[Run]) -> Noise:
    """The deviation between runs of one config and precision, on whatever machines, that differ in seed: on each set
    of images pooled over all configs that have several, of each of `sets` by itself, and where that has a seed twice,
    of each path of the convolutions; without the measures that none has."""
    alike: dict[tuple, dict[tuple, list[float]]] = {}
    for number, runs in enumerate(map(list, sets)):
        twice = {seedless(config) for config, count in Counter(run.config for run in runs).items() if count > 1}
        for run in runs:
            path = run.provenance["conv_path"] if seedless(run.config) in twice else None
            for measure, has in MEASURES.items():
                if has(run):
                    config = number, seedless(run.config), run.provenance["precision"], path
                    alike.setdefault((run.config.dataset, measure), {}).setdefault(config, []).append(measure(run))
    pooled = {}
    for key, of_configs in alike.items():
        several = [values for values in of_configs.values() if len(values) > 1]
        if several:
            squares = sum((len(values) - 1) * np.var(values, ddof=1) for values in several)
            pooled[key] = float(np.sqrt(squares / sum(len(values) - 1 for values in several)))
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

    holds: of each pair, or of each mean over those of several seeds. units: None for the networks or seeds of the
    pairs' first.
    """
    if not holds:
        return "–", NOT_RUN
    runs = [first for first, *_ in pairs]
    seeds, epochs = (listed(getattr(run.config, field) for run in runs) for field in ("seed", "epochs"))
    images = {run.config.n_train for run in runs}
    mixed = sum(len({run.provenance["precision"] for run in pair}) > 1 for pair in pairs)
    means = ", each a mean over seeds" * (len(holds) < len(pairs))
    stated = (f"in {sum(holds)} of {len(holds)} pairs{means}; {said}; seed{'s' * (',' in seeds)} {seeds}; "
              f"{epochs} epoch{'s' * (epochs != '1')}" + (f" of {min(images):,} images" if all(images) else "")
              + (f"; bf16 beside fp32 in {mixed}" if mixed else ""))
    either = networks_or_seeds(map(model_and_seed, runs))       # a claim on networks fails as well in seeds of one
    units = either if units is None else units
    return stated, of_pairs(holds, units, max(units, either, key=len))


@dataclasses.dataclass(frozen=True)
class Distance:
    """By how many points of a measure a pair of runs, or the mean of several, is on the side of a claim, below 0 on the
    other; and how many of them a point more of each run makes."""

    points: float
    runs: tuple[Run, ...]
    weights: tuple[float, ...]
    measure: Callable[[Run], float]


def distance(pairs: Sequence[tuple[Run, Run]], measure: Callable[[Run], float] = percent_right,
             weights: tuple[float, float] = (-1, 1), margin: float = 0.0) -> Distance:
    """The mean over pairs of both runs' measures by their weights, the second's less the first's unless told, and a
    margin more."""
    points = np.mean([np.dot(weights, [*map(measure, pair)]) for pair in pairs]) + margin
    return Distance(float(points), tuple(run for pair in pairs for run in pair),
                    tuple(weight / len(pairs) for weight in weights) * len(pairs), measure)


def judged_by_distance(distances: Sequence[Distance], said: str, pairs: Sequence[tuple[Run, Run]],
                       units: set | None = None) -> tuple[str, str, Sequence[Distance]]:
    """`judged`, and the distances, by which `decided` says whether they are more than what seeds make.

    A run that diverged counts by what its network still guesses right.
    """
    diverged = {run.id for pair in pairs for run in pair if run.status == "diverged"}
    said += f"; {len(diverged)} of these runs diverged" * bool(diverged)
    return *judged([found.points >= 0 for found in distances], said, pairs, units), distances


def over_seeds(pairs: Iterable[tuple[Run, Run]]) -> list[list[tuple[Run, Run]]]:
    """The pairs that differ in seed alone, together: a margin is for what is so in the mean, since of single runs some
    pass it by chance."""
    alike: dict[tuple[Config, Config], list[tuple[Run, Run]]] = {}
    for low, high in pairs:
        alike.setdefault((seedless(low.config), seedless(high.config)), []).append((low, high))
    return [*alike.values()]


def decided(stated: str, verdict: str, distances: Sequence[Distance] = (), *, noise: Noise) -> tuple[str, str]:
    """What is stated, with the mean of the distances and two standard errors of what seeds make of it, by the number of
    epochs; and the verdict as it is, or undecided where the mean of all is within them, or on the other side than most
    of the pairs. Where nobody knows what seeds make, it is one so far."""
    if not distances:
        return stated, verdict
    of_length: dict[int, list[Distance]] = {}
    for distance in distances:
        of_length.setdefault(distance.runs[0].config.epochs, []).append(distance)
    said = ", ".join(_give_or_take(*_mean_and_unsure(some, noise)) + f" after {epochs} epochs" * (len(of_length) > 1)
                     for epochs, some in sorted(of_length.items()))
    mean, unsure = _mean_and_unsure(distances, noise)
    most = np.mean([distance.points >= 0 for distance in distances]) > 0.5
    if abs(mean) < unsure or bool(mean > 0) != bool(most):
        verdict = UNDECIDED
    elif _measured(distances) not in noise:
        verdict = SO_FAR.get(verdict, verdict)
    pairs, details = stated.split("; ", 1)
    return f"{pairs}; ahead {said}; {details}", verdict


def _mean_and_unsure(distances: Sequence[Distance], noise: Noise) -> tuple[float, float]:
    """The mean of the distances, and two standard errors of it: 0 where no two runs differ in seed alone."""
    weight: Counter = Counter()
    for distance in distances:
        for run, share in zip(distance.runs, distance.weights, strict=True):
            weight[run.id] += share                  # pairs that share a run go up and down together
    spread = noise.get(_measured(distances), 0.0)
    unsure = 2 * spread * np.sqrt(sum(np.square([*weight.values()]))) / len(distances)
    return float(np.mean([distance.points for distance in distances])), float(unsure)


def _measured(distances: Sequence[Distance]) -> tuple[str, Callable]:
    """On which images the distances are, and of which measure."""
    return distances[0].runs[0].config.dataset, distances[0].measure


def paired(pairs: list[tuple[Run, Run]], lower: str, upper: str, measure: Callable[[Run], float],
           margin: float = 0.0, units: Callable[[Iterable], set] = networks) -> tuple:
    """What is stated and the verdict, on whether the second run of each pair measures more than the first; with a
    margin, on the means over seeds."""
    groups = over_seeds(pairs) if margin else [[pair] for pair in pairs]
    return judged_by_distance([distance(group, measure, margin=margin) for group in groups],
                              f"{upper} against {lower}: {side_by_side(pairs, measure)}", pairs,
                              units(model_and_seed(low) for low, _ in pairs))


def side_by_side(pairs: list[tuple[Run, Run]], measure: Callable[[Run], float]) -> str:
    """`ResNet-14 84.9 against 44.6 %`: the means of both sides' measures over seeds, for each pair of networks, variant
    of the protocol, what trains and number of epochs; which two are told where they differ, epochs where they are more
    than the least."""
    keys = ["epochs", "below", "above", "how", "what"]
    table = pd.DataFrame([(low.config.epochs, low.config.model, high.config.model, changed(variant(high.config)),
                           trained(high.config.trainable), measure(low), measure(high))
                          for low, high in pairs], columns=[*keys, "low", "high"])
    said = []
    for (epochs, below, above, *told), row in table.groupby(keys, sort=False).mean().iterrows():
        told = [one for one, column in zip(told, ("how", "what"), strict=True) if table[column].nunique() > 1]
        how = f", {', '.join(told)}," if told else ""
        when = f" after {epochs} epochs" if epochs > table["epochs"].min() else ""
        other = f"{name(below)} " if below != above else ""
        said.append(f"{name(above)}{how}{when} {row['high']:.1f} against {other}{row['low']:.1f} %")
    return ", ".join(said)
