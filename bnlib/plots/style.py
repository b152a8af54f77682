"""One visual language for all figures: colours, markers, how a figure is saved and told in words."""

import base64
import io
import os
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image

from bnlib.wording import Sentences, seeds_of, shown, trained

#: One colour a training mode, in every figure (Okabe & Ito's palette, told apart by the colour-blind).
COLOURS = {"bn": "#0072B2", "all": "#D55E00", "gamma": "#009E73", "beta": "#CC79A7", "output": "#E69F00",
           "bn+output": "#56B4E9", "weights": "#8B5A2B", "shortcut": "#C9B400", "random2": "#000000", "none": "#777777"}


def colour(trainable: str) -> str:
    """The colour of a training mode; grey for one that has none of its own."""
    return COLOURS.get(trainable, "#777777")


#: One marker a number of epochs: the paper's 160, the short profile's 16; anything else is a diamond.
MARKERS = {160: "o", 16: "s"}


#: One colour an optimizer, of the same palette, but not that of BN only nor of all parameters.
OPTIMIZER_COLOURS = {"sgd": "#000000", "lbfgs": "#E69F00", "adam": "#009E73", "adabound": "#CC79A7", "adamw": "#56B4E9",
                     "lion": "#8B5A2B", "adan": "#777777", "prodigy": "#C9B400"}


#: How bars of `Axes.errorbar` are drawn: above the mark, which is often wider than they are.
BARS = {"capsize": 2.5, "elinewidth": 0.9, "ecolor": "#222222", "barsabove": True}


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
        self.png, self.alt, self.caption = png, described(figure), captioned(figure) or png.stem.replace("_", " ")
        self.width = round(96 * figure.get_figwidth())

    def _ipython_display_(self) -> None:
        from IPython.display import display
        display({"image/png": base64.b64encode(self.png.read_bytes()).decode()}, raw=True,
                metadata={"image/png": {"alt": self.alt, "width": self.width}})
        svg = self.png.with_suffix(".svg")
        display({"text/markdown": f"[{self.caption}]({Path(os.path.relpath(svg)).as_posix()})"}, raw=True)


def save(figure: Figure, file_name: str, folder: str | Path) -> Saved | Sentences:
    """Writes the figure as SVG and PNG, the same bytes for the same figure; what it returns shows it in a notebook.

    Of `nothing_yet` nothing is written, what was drawn before is removed, and a sentence says so.
    """
    folder = Path(folder)
    if not figure.axes:
        plt.close(figure)
        for kind in ("svg", "png"):
            (folder / f"{file_name}.{kind}").unlink(missing_ok=True)
        return Sentences()
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
    """A figure in words: what stands against what, panel by panel, and the labels of its lines; then its own.
    """
    panels = []
    for axes in figure.axes:
        against = _against(axes)
        labels = [text.get_text() for text in (*axes.get_yticklabels(), *axes.get_xticklabels(), *axes.texts)]
        labels = [label for label in labels if re.search("[a-zγβ]", label) and "mathdefault" not in label]
        title = "; ".join(filter(None, (axes.get_title(loc) for loc in ("left", "center"))))
        panels.append(": ".join(filter(None, (title, against, ", ".join(dict.fromkeys(labels))))))
    stated = figure.get_suptitle()
    return " | ".join(dict.fromkeys(filter(None, (stated, *panels, figure.get_label())))).replace("\n", " ")


def captioned(figure: Figure) -> str:
    """What is drawn, if a `note` says so, else what stands against what, each once; of panels that share an axis those
    that name both. Behind it, what the figure is of, by its `note` too."""
    found = dict.fromkeys(map(_against, figure.axes))
    against = getattr(figure, "drawn", None) or "; ".join(
        [each for each in found if " against " in each] or filter(None, found)).replace("\n", " ")
    of = figure.get_suptitle().replace("\n", "; ")
    return f"{against} ({of})" if against and of else against or of


def _against(axes: Axes) -> str:
    return " against ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))


