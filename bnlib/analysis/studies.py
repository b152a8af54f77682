"""Batch norm taken apart (`09`), residual beside plain networks (`10`)."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from bnlib.analysis.accuracies import accuracy, published
from bnlib.config import Config
from bnlib.names import choose, parse_model
from bnlib.profiles import PRESETS, modification, seedless, variant
from bnlib.store import Run
from bnlib.wording import HALVES, OPTIMIZER, Sentences, gained, half, name, plus_minus, seeds_of, shown


def taken_apart(runs: Iterable[Run]) -> list[Run]:
    """The runs of `09_dissect_batchnorm` with batch norm everywhere or nowhere, at the earlier study's learning rate.

    Of each network and dataset those of the longest training.
    """
    chosen = [run for run in runs if len(set(run.config.positions.split(","))) == 1 and run.config.lr in {
        preset["lr"] for preset in PRESETS.values()
        if (preset["model"], preset["dataset"]) == (run.config.model, run.config.dataset)}]
    longest: dict[tuple, int] = {}
    for run in chosen:
        key = run.config.dataset, run.config.model
        longest[key] = max(longest.get(key, 0), run.config.epochs)
    return [run for run in chosen if run.config.epochs == longest[run.config.dataset, run.config.model]]


def histories(runs: Iterable[Run]) -> pd.DataFrame:
    """Loss, and accuracy in %, on training and test images: one row a run and epoch, and what tells runs apart."""
    parts = [run.history.assign(**_about(run)) for run in runs]
    if not parts:
        return pd.DataFrame(columns=["modification", "lr", "epoch"])
    table = pd.concat(parts, ignore_index=True)
    accuracies = [column for column in table if column.endswith("accuracy")]
    return table.assign(**{column: 100 * table[column] for column in accuracies})


def by_positions(runs: Iterable[Run]) -> pd.DataFrame:
    """Test accuracy in % over the last quarter of training: mean, std, and n, the number of seeds; one row a network,
    its positions, modification and optimizer.

    At a constant learning rate accuracy goes up and down from epoch to epoch, so that a single last one tells little;
    mean and standard deviation are over those epochs of all seeds.
    """
    table = histories(run for run in runs if run.status == "done")
    late = table[table["epoch"] > 0.75 * table["epochs"]] if len(table) else table
    keys = ["dataset", "model", "positions", "modification", "optimizer", "epochs", "setting"]
    return late.groupby(keys, as_index=False).agg(mean=("test_accuracy", "mean"), std=("test_accuracy", "std"), n=(
        "seed", "nunique")).drop(columns="setting") if len(late) else late


def which_half(runs: Iterable[Run]) -> Sentences:
    """What each modification of batch norm at all positions reaches, beside no batch norm: a sentence a network."""
    table, said = by_positions(taken_apart(runs)), Sentences()
    keys = ["dataset", "model", "optimizer", "epochs"]
    for (dataset, model, optimizer, epochs), part in table.groupby(keys) if len(table) else ():
        late = part.set_index("modification")
        order = [m for m in HALVES if m in late.index]
        stated = ", ".join(f"{half(m)} (`{m}`) {plus_minus(*late.loc[m, ['mean', 'std']])} %" for m in order)
        if order:
            by = f" by {OPTIMIZER[optimizer]}" * (optimizer != Config.optimizer)
            said.append(f"{name(model)} on {shown(dataset)}{by}, mean and deviation over the last quarter of "
                        f"{epochs} epochs, {seeds_of(part['n'].max())}: {stated}.")
        if {"vanilla", "fixed_bn", "trained_bn"} <= set(order):
            steps = (_step(late, *pair) for pair in (("vanilla", "fixed_bn"), ("fixed_bn", "trained_bn")))
            said.append("From no batch norm to normalisation alone {}, from there to training γ and β too {}.".format(
                *steps))
    return said


def _step(late: pd.DataFrame, before: str, after: str) -> str:
    """By how many points the mean goes up, and whether by no more than single epochs deviate."""
    up, deviation = late.loc[after, "mean"] - late.loc[before, "mean"], np.hypot(*late.loc[[before, after], "std"])
    return gained(up) + f" (less than epochs deviate, {deviation:.1f})" * bool(abs(up) < deviation)


def decayed(runs: Iterable[Run]) -> Sentences:
    """Mean γ of each layer after training, beside what weight decay alone would have left of γ = 1: a sentence a run.

    Each step of plain SGD multiplies γ by 1 − learning rate × weight decay (Loshchilov & Hutter 2019, Sec. 2).
    """
    said = Sentences()
    for run in runs:
        c = run.config
        if c.optimizer != "sgd" or c.schedule != "constant" or c.momentum or not run.gamma or (
                "gamma" not in c.decay and c.decay != "all"):
            continue
        left = (1 - c.lr * c.weight_decay) ** (c.epochs * -(-c.images // c.batch_size))
        means = ", ".join(f"{layer.split('.')[0]} {np.mean(gamma, dtype=float):.3f}"
                          for layer, gamma in run.gamma.items())
        said.append(f"{modification(c)}: mean γ {means}; weight decay alone would leave {left:.3f}.")
    return said


def layer_means(runs: Iterable[Run]) -> pd.DataFrame:
    """Mean γ and β of each layer, one row a run, logged epoch and layer, and the layer's number from the image on.

    A layer that has a bias in batch norm's stead has the mean of that as β, and no γ.
    """
    rows = []
    for run in runs:
        gamma, beta = run.trajectory["gamma"], run.trajectory["beta"] | run.trajectory.get("bias", {})
        mixed = gamma and len(beta) > len(gamma)         # conv1, conv2, …: some with batch norm, some with a bias
        for number, layer in enumerate(sorted(beta) if mixed else beta, 1):
            for i, epoch in enumerate(run.trajectory["epochs"]):
                mean = gamma[layer][i].mean(dtype=float) if layer in gamma else np.nan
                rows.append(_about(run) | {"epoch": epoch, "number": number, "layer": layer.split(".")[0],
                                           "gamma": mean, "beta": beta[layer][i].mean(dtype=float)})
    return pd.DataFrame(rows)


def surface(run: Run, layer: str, part: str = "gamma") -> pd.DataFrame:
    """γ or β of one layer over training: a row a channel, sorted by its final value, a column a logged epoch.

    Of a run that logged steps (`log_every`), a column a step. Raises InputError for a layer that has none.
    """
    steps = "steps" in run.trajectory
    values = run.trajectory[f"step_{part}" if steps else part]
    logged = pd.DataFrame(values[choose("layer", layer, values)].T.astype(float),
                          columns=run.trajectory["steps" if steps else "epochs"])
    return logged.sort_values(logged.columns[-1], kind="stable").rename_axis(
        index="channel", columns="step" if steps else "epoch")


def _about(run: Run) -> dict:
    """What tells apart the runs of `09_dissect_batchnorm`."""
    return {"run": run.id, "dataset": run.config.dataset, "model": run.config.model, "positions": run.config.positions,
            "modification": modification(run.config), "optimizer": run.config.optimizer, "lr": run.config.lr,
            "epochs": run.config.epochs, "setting": seedless(run.config).id, "seed": run.config.seed}


def _of_shared_seeds(runs: list[Run]) -> list[Run]:
    """Of networks of one depth and width with shortcuts and without, trained alike, the runs of the seeds that both
    have; all where they share none."""
    seeds: dict[tuple, dict[str, set[int]]] = {}

    def alike(run: Run) -> tuple:
        return run.config.dataset, run.config.depth, run.config.width, run.config.trainable, run.config.epochs

    for run in runs:
        seeds.setdefault(alike(run), {}).setdefault(parse_model(run.config.model).family, set()).add(run.config.seed)
    shared = {key: set.intersection(*found.values()) for key, found in seeds.items()}
    return [run for run in runs if run.config.seed in shared[alike(run)] or not shared[alike(run)]]


def residual_and_plain(runs: Iterable[Run]) -> pd.DataFrame:
    """Final test accuracy in % by depth, what trained and epochs: residual beside plain networks, ours and published.

    Columns: dataset, depth, trained, epochs, seeds (the fewest), and for `residual` and `plain` ours (mean over the
    seeds that both have, if they share any), the earlier study's and He et al.'s; NaN where there is none.
    """
    table = accuracy(_of_shared_seeds([run for run in runs if not variant(run.config)]))
    sources = {"ours": None, "study": "residual-versus-plain study", "He et al.": "He et al. 2015"}
    rows: dict[tuple, dict] = {}
    for row in table.itertuples():
        family, depth, width = parse_model(row.model)
        if family not in ("resnet", "plain") or width != 1:
            continue
        kind = "plain" if family == "plain" else "residual"
        found = rows.setdefault((row.dataset, depth, row.trainable, row.epochs), {
            "seeds": row.n, **{f"{k}, {s}": np.nan for k in ("residual", "plain") for s in sources}})
        found["seeds"] = min(found["seeds"], row.n)
        found[f"{kind}, ours"] = row.mean
        known = published(dataset=row.dataset)
        known = known[(known["model"] == row.model) & (known["trainable"] == row.trainable)]
        known = known.set_index("source")["value"]
        found.update({f"{kind}, {short}": known.get(source) for short, source in sources.items() if source in known})
    keys = ["dataset", "depth", "trained", "epochs"]
    made = pd.DataFrame([dict(zip(keys, key, strict=True)) | found for key, found in rows.items()], columns=[
        *keys, "seeds", *(f"{kind}, {source}" for kind in ("residual", "plain") for source in sources)])
    return made.sort_values(["dataset", "trained", "epochs", "depth"], ignore_index=True)
