"""Optimizers side by side: their courses, their settings, what they do to γ and β."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bnlib.analysis import course, logged_losses, made_on, shared_batch, timed_alike
from bnlib.plots.style import COLOURS, OPTIMIZER_COLOURS, legend_below, note, nothing_yet
from bnlib.store import Run
from bnlib.wording import NORM, OPTIMIZER, SYMBOL, decay_on, name, seeds_of, setting, shown, trained


def courses(runs: list[Run], trainable: str) -> Figure:
    """Test loss and accuracy (training's dashed) against epochs, passes over the images and seconds, a line a run.

    Where a run logged single steps, as LBFGS does, whose epochs are few and long, the training loss is theirs.
    Losses far above the one that training begins with are cut off, runs on another machine than most have no line
    against seconds, and the figure says so.
    """
    runs = [run for run in runs if run.config.trainable == trainable]
    if not runs:
        return nothing_yet()
    unsaid, timed = shared_batch(runs), timed_alike(runs)
    figure, grid = plt.subplots(2, 3, figsize=(8.4, 5), sharex="col", sharey="row")
    xlabels = {"epoch": "epoch", "passes": "passes over the training images", "seconds": "seconds of training"}
    for row, score, percent in zip(grid, ("loss", "accuracy"), (1, 100), strict=True):
        for axes, against in zip(row, xlabels, strict=True):
            for run in timed if against == "seconds" else runs:
                table, hue = course(run), OPTIMIZER_COLOURS[run.config.optimizer]
                training = logged_losses(run).rename(columns={"loss": "train_loss"}) if (
                    score == "loss" and "steps" in run.trajectory) else table
                axes.plot(training[against], percent * training[f"train_{score}"], "--", color=hue, linewidth=0.8)
                axes.plot(table[against], percent * table[f"test_{score}"], color=hue, marker=".",
                          label=f"{OPTIMIZER[run.config.optimizer]}, {setting(run.config, **unsaid)}")
        row[0].set_ylabel({"loss": "loss (nats)", "accuracy": "accuracy (%)"}[score])
    top = 1.15 * max(run.history["train_loss"].max() for run in runs)
    cut = any(run.history["test_loss"].max() > top for run in runs)
    if cut:
        grid[0][0].set_ylim(0, top)
    for axes, label in zip(grid[-1], xlabels.values(), strict=True):
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    config, seeds = runs[0].config, len({run.config.seed for run in runs})
    legend_below(figure, grid[0][0], ncols=2)
    note(figure, f"{name(config.model)} (option {config.shortcut}), {trained(trainable)}, "
                 f"{shown(config.dataset)}, {seeds_of(seeds)}; "
                 "solid: test, dashed: training (LBFGS after each step, the others before)"
                 + "; higher losses are cut off" * cut
                 + (f"\nseconds: only of what was trained on {made_on(timed[0])}"
                    if len(timed) < len(runs) else ""),
         "Loss and accuracy against epochs, passes over the images and seconds")
    return figure


def searched(table: pd.DataFrame) -> Figure:
    """Validation accuracy of each setting of each optimizer, a panel a training mode; filled: the one it chose.

    table: from `analysis.optimizers`.
    """
    table = table[table["val_accuracy"].notna()]
    if not len(table):
        return nothing_yet()
    tried = list(dict.fromkeys(table["optimizer"]))
    rows = sorted(table.itertuples(), key=lambda row: (
        tried.index(row.optimizer), row.options["lr"], row.options["batch size"]))
    settings = list(dict.fromkeys((row.optimizer, row.setting) for row in rows))[::-1]
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
    note(figure, f"{name(table['model'].iloc[0])}, {shown(table['dataset'].iloc[0])}, "
                 f"{seeds_of(seeds)}; filled: chosen")
    return figure


def growth(table: pd.DataFrame) -> Figure:
    """The root mean square of γ and of β against the epoch, a line for each choice of what weight decay acts on.

    table: from `analysis.growth`. Where several seeds were run each has its line.
    """
    if not len(table):
        return nothing_yet()
    hues = {"all": COLOURS["bn"], "gamma": COLOURS["gamma"], "beta": COLOURS["beta"]}
    styles = {"gamma": "--", "beta": "-.", "none": ":"}                        # γ alone and both lie on each other in γ
    figure, grid = plt.subplots(1, 2, figsize=(7, 3.6))
    for axes, part in zip(grid, ("gamma", "beta"), strict=True):
        for (decay, _), line in table.groupby(["decay", "seed"], sort=False):
            axes.plot(line["epoch"], line[part], styles.get(decay, "-"), color=hues.get(decay, "#333333"),
                      label=decay_on(decay))
        axes.set(xlabel="epoch", ylabel=f"{SYMBOL[part]}, root mean square")
        axes.set_ylim(bottom=0)
    first, seeds = table.iloc[0], table["seed"].nunique()
    legend_below(figure, grid[0], ncols=4, title=f"weight decay {first['weight_decay']:g}")
    note(figure, f"{name(first['model'])}, BN only, {OPTIMIZER[first['optimizer']]}, {first['setting']}, "
                 f"{seeds_of(seeds)}")
    return figure


def with_and_without(table: pd.DataFrame) -> Figure:
    """Training loss against steps and seconds: a line a run, dashed without batch norm, a row a set of images.

    An optimizer's second setting has a thinner line than its first.

    table: from `analysis.with_and_without`. Each line is the mean over a tenth of the run's logged steps and ends at
    `analysis.last_loss`, with the losses as measured faint behind it; dotted: the loss of guessing.
    """
    if not len(table):
        return nothing_yet()
    sets = list(dict.fromkeys(table["dataset"]))
    settings = {optimizer: list(dict.fromkeys(rows["setting"])) for optimizer, rows in table.groupby("optimizer")}
    table = table.assign(mean=table.groupby("run")["loss"].transform(
        lambda losses: losses.rolling(max(1, len(losses) // 10)).mean()))
    figure, grid = plt.subplots(len(sets), 2, figsize=(7.4, 0.9 + 2.7 * len(sets)), sharey="row", squeeze=False)
    for row, dataset in zip(grid, sets, strict=True):
        part = table[table["dataset"] == dataset]
        for axes, against in zip(row, ("step", "seconds"), strict=True):
            axes.axhline(np.log(part["classes"].iloc[0]), color="#333333", linestyle=":", linewidth=0.9)
            for (norm, optimizer, what, _), run in part.groupby(["norm", "optimizer", "setting", "run"], sort=False):
                style = {"color": OPTIMIZER_COLOURS[optimizer], "linestyle": "-" if norm == "batch" else "--",
                         "linewidth": 2.0 / (1 + settings[optimizer].index(what))}
                axes.plot(run[against], run["loss"], color=style["color"], linewidth=0.5, alpha=0.15)
                axes.plot(run[against], run["mean"], **style, label=f"{OPTIMIZER[optimizer]} {NORM[norm]}, {what}")
            axes.set(xlabel={"step": f"step, of {part['batch_size'].iloc[0]} images",
                             "seconds": "seconds of training"}[against], xlim=(0, None))
        row[0].set_ylabel(f"{shown(dataset)}\ntraining loss (nats)" if len(sets) > 1 else
                          "training loss (nats)")
        settled = part["mean"][part["step"] > 0.2 * part["step"].max()]         # the first steps may be far above
        row[0].set_ylim(0.9 * settled.min(), 1.1 * settled.max())
    legend_below(figure, grid[0][0], ncols=2)
    about = f"{name(table['model'].iloc[0])} on {'/'.join(shown(d) for d in sets)}"
    note(figure, f"{about}, all parameters, {seeds_of(table['seed'].nunique())}\n"
                 "means over a tenth of the steps, losses as measured faint, the highest cut off; dotted: guessing")
    return figure