def nothing_yet() -> Figure:
    """What a figure is where no run has been finished: one without axes, of which `save` makes a sentence."""
    return plt.figure(figsize=(4, 1))


def smallest_first(table: pd.DataFrame) -> list[str]:
    """The networks of a table, each once, by depth and then width."""
    return table.drop_duplicates("model").sort_values(["depth", "width"])["model"].tolist()


def seeds_stated(table: pd.DataFrame) -> str:
    """What a figure says of a table of `analysis.accuracy`: its datasets, how many seeds, what the bars are."""
    datasets = ", ".join(shown(d) for d in table["dataset"].unique())
    if table["n"].max() == 1:
        return f"{datasets}; one seed"
    seeds = "one run, or the mean over n seeds" if _mixed(table) else f"mean over {table['n'].max()} seeds"
    return f"{datasets}; {seeds}; bars: ± 1 standard deviation"


def of_seeds(row, table: pd.DataFrame) -> str:
    """`n=3` for a row of the table that is a mean where others are not, or of another number of runs; else nothing."""
    return f"n={row.n:.0f}" if _mixed(table) and row.n > 1 else ""


def mark_seeds(axes: Axes, rows: pd.DataFrame, by: str, table: pd.DataFrame) -> None:
    """The same below the mark of each of the rows, drawn against the column `by`; left of the leftmost, where no line
    goes and marks may stand close to each other."""
    for row in rows.itertuples():
        x, low = getattr(row, by), row.mean - np.nan_to_num(row.std)
        place = ({"xy": (x, row.mean), "xytext": (-6, 0), "ha": "right", "va": "center"} if x == table[by].min() else
                 {"xy": (x, low), "xytext": (0, -4), "ha": "center", "va": "top"})
        axes.annotate(of_seeds(row, table), textcoords="offset points", fontsize=7, color="#555555", **place)


def _mixed(table: pd.DataFrame) -> bool:
    return table["n"].nunique() > 1


def values_stated(table: pd.DataFrame, by: str) -> str:
    """The means of a table of `analysis.accuracy` or `dead_features` line by line, each with the `by` it stands at."""
    lines = table.dropna(subset="mean").sort_values(by).groupby(["trainable", "epochs"], sort=False)
    return "; ".join(f"{trained(what)}, {epochs} epochs: " + ", ".join(
        f"{row.mean:.1f} ({getattr(row, by)})" for row in line.itertuples()) for (what, epochs), line in lines)


def runs_stated(table: pd.DataFrame) -> str:
    """The same of a figure with a line a run."""
    datasets = ", ".join(shown(d) for d in table["dataset"].unique())
    seeds = table.groupby([c for c in ("model", "trainable", "epochs") if c in table])["seed"].nunique()
    few = f"{seeds.min()} to " if seeds.min() < seeds.max() else ""
    return f"{datasets}; a line a run, {few}{seeds_of(seeds.max())}"


def note(figure: Figure, text: str, drawn: str | None = None) -> None:
    """What a figure is of, small and grey on top: data, seeds, what the bars are. drawn: what its caption says that it
    shows; None: what its axes are called."""
    figure.drawn = drawn
    figure.suptitle(text, x=0.01, ha="left", color="#555555", fontsize=8)


def thresholds_on_x(axes: Axes, below: float) -> None:
    """Thresholds on |γ|, 0 among them, on an otherwise logarithmic axis; dotted: one of them."""
    axes.axvline(below, color="#333333", linewidth=0.8, linestyle=":")
    axes.set_xscale("symlog", linthresh=0.001)
    axes.set_xlim(-0.0003, 0.7)
    axes.set_xticks([0, 0.001, 0.01, 0.1, 0.5], ["0", "0.001", "0.01", "0.1", "0.5"], rotation=45)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("|γ| below this set to zero")


def legend_below(figure: Figure, *panels, ncols: int = 3, **options) -> None:
    """A legend below all panels of what these hold, or all if none is named, each label once.

    options: of `Figure.legend`.
    """
    unique = {label: handle for axes in panels or figure.axes
              for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=ncols, **options)
