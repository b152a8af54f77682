"""A table in, a figure out: one short function each, one visual language for all."""

import base64
import io
import os
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from PIL import Image

from bnlib.analysis import DEAD, OPTIMIZER, SHOWN, course, listed, name, seeds_of, setting, trained
from bnlib.config import Config, parse_model
from bnlib.config import random_weights as random_weights_of
from bnlib.store import Run
from bnlib.verdicts import NOT, NOT_RUN, PARTLY, REPRODUCED

#: One colour a training mode, in every figure (Okabe & Ito's palette, told apart by the colour-blind).
COLOURS = {"bn": "#0072B2", "all": "#D55E00", "gamma": "#009E73", "beta": "#CC79A7", "output": "#E69F00",
           "bn+output": "#56B4E9", "weights": "#8B5A2B", "shortcut": "#C9B400", "random2": "#000000", "none": "#777777"}


def colour(trainable: str) -> str:
    """The colour of a training mode; grey for one that has none of its own."""
    return COLOURS.get(trainable, "#777777")


#: One marker a number of epochs: the paper's 160, the short profile's 16; anything else is a diamond.
MARKERS = {160: "o", 16: "s"}

STYLE = {
    "figure.dpi": 110, "savefig.dpi": 220, "figure.constrained_layout.use": True,
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "lines.linewidth": 1.4, "lines.markersize": 5,
    "svg.hashsalt": "bnlib", "svg.fonttype": "path",
}
mpl.rcParams.update(STYLE)


class Saved:
    """A saved figure: a notebook shows its PNG at its size in print, with a text for those who cannot see it, and below
    it a link to its SVG, relative to the folder that the notebook runs in."""

    def __init__(self, figure: Figure, png: Path):
        self.png, self.alt = png, described(figure)
        self.width = round(96 * figure.get_figwidth())

    def _ipython_display_(self) -> None:
        from IPython.display import display
        display({"image/png": base64.b64encode(self.png.read_bytes()).decode()}, raw=True,
                metadata={"image/png": {"alt": self.alt, "width": self.width}})
        svg = self.png.with_suffix(".svg")
        display({"text/markdown": f"[{svg.name}]({Path(os.path.relpath(svg)).as_posix()})"}, raw=True)


