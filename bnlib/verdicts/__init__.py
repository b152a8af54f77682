"""The verdict table: each claim, the rule by which runs decide it, and what they decide."""

from collections.abc import Iterable

import pandas as pd

from bnlib.analysis import PAPER_EPOCHS
from bnlib.profiles import seedless
from bnlib.store import Run
from bnlib.verdicts import numbers, orderings, shortcuts, studies
from bnlib.verdicts.rules import (
    AGREES,
    DISAGREES,
    ENOUGH,
    NOT,
    NOT_RUN,
    OF_OUR_OWN,
    OURS,
    PAPER,
    PARTLY,
    UNDECIDED,
    VERDICTS,
    decided,
    seed_noise,
)
from bnlib.wording import Sentences


def table(runs: Iterable[Run], dataset: str = "cifar10", thresholds: pd.DataFrame | None = None,
          equality: pd.DataFrame | None = None, repeated: Iterable[Run] = ()) -> pd.DataFrame:
    """The verdict table: claim, verdict, ours, published, where it is made; the paper's claims first. Every verdict is
    by a rule in code.

    A published number is reproduced if, at the paper's 160 epochs, all within two standard errors of our mean is within
    two points of it, and not reproduced if all of that is beyond. An ordering is reproduced if it holds in every pair
    of runs of one seed and one number of epochs, and partly, if in more than half of them; else it is not. Either takes
    three seeds; an ordering, three networks, or three seeds where the report asks it of one network: of fewer, runs
    agree so far or disagree so far. That something matters little, or changes nothing, is an ordering with a margin,
    for what is so in the mean over seeds. Undecided is a number between the two, and an ordering whose pairs are, in
    their mean, within two standard errors of the line between yes and no, or on the other side of it than most are. A
    standard error is by the deviation of all runs on those images that differ in seed alone, and of a published number
    by that of its own seeds, where they differ more; pairs that share a run go up and down together. Where no two runs
    differ in seed alone, an ordering agrees or disagrees so far. In an ordering a run that diverged counts by what its
    network still guesses right; a published number is at best undecided where seeds diverged. Of speed, the training
    loss after the same steps decides, on one network; sets of images count there as networks do, and less than 0.05
    nats decide nothing. A claim of this report itself, made nowhere else, is judged as an ordering, and holds or does
    not.
    The paper's numbers are those of CIFAR-10, and one of ImageNet, which is judged from the runs on ImageNet, after the
    90 epochs of its protocol; on another dataset only the orderings are judged.
    thresholds: from `features.thresholds`, for the claim that needs the networks and the images. equality: from
    `numpy_nn.check.bars`, for the one that needs the networks in NumPy. repeated: runs that are no part of the report,
    but tell too what a change of seeds makes.
    """
    runs = list(runs)
    ours = [run for run in runs if run.config.dataset == dataset]
    sequences = [run for run in runs if run.config.dataset == "sequences"]
    noise = seed_noise(*([run for run in some if run.status == "done"] for some in (runs, repeated)))
    rows = [*numbers.claims(runs, dataset, noise), *orderings.claims(ours, sequences, thresholds),
            *shortcuts.claims(ours), *studies.claims(ours, runs, equality)]
    rows = [(*row[:3], *decided(*row[3:], noise=noise)) for row in rows]
    table = pd.DataFrame(rows, columns=["claim", "where", "published", "ours", "verdict"])
    order = pd.DataFrame({"others": ~of_the_paper(table), "verdict": table["verdict"].map(VERDICTS.index)})
    table = table.loc[order.sort_values(["others", "verdict"], kind="stable").index].reset_index(drop=True)
    own = table["verdict"].mask(table["where"] == OURS, table["verdict"].replace(OF_OUR_OWN))
    return table.assign(verdict=own)[["claim", "verdict", "ours", "published", "where"]]


def of_the_paper(table: pd.DataFrame) -> pd.Series:
    """Which rows of the verdict table are claims of the paper."""
    return table["where"].str.startswith(PAPER)


def tally(table: pd.DataFrame, runs: Iterable[Run]) -> Sentences:
    """How far the evidence goes: the paper's claims by verdict, those by name that are not reproduced; settings by
    seeds, runs by epochs."""
    papers = table[of_the_paper(table)]
    counted = papers["verdict"].value_counts()
    contrary = "; ".join(papers["claim"][papers["verdict"] == NOT])
    found = ", ".join(f"{verdict} {counted[verdict]}" + f" ({contrary})" * (verdict == NOT)
                      for verdict in VERDICTS if verdict in counted)
    runs = list(runs)
    seeds = pd.Series([seedless(run.config).id for run in runs], dtype=str).value_counts()
    long = sum(run.config.epochs == PAPER_EPOCHS for run in runs)
    return Sentences([f"**How far this goes.** Of the paper's {counted.sum()} claims: {found}. "
                      f"{(seeds >= ENOUGH).sum()} of {len(seeds)} settings have {ENOUGH} seeds or more; "
                      f"{long} of {len(runs)} runs "
                      f"{'has' if long == 1 else 'have'} the paper's {PAPER_EPOCHS} epochs."])


def on(table: pd.DataFrame, *words: str) -> Sentences:
    """The verdicts on the claims that hold any of these words, a sentence each."""
    return Sentences(f"{row.claim}: **{row.verdict}**." for row in table.itertuples()
                     if any(word in row.claim for word in words))


def open_questions(table: pd.DataFrame) -> Sentences:
    """The claims that the verdict table does not call reproduced, by verdict, and what they lack."""
    so_far = f", for want of {ENOUGH} networks or seeds"
    lack = {NOT: "", PARTLY: "", DISAGREES: so_far, AGREES: so_far, UNDECIDED: ", for want of more seeds, of smaller ±",
            NOT_RUN: f", or not for the paper's {PAPER_EPOCHS} epochs"}
    verdicts = table["verdict"].replace({own: verdict for verdict, own in OF_OUR_OWN.items()})
    return Sentences(f"**{verdict[0].upper()}{verdict[1:]}**{why}: {'; '.join(table['claim'][verdicts == verdict])}."
                     for verdict, why in lack.items() if (verdicts == verdict).any())
