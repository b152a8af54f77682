"""Claims of the smaller studies: on optimizers, on what weight decay restrains, on the networks in NumPy."""

import dataclasses

import numpy as np
import pandas as pd

from bnlib.analysis import alone_logged, course, last_loss, optimizers, own_decay, root_mean_square
from bnlib.config import Config
from bnlib.store import Run
from bnlib.verdicts.rules import (
    LITTLE,
    NOT,
    NOT_RUN,
    OURS,
    REPRODUCED,
    UNDECIDED,
    distance,
    judged,
    judged_by_distance,
    over_seeds,
    percent_right,
)
from bnlib.wording import NORM, OPTIMIZER, decay_on, trained

FASTER = 0.05                              # nats of training loss that count as ahead
WITH_AND_WITHOUT = ("batch", "none")       # values of `norm`: with batch norm and without


def claims(runs: list[Run], deep: list[Run], equality: pd.DataFrame | None) -> list[tuple]:
    """runs: those on the paper's images; deep: those among which networks with and without batch norm are."""
    four_ways = _four_ways(deep)
    return [_faster(runs, "epoch", "LBFGS study", "faster"), _faster(runs, "passes", OURS, "–"),
            _no_more_accurate(runs), _norm_speeds_up(four_ways), _no_faster(four_ways),
            _decay_restrains([run for run in runs if run.status == "done"]), _equal(equality)]


def _of_two(runs: list[Run], first: str, second: str) -> list[tuple[Run, Run]]:
    """Pairs of runs of two optimizers, each at what the validation images chose, at the same task and seed."""
    by_id, table = {run.id: run for run in runs}, optimizers(own_decay(runs))
    found = {(row.optimizer, row.task, row.length, row.seed): by_id[row.run]
             for row in table[table["chosen"]].itertuples()}
    return [(run, found[second, *key]) for (kind, *key), run in found.items()
            if kind == first and (second, *key) in found]


def _faster(runs: list[Run], by: str, where: str, claim: str) -> tuple:
    """Whether LBFGS comes sooner than SGD, by `epoch` or `passes`, to most of the test losses that it has after its
    epochs, BN only. An epoch of LBFGS is several passes over the images; the study does not say by which it counts."""
    took_so_many = {"epoch": "in epoch {:.0f}", "passes": "in {:.0f} passes"}[by].format
    pairs = _of_two([run for run in runs if run.config.trainable == "bn"], "lbfgs", "sgd")
    holds, said = [], []
    for lbfgs, sgd in ([course(run) for run in pair] for pair in pairs):
        took = [sgd[sgd["test_loss"] <= loss][by].min() for loss in lbfgs["test_loss"]]
        sooner = [np.isnan(theirs) or ours < theirs for ours, theirs in zip(lbfgs[by], took, strict=True)]
        holds.append(np.mean(sooner) > 0.5)
        said.append(", ".join(f"to a test loss of {loss:.2f} {took_so_many(ours)}, SGD "
                              + ("never" if np.isnan(theirs) else took_so_many(theirs))
                              for ours, loss, theirs in zip(lbfgs[by], lbfgs["test_loss"], took, strict=True)))
    return (f"LBFGS converges in fewer {'epochs' if by == 'epoch' else by}, BN only", where, claim,
            *judged(holds, "; ".join(said), pairs))


def _no_more_accurate(runs: list[Run]) -> tuple:
    """Whether AdaBound's test accuracy is at most LITTLE above Adam's, each at what the validation images chose."""
    pairs = _of_two(runs, "adabound", "adam")
    said = "; ".join(f"{trained(a.config.trainable)}: {percent_right(a):.1f} %, Adam {percent_right(b):.1f} %"
                     for a, b in pairs)
    return (f"AdaBound is no better than Adam (within {LITTLE:g} points)", "NumPy ResNet-101 study", "no gain seen",
            *judged_by_distance([distance(group, margin=LITTLE) for group in over_seeds(pairs)], said, pairs))


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


