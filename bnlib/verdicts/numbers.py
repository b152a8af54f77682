"""Claims judged against a number: published accuracies and shares."""

import pandas as pd

from bnlib.analysis import DEAD, PAPER_EPOCHS, accuracy, dead_features, epochs_of_the_paper, plain, published
from bnlib.store import Run
from bnlib.verdicts.rules import ENOUGH, NOT, NOT_RUN, PARTLY, REPRODUCED, UNDECIDED, against_number
from bnlib.wording import machine, name, seeds_of, spread, trained


def claims(runs: list[Run], dataset: str) -> list[tuple]:
    """The paper's numbers on this dataset, and on ImageNet."""
    ours = plain(run for run in runs if run.config.dataset == dataset)
    large = plain(run for run in runs if run.config.dataset == "imagenet" and "test_top5_accuracy" in run.metrics)
    paper = published().query("source == 'Frankle et al. 2021' and dataset == @dataset").iloc[::-1]
    return [
        *(_number(accuracy(ours), claim) for claim in paper.itertuples()),
        *(_number(accuracy(large, "test_top5_accuracy"), claim)
          for claim in published("top-5 accuracy", "imagenet").itertuples()),
        *([_dead_share([run for run in ours if run.status == "done"])] if len(paper) else []),
    ]


def _number(table: pd.DataFrame, claim) -> tuple:
    title = f"{name(claim.model)}, {trained(claim.trainable)}: {claim.metric}"
    ours = table[(table["model"] == claim.model) & (table["trainable"] == claim.trainable)].sort_values("epochs")
    at_the_papers = ours[ours["epochs"] == epochs_of_the_paper(claim.dataset)]
    row = next((at_the_papers if len(at_the_papers) else ours.iloc[::-1]).itertuples(), None)
    stated = f"{spread(row)} after {row.epochs} epochs on {machine(row.devices)}" if row else "–"
    verdict = against_number(row, claim.value) if len(at_the_papers) else NOT_RUN
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
    found = {against_number(row, claim["value"]) for row in table.itertuples()}
    worst = next(verdict for verdict in (NOT, UNDECIDED, PARTLY, REPRODUCED) if verdict in found)
    verdict = NOT_RUN if epochs != PAPER_EPOCHS else PARTLY if worst == REPRODUCED and len(table) < ENOUGH else worst
    return title, claim["where"], f"{claim['value']:g} %", stated, verdict
