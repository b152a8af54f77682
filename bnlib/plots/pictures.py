"""Pictures beyond line plots: a network's channels shaded by |γ|, feature maps beside their image, one threshold."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bnlib.analysis import DEAD, dead_by_layer, dead_features
from bnlib.features import as_map
from bnlib.plots.style import colour, note, nothing_yet, smallest_first, thresholds_on_x
from bnlib.store import Run
from bnlib.wording import listed, name, seeds_of, shown, trained


def network(channels: pd.DataFrame) -> Figure:
    """Every channel of a network as a cell, shaded by |γ|: a column a batch-norm layer, a panel what trained.

    channels: from `analysis.affine`, of one network, a run a training mode. In a column the largest |γ| stands lowest.
    Black: |γ| < 0.01.
    """
    if not len(channels):
        return nothing_yet()
    channels = channels.assign(size=channels["gamma"].astype(float).abs())
    modes = list(channels["trainable"].unique())
    layers = channels.drop_duplicates("number").sort_values("number")["layer"].tolist()
    figure, grid = plt.subplots(1, len(modes), figsize=(0.6 + 3.6 * len(modes), 4.4), sharey=True, squeeze=False)
    top = float(channels["size"].quantile(0.99))
    for axes, mode in zip(grid[0], modes, strict=True):
        of_run = channels[channels["trainable"] == mode]
        columns = [np.sort(values)[::-1] for _, values in of_run.groupby("number")["size"]]
        cells = np.full((max(map(len, columns)), len(columns)), np.nan)
        for column, values in enumerate(columns):
            cells[:len(values), column] = values
        shades = LinearSegmentedColormap.from_list(mode, ["#e9e9e9", colour(mode)]).with_extremes(
            under="black", bad="none")
        lines = {"edgecolors": "white", "linewidth": 0.4} if len(columns) <= 40 else {}
        drawn = axes.pcolormesh(cells, cmap=shades, vmin=DEAD, vmax=top, **lines)
        figure.colorbar(drawn, ax=axes, location="bottom", label="|γ|", extend="max", aspect=40)
        dead, count = int((of_run["size"] < DEAD).sum()), len(of_run)
        axes.set_title(f"{trained(mode)}: {dead:,} of {count:,} switched off ({dead / count:.1%})", color=colour(mode),
                       fontsize=9)
        every = -(-len(layers) // 24)
        axes.set_xticks(np.arange(len(layers))[::every] + 0.5, [_short(layer) for layer in layers[::every]],
                        rotation=90, fontsize=7)
        axes.set_xlabel("batch norm, by number of its block")
        axes.grid(visible=False)
    grid[0][0].set_ylabel("channel, by falling |γ|")
    figure.legend(handles=[Patch(color="black", label=f"|γ| < {DEAD}: switched off")], loc="outside upper right",
                  fontsize=8)
    first = channels.iloc[0]
    note(figure, f"{name(first['model'])}, {shown(first['dataset'])}, "
                 f"{listed(channels['epochs'])} epochs; one run a panel")
    return figure


def _short(layer: str) -> str:
    """`blocks.4.shortcut.1` → `4 shortcut`, `blocks.0.bn1` → `0 bn1`."""
    return layer.removeprefix("blocks.").removesuffix(".1").replace(".", " ")


def feature_maps(table: pd.DataFrame) -> Figure:
    """What channels of one layer put out on an image: those of largest |γ| and of smallest, a row an image.

    table: from `features.feature_maps`, of one run. All maps are shown in one scale.
    """
    if not len(table):
        return nothing_yet()
    maps = table[table["layer"] != "image"]
    images, channels = table["image"].unique(), maps["channel"].unique()
    last = max(as_map(values).max() for values in maps["values"])
    figure, grid = plt.subplots(len(images), 1 + len(channels), figsize=(1.2 + 1.12 * len(channels), 1 + 1.02 * len(
        images)), squeeze=False)
    for row, image in zip(grid, images, strict=True):
        of_image = table[table["image"] == image]
        colours = of_image[of_image["layer"] == "image"].sort_values("channel")["values"]
        row[0].imshow(np.stack([as_map(values) for values in colours], axis=-1).astype(np.uint8))
        row[0].set_xlabel(of_image["class"].iloc[0], fontsize=8)
        of_layer = maps[maps["image"] == image].set_index("channel")
        for axes, channel in zip(row[1:], channels, strict=True):
            drawn = axes.imshow(as_map(of_layer.loc[channel, "values"]), cmap="viridis", vmin=0, vmax=last)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    grid[0][0].set_title("test image", fontsize=8)
    for axes, row in zip(grid[0][1:], maps.drop_duplicates("channel").itertuples(), strict=True):
        off = abs(row.gamma) < DEAD
        axes.set_title(f"channel {row.channel}\nγ = {row.gamma:.2g}\nβ = {row.beta:.2g}".replace("-", "−"), fontsize=8,
                       color="#D55E00" if off else "#333333", fontweight="bold" if off else "normal")
    figure.colorbar(drawn, ax=grid[:, 1:], label="output of the ReLU", aspect=15, shrink=0.85)
    first = maps.iloc[0]
    note(figure, f"{name(first['model'])}, {trained(first['trainable'])}, {first['epochs']} epochs, one run; layer "
                 f"{first['layer']}: largest and smallest |γ|; in bold: |γ| < {DEAD}",
         f"Outputs of {len(channels)} channels on {len(images)} test images")
    return figure


def switched_off(runs: list[Run], thresholds: pd.DataFrame, below: float = DEAD) -> Figure:
    """What one threshold on |γ| would switch off: the share of each layer's channels, and the accuracy that is left.

    A column a network; a line what trained, mean over seeds; below accuracy against the threshold, a line a run.
    thresholds: from `features.thresholds`, for those of the runs that it has.
    """
    shares = dead_by_layer(runs, below)
    if not len(shares):
        return nothing_yet()
    shares = shares[shares["epochs"] == shares.groupby("model")["epochs"].transform("max")]
    totals = dead_features(runs, below).set_index(["model", "trainable", "epochs"])
    networks = smallest_first(shares)
    figure, grid = plt.subplots(2, len(networks), figsize=(1.4 + 2.6 * len(networks), 4.8), sharey="row", squeeze=False)
    for (above, under), model in zip(grid.T, networks, strict=True):
        of_model = shares[shares["model"] == model]
        for place, (mode, rows) in enumerate(of_model.groupby("trainable")):
            line, total = rows.groupby("number")["dead"].mean(), totals.loc[(model, mode, rows["epochs"].iloc[0])]
            above.plot(line.index, line, color=colour(mode), marker=".")
            above.annotate(f"{trained(mode)}: {total['mean']:.1f} % of all ({seeds_of(int(total['n']))})", (0.03, 0.97),
                           xytext=(0, -12 * place), xycoords="axes fraction", textcoords="offset points", va="top",
                           color=colour(mode), fontsize=8)
        for _, rows in thresholds[thresholds["run"].isin(of_model["run"])].groupby("run") if len(thresholds) else ():
            under.plot(rows["threshold"], rows["accuracy"], color=colour(rows["trainable"].iloc[0]), marker=".")
        thresholds_on_x(under, below)
        above.set(xlabel="batch-norm layer, from the image on", ylim=(0, 100),
                  title=f"{name(model)}, {of_model['epochs'].iloc[0]} epochs")
        above.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0][0].set_ylabel(f"channels with |γ| < {below:g} (%)")
    grid[1][0].set_ylabel("test accuracy (%)")
    return figure


def sequences(dataset, each: int = 2) -> Figure:
    """The first training sequences of a few classes: value of each channel against step.

    dataset: from `data.load("sequences")`.
    """
    classes = (0, 1, len(dataset.classes) - 1)
    figure, grid = plt.subplots(each, len(classes), figsize=(7.6, 1.2 + 1.1 * each), sharex=True, sharey=True)
    for column, label in zip(grid.T, classes, strict=True):
        chosen = dataset.x_train[dataset.y_train == label][:each, 0]
        for axes, sequence in zip(column, chosen, strict=True):
            for channel, hue in zip(sequence.T, ("#0072B2", "#D55E00", "#009E73"), strict=True):
                axes.plot(channel, color=hue, linewidth=0.8)
        column[0].set_title(dataset.classes[label], fontsize=9)
        column[-1].set_xlabel("step")
    for axes in grid[:, 0]:
        axes.set_ylabel("value (0–255)")
    note(figure, "first training sequences of three classes; a colour a channel")
    return figure
