"""Claims judged against a number: published accuracies and shares."""

import numpy as np
import pandas as pd

from bnlib.analysis import DEAD, PAPER_EPOCHS, accuracy, dead_features, epochs_of_the_paper, plain, published
from bnlib.profiles import PROFILES
from bnlib.store import Run
from bnlib.verdicts.rules import (
    AGREES,
    DISAGREES,
    ENOUGH,
    NOT,
    NOT_RUN,
    PAPER,
    REPRODUCED,
    UNDECIDED,
    Noise,
    against_number,
    percent_among_five,
    percent_dead,
    percent_right,
)
from bnlib.wording import name, seeds_of, spread, trained


def claims(runs: list[Run], dataset: str, noise: Noise) -> list[tuple]:
    """The paper's numbers on this dataset, and on ImageNet. noise: of `seed_noise`."""
    ours = plain(run for run in runs if run.config.dataset == dataset)
    protocol = PROFILES["paper"]["large"].items()
    large = plain(run for run in runs if "test_top5_accuracy" in run.metrics
                  and all(getattr(run.config, field) == value for field, value in protocol))
    paper = published().query("source == 'Frankle et al. 2021' and dataset == @dataset").iloc[::-1]
    return [
        *(_number(accuracy(ours), claim, noise.get((dataset, percent_right), 0.0)) for claim in paper.itertuples()),
        *(_number(accuracy(large, "test_top5_accuracy"), claim, noise.get(("imagenet", percent_among_five), 0.0))
          for claim in published("top-5 accuracy", "imagenet").itertuples()),
        *([_dead_share(ours, noise.get((dataset, percent_dead), 0.0))] if len(paper) else []),
    ]


def _number(table: pd.DataFrame, claim, noise: float) -> tuple:
    title = f"{name(claim.model)}, {trained(claim.trainable)}: {claim.metric}"
    ours = table[(table["model"] == claim.model) & (table["trainable"] == claim.trainable)].sort_values("epochs")
    at_the_papers = ours[ours["epochs"] == epochs_of_the_paper(claim.dataset)]
    row = next((at_the_papers if len(at_the_papers) else ours.iloc[::-1]).itertuples(), None)
    stated = f"{spread(row)} after {row.epochs} epochs on {row.devices}" if row else "–"
    if not len(at_the_papers):
        verdict, stated = NOT_RUN, stated + f"; judged after {epochs_of_the_paper(claim.dataset)}" * (row is not None)
    elif not row.n:                                    # all seeds diverged
        verdict = NOT if row.diverged >= ENOUGH else DISAGREES
    else:
        away, verdict = against_number(row.mean, row.n, claim.value, _of_these(row, noise))
        verdict = _not_of_all(verdict) if row.diverged else verdict
        stated += f"; {away}"
    return title, f"{PAPER}, {claim.where}", f"{claim.value:g} %", stated, verdict


def _dead_share(runs: list[Run], noise: float) -> tuple:
    """The share in each BN-only network of the longest training, judged as a published number; the worst verdict
    counts, since the paper names no network; where one diverged, nothing is reproduced."""
    claim = published("share of features disabled").iloc[0]
    title = f"BN only switches features off: share of |γ| < {DEAD}"
    table = dead_features([r for r in runs if r.config.trainable == "bn"])
    table = table[table["epochs"] == table["epochs"].max()]
    diverged = [run for run in runs if run.status == "diverged" and run.config.trainable == "bn"
                and run.config.epochs == table["epochs"].max()]
    where, number = f"{PAPER}, {claim['where']}", f"about {claim['value']:g} %"
    if table.empty:
        return title, where, number, "–", NOT_RUN
    epochs = table["epochs"].iloc[0]
    rows = [*table.sort_values(["depth", "width"]).itertuples()]
    judged = [against_number(row.mean, row.n, claim["value"], _of_these(row, noise)) for row in rows]
    long = bool(epochs == PAPER_EPOCHS)
    stated = "; ".join(f"{name(row.model)} {row.mean:.1f} % ({seeds_of(row.n)})" + f", {away}" * long
                       for row, (away, _) in zip(rows, judged, strict=True)) + f"; after {epochs} epochs"
    if diverged:
        stated += f"; diverged: {', '.join(dict.fromkeys(name(run.config.model) for run in diverged))}"
    if not long:
        return title, where, number, stated, NOT_RUN
    found = {verdict for _, verdict in judged}
    worst = next(verdict for verdict in (NOT, DISAGREES, UNDECIDED, AGREES, REPRODUCED) if verdict in found)
    worst = AGREES if worst == REPRODUCED and len(table) < ENOUGH else worst
    return title, where, number, stated, _not_of_all(worst) if diverged else worst


def _of_these(row, noise: float) -> float:
    """The deviation between seeds: theirs, or that of all runs, whichever is larger, since three may agree by luck."""
    return max(noise, np.nan_to_num(row.std))


def _not_of_all(verdict: str) -> str:
    """The verdict where some seeds or networks diverged, of which there is no number."""
    return UNDECIDED if verdict in (REPRODUCED, AGREES) else verdict
