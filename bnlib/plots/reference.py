"""The network in NumPy: how far it is from torch, and how it learns."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnlib.plots.style import COLOURS, legend_below, note
from bnlib.wording import name, shown


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
    legend_below(figure, grid[0][0], ncols=4)
    return figure


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
    legend_below(figure, grid[0][0])
    note(figure, f"{shown(dataset)}; F-score: mean over the classes")
    return figure
