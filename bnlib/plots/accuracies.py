"""Accuracy: over training, by depth and width, by what trained, by size."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from bnlib.analysis import PAPER_EPOCHS, comparable
from bnlib.config import Config
from bnlib.names import parse_model
from bnlib.names import random_weights as random_weights_of
from bnlib.plots.style import (
    BARS,
    MARKERS,
    colour,
    legend_below,
    mark_seeds,
    note,
    nothing_yet,
    of_seeds,
    seeds_stated,
    smallest_first,
    values_stated,
)
from bnlib.store import Run
from bnlib.wording import listed, name, shown, trained

NARROWEST = 5      # points that an axis of accuracies shows at least, lest half a point look like much


def history(run: Run) -> Figure:
    """Accuracy on training and test images against epoch, for one run."""
    return progress(run.config, run.history)


def progress(config: Config, history: pd.DataFrame) -> Figure:
    """Accuracy on training and test images against epoch, as far as training has come: a row of `history` an epoch."""
    figure, axes = plt.subplots(figsize=(5, 3))
    hue = colour(config.trainable)
    for part, dashes in (("train", "--"), ("test", "-")):
        line = history[["epoch", f"{part}_accuracy"]].dropna() if f"{part}_accuracy" in history else history[:0]
        axes.plot(line["epoch"], 100 * line.iloc[:, 1], dashes, color=hue, marker="." if len(line) == 1 else "")
        for epoch, share in line[-1:].itertuples(index=False):
            axes.annotate(part, (epoch, 100 * share), xytext=(5, 0), va="center", color=hue, textcoords="offset points")
    axes.set(xlabel="epoch", ylabel="accuracy (%)", xlim=(0.9, max(config.epochs, 2)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"{name(config.model)}, {trained(config.trainable)}, {shown(config.dataset)}, "
                   "one run", loc="left")
    return figure


def accuracy_against(table: pd.DataFrame, by: str, published: pd.DataFrame | None = None) -> Figure:
    """Test accuracy against `depth` or `width`, a line a training mode; published values as hollow marks.

    table: from `analysis.accuracy`; with a column chance (%), as of `analysis.top1_and_top5`, that is dotted. Bars are
    one standard deviation over seeds. Two lines are named where they end; more below the figure, since names would run
    into each other, and so where one is a single point, which the other may hide, or ends before it.
    """
    table = table[table["n"] > 0]
    if not len(table):
        return nothing_yet()
    figure, axes = plt.subplots(figsize=(6, 3.8))
    lines = table.sort_values(by).groupby(["trainable", "epochs"], sort=False)
    below = lines.ngroups > 2 or (lines.ngroups > 1 and (lines.size().min() == 1 or lines[by].max().nunique() > 1))
    for (trainable, epochs), line in lines:
        hue, label = colour(trainable), f"{trained(trainable)}, {epochs} epochs"
        axes.errorbar(line[by], line["mean"], yerr=line["std"], color=hue, marker=MARKERS.get(epochs, "D"),
                      label=label if below else None, **BARS)
        mark_seeds(axes, line, by, table)
        if not below:
            axes.annotate(label, (line[by].iloc[-1], line["mean"].iloc[-1]), color=hue, textcoords="offset points",
                          xytext=(8, -3), va="top")
    ticks = set(table[by])
    if published is not None:
        ticks |= _hollow(axes, table, by, published)
    ticks = sorted(ticks)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(t) for t in ticks], rotation=45 if len(ticks) > 8 else 0)
    axes.margins(x=0.09, y=0.18)
    if "chance" in table:
        axes.axhline(chance := table["chance"].iloc[0], color="#333333", linewidth=0.8, linestyle=":")
        axes.annotate("chance", (0, chance), xytext=(3, 2), textcoords="offset points", fontsize=7.5, color="#333333",
                      xycoords=axes.get_yaxis_transform())
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 102))                # a mark at 100 % is not cut
    if axes.get_legend_handles_labels()[0]:
        legend_below(figure, axes, ncols=2, fontsize=7.5)
    axes.set_xlabel({"depth": "depth (layers)", "width": "width (multiple of 16, 32, 64 channels)"}[by])
    axes.set_ylabel("test accuracy (%)")
    note(figure, seeds_stated(table))
    figure.set_label(values_stated(table, by))
    return figure


def accuracy_by_setting(table: pd.DataFrame, by: str = "trainable") -> Figure:
    """Test accuracy of each choice of what trains (`trainable`) or of each `variant`, a row each, a panel a network.

    table: from `analysis.accuracy`. Bars are one standard deviation over seeds. With one network, what trains is
    followed by how many parameters that are. Variants of several training modes share a row; each mode is named where
    it is highest. What diverged in every seed stands lowest, without a mark.
    """
    table = table[(table["n"] > 0) | (table["diverged"] > 0)]
    if not (table["n"] > 0).any():
        return nothing_yet()
    table = comparable(table)
    settings = table.groupby(by)["mean"].mean().sort_values(na_position="first").index.tolist()
    if settings == [""]:                               # the protocol, and no variant of it
        return nothing_yet()
    modes = table.groupby("trainable")["mean"].mean().sort_values().index.tolist() if by == "variant" else []
    networks = smallest_first(table)
    figure, grid = plt.subplots(1, len(networks), figsize=(2.4 + 3 * len(networks), 1.1 + 0.28 * len(settings)),
                                sharey=True, sharex=True, squeeze=False)
    for axes, model in zip(grid[0], networks, strict=True):
        highest = {mode: max(map(settings.index, of_mode[by]))                     # where a mode is named
                   for mode, of_mode in table[table["model"] == model].groupby("trainable")}
        for row in table[table["model"] == model].itertuples():
            y, hue = settings.index(getattr(row, by)), colour(row.trainable)
            if not row.n:
                axes.annotate("diverged", (0.02, y), xycoords=axes.get_yaxis_transform(), va="center", fontsize=7.5,
                              color=hue)
                continue
            if len(modes) > 1:                         # one above the other, the best mode on top
                place = modes.index(row.trainable) / (len(modes) - 1) - 0.5
                y += 0.36 * place
                if settings.index(getattr(row, by)) == highest[row.trainable]:
                    axes.annotate(trained(row.trainable), (row.mean - np.nan_to_num(row.std), y), xytext=(-6, 0),
                                  ha="right", va="center", textcoords="offset points", fontsize=7.5, color=hue)
            axes.errorbar(row.mean, y, xerr=row.std, color=hue, marker=MARKERS.get(row.epochs, "D"), **BARS)
            axes.annotate(f"{row.mean:.1f}  {of_seeds(row, table)}", (row.mean + np.nan_to_num(row.std), y),
                          xytext=(7, 0), va="center", textcoords="offset points", fontsize=7.5, color="#555555")
        epochs = listed(table[table["model"] == model]["epochs"])
        axes.set(xlabel="test accuracy (%)", title=f"{name(model)}, {epochs} epochs")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.15)
        axes.set_ylim(-0.6, len(settings) - 0.4)
    low, high = grid[0][0].get_xlim()
    pad = max(0, NARROWEST - (high - low)) / 2
    grid[0][0].set_xlim(low - pad, high + pad)
    counts = table.groupby(by)["parameters"].first()
    labels = {s: s or "the protocol" if by == "variant" else trained(s) for s in settings}
    if by == "trainable" and len(networks) == 1:
        labels = {s: f"{label}: {counts[s]:,}" for s, label in labels.items()}
    grid[0][0].set_yticks(range(len(settings)), labels.values())
    note(figure, seeds_stated(table))
    figure.set_label(values_stated(table.assign(variant=table["variant"].replace("", "the protocol")),
                                   "variant" if by == "variant" else "model"))
    return figure


def top1_and_top5(table: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """Top-1 and top-5 accuracy, a panel each; a row for what trains of each network, and how many parameters that are.

    table: from `analysis.top1_and_top5`; without top-5 there is one panel. published: of top-5, hollow marks of the
    protocol. Dotted: chance.
    """
    table = table[table["n"] > 0]
    if not len(table):
        return nothing_yet()
    table = comparable(table).sort_values(["depth", "width", "model", "mean"], ascending=[False, False, False, True])
    rows = [(model, *what) for model, of_model in table[table["top"] == 1].groupby("model", sort=False)
            for what in [*zip(of_model["trainable"], of_model["variant"], strict=True), ("", "")]]  # the network's name
    tops = sorted(table["top"].unique())
    figure, grid = plt.subplots(1, len(tops), figsize=(2.6 + 2.4 * len(tops), 1.2 + 0.24 * len(rows)), sharey=True,
                                squeeze=False)
    for axes, top in zip(grid[0], tops, strict=True):
        part = table[table["top"] == top]
        for row in part.itertuples():
            y = rows.index((row.model, row.trainable, row.variant))
            axes.errorbar(row.mean, y, xerr=row.std, color=colour(row.trainable),
                          marker=MARKERS.get(row.epochs, "D"), **BARS)
            axes.annotate(f"{row.mean:.1f}", (row.mean + np.nan_to_num(row.std), y), xytext=(7, 0), va="center",
                          textcoords="offset points", fontsize=7.5, color="#555555")
        known = () if published is None or top == 1 else published.itertuples()
        for claim in known:
            if claim.dataset in set(part["dataset"]) and (claim.model, claim.trainable, "") in rows:
                y = rows.index((claim.model, claim.trainable, "")) + 0.3              # above ours and its number
                axes.scatter(claim.value, y, s=35, facecolors="none", edgecolors=colour(claim.trainable),
                             label=f"published: {claim.source}")
        axes.axvline(part["chance"].iloc[0], color="#333333", linewidth=0.8, linestyle=":")
        axes.annotate("chance", (part["chance"].iloc[0], 1), xytext=(3, -2), textcoords="offset points", va="top",
                      xycoords=axes.get_xaxis_transform(), fontsize=7.5, color="#333333")
        axes.set(xlabel=f"top-{top} test accuracy (%)")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1.2 * max(axes.dataLim.xmax, part["chance"].iloc[0])), ylim=(-0.6, len(rows) - 0.4))
    counts = table.groupby(["model", "trainable"])["parameters"].first()
    labels = [f"{', '.join(filter(None, (trained(t), v)))}: {counts[m, t]:,}" if t else
              name(m).removeprefix("ImageNet ") for m, t, v in rows]
    grid[0][0].set_yticks(range(len(rows)), labels)
    for label, (_, trainable, _) in zip(grid[0][0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if trainable else "bold")
    if grid[0][-1].get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower right", fontsize=7.5)
    note(figure, f"{seeds_stated(table)}; {listed(table['epochs'])} epochs")
    return figure


def random_weights(table: pd.DataFrame) -> Figure:
    """Test accuracy against the number of random weights that train in each channel; dashed: BN only.

    table: from `analysis.accuracy`. Bars and band are one standard deviation over seeds.
    """
    table = table[table["n"] > 0]
    table = comparable(table[table["trainable"].str.fullmatch(r"random\d+|bn")])
    chosen = table[table["trainable"] != "bn"].copy()
    if not len(chosen):
        return nothing_yet()
    chosen["weights"] = chosen["trainable"].map(random_weights_of)
    networks = smallest_first(chosen)
    figure, grid = plt.subplots(1, len(networks), figsize=(1.6 + 2.6 * len(networks), 3), sharey=True, squeeze=False)
    for axes, model in zip(grid[0], networks, strict=True):
        line = chosen[chosen["model"] == model].sort_values("weights")
        axes.errorbar(line["weights"], line["mean"], yerr=line["std"], color=colour("random2"),
                      marker=MARKERS.get(line["epochs"].iloc[0], "D"), **BARS)
        mark_seeds(axes, line, "weights", chosen)
        for row in table[(table["model"] == model) & (table["trainable"] == "bn")].itertuples():
            axes.axhline(row.mean, color=colour("bn"), linestyle="--")
            axes.axhspan(row.mean - np.nan_to_num(row.std), row.mean + np.nan_to_num(row.std), color=colour("bn"),
                         alpha=0.15, linewidth=0)
            axes.annotate("BN only: 2 a channel", (line["weights"].max(), row.mean), xytext=(0, 3), ha="right",
                          textcoords="offset points", color=colour("bn"), fontsize=7.5)
        axes.set_xscale("log", base=2)
        axes.set_xticks(line["weights"], line["weights"])
        axes.margins(x=0.1, y=0.14)
        axes.set(xlabel="random weights a channel", title=f"{name(model)}, {listed(line['epochs'])} epochs")
    grid[0][0].set_ylabel("test accuracy (%)")
    note(figure, seeds_stated(chosen))
    return figure


def accuracy_by_size(table: pd.DataFrame) -> Figure:
    """Test accuracy against trained parameters and against stored bytes, BN-only networks and narrow ones in full.

    table: from `analysis.sizes`. Bars are one standard deviation over seeds.
    """
    table = table[table["n"] > 0]
    if not len(table):
        return nothing_yet()
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.6), sharey=True)
    for axes, by in zip(panels, ("parameters", "bytes"), strict=True):
        halo = withStroke(linewidth=1.5, foreground=axes.get_facecolor())          # where a line crosses a label
        named = set()                                  # once each, however long it was trained, but for its seeds
        for (trainable, epochs), line in table.sort_values(by).groupby(["trainable", "epochs"]):
            hue, alone = colour(trainable), trainable == "bn"
            axes.errorbar(line[by], line["mean"], yerr=line["std"], color=hue,
                          marker=MARKERS.get(epochs, "D"), linestyle="-" if alone else "none",
                          label=f"{'BN only' if alone else 'narrow, all parameters'}, {epochs} epochs", **BARS)
            beside = {"xytext": (2, -5), "va": "top"} if alone else {"xytext": (-6, 3), "ha": "right"}
            for row in line.itertuples():
                short = name(row.model).removeprefix("ResNet-")       # or neighbours' names would run into each other
                said, place = f"{short}\n{of_seeds(row, table)}".strip(), beside
                if row.model in named:
                    said, place = of_seeds(row, table), {"xytext": (-6, 0), "ha": "right", "va": "center"}
                axes.annotate(said, (getattr(row, by), row.mean), color=hue, fontsize=7,
                              textcoords="offset points", path_effects=[halo], **place)
            named |= set(line["model"])
        _count_on_x(axes)
        axes.margins(x=0.25, y=0.14)
    panels[0].set(xlabel="parameters that train", ylabel="test accuracy (%)")
    panels[1].set(xlabel="bytes to store the trained network")
    legend_below(figure, panels[0], ncols=2)
    note(figure, f"{seeds_stated(table)}\nResNets by their layers; c: the channels they begin with, where not 16")
    return figure


def depth_or_width(table: pd.DataFrame) -> Figure:
    """BN-only test accuracy against the parameters that train: deeper networks, and wider ones of one depth.

    table: from `analysis.accuracy`. Bars are one standard deviation over seeds.
    """
    table = table[(table["n"] > 0) & (table["trainable"] == "bn") & (table["width"] >= 1)]
    if not len(table):
        return nothing_yet()
    table = comparable(table, "trainable", ["model"])
    widened = table.loc[table["width"] > 1, "depth"]
    figure, axes = plt.subplots(figsize=(5, 3.4))
    for label, line, style in (("deeper", table[table["width"] == 1], "-"),
                               ("wider", table[table["depth"].isin(widened)], "--")):
        line = line.sort_values("parameters")
        axes.errorbar(line["parameters"], line["mean"], yerr=line["std"], color=colour("bn"), linestyle=style,
                      label=label, marker=MARKERS.get(line["epochs"].max(), "D"), **BARS)
        for row in line[(line["width"] > 1) | (label == "deeper")].itertuples():
            short, up = name(row.model).removeprefix("ResNet-"), 1 if label == "deeper" else -1
            axes.annotate(f"{short} {of_seeds(row, table)}", (row.parameters, row.mean + up * np.nan_to_num(row.std)),
                          fontsize=7, ha="center", va="bottom" if up > 0 else "top", textcoords="offset points",
                          xytext=(0, 5 * up))
    _count_on_x(axes)
    axes.margins(x=0.1, y=0.2)
    axes.set(xlabel="parameters that train", ylabel="test accuracy (%)")
    axes.legend(loc="lower right")
    note(figure, f"{seeds_stated(table)}\nBN only, {listed(table['epochs'])} epochs; ResNets by their layers and width")
    return figure


def _count_on_x(axes) -> None:
    """Numbers of parameters, or of bytes, on a logarithmic axis."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _hollow(axes, table: pd.DataFrame, by: str, published: pd.DataFrame) -> set[int]:
    """Published values for the dataset and modes of the table, a marker a source; returns where they stand.

    Also of depths (or widths) that the table lacks, at its width (or depth), so that the figure shows what is to come.
    """
    other = {"depth": "width", "width": "depth"}[by]
    names = published["model"].str.fullmatch(r"resnet\d+(x\d+)?")
    places = published[names & published["dataset"].isin(table["dataset"])
                       & published["trainable"].isin(table["trainable"])].copy()
    for axis in ("depth", "width"):
        places[axis] = [getattr(parse_model(model), axis) for model in places["model"]]
    places = places[places[other].isin(table[other])]
    for marker, (source, points) in zip("ovP*", places.groupby("source", sort=False), strict=False):
        colours = [colour(t) for t in points["trainable"]]
        axes.scatter(points[by], points["value"], marker=marker, facecolors="none", edgecolors=colours, s=45, zorder=3)
        axes.scatter([], [], marker=marker, facecolors="none", edgecolors="#555555", s=45,
                     label=f"published: {source}" + f", {PAPER_EPOCHS} epochs" * source.startswith("Frankle"))
    return set(places[by])