def _norm_speeds_up(deep: list[dict[tuple[str, str], Run]]) -> tuple:
    """Whether batch norm lowers the loss after the same steps, of either optimizer at the better of its learning rates;
    undecided where that is, in the mean, by less than FASTER."""
    pairs = [(four["batch", optimizer], four["none", optimizer]) for four in deep for optimizer in ("adam", "adabound")]
    pairs = [pair for pair in pairs if np.isfinite([*map(last_loss, pair)]).any()]        # else neither is ahead
    losses = [tuple(map(last_loss, pair)) for pair in pairs]
    ahead = [without - with_it for with_it, without in losses]
    said = "; ".join(f"{OPTIMIZER[run.config.optimizer]}: loss {with_it:.2f}, without batch norm {without:.2f}"
                     for (run, _), (with_it, without) in zip(pairs, losses, strict=True))
    return (f"Batch norm speeds training up (by {FASTER:g} nats or more)", "NumPy ResNet-101 study", "faster",
            *_by_nats(ahead, said, pairs, FASTER))


def _by_nats(ahead: list[float], said: str, pairs: list[tuple[Run, Run]], least: float = 0.0) -> tuple[str, str]:
    """`judged`, on losses: undecided where the mean is less than `least` away from 0, or says otherwise than most."""
    stated, verdict = judged([nats >= 0 for nats in ahead], said, pairs, {run.config.dataset for run, _ in pairs})
    if pairs:
        with np.errstate(invalid="ignore"):            # of two that diverged, one on either side, there is no mean
            mean, most = np.mean(ahead), np.mean([nats >= 0 for nats in ahead]) > 0.5
        if np.isnan(mean) or abs(mean) < least or (mean >= 0) != most:
            verdict = UNDECIDED
    return stated, verdict


def _no_faster(deep: list[dict[tuple[str, str], Run]]) -> tuple:
    """Whether AdaBound's loss after the same steps is at most FASTER below Adam's, where either is below guessing."""
    def learns(run: Run) -> bool:
        return last_loss(run) < np.log(run.record["classes"]) - FASTER

    pairs = [(four[norm, "adabound"], four[norm, "adam"]) for four in deep for norm in WITH_AND_WITHOUT]
    pairs = [pair for pair in pairs if any(map(learns, pair))]
    ahead = [last_loss(adabound) - last_loss(adam) + FASTER for adabound, adam in pairs]
    said = "; ".join(f"{NORM[a.config.norm]}: loss {last_loss(a):.2f}, Adam {last_loss(b):.2f}" for a, b in pairs)
    return (f"AdaBound is no faster than Adam where they learn (within {FASTER:g} nats)", "NumPy ResNet-101 study",
            "no gain seen", *_by_nats(ahead, said, pairs))


def _decay_restrains(runs: list[Run]) -> tuple:
    """Whether BN only ends with a smaller β (root mean square) where weight decay acts on β than where on nothing."""
    def key(config, decay):
        return dataclasses.replace(config, decay=decay)

    found = {run.config: run for run in runs if run.config.trainable == "bn"}
    pairs = [(run, found[key(run.config, "none")]) for run in found.values()
             if run.config.decay in ("beta", "all") and key(run.config, "none") in found]
    sizes = [[root_mean_square(run.beta) for run in pair] for pair in pairs]
    holds = [with_it < without for with_it, without in sizes]
    means = "; ".join(f"β {with_it:.2f} with decay of {run.config.weight_decay:g} {decay_on(run.config.decay)}, "
                      f"{without:.2f} without, test accuracy "
                      f"{percent_right(run):.1f} against {percent_right(other):.1f} %"
                      for (run, other), (with_it, without) in zip(pairs, sizes, strict=True))
    return ("Weight decay on β restrains its growth, BN only", "LBFGS study", "β too large",
            *judged(holds, means, pairs))


def _equal(equality: pd.DataFrame | None) -> tuple:
    """NumPy equals torch: reproduced if no deviation is larger than its bar."""
    title, where, claim = "Outputs, gradients and training of the networks in NumPy equal torch's", OURS, "–"
    if equality is None or not {"outputs", "gradients", "training"} <= set(equality["compared"]):
        return title, where, claim, "–", NOT_RUN
    stated = "; ".join(f"{row.compared} to {row.deviation:.0e} (bar {row.bar:.0e})" for row in equality.itertuples())
    return title, where, claim, stated, REPRODUCED if (equality["deviation"] <= equality["bar"]).all() else NOT
