"""γ and β: how they are spread, layer by layer, and how they got there."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnlib.analysis import comparable
from bnlib.plots.style import (
    BARS,
    COLOURS,
    MARKERS,
    colour,
    legend_below,
    note,
    nothing_yet,
    of_seeds,
    seeds_stated,
    smallest_first,
    values_stated,
)
from bnlib.store import Run
from bnlib.wording import SYMBOL, listed, name, seeds_of, shown, trained

OUTSIDE = 0.002    # of all values on either side, which axes leave out, so that a few do not make all others narrow
LEFT_OUT = f"without the outermost {OUTSIDE:.1%} of all values on either side".replace("%", " %")
RIDGES = 28        # layers of a network that are drawn below each other at most


def affine_histograms(channels: pd.DataFrame) -> Figure:
    """Distributions of γ and β over all channels, a column a network, a colour a training mode.

    channels: from `analysis.affine`. The dotted line is the distribution that training started from.
    """
    if not len(channels):
        return nothing_yet()
    import seaborn as sns  # a second, for this figure alone
    channels = comparable(channels)
    networks = smallest_first(channels)
    figure, grid = plt.subplots(2, len(networks), figsize=(1.2 + 2.1 * len(networks), 3.8), sharex="row",
                                squeeze=False)
    for row, part in zip(grid, ("gamma", "beta"), strict=True):
        limits = np.quantile(channels[part].astype(float), [OUTSIDE, 1 - OUTSIDE])
        bins = np.linspace(*limits, 60)
        for axes, model in zip(row, networks, strict=True):
            for trainable, values in channels[channels["model"] == model].groupby("trainable"):
                sns.histplot(values[part], bins=bins, stat="density", element="step", alpha=0.3, ax=axes,
                             color=colour(trainable), label=trained(trainable))
            axes.set(xlabel=SYMBOL[part], ylabel=None, yticks=[])
            axes.spines["left"].set_visible(False)
            if part == "gamma":
                axes.plot([0, 0, 1, 1], [0, 1, 1, 0], ":", color="#333333", linewidth=1, label="γ at the start")
                axes.set_title(_titled(channels, model))
        row[0].set_ylabel("density of channels")
    note(figure, LEFT_OUT)
    legend_below(figure)
    return figure


def affine_by_layer(channels: pd.DataFrame, part: str = "gamma") -> Figure:
    """γ or β of every channel against the number of its layer, a panel a network; band: the middle 90 %, line: the
    median."""
    if not len(channels):
        return nothing_yet()
    channels = comparable(channels)
    networks = smallest_first(channels)
    rows, columns = -(-len(networks) // 2), min(2, len(networks))
    figure, grid = plt.subplots(rows, columns, figsize=(0.8 + 3.4 * columns, 0.5 + 2.7 * rows), sharey=True,
                                squeeze=False)
    limits = [*np.quantile(channels[part].astype(float), [OUTSIDE, 1 - OUTSIDE])]
    for axes, model in zip(grid.flat, networks, strict=False):
        for trainable, values in channels[channels["model"] == model].groupby("trainable"):
            of_layer = values.groupby("number")[part]
            low, middle, high = (of_layer.quantile(q) for q in (0.05, 0.5, 0.95))
            limits += [low.min(), high.max()]
            axes.fill_between(low.index, low, high, color=colour(trainable), alpha=0.18, linewidth=0)
            axes.plot(middle.index, middle, color=colour(trainable), label=trained(trainable))
            axes.scatter(values["number"], values[part], s=2, color=colour(trainable), alpha=0.25, linewidths=0,
                         rasterized=True)
        axes.set(xlabel="batch-norm layer, from the image on", title=_titled(channels, model))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in grid.flat[len(networks):]:
        axes.remove()
    grid[0][0].set_ylim(min(limits), max(limits))
    for axes in grid[:, 0]:
        axes.set_ylabel(SYMBOL[part])
    note(figure, "axes leave out a few single channels")
    legend_below(figure)
    return figure


def dead_share(table: pd.DataFrame, published: float = np.nan) -> Figure:
    """Share of switched-off features, a row a network: a mark a length of training, a colour a training mode; what was
    trained for several lengths is joined.

    table: of the protocol, from `analysis.dead_features`. Bars are one standard deviation over seeds. Dotted: the share
    at the start, where γ ~ U(0, 1); dashed: that which was published of BN only (%).
    """
    if not len(table):
        return nothing_yet()
    modes = sorted(table["trainable"].unique(), key=[*COLOURS, *table["trainable"]].index)
    networks = smallest_first(table)
    figure, axes = plt.subplots(figsize=(6.4, 1.4 + 0.46 * len(networks)))
    for (model, mode), line in table.sort_values("epochs").groupby(["model", "trainable"], sort=False):
        y = networks.index(model) + 0.4 * (modes.index(mode) / max(1, len(modes) - 1) - 0.5)
        axes.plot(line["mean"], [y] * len(line), color=colour(mode), linewidth=0.8)
        for row in line.itertuples():
            axes.errorbar(row.mean, y, xerr=row.std, color=colour(mode), marker=MARKERS.get(row.epochs, "D"),
                          linestyle="none", label=f"{trained(mode)}, {row.epochs} epochs", **BARS)
            last = row.epochs == line["epochs"].max()         # a number beside what lies furthest, else above
            axes.annotate(f"{row.mean:.1f}  {of_seeds(row, table)}", (row.mean + last * np.nan_to_num(row.std), y),
                          xytext=(7, 0) if last else (0, 4), va="center" if last else "bottom",
                          ha="left" if last else "center", textcoords="offset points", fontsize=7.5, color=colour(mode))
    axes.axvline(100 * table["below"].iloc[0], color="#333333", linewidth=0.8, linestyle=":", label="at the start")
    if not np.isnan(published):
        axes.axvline(published, color=colour("bn"), linewidth=0.8, linestyle="--", label="published, BN only")
    axes.set_yticks(range(len(networks)), map(name, networks))
    axes.set(ylim=(len(networks) - 0.4, -0.6), xlabel=f"channels with |γ| < {listed(table['below'])} (%)",
             xlim=(0, 1.15 * np.nanmax([(table["mean"] + table["std"].fillna(0)).max(), published]) + 0.1))
    axes.grid(axis="y", visible=False)
    legend_below(figure)
    note(figure, seeds_stated(table))
    figure.set_label(values_stated(table, "model"))
    return figure


def ridges(channels: pd.DataFrame, part: str = "gamma") -> Figure:
    """The distribution of γ or β in each batch-norm layer, first layer on top; a column a network, a colour a mode.

    channels: from `analysis.affine`. All curves have the same height; dotted: 0. Of deep networks every so many layers
    are drawn, the first and the last among them.
    """
    if not len(channels):
        return nothing_yet()
    channels = comparable(channels)
    networks = smallest_first(channels)
    layers = min(RIDGES, int(channels["number"].max()))
    figure, grid = plt.subplots(1, len(networks), figsize=(1 + 2.6 * len(networks), 1.4 + min(0.24 * layers, 6)),
                                sharex=True, squeeze=False)
    low, high = np.quantile(channels[part].astype(float), [OUTSIDE, 1 - OUTSIDE])
    values = np.linspace(*((low, high) if low < high else (low - 0.5, low + 0.5)), 160)         # equal: nothing moved
    for axes, model in zip(grid[0], networks, strict=True):
        of_model = channels[channels["model"] == model]
        count = of_model["number"].max()
        drawn = np.unique(np.linspace(1, count, min(count, RIDGES)).astype(int))
        places = {number: place for place, number in enumerate(drawn, 1)}
        for (trainable, number), rows in of_model[of_model["number"].isin(places)].groupby(["trainable", "number"]):
            place, found = places[number], rows[part].to_numpy(float)
            quarters = np.subtract(*np.quantile(found, [0.75, 0.25])) / 1.34
            width = 0.9 * min(found.std(), quarters) * len(found) ** -0.2             # Silverman 1986, Sec. 3.4
            width = max(width, values[1] - values[0])                                 # what the curve's points resolve
            bumps = np.exp(-0.5 * ((values[:, None] - found) / width) ** 2)
            curve = bumps.mean(1) / width
            seen = curve > curve.max() / 300                                          # flat ends need no points
            x, y = values[seen], -place + 1.6 * curve[seen] / curve.max()
            outline = [x[0], *x, x[-1]], [-place, *y, -place]
            # Before a layer's ridges, of either colour, those of the layers above it disappear.
            axes.fill(*outline, color=axes.get_facecolor(), linewidth=0, zorder=place)
            axes.fill(*outline, facecolor=to_rgba(colour(trainable), 0.3), edgecolor=colour(trainable), linewidth=0.7,
                      zorder=place + 0.5, label=trained(trainable) if number == 1 else None)
        axes.set(xlabel=SYMBOL[part], title=_titled(channels, model), ylim=(-len(places) - 0.5, 1))
        axes.set_yticks([-1, -len(places)], ["first", "last"])
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color="#333333", linewidth=0.6, linestyle=":", zorder=len(places) + 1)
    grid[0][0].set_ylabel("batch-norm layer")
    note(figure, f"{LEFT_OUT}; {RIDGES} layers of a network at most")
    legend_below(figure)
    return figure


def trajectories(runs: list[Run], part: str = "gamma", channels: int = 24) -> Figure:
    """γ or β of the first `channels` channels of the first, middle and last batch-norm layer over training.

    A row a run, one line a channel; the logged epochs are those of the run's trajectory.
    """
    if not runs:
        return nothing_yet()
    figure, grid = plt.subplots(len(runs), 3, figsize=(7, 0.8 + 1.7 * len(runs)), sharex="row", sharey=True,
                                squeeze=False)
    for row, run in zip(grid, runs, strict=True):
        layers = list(run.trajectory[part])
        for axes, layer in zip(row, (layers[0], layers[len(layers) // 2], layers[-1]), strict=True):
            axes.plot(run.trajectory["epochs"], run.trajectory[part][layer][:, :channels].astype(float),
                      color=colour(run.config.trainable), alpha=0.5, linewidth=0.8)
            axes.set_title(layer, fontsize=8)
        row[0].set_ylabel(f"{SYMBOL[part]}, {trained(run.config.trainable)}")
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    about = dict.fromkeys(f"{name(run.config.model)} on {shown(run.config.dataset)}, seed {run.config.seed}"
                          for run in runs)
    note(figure, f"{'; '.join(about)}; the first {channels} channels of three layers")
    return figure


def _titled(channels: pd.DataFrame, model: str) -> str:
    seeds = channels[channels["model"] == model].groupby("trainable")["seed"].nunique()
    epochs = channels.loc[channels["model"] == model, "epochs"].iloc[0]
    each = ", ".join(f"{n} {trained(what).removesuffix(' parameters')}" for what, n in seeds.items())
    stated = seeds_of(seeds.iloc[0]) if seeds.nunique() == 1 else f"seeds:\n{each}"
    return f"{name(model)}\n{epochs} epochs, {stated}"