def save(figure: Figure, file_name: str, folder: str | Path) -> Saved:
    """Writes the figure as SVG and PNG, the same bytes for the same figure; what it returns shows it in a notebook."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with io.StringIO() as drawn:       # paths to a hundredth of a point: half the size
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        paths = re.compile(r' d="[^"]*"')
        rounded = paths.sub(lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), drawn.getvalue())
    (folder / f"{file_name}.svg").write_text(rounded, encoding="utf-8")
    with io.BytesIO() as drawn:        # 256 colours look the same and take a third of the room
        figure.savefig(drawn, format="png")
        picture = Image.open(drawn).convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE)
    picture.save(folder / f"{file_name}.png", optimize=True, dpi=(mpl.rcParams["savefig.dpi"],) * 2)
    plt.close(figure)                  # shown as the cell's value, once
    return Saved(figure, folder / f"{file_name}.png")


def described(figure: Figure) -> str:
    """A figure in words: what stands against what, panel by panel, and the labels of its lines."""
    panels = []
    for axes in figure.axes:
        against = " against ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
        labels = [text.get_text() for text in (*axes.get_yticklabels(), *axes.get_xticklabels(), *axes.texts)]
        labels = [label for label in labels if re.search("[a-zγβ]", label) and "mathdefault" not in label]
        title = "; ".join(filter(None, (axes.get_title(loc) for loc in ("left", "center"))))
        panels.append(": ".join(filter(None, (title, against, ", ".join(dict.fromkeys(labels))))))
    stated = figure.get_suptitle()
    return " | ".join(dict.fromkeys(filter(None, (stated, *panels)))).replace("\n", " ")


# ------------------------------------------------------------------------------------------- tables

def table(styler):
    """A table for reading: few digits, units, no index; for `DataFrame.style.pipe(plots.table)`.

    Columns that say nothing (no seed diverged, one dataset) or that the provenance table repeats are left out.
    """
    data = styler.data
    formats = {"mean": "{:.1f}", "std": "{:.1f}", "hours": "{:.2f}", "images/s": "{:,.0f}", "parameters": "{:,}",
               "chance": "{:.1f}", "model": name, "network": name, "trainable": trained, "trained": trained}
    titles = {"mean": "test accuracy (%)", "std": "± std", "n": "seeds", "model": "network", "trainable": "trained",
              "parameters": "parameters trained", "chance": "chance (%)"}
    silent = [c for c in ("dataset", "depth", "width", "seeds", "devices") if c in data and "mean" in data]
    silent += [c for c in ("diverged", "variant") if c in data and not data[c].any()]
    styler = styler.format({c: f for c, f in formats.items() if c in data}, na_rep="–")
    styler = styler.set_uuid("-".join(map(str, data.columns[:4])))          # the same HTML each time
    styler = styler.hide(axis="columns", subset=silent).format_index(lambda c: titles.get(c, c), axis=1)
    return styler.hide(axis="index").set_properties(**{"text-align": "right"})


def verdicts(styler):
    """The verdict table, each verdict in its colour."""
    colours = {REPRODUCED: "#009E73", PARTLY: "#E69F00", NOT: "#D55E00", NOT_RUN: "#777777"}
    styler = styler.format(escape="html").set_uuid("verdicts")       # a claim may hold a `<`
    return styler.hide(axis="index").map(lambda v: f"color: {colours[v]}; font-weight: bold", subset=["verdict"])


# ------------------------------------------------------------------------------------------- accuracy

def accuracy_against(table: pd.DataFrame, by: str, published: pd.DataFrame | None = None) -> Figure:
    """Test accuracy against `depth` or `width`, a line a training mode; published values as hollow marks.

    table: from `analysis.accuracy`. Bars are one standard deviation over seeds.
    """
    if not len(table):
        return nothing_yet()
    figure, axes = plt.subplots(figsize=(6, 3.8))
    lines = table.sort_values(by).groupby(["trainable", "epochs"], sort=False)
    for (trainable, epochs), line in lines:
        hue, marker = colour(trainable), MARKERS.get(epochs, "D")
        axes.errorbar(line[by], line["mean"], yerr=line["std"].fillna(0), color=hue, marker=marker, capsize=2)
        last = line.iloc[-1]
        axes.annotate(f"{trained(trainable)}, {epochs} epochs", (last[by], last["mean"]), xytext=(8, -3), va="top",
                      textcoords="offset points", color=hue)
    ticks = set(table[by])
    if published is not None:
        ticks |= _hollow(axes, table, by, published)
    ticks = sorted(ticks)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(t) for t in ticks], rotation=45 if len(ticks) > 8 else 0)
    axes.margins(x=0.05, y=0.14)
    axes.set_xlabel({"depth": "depth (layers)", "width": "width (multiple of 16, 32, 64 channels)"}[by])
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(_seeds_stated(table), loc="left", color="#555555", fontsize=8)
    return figure


def accuracy_by_setting(table: pd.DataFrame, by: str = "trainable") -> Figure:
    """Test accuracy of each choice of what trains (`trainable`) or of each `variant`, a row each, a panel a network.

    table: from `analysis.accuracy`. Bars are one standard deviation over seeds. With one network, what trains is
    followed by how many parameters that are. Variants of several training modes share a row, the modes named on top.
    """
    table = table[table["n"] > 0]
    if not len(table):
        return nothing_yet()
    table = _comparable(table)
    settings = table.groupby(by)["mean"].mean().sort_values().index.tolist()
    modes = table.groupby("trainable")["mean"].mean().sort_values().index.tolist() if by == "variant" else []
    networks = table.drop_duplicates("model").sort_values(["depth", "width"])["model"].tolist()
    figure, grid = plt.subplots(1, len(networks), figsize=(2.4 + 3 * len(networks), 1.1 + 0.28 * len(settings)),
                                sharey=True, sharex=True, squeeze=False)
    for axes, model in zip(grid[0], networks, strict=True):
        for row in table[table["model"] == model].itertuples():
            y, hue = settings.index(getattr(row, by)), colour(row.trainable)
            if len(modes) > 1:                         # one above the other, the best mode on top
                place = modes.index(row.trainable) / (len(modes) - 1) - 0.5
                y += 0.36 * place
                if getattr(row, by) == settings[-1]:
                    axes.annotate(trained(row.trainable), (row.mean - np.nan_to_num(row.std), y), xytext=(-6, 0),
                                  ha="right", va="center", textcoords="offset points", fontsize=7.5, color=hue)
            axes.errorbar(row.mean, y, xerr=np.nan_to_num(row.std), color=hue, capsize=2,
                          marker=MARKERS.get(row.epochs, "D"))
            axes.annotate(f"{row.mean:.1f}", (row.mean + np.nan_to_num(row.std), y), xytext=(7, 0), va="center",
                          textcoords="offset points", fontsize=7.5, color="#555555")
        epochs = listed(table[table["model"] == model]["epochs"])
        axes.set(xlabel="test accuracy (%)", title=f"{name(model)}, {epochs} epochs")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.15)
        axes.set_ylim(-0.6, len(settings) - 0.4)
    counts = table.groupby(by)["parameters"].first()
    labels = {s: s or "the protocol" if by == "variant" else trained(s) for s in settings}
    if by == "trainable" and len(networks) == 1:
        labels = {s: f"{label}: {counts[s]:,}" for s, label in labels.items()}
    grid[0][0].set_yticks(range(len(settings)), labels.values())
    figure.suptitle(_seeds_stated(table), x=0.01, ha="left", color="#555555", fontsize=8)
    return figure


def top1_and_top5(table: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """Top-1 and top-5 accuracy, a panel each; a row for what trains of each network, and how many parameters that are.

    table: from `analysis.top1_and_top5`; published: of top-5, hollow marks. Dotted: chance.
    """
    table = table[table["n"] > 0]
    if not len(table):
        return nothing_yet()
    table = _comparable(table).sort_values(["depth", "width", "model", "mean"], ascending=[False, False, False, True])
    rows = [(model, trainable) for model, of_model in table[table["top"] == 1].groupby("model", sort=False)
            for trainable in [*of_model["trainable"], ""]]                            # "": the network's name
    figure, grid = plt.subplots(1, 2, figsize=(7.4, 1.2 + 0.24 * len(rows)), sharey=True)
    for axes, top in zip(grid, (1, 5), strict=True):
        part = table[table["top"] == top]
        for row in part.itertuples():
            y = rows.index((row.model, row.trainable))
            axes.errorbar(row.mean, y, xerr=np.nan_to_num(row.std), color=colour(row.trainable), capsize=2,
                          marker=MARKERS.get(row.epochs, "D"))
            axes.annotate(f"{row.mean:.1f}", (row.mean + np.nan_to_num(row.std), y), xytext=(7, 0), va="center",
                          textcoords="offset points", fontsize=7.5, color="#555555")
        known = () if published is None or top == 1 else published.itertuples()
        for claim in known:
            if claim.dataset in set(part["dataset"]) and (claim.model, claim.trainable) in rows:
                y = rows.index((claim.model, claim.trainable)) + 0.3                  # above ours and its number
                axes.scatter(claim.value, y, s=35, facecolors="none", edgecolors=colour(claim.trainable),
                             label=f"published: {claim.source}")
        axes.axvline(part["chance"].iloc[0], color="#333333", linewidth=0.8, linestyle=":")
        axes.annotate("chance", (part["chance"].iloc[0], 1), xytext=(3, -2), textcoords="offset points", va="top",
                      xycoords=axes.get_xaxis_transform(), fontsize=7.5, color="#333333")
        axes.set(xlabel=f"top-{top} test accuracy (%)")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1.2 * max(axes.dataLim.xmax, part["chance"].iloc[0])), ylim=(-0.6, len(rows) - 0.4))
    counts = table.set_index(["model", "trainable"])["parameters"].groupby(level=[0, 1]).first()
    labels = [f"{trained(t)}: {counts[m, t]:,}" if t else name(m).removeprefix("ImageNet ") for m, t in rows]
    grid[0].set_yticks(range(len(rows)), labels)
    for label, (_, trainable) in zip(grid[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if trainable else "bold")
    if grid[1].get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower right", fontsize=7.5)
    figure.suptitle(f"{_seeds_stated(table)}; {listed(table['epochs'])} epochs", x=0.01, ha="left", color="#555555",
                    fontsize=8)
    return figure


def random_weights(table: pd.DataFrame) -> Figure:
    """Test accuracy against the number of random weights that train in each channel; dashed: BN only.

    table: from `analysis.accuracy`. Bars and band are one standard deviation over seeds.
    """
    table = table[table["n"] > 0]
    table = _comparable(table[table["trainable"].str.fullmatch(r"random\d+|bn")])
    chosen = table[table["trainable"] != "bn"].copy()
    if not len(chosen):
        return nothing_yet()
    chosen["weights"] = chosen["trainable"].map(random_weights_of)
    networks = chosen.drop_duplicates("model").sort_values(["depth", "width"])["model"].tolist()
    figure, grid = plt.subplots(1, len(networks), figsize=(1.6 + 2.6 * len(networks), 3), sharey=True, squeeze=False)
    for axes, model in zip(grid[0], networks, strict=True):
        line = chosen[chosen["model"] == model].sort_values("weights")
        axes.errorbar(line["weights"], line["mean"], yerr=line["std"].fillna(0), color=colour("random2"),
                      marker=MARKERS.get(line["epochs"].iloc[0], "D"), capsize=2)
        for row in table[(table["model"] == model) & (table["trainable"] == "bn")].itertuples():
            axes.axhline(row.mean, color=colour("bn"), linestyle="--")
            axes.axhspan(row.mean - np.nan_to_num(row.std), row.mean + np.nan_to_num(row.std), color=colour("bn"),
                         alpha=0.15, linewidth=0)
            axes.annotate("BN only: 2 a channel", (line["weights"].max(), row.mean), xytext=(0, 3), ha="right",
                          textcoords="offset points", color=colour("bn"), fontsize=7.5)
        axes.set_xscale("log", base=2)
        axes.set_xticks(line["weights"], line["weights"])
        axes.set(xlabel="random weights a channel", title=f"{name(model)}, {listed(line['epochs'])} epochs")
    grid[0][0].set_ylabel("test accuracy (%)")
    figure.suptitle(_seeds_stated(chosen), x=0.01, ha="left", color="#555555", fontsize=8)
    return figure


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
        axes.scatter([], [], marker=marker, facecolors="none", edgecolors="#555555", s=45, label=source)
    if len(places):
        figure = axes.get_figure()
        figure.legend(loc="outside lower center", ncols=2, title="published", fontsize=7.5, title_fontsize=7.5)
    return set(places[by])


def _seeds_stated(table: pd.DataFrame) -> str:
    least, most = table["n"].min(), table["n"].max()
    datasets = ", ".join(SHOWN.get(d, d) for d in table["dataset"].unique())
    if most == 1:
        return f"{datasets}; one seed"
    seeds = least if least == most else f"{least} to {most}"
    return f"{datasets}; mean over {seeds} seeds; bars: ± 1 standard deviation"


def _runs_stated(table: pd.DataFrame) -> str:
    datasets = ", ".join(SHOWN.get(d, d) for d in table["dataset"].unique())
    return f"{datasets}; a line a run, {seeds_of(table['seed'].nunique())}"


def nothing_yet() -> Figure:
    """What is shown where no run has been finished."""
    figure, axes = plt.subplots(figsize=(4, 1))
    axes.axis("off")
    axes.text(0, 0.5, "No finished run yet.", color="#777777")
    return figure


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
    axes.set_title(f"{name(config.model)}, {trained(config.trainable)}, {SHOWN.get(config.dataset, config.dataset)}, "
                   "one run", loc="left")
    return figure


# ------------------------------------------------------------------------------------------ NumPy beside torch

def deviations(table: pd.DataFrame, bar: float) -> Figure:
    """Relative deviation of each gradient from torch's against its number from the image on, a panel a network.

    table: from `numpy_nn.check.gradients`. The dotted line is `bar`, up to which networks count as equal.
    """
    kinds = {"convolution": COLOURS["all"], "γ": COLOURS["gamma"], "β": COLOURS["beta"], "linear": COLOURS["output"]}
    table = table[table["kind"].isin(kinds)]
    networks = table["network"].unique()
    figure, grid = plt.subplots(1, len(networks), figsize=(1.2 + 2.8 * len(networks), 3), sharey=True, squeeze=False)
    for axes, network in zip(grid[0], networks, strict=True):
        part = table[table["network"] == network].reset_index(drop=True)
        for kind, colour in kinds.items():
            of_kind = part[part["kind"] == kind]          # equal in every bit: at the lower edge
            axes.scatter(of_kind.index + 1, of_kind["deviation"].clip(lower=1e-17), s=9, color=colour, label=kind)
        axes.axhline(bar, color="#333333", linestyle=":", linewidth=1)
        axes.set(xlabel="array of parameters, from the image on", title=f"{name(network)}: {len(part)} gradients",
                 yscale="log")
    grid[0][0].annotate(f"counts as equal: {bar:g}", (0, bar), xytext=(4, -3), va="top", textcoords="offset points",
                        xycoords=grid[0][0].get_yaxis_transform(), color="#333333", fontsize=7.5)
    grid[0][0].set_ylabel("largest deviation from torch,\nrelative to the largest value")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def equality(styler):
    """The table of `numpy_nn.check.against_torch`: relative deviations with their order of magnitude."""
    deviations = {c: "{:.1e}" for c in styler.data if styler.data[c].dtype.kind == "f"}
    styler = styler.format({"network": name} | deviations).set_uuid("equality").hide(axis="index")
    return styler.format_index(lambda c: {"parameters": "arrays with gradients"}.get(c, c), axis=1)


def speed(styler):
    """The table of `numpy_nn.check.speed`."""
    formats = {"seconds": "{:,.2f}", "× torch": "{:,.2f}", "published": "{:.1f}"}
    titles = {"seconds": "1,000 passes (s)", "published": "published (s)", "timed": "passes timed"}
    styler = styler.format(formats, na_rep="–").set_uuid("speed").hide(axis="index")
    return styler.format_index(lambda c: titles.get(c, c), axis=1)


def learning(tables: dict[str, pd.DataFrame], dataset: str) -> Figure:
    """Loss, accuracy and F-score against epochs, a column a network: every batch (dots) and every epoch (lines).

    tables: from `numpy_nn.training.fit`, by the network's name.
    """
    figure, grid = plt.subplots(3, len(tables), figsize=(1 + 3.2 * len(tables), 5.6), sharex="col", sharey="row",
                                squeeze=False)
    for column, (title, table) in zip(grid.T, tables.items(), strict=True):
        parts = dict(list(table.groupby("part")))
        for axes, score in zip(column, ("loss", "accuracy", "F-score"), strict=True):
            percent = 1 if score == "loss" else 100
            axes.scatter(parts["batch"]["epoch"], percent * parts["batch"][score], s=3, color="#aaaaaa", linewidths=0,
                         label="batch")
            for part, dashes in (("train", "--"), ("test", "-")):
                values = percent * parts[part][score]
                axes.plot(parts[part]["epoch"], values, dashes, color=COLOURS["all"], marker="o", label=part)
        column[0].set_title(title)
        column[-1].set_xlabel("epoch")
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes, label in zip(grid[:, 0], ("loss", "accuracy (%)", "F-score (%)"), strict=True):
        axes.set_ylabel(label)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"{SHOWN.get(dataset, dataset)}; F-score: mean over the classes", x=0.01, ha="left",
                    color="#555555", fontsize=8)
    return figure


# ------------------------------------------------------------------------------------------ γ and β

SYMBOL = {"gamma": "γ", "beta": "β"}


def affine_histograms(channels: pd.DataFrame) -> Figure:
    """Distributions of γ and β over all channels, a column a network, a colour a training mode.

    channels: from `analysis.affine`. The dotted line is the distribution that training started from.
    """
    if not len(channels):
        return nothing_yet()
    channels = _comparable(channels)
    networks = channels.drop_duplicates("model").sort_values(["depth", "width"])["model"].tolist()
    figure, grid = plt.subplots(2, len(networks), figsize=(1.2 + 2.1 * len(networks), 3.8), sharex="row",
                                squeeze=False)
    for row, part in zip(grid, ("gamma", "beta"), strict=True):
        limits = np.quantile(channels[part].astype(float), [0.002, 0.998])
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
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _comparable(table: pd.DataFrame) -> pd.DataFrame:
    """Of each network the rows of one number of epochs, so that no figure mixes 16 with 160.

    The one of which there is most to compare, settings and what trains; of equals the longest training.
    """
    kinds = [column for column in ("trainable", "variant") if column in table]
    settings = table.drop_duplicates(["model", "epochs", *kinds]).value_counts(["model", "epochs"]).reset_index()
    best = settings.sort_values(["count", "epochs"]).drop_duplicates("model", keep="last").set_index("model")["epochs"]
    return table[table["epochs"] == table["model"].map(best)]


def _titled(channels: pd.DataFrame, model: str) -> str:
    seeds = channels[channels["model"] == model].groupby("trainable")["seed"].nunique()
    epochs = channels.loc[channels["model"] == model, "epochs"].iloc[0]
    return f"{name(model)}\n{epochs} epochs, seeds: {' / '.join(str(n) for n in dict.fromkeys(seeds))}"


def affine_by_layer(channels: pd.DataFrame, part: str = "gamma") -> Figure:
    """γ or β of every channel against the number of its layer; band: the middle 90 %, line: the median."""
    if not len(channels):
        return nothing_yet()
    channels = _comparable(channels)
    networks = channels.drop_duplicates("model").sort_values(["depth", "width"])["model"].tolist()
    figure, grid = plt.subplots(1, len(networks), figsize=(1.2 + 3.2 * len(networks), 3), sharey=True, squeeze=False)
    for axes, model in zip(grid[0], networks, strict=True):
        for trainable, values in channels[channels["model"] == model].groupby("trainable"):
            of_layer = values.groupby("number")[part]
            low, middle, high = (of_layer.quantile(q) for q in (0.05, 0.5, 0.95))
            axes.fill_between(low.index, low, high, color=colour(trainable), alpha=0.18, linewidth=0)
            axes.plot(middle.index, middle, color=colour(trainable), label=trained(trainable))
            axes.scatter(values["number"], values[part], s=2, color=colour(trainable), alpha=0.25, linewidths=0,
                         rasterized=True)
        axes.set(xlabel="batch-norm layer, from the image on", title=_titled(channels, model))
        axes.set_ylim(*np.quantile(channels[part].astype(float), [0.001, 0.999]))
    grid[0][0].set_ylabel(SYMBOL[part])
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def dead_share(table: pd.DataFrame) -> Figure:
    """Share of switched-off features, |γ| < 0.01, a group a network, a colour a training mode.

    table: from `analysis.dead_features`. Bars are one standard deviation over seeds.
    """
    if not len(table):
        return nothing_yet()
    table = _comparable(table).sort_values(["depth", "width"])
    networks = table["model"].drop_duplicates().tolist()
    modes = [mode for mode in COLOURS if mode in set(table["trainable"])]
    figure, axes = plt.subplots(figsize=(1.8 + 1.1 * len(networks), 3.2))
    width = 0.8 / len(modes)
    for i, mode in enumerate(modes):
        rows = table[table["trainable"] == mode].set_index("model").reindex(networks)
        at = np.arange(len(networks)) + (i - (len(modes) - 1) / 2) * width
        axes.bar(at, rows["mean"], width * 0.92, color=colour(mode), label=trained(mode),
                 yerr=rows["std"].fillna(0), error_kw={"elinewidth": 1, "capsize": 2})
        for x, row in zip(at, rows.itertuples(), strict=True):
            if np.isfinite(row.mean):
                axes.annotate(f"{row.mean:.1f}", (x, row.mean + (0 if np.isnan(row.std) else row.std)), xytext=(0, 2),
                              textcoords="offset points", ha="center", fontsize=7.5, color=colour(mode))
    axes.set_xticks(range(len(networks)), [name(model) for model in networks])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel(f"channels with |γ| < {DEAD} (%)")
    axes.set_title(_seeds_stated(table), loc="left", color="#555555", fontsize=8)
    axes.legend()
    return figure


def ridges(channels: pd.DataFrame, part: str = "gamma") -> Figure:
    """The distribution of γ or β in each batch-norm layer, first layer on top; a column a network, a colour a mode.

    channels: from `analysis.affine`. All curves have the same height; dotted: 0.
    """
    if not len(channels):
        return nothing_yet()
    channels = _comparable(channels)
    networks = channels.drop_duplicates("model").sort_values(["depth", "width"])["model"].tolist()
    layers = int(channels["number"].max())
    figure, grid = plt.subplots(1, len(networks), figsize=(1 + 2.6 * len(networks), 1.4 + min(0.24 * layers, 6)),
                                sharex=True, squeeze=False)
    values = np.linspace(*np.quantile(channels[part].astype(float), [0.002, 0.998]), 160)
    for axes, model in zip(grid[0], networks, strict=True):
        of_model = channels[channels["model"] == model]
        count = of_model["number"].max()
        for (trainable, number), rows in of_model.groupby(["trainable", "number"]):
            width = max(rows[part].std(), 1e-3) * len(rows) ** -0.2                    # Scott 1992
            bumps = np.exp(-0.5 * ((values[:, None] - rows[part].to_numpy(float)) / width) ** 2)
            curve = bumps.mean(1) / width
            axes.fill([values[0], *values, values[-1]], [-number, *(-number + 2.2 * curve / curve.max()), -number],
                      color=colour(trainable), alpha=0.35, linewidth=0.5, zorder=number,
                      label=trained(trainable) if number == 1 else None)
        axes.set(xlabel=SYMBOL[part], title=_titled(channels, model), ylim=(-count - 0.5, 2))
        axes.set_yticks([-1, -count], ["first", "last"])
        axes.grid(axis="y", visible=False)
        axes.axvline(0, color="#333333", linewidth=0.6, linestyle=":")
    grid[0][0].set_ylabel("batch-norm layer")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def trajectories(runs: list[Run], part: str = "gamma", channels: int = 24) -> Figure:
    """γ or β of the first `channels` channels of the first, middle and last batch-norm layer over training.

    A row a run, one line a channel; the logged epochs are those of the run's trajectory.
    """
    if not runs:
        return nothing_yet()
    figure, grid = plt.subplots(len(runs), 3, figsize=(7, 0.8 + 1.7 * len(runs)), sharex="row", sharey="row",
                                squeeze=False)
    for row, run in zip(grid, runs, strict=True):
        layers = list(run.trajectory[part])
        for axes, layer in zip(row, (layers[0], layers[len(layers) // 2], layers[-1]), strict=True):
            axes.plot(run.trajectory["epochs"], run.trajectory[part][layer][:, :channels].astype(float),
                      color=colour(run.config.trainable), alpha=0.5, linewidth=0.8)
            axes.set_title(f"{name(run.config.model)}, layer `{layer}`", fontsize=8)
        row[0].set_ylabel(f"{SYMBOL[part]}, {trained(run.config.trainable)}")
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    return figure


# ------------------------------------------------------------------------------------------ optimizers

#: One colour an optimizer, of the same palette.
OPTIMIZER_COLOURS = {"sgd": "#0072B2", "lbfgs": "#D55E00", "adam": "#009E73", "adabound": "#CC79A7", "adamw": "#56B4E9",
                     "lion": "#E69F00", "adan": "#000000", "prodigy": "#8B5A2B"}


def optimizers(styler):
    """The table of `analysis.optimizers`: what was chosen for each optimizer and where it came."""
    formats = {"passes": "{:.0f}", "seconds": "{:,.0f}", "test_accuracy": "{:.1f}", "val_accuracy": "{:.1f}",
               "test_loss": "{:.3f}", "beta": "{:.2f}", "trainable": trained, "model": name,
               "optimizer": OPTIMIZER.get}
    titles = {"trainable": "trained", "val_accuracy": "validation (%)", "test_accuracy": "test (%)",
              "test_loss": "test loss", "seconds": "seconds of training", "beta": "β, root mean square",
              "model": "network"}
    styler = styler.format({c: f for c, f in formats.items() if c in styler.data}, na_rep="–").set_uuid("optimizers")
    silent = [c for c in ("run", "dataset", "lr", "length", "val_loss", "status", "chosen") if c in styler.data]
    styler = styler.hide(axis="columns", subset=silent).format_index(lambda c: titles.get(c, c), axis=1)
    return styler.hide(axis="index").set_properties(**{"text-align": "right"})


def courses(runs: list[Run], trainable: str) -> Figure:
    """Test loss and accuracy (training's dashed) against epochs, passes over the images and seconds, a line a run.

    Losses far above the one that training begins with are cut off, and the figure says so.
    """
    runs = [run for run in runs if run.config.trainable == trainable]
    if not runs:
        return nothing_yet()
    figure, grid = plt.subplots(2, 3, figsize=(8.4, 5), sharex="col", sharey="row")
    xlabels = {"epoch": "epoch", "passes": "passes over the training images", "seconds": "seconds of training"}
    for row, score, percent in zip(grid, ("loss", "accuracy"), (1, 100), strict=True):
        for axes, against in zip(row, xlabels, strict=True):
            for run in runs:
                table, hue = course(run), OPTIMIZER_COLOURS[run.config.optimizer]
                axes.plot(table[against], percent * table[f"train_{score}"], "--", color=hue, linewidth=0.8)
                axes.plot(table[against], percent * table[f"test_{score}"], color=hue, marker=".",
                          label=f"{OPTIMIZER[run.config.optimizer]}, {setting(run.config)}")
        row[0].set_ylabel({"loss": "loss", "accuracy": "accuracy (%)"}[score])
    top = 1.15 * max(run.history["train_loss"].max() for run in runs)
    cut = any(run.history["test_loss"].max() > top for run in runs)
    if cut:
        grid[0][0].set_ylim(0, top)
    for axes, label in zip(grid[-1], xlabels.values(), strict=True):
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    config, seeds = runs[0].config, len({run.config.seed for run in runs})
    figure.legend(*_once(grid[0][0]), loc="outside lower center", ncols=2)
    figure.suptitle(f"{name(config.model)} (option {config.shortcut}), {trained(trainable)}, "
                    f"{SHOWN.get(config.dataset, config.dataset)}, {seeds} seed{'s' * (seeds > 1)}; "
                    "solid: test, dashed: training" + "; higher losses are cut off" * cut, x=0.01, ha="left",
                    color="#555555", fontsize=8)
    return figure


def searched(table: pd.DataFrame) -> Figure:
    """Validation accuracy of each setting of each optimizer, a panel a training mode; filled: the one it chose.

    table: from `analysis.optimizers`.
    """
    table = table[table["val_accuracy"].notna()]
    if not len(table):
        return nothing_yet()
    settings = list(dict.fromkeys(zip(table["optimizer"], table["setting"], strict=True)))[::-1]
    modes = list(dict.fromkeys(table["trainable"]))
    figure, grid = plt.subplots(1, len(modes), figsize=(2.6 + 2.7 * len(modes), 1 + 0.24 * len(settings)), sharey=True,
                                squeeze=False)
    for axes, mode in zip(grid[0], modes, strict=True):
        for row in table[table["trainable"] == mode].itertuples():
            hue = OPTIMIZER_COLOURS[row.optimizer]
            axes.plot(row.val_accuracy, settings.index((row.optimizer, row.setting)), "o", color=hue,
                      markerfacecolor=hue if row.chosen else "none")
        axes.set(xlabel="validation accuracy (%)", title=trained(mode))
        axes.margins(x=0.1)
    grid[0][0].set_yticks(range(len(settings)), [f"{OPTIMIZER[o]}, {what}" for o, what in settings])
    seeds = table["seed"].nunique()
    figure.suptitle(f"{name(table['model'].iloc[0])}, {SHOWN.get(table['dataset'].iloc[0], table['dataset'].iloc[0])}, "
                    f"{seeds} seed{'s' * (seeds > 1)}; filled: chosen", x=0.01, ha="left", color="#555555", fontsize=8)
    return figure


def growth(table: pd.DataFrame) -> Figure:
    """The root mean square of γ and of β against the epoch, a line for each choice of what weight decay acts on.

    table: from `analysis.growth`. Where several seeds were run each has its line.
    """
    if not len(table):
        return nothing_yet()
    called = {"all": "on γ and β", "gamma": "on γ alone", "beta": "on β alone", "none": "none"}
    hues = dict(zip(called, (COLOURS["bn"], COLOURS["gamma"], COLOURS["beta"], "#333333"), strict=True))
    styles = dict(zip(called, ("-", "--", "-.", ":"), strict=True))            # γ alone and both lie on each other in γ
    figure, grid = plt.subplots(1, 2, figsize=(7, 3.6))
    for axes, part in zip(grid, ("gamma", "beta"), strict=True):
        for (decay, _), line in table.groupby(["decay", "seed"], sort=False):
            axes.plot(line["epoch"], line[part], styles[decay], color=hues[decay], label=called[decay])
        axes.set(xlabel="epoch", ylabel=f"{SYMBOL[part]}, root mean square")
        axes.set_ylim(bottom=0)
    first, seeds = table.iloc[0], table["seed"].nunique()
    figure.legend(*_once(grid[0]), loc="outside lower center", ncols=4, title=f"weight decay {first['weight_decay']:g}")
    figure.suptitle(f"{name(first['model'])}, BN only, {OPTIMIZER[first['optimizer']]}, {first['setting']}, "
                    f"{seeds} seed{'s' * (seeds > 1)}", x=0.01, ha="left", color="#555555", fontsize=8)
    return figure


def _once(axes) -> tuple[list, list]:
    """Handles and labels of a legend, each label once."""
    unique = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    return list(unique.values()), list(unique)


# ------------------------------------------------------------------------------------------ features

def thresholds(table: pd.DataFrame) -> Figure:
    """Test accuracy after every |γ| below a threshold is set to zero, one line a run, a panel a network.

    table: from `features.thresholds`. The vertical line is the paper's 0.01.
    """
    if not len(table):
        return nothing_yet()
    table = _comparable(table)
    networks = table.drop_duplicates("model").sort_values(["depth", "width"])["model"].tolist()
    figure, grid = plt.subplots(1, len(networks), figsize=(1 + 2.7 * len(networks), 3), sharey=True, squeeze=False)
    for axes, model in zip(grid[0], networks, strict=True):
        for (trainable, _), line in table[table["model"] == model].groupby(["trainable", "seed"]):
            axes.plot(line["threshold"], line["accuracy"], color=colour(trainable), marker=".", linewidth=1,
                      label=trained(trainable))
        axes.axvline(DEAD, color="#333333", linewidth=0.6, linestyle=":")
        axes.set_xscale("symlog", linthresh=0.001)
        axes.set_xlim(-0.0003, 0.7)
        axes.set_xticks([0, 0.001, 0.01, 0.1, 0.5], ["0", "0.001", "0.01", "0.1", "0.5"], rotation=45)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="|γ| below this set to zero", title=f"{name(model)}, {listed(line['epochs'])} epochs")
    grid[0][0].set_ylabel("test accuracy (%)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.suptitle(_runs_stated(table), x=0.01, ha="left", color="#555555", fontsize=8)
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3)
    return figure


def activations(table: pd.DataFrame) -> Figure:
    """Share of ReLU outputs that are 0, and of channels that never fire, by layer; one line a run, a column a network.

    table: from `features.activations_by_layer`.
    """
    if not len(table):
        return nothing_yet()
    table = _comparable(table)
    networks = table.drop_duplicates("model").sort_values(["depth", "width"])["model"].tolist()
    figure, grid = plt.subplots(2, len(networks), figsize=(1 + 2.7 * len(networks), 4.6), sharex="col", sharey="row",
                                squeeze=False)
    titles = {"zero": "outputs that are 0 (%)", "silent": "channels that never fire (%)"}
    for row, (what, title) in zip(grid, titles.items(), strict=True):
        for axes, model in zip(row, networks, strict=True):
            for (trainable, _), line in table[table["model"] == model].groupby(["trainable", "seed"]):
                axes.plot(line["number"], line[what], color=colour(trainable), linewidth=1, label=trained(trainable))
        row[0].set_ylabel(title)
    for axes, model in zip(grid[0], networks, strict=True):
        axes.set_title(f"{name(model)}, {listed(table[table['model'] == model]['epochs'])} epochs")
    for axes in grid[-1]:
        axes.set_xlabel("ReLU, from the image on")
    handles, labels = grid[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.suptitle(_runs_stated(table), x=0.01, ha="left", color="#555555", fontsize=8)
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3)
    return figure


# -------------------------------------------------------------------------------------- beyond the paper

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
    figure.suptitle("first training sequences of three classes; a colour a channel", x=0.01, ha="left",
                    color="#555555", fontsize=8)
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
        for (trainable, epochs), line in table.sort_values(by).groupby(["trainable", "epochs"]):
            hue = colour(trainable)
            axes.errorbar(line[by], line["mean"], yerr=line["std"].fillna(0), color=hue, capsize=2,
                          marker=MARKERS.get(epochs, "D"))
            alone = trainable == "bn"
            beside = {"xytext": (4, -11)} if alone else {"xytext": (-6, 3), "ha": "right"}
            for row in line.itertuples():
                axes.annotate(name(row.model), (getattr(row, by), row.mean), color=hue, fontsize=7,
                              textcoords="offset points", **beside)
            if by == "bytes":                          # where the lines lie apart
                end = line.iloc[0 if alone else -1]
                beside = {"xytext": (-8, 0), "va": "center"} if alone else {"xytext": (0, 15)}
                what = "BN only" if alone else "narrow, all parameters"
                axes.annotate(f"{what}, {epochs} epochs", (end[by], end["mean"]), color=hue, ha="right",
                              textcoords="offset points", **beside)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.25, y=0.14)
    panels[0].set(xlabel="parameters that train", ylabel="test accuracy (%)")
    panels[1].set(xlabel="bytes to store the trained network")
    figure.suptitle(_seeds_stated(table), x=0.01, ha="left", color="#555555", fontsize=8)
    return figure
