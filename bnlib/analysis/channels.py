"""γ and β of finished runs, channel by channel and layer by layer."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from bnlib.analysis.accuracies import PAPER_EPOCHS, published
from bnlib.names import InputError
from bnlib.profiles import seedless, variant
from bnlib.store import ABOUT, Run, about
from bnlib.wording import Sentences, changed, name, plus_minus, seeds_of, trained

DEAD = 0.01            # |γ| below which the paper counts a feature as switched off (Sec. 5)


def affine(runs: Iterable[Run]) -> pd.DataFrame:
    """γ and β of every channel: one row a channel, with what `about` says of its run, number of its layer (1 for the
    first), layer, channel, gamma and beta. Runs that diverged are left out."""
    parts = []
    for run in (run for run in runs if run.status == "done"):
        gamma, beta = run.gamma, run.beta
        parts += [pd.DataFrame(about(run) | {"number": number, "layer": layer, "channel": range(len(gamma[layer])),
                                             "gamma": gamma[layer], "beta": beta[layer]})
                  for number, layer in enumerate(gamma, 1)]
    none = pd.DataFrame(columns=[*ABOUT, "number", "layer", "channel", "gamma", "beta"])
    return pd.concat(parts or [none], ignore_index=True)


def dead_share(gamma: dict[str, np.ndarray], below: float = DEAD) -> pd.Series:
    """Share of channels in each layer whose |γ| is under `below`.

    The paper counts a feature as switched off at 0.01 (Sec. 5): accuracy stays the same when such γ are set to zero.
    Returns one value in [0, 1] a layer, indexed by layer name, first layer first.
    Raises InputError for a negative threshold.
    """
    if below < 0:
        raise InputError(f"below={below}: must be at least 0")
    return pd.Series({layer: float((np.abs(values) < below).mean()) for layer, values in gamma.items()}, dtype=float)


def percent_dead(run: Run, below: float = DEAD) -> float:
    """Share of all of a run's channels with |γ| < `below`, in %."""
    return 100 * dead_share({"all": np.concatenate(list(run.gamma.values()))}, below)["all"]


def dead_features(runs: Iterable[Run], below: float = DEAD) -> pd.DataFrame:
    """Share of all channels with |γ| < `below`, in %: mean and standard deviation over seeds, one row a setting.

    Columns: dataset, depth, width, model, trainable, variant (in words), epochs, below, mean, std, n (seeds).
    """
    fields = ["dataset", "depth", "width", "model", "trainable"]
    keys = [*fields, "variant", "epochs", "below"]
    by_run = pd.DataFrame([{
        **{key: getattr(run.config, key) for key in (*fields, "epochs")}, "variant": changed(variant(run.config)),
        "setting": seedless(run.config).id, "below": below, "dead": percent_dead(run, below)}
        for run in runs if run.status == "done" and run.gamma], columns=[*keys, "setting", "dead"])
    return by_run.groupby([*keys, "setting"], as_index=False).agg(
        mean=("dead", "mean"), std=("dead", "std"), n=("dead", "count")).drop(columns="setting")


def dead_by_layer(runs: Iterable[Run], below: float = DEAD) -> pd.DataFrame:
    """Share of a layer's channels with |γ| < `below`, in %, one row a run and layer.

    Columns: those of `about`, number (of the layer, 1 for the first), layer, dead. Runs that diverged are left out.
    """
    rows = [about(run) | {"number": number, "layer": layer, "dead": 100 * share}
            for run in runs if run.status == "done"
            for number, (layer, share) in enumerate(dead_share(run.gamma, below).items(), 1)]
    return pd.DataFrame(rows, columns=[*ABOUT, "number", "layer", "dead"])


def rank_dead(table: pd.DataFrame) -> Sentences:
    """One sentence a network, mode and number of epochs of `dead_features`: the share that is switched off under each
    change of the protocol, the largest first."""
    said = Sentences()
    for (model, what, epochs), of_one in table.groupby(["model", "trainable", "epochs"], sort=False):
        shares = "; ".join(f"{row.variant or 'the protocol'} {plus_minus(row.mean, row.std)} %"
                           for row in of_one.sort_values("mean", ascending=False).itertuples())
        said.append(f"Switched off (|γ| < {of_one['below'].iloc[0]:g}) in {name(model)}, {trained(what)}, after "
                    f"{epochs} epochs: {shares}.")
    return said


def compare_dead(table: pd.DataFrame) -> Sentences:
    """What share of γ is switched off, from `dead_features`, beside the published one, which is of BN-only training."""
    claim = published("share of features disabled").iloc[0]
    table = table[(table["trainable"] == claim["trainable"]) & (table["variant"] == "")]
    theirs = f"{claim['source']} for {trained(claim['trainable'])} after {PAPER_EPOCHS}: about {claim['value']:g} %"
    return Sentences(
        f"{', '.join(filter(None, (name(row.model), trained(row.trainable), row.variant)))}: {row.mean:.1f} % of all "
        f"|γ| below {row.below:g} after {row.epochs} epochs ({seeds_of(row.n)}); {theirs}."
        for row in table.itertuples())
