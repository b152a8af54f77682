"""Figures of earlier studies, batch norm taken apart, residual and plain networks, ResNet-101: a table in, one out."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnlib.analysis import comparable, histories, surface
from bnlib.config import Config
from bnlib.names import DEEPOBS, InputError, choose, parse_model
from bnlib.plots.style import colour, legend_below, note, nothing_yet
from bnlib.profiles import MODIFICATIONS, modification
from bnlib.store import Run
from bnlib.wording import SYMBOL, half, listed, seeds_of, shown, trained
from bnlib.wording import name as spelled


def shade(name: str) -> str:
    """The colour of a modification: of what trains, with the weights or alone, and black where no batch norm is."""
    parts = {"trained_bn": "all", "fixed_bn": "weights", "fixed_gamma": "beta", "fixed_beta": "gamma"}
    return "#000000" if name == "vanilla" else colour(parts.get(name.removesuffix(" alone"), name))


#: One kind of line a modification, alone or not, so that grey print tells them apart too.
DASHES = {"vanilla": "-", "trained_bn": "-", "fixed_bn": (0, (6, 1.5)), "fixed_gamma": "-.", "fixed_beta": ":"}


def in_order(modifications: Iterable[str]) -> list[str]:
    """Each modification once, in the order of MODIFICATIONS; any other choice of what trains after them."""
    known = list(MODIFICATIONS)
    return sorted(set(modifications), key=lambda m: (known.index(m) if m in known else len(known), m))


def courses(table: pd.DataFrame, line: str = "modification", panel: str | None = None, smooth: int = 0) -> Figure:
    """Training loss and test accuracy against epoch: a line a `modification` or `lr`, a column of panels a `panel`.

    table: from `analysis.histories`; thin: all other weights frozen. smooth: epochs of a Savitzky–Golay window, of a
    polynomial of degree 2 (SciPy); 0: as measured. Raises InputError for a window that cannot be.
    """
    if smooth and smooth < 3:
        raise InputError(f"smooth={smooth}: must be 0, as measured, or a window of at least 3 epochs")
    if not len(table):
        return nothing_yet()
    by_name, viridis = line == "modification", plt.get_cmap("viridis")
    values = in_order(table[line]) if by_name else sorted(set(table[line]))
    styles = {value: {"color": shade(value) if by_name else viridis(0.85 * i / max(1, len(values) - 1)),
                      "linestyle": DASHES.get(str(value).removesuffix(" alone"), "-"),
                      "linewidth": 0.7 if str(value).endswith(" alone") else 1.3}
              for i, value in enumerate(values)}
    panels = list(table[panel].unique()) if panel else [""]
    figure, grid = plt.subplots(2, len(panels), figsize=(1.6 + 2.9 * len(panels), 4.8), sharex=True, sharey="row",
                                squeeze=False)
    for column, name in zip(grid.T, panels, strict=True):
        part = table[table[panel] == name] if panel else table
        for (value, _), run in part.groupby([line, "run"]):
            for axes, score in zip(column, ("train_loss", "test_accuracy"), strict=True):
                axes.plot(run["epoch"], smoothed(run[score].to_numpy(), smooth), marker="." if len(run) == 1 else "",
                          **styles[value])
        column[0].set_title(half(name).replace("; ", "\n") if panel == "modification" else name)
        column[-1].set_xlabel("epoch")
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    grid[0][0].set_ylabel("training loss (nats)")
    grid[1][0].set_ylabel("test accuracy (%)")
    labels = [half(value) if by_name else f"learning rate {value:g}" for value in values]
    figure.legend([plt.Line2D([], [], **styles[value]) for value in values], labels, loc="outside lower center",
                  ncols=4 if len(panels) > 1 else 2)
    window = min(smooth, int(table.groupby("run")["epoch"].count().min()))
    note(figure, _stated(table) + f"; smoothed over {window} epochs" * (window > 2),
         "Training loss and test accuracy against epoch")
    return figure


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Savitzky & Golay's smoothing over `window` values, or as many as there are; 0: the values themselves."""
    from scipy.signal import savgol_filter
    window = min(window, len(values))
    return savgol_filter(values, window, 2) if window > 2 else values


