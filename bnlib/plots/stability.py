"""Whether deep networks diverge: the losses of short trials."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnlib.plots.style import colour, legend_below, note, nothing_yet, runs_stated
from bnlib.wording import name, with_warmup


def trials(table: pd.DataFrame) -> Figure:
    """Training loss against epoch, a panel a network: dashed in float32, pale with warm-up; ×: diverged in this epoch.

    table: from `analysis.trials`. Dotted: the loss of guessing.
    """
    if not len(table):
        return nothing_yet()
    networks = list(dict.fromkeys(table["model"]))
    figure, grid = plt.subplots(1, len(networks), figsize=(1.8 + 2.8 * len(networks), 3.2), sharey=True, squeeze=False)
    for axes, model in zip(grid[0], networks, strict=True):
        part = table[table["model"] == model]
        guessing = np.log(part["classes"].iloc[0])
        axes.axhline(guessing, color="#333333", linestyle=":", linewidth=0.9)
        for _, run in part.groupby("run", sort=False):
            first, last = run.iloc[0], run.iloc[-1]
            style = {"color": colour("bn"), "linestyle": "--" if first["precision"] == "fp32" else "-",
                     "alpha": 0.45 if first["warmup"] else 1}
            axes.plot(run["epoch"], run["loss"], marker=".", **style,
                      label=f"{first['precision']}, {with_warmup(first['warmup'])}")
            if first["status"] == "diverged":          # where the loss was last a number
                level = run["loss"][np.isfinite(run["loss"])]
                axes.plot(last["epoch"], level.iloc[-1] if len(level) else guessing, "x", color=style["color"],
                          markersize=9)
        axes.set(xlabel=f"epoch, of {part['images'].iloc[0]:,} images", title=name(model))
        axes.set_xlim(0.7, part["epochs"].iloc[0] + 0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0][0].set_ylabel("training loss (nats)")
    legend_below(figure, *grid[0], ncols=2)
    note(figure, f"BN only, {runs_stated(table)}; dotted: guessing; ×: diverged")
    return figure
