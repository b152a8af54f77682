"""What features do on images: how many can be set to zero, how many never fire."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bnlib.analysis import DEAD, comparable
from bnlib.plots.style import colour, legend_below, note, nothing_yet, runs_stated, smallest_first, thresholds_on_x
from bnlib.wording import listed, name, trained


def thresholds(table: pd.DataFrame) -> Figure:
    """Test accuracy after every |γ| below a threshold is set to zero, one line a run, a panel a network.

    table: from `features.thresholds`. The vertical line is the paper's 0.01.
    """
    if not len(table):
        return nothing_yet()
    table = comparable(table)
    networks = smallest_first(table)
    figure, grid = plt.subplots(1, len(networks), figsize=(1 + 1.9 * len(networks), 3), sharey=True, squeeze=False)
    for axes, model in zip(grid[0], networks, strict=True):
        for (trainable, _), line in table[table["model"] == model].groupby(["trainable", "seed"]):
            axes.plot(line["threshold"], line["accuracy"], color=colour(trainable), marker=".", linewidth=1,
                      label=trained(trainable))
        thresholds_on_x(axes, DEAD)
        axes.set_title(f"{name(model)}\n{listed(line['epochs'])} epochs")
    grid[0][0].set_ylabel("test accuracy (%)")
    legend_below(figure)
    note(figure, runs_stated(table))
    return figure


def activations(table: pd.DataFrame) -> Figure:
    """Share of ReLU outputs that are 0, and of channels that never fire, by layer, a column a network.

    A run has two lines: of the first ReLU and those within blocks, and, dashed, of those behind sums with a shortcut.
    table: from `features.activations_by_layer`.
    """
    if not len(table):
        return nothing_yet()
    table = comparable(table)
    networks = smallest_first(table)
    figure, grid = plt.subplots(2, len(networks), figsize=(1 + 2.7 * len(networks), 4.6), sharex="col", sharey="row",
                                squeeze=False)
    lines = table.assign(within=~table["layer"].str.endswith("bn2"))
    titles = {"zero": "outputs\nthat are 0 (%)", "silent": "channels that\nnever fire (%)"}
    for row, (what, title) in zip(grid, titles.items(), strict=True):
        for axes, model in zip(row, networks, strict=True):
            for (trainable, _, within), line in lines[lines["model"] == model].groupby(["trainable", "seed", "within"]):
                axes.plot(line["number"], line[what], "-" if within else "--", color=colour(trainable), linewidth=1,
                          label=trained(trainable) + ("" if within else ", behind a sum"))
        row[0].set_ylabel(title)
    for axes, model in zip(grid[0], networks, strict=True):
        axes.set_title(f"{name(model)}, {listed(table[table['model'] == model]['epochs'])} epochs")
    for axes in grid[-1]:
        axes.set_xlabel("ReLU, from the image on")
    legend_below(figure)
    note(figure, runs_stated(table))
    return figure
