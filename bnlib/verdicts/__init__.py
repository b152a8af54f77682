"""The verdict table: each claim, the rule by which runs decide it, and what they decide."""

from collections.abc import Iterable

import pandas as pd

from bnlib.store import Run
from bnlib.verdicts import numbers, orderings, shortcuts, studies
from bnlib.verdicts.rules import NOT, NOT_RUN, OF_OUR_OWN, OURS, PARTLY, UNDECIDED, VERDICTS, decided, seed_noise
from bnlib.wording import Sentences


def table(runs: Iterable[Run], dataset: str = "cifar10", thresholds: pd.DataFrame | None = None,
          equality: pd.DataFrame | None = None, repeated: Iterable[Run] = ()) -> pd.DataFrame:
    """The verdict table: claim, where it is made, its number, ours, verdict; every verdict by a rule in code.

    A published number is reproduced if our mean over three seeds or more, at the paper's 160 epochs, is within two
    standard errors plus two points; partly, within twice that, or of fewer seeds. An ordering is reproduced if it holds
    in every pair of runs of one seed and one number of epochs, on three networks or more; where the report asks it of
    one network, in three seeds or more; partly, in more than half of the pairs, or on fewer. Else neither is, and of
    fewer seeds or networks than three it is undecided. That something matters little, or changes nothing, is an
    ordering with a margin. Undecided it is too, whatever most pairs say, where their mean distance in accuracy from the
    line between yes and no is on the other side, or within two standard errors of such a mean, by the deviation of runs
    that differ in seed alone. A run that diverged counts by what its network still guesses right. Of speed, the
    training loss after the same steps decides, on one network; sets of images count there as networks do.
    A claim of this report itself, made nowhere else, is judged as an ordering, and holds or does not.
    The paper's numbers are those of CIFAR-10, and one of ImageNet, which is judged from the runs on ImageNet, after the
    90 epochs of its protocol; on another dataset only the orderings are judged.
    thresholds: from `features.thresholds`, for the claim that needs the networks and the images. equality: from
    `numpy_nn.check.bars`, for the one that needs the networks in NumPy. repeated: runs that are no part of the report,
    but tell too what a change of seeds makes.
    """
    runs = list(runs)
    ours = [run for run in runs if run.config.dataset == dataset]
    done = [run for run in ours if run.status == "done"]
    sequences = [run for run in runs if run.config.dataset == "sequences"]
    rows = [*numbers.claims(runs, dataset), *orderings.claims(ours, sequences, thresholds), *shortcuts.claims(ours),
            *studies.claims(ours, runs, equality)]
    noise = seed_noise([*done, *repeated])
    rows = [(*row[:3], *decided(*row[3:], noise=noise)) for row in rows]
    table = pd.DataFrame(rows, columns=["claim", "where", "published", "ours", "verdict"])
    decided_first = table.sort_values("verdict", key=lambda found: found.map(VERDICTS.index), kind="stable")
    table = decided_first[["claim", "verdict", "ours", "published", "where"]].reset_index(drop=True)
    of_our_own = table["where"] == OURS
    return table.assign(verdict=table["verdict"].mask(of_our_own, table["verdict"].replace(OF_OUR_OWN)))


def open_questions(table: pd.DataFrame) -> Sentences:
    """The claims that the verdict table does not call reproduced, each with what there is on it; last, in one sentence,
    those on which there is nothing yet."""
    nothing = table["ours"] == "–"
    verdicts = table["verdict"].replace({own: verdict for verdict, own in OF_OUR_OWN.items()})
    said = Sentences(f"**{row.claim}**: {row.verdict}; {row.ours}." for verdict in (NOT, PARTLY, UNDECIDED, NOT_RUN)
                     for row in table[(verdicts == verdict) & ~nothing].itertuples())
    if nothing.any():
        said.append(f"**Nothing yet on**: {'; '.join(table['claim'][nothing])}.")
    return said