def by_positions(table: pd.DataFrame) -> Figure:
    """Test accuracy of each modification, a row for each choice of the layers, from the image on, with batch norm.

    table: from `analysis.by_positions`. Hollow: all other weights frozen. Bars are one standard deviation of epochs.
    """
    if not len(table):
        return nothing_yet()
    masks, names = sorted(table["positions"].unique()), in_order(table["modification"])
    figure, axes = plt.subplots(figsize=(6, 1.6 + 0.45 * len(masks)))
    for i, name in enumerate(names):
        rows = table[table["modification"] == name]
        at = [masks.index(mask) + 0.3 - 0.6 * i / max(1, len(names) - 1) for mask in rows["positions"]]
        hollow = {"markerfacecolor": "none"} if name.endswith(" alone") else {}
        axes.errorbar(rows["mean"], at, xerr=rows["std"], marker="o", linestyle="", markersize=4,
                      color=shade(name), label=half(name), **hollow)
    axes.set_yticks(range(len(masks)), map(_places, masks))
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="test accuracy (%), mean of the last quarter of training", ylabel="layers with\nbatch norm",
             ylim=(-0.5, len(masks) - 0.5))
    figure.legend(loc="outside lower center", ncols=2)
    note(figure, f"{_stated(table)}; bars: ± 1 standard deviation of those epochs")
    return figure


def _places(mask: str) -> str:
    """Which layers, from the image on, have batch norm: `1,0,1,1,0` → `1, 3, 4`."""
    letters = mask.split(",")
    behind = [str(layer) for layer, letter in enumerate(letters, 1) if letter == "1"]
    return "none" if not behind else "every" if len(behind) == len(letters) else ", ".join(behind)


def layer_means(table: pd.DataFrame) -> Figure:
    """Mean γ and β of each layer against epoch, a line a layer and run, a column a modification.

    table: from `analysis.layer_means`. Where a layer has no batch norm, its bias stands for β (dotted).
    """
    if not len(table):
        return nothing_yet()
    columns = in_order(table["modification"])
    layers = table.drop_duplicates("layer").sort_values("number")["layer"].tolist()
    figure, grid = plt.subplots(2, len(columns), figsize=(1.2 + 1.9 * len(columns), 4.4), sharex=True, sharey="row",
                                squeeze=False)
    for column, what in zip(grid.T, columns, strict=True):
        for i, layer in enumerate(layers):
            of_layer = table[(table["modification"] == what) & (table["layer"] == layer)]
            hue = plt.get_cmap("viridis")(0.9 * i / max(1, len(layers) - 1))
            for _, rows in of_layer.groupby("run", sort=False):
                for axes, part in zip(column, ("gamma", "beta"), strict=True):
                    dotted = part == "beta" and rows["gamma"].isna().all()
                    axes.plot(rows["epoch"], rows[part], ":" if dotted else "-", color=hue, marker=".", label=layer)
        column[0].set_title(half(what).replace("; ", "\n"), color=shade(what), fontsize=9)
        column[-1].set_xlabel("epoch")
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    for axes, part in zip(grid[:, 0], ("gamma", "beta"), strict=True):
        biases = bool(part == "beta" and table["gamma"].isna().any())
        axes.set_ylabel(f"mean {SYMBOL[part]}" + "\n(dotted: bias)" * biases)
    legend_below(figure, grid[0][-1], ncols=len(layers))
    note(figure, _stated(table))
    return figure


def surfaces(runs: Iterable[Run], layer: str | None = None, part: str = "gamma") -> Figure:
    """γ or β of one layer over channel and epoch, channels sorted by their final value: a column a run.

    Above as a surface, below as a contour plot, all in one scale. layer: None: the last between a block's convolutions.
    Raises InputError for a layer that none of the runs has.
    """
    runs = list(runs)
    within = [name for run in runs for name in run.trajectory[part] if name.endswith(".bn1")]
    layer = layer or (within or [""])[-1]
    if not runs:
        return nothing_yet()
    choose("layer", layer, list(dict.fromkeys(name for run in runs for name in run.trajectory[part])))
    runs = [run for run in runs if layer in run.trajectory[part]]
    tables = [surface(run, layer, part) for run in runs]
    levels = MaxNLocator(15).tick_values(min(table.to_numpy().min() for table in tables),
                                         max(table.to_numpy().max() for table in tables))
    low, high = levels[0], levels[-1]
    figure = plt.figure(figsize=(1 + 2.5 * len(runs), 5.6))
    for i, (run, table) in enumerate(zip(runs, tables, strict=True), 1):
        epochs, channels = np.meshgrid(table.columns.astype(float), np.arange(len(table)))
        about = {"cmap": "viridis", "vmin": low, "vmax": high}
        above = figure.add_subplot(2, len(runs), i, projection="3d")
        above.plot_surface(epochs, channels, table.to_numpy(), linewidth=0, **about)
        above.set(xlabel=table.columns.name, ylabel="channel", zlim=(low, high))
        above.set_zlabel(SYMBOL[part], labelpad=-6)
        what, hue = _called(run.config)
        above.set_title(what, color=hue, fontsize=9)
        above.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        above.view_init(28, -130)
        above.tick_params(labelsize=6, pad=-2)
        below = figure.add_subplot(2, len(runs), len(runs) + i)
        drawn = below.contourf(epochs, channels, table.to_numpy(), levels=levels, **about)
        below.set(xlabel=table.columns.name, ylabel="channel, by final value" if i == 1 else None)
        below.grid(visible=False)
    figure.colorbar(drawn, ax=figure.axes[1::2], label=f"{SYMBOL[part]} of {layer}", format="%g")
    note(figure, _stated(histories(runs)), f"{SYMBOL[part]} of every channel of {layer} over training")
    return figure


