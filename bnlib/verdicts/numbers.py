"""Claims judged against a number: published accuracies and shares."""

import pandas as pd

from bnlib.analysis import DEAD, PAPER_EPOCHS, accuracy, dead_features, epochs_of_the_paper, plain, published
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
from bnlib.wording import machine, name, seeds_of, spread, trained


def claims(runs: list[Run], dataset: str, noise: Noise) -> list[tuple]:
    """The paper's numbers on this dataset, and on ImageNet. noise: of `seed_noise`."""
    ours = plain(run for run in runs if run.config.dataset == dataset)
    large = plain(run for run in runs if run.config.dataset == "imagenet" and "test_top5_accuracy" in run.metrics)
    paper = published().query("source == 'Frankle et al. 2021' and dataset == @dataset").iloc[::-1]
    return [
        *(_number(accuracy(ours), claim, noise.get((dataset, percent_right), 0.0)) for claim in paper.itertuples()),
        *(_number(accuracy(large, "test_top5_accuracy"), claim, noise.get(("imagenet", percent_among_five), 0.0))
          for claim in published("top-5 accuracy", "imagenet").itertuples()),
        *([_dead_share([run for run in ours if run.status == "done"], noise.get((dataset, percent_dead), 0.0))]
          if len(paper) else []),
    ]


def _number(table: pd.DataFrame, claim, noise: float) -> tuple:
    title = f"{name(claim.model)}, {trained(claim.trainable)}: {claim.metric}"
    ours = table[(table["model"] == claim.model) & (table["trainable"] == claim.trainable)].sort_values("epochs")
    at_the_papers = ours[ours["epochs"] == epochs_of_the_paper(claim.dataset)]
    row = next((at_the_papers if len(at_the_papers) else ours.iloc[::-1]).itertuples(), None)
    stated = f"{spread(row)} after {row.epochs} epochs on {machine(row.devices)}" if row else "–"
    if not len(at_the_papers):
        verdict = NOT_RUN
    elif not row.n:                                    # all seeds diverged
        verdict = NOT if row.diverged >= ENOUGH else DISAGREES
    else:
        away, verdict = against_number(row.mean, row.n, claim.value, noise)
        stated += f"; {away}"
    return title, f"{PAPER}, {claim.where}", f"{claim.value:g} %", stated, verdict


def _dead_share(runs: list[Run], noise: float) -> tuple:
    """The share in each BN-only network of the longest training, judged as a published number; the worst counts, since
    the paper names no network."""
    claim = published("share of features disabled").iloc[0]
    title = f"BN only switches features off: share of |γ| < {DEAD}"
    table = dead_features([r for r in runs if r.config.trainable == "bn"])
    table = table[table["epochs"] == table["epochs"].max()]
    where, number = f"{PAPER}, {claim['where']}", f"about {claim['value']:g} %"
    if table.empty:
        return title, where, number, "–", NOT_RUN
    epochs = table["epochs"].iloc[0]
    stated = "; ".join(f"{name(r.model)} {r.mean:.1f} % ({seeds_of(r.n)})"
                       for r in table.sort_values(["depth", "width"]).itertuples()) + f"; after {epochs} epochs"
    if epochs != PAPER_EPOCHS:
        return title, where, number, stated, NOT_RUN
    found = {against_number(row.mean, row.n, claim["value"], noise)[1] for row in table.itertuples()}
    worst = next(verdict for verdict in (NOT, DISAGREES, UNDECIDED, AGREES, REPRODUCED) if verdict in found)
    return title, where, number, stated, AGREES if worst == REPRODUCED and len(table) < ENOUGH else worst