def _called(config: Config) -> tuple[str, str]:
    """What a run trained, in the words of its study, and the colour of that."""
    if parse_model(config.model).family in DEEPOBS:
        return half(modification(config)), shade(modification(config))
    return trained(config.trainable), colour(config.trainable)


def gamma_against_beta(channels: pd.DataFrame) -> Figure:
    """Final γ against final β, a dot a channel, a panel a layer, a colour a modification.

    channels: from `analysis.affine`, of runs of one network. Dotted: γ = 1 and β = 0, where they start.
    """
    if not len(channels):
        return nothing_yet()
    layers = channels.drop_duplicates("layer").sort_values("number")["layer"].tolist()
    names = {what: name for name, what in MODIFICATIONS.items() if name != "vanilla"}
    channels = channels.assign(modification=channels["trainable"].map(names))
    figure, grid = plt.subplots(1, len(layers), figsize=(1 + 1.9 * len(layers), 2.9), sharex=True, sharey=True,
                                squeeze=False)
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.axhline(1, color="#333333", linestyle=":", linewidth=0.8)
        axes.axvline(0, color="#333333", linestyle=":", linewidth=0.8)
        for what in in_order(channels["modification"]):
            rows = channels[(channels["layer"] == layer) & (channels["modification"] == what)]
            cross = what == "fixed_bn"                        # all its channels are one point
            axes.scatter(rows["beta"], rows["gamma"], color=shade(what), label=half(what), zorder=2 + cross,
                         **{"marker": "x", "s": 40} if cross else {"s": 5, "linewidths": 0, "alpha": 0.6})
        count = channels[channels["layer"] == layer]["channel"].nunique()
        axes.set(xlabel="final β", title=f"{layer.split('.')[0]}: {count} channels")
    grid[0][0].set_ylabel("final γ")
    legend_below(figure, grid[0][0], ncols=4, markerscale=2.5)
    note(figure, _stated(channels))
    return figure


def by_depth(table: pd.DataFrame) -> Figure:
    """Test accuracy against depth: residual (full lines) and plain (dashed), a panel what trains.

    table: from `analysis.residual_and_plain`; hollow marks are published values, of other lengths. Of what trains, the
    number of epochs with most depths, of equals the longest training.
    """
    if not len(table):
        return nothing_yet()
    table = comparable(table, "trained", ["depth"])
    modes = list(table["trained"].unique())
    figure, grid = plt.subplots(1, len(modes), figsize=(1 + 3.2 * len(modes), 3.4), sharex=True, sharey=True,
                                squeeze=False)
    for axes, mode in zip(grid[0], modes, strict=True):
        of_mode = table[table["trained"] == mode]
        for kind, style in (("residual", "-o"), ("plain", "--s")):
            ours = of_mode.dropna(subset=f"{kind}, ours")
            axes.plot(ours["depth"], ours[f"{kind}, ours"], style, color=colour(mode),
                      label=kind if len(ours) else None)
            for source, marker in (("study", style[-1]), ("He et al.", "^")):
                known = of_mode.dropna(subset=f"{kind}, {source}").drop_duplicates("depth")
                axes.plot(known["depth"], known[f"{kind}, {source}"], style[:-1], marker=marker, linewidth=0.6,
                          markerfacecolor="none", color=colour(mode), alpha=0.6,
                          label=f"{kind}, {source}" if len(known) else None)
        seeds = seeds_of(of_mode["seeds"].min())
        axes.set(xlabel="depth (layers)", title=f"{trained(mode)}; ours: {listed(of_mode['epochs'])} epochs, {seeds}",
                 xticks=sorted(set(table["depth"])))
        axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    grid[0][0].set_ylabel("test accuracy (%)")
    note(figure, "/".join(shown(d) for d in table["dataset"].unique()))
    return figure


def _stated(table: pd.DataFrame) -> str:
    """What the runs of a table have in common: network, dataset, epochs, seeds."""
    models = "/".join(map(spelled, table["model"].unique()))
    sets = "/".join(shown(d) for d in table["dataset"].unique())
    epochs = listed(table["epochs"])
    seeds = int(table["n"].max()) if "n" in table else table["seed"].nunique()
    return f"{models} on {sets}, {epochs} epoch{'s' * (epochs != '1')}, {seeds_of(seeds)}"
