"""Tables for reading, for `DataFrame.style.pipe`: few digits, units, no index."""

from bnlib.verdicts import NOT, NOT_RUN, PARTLY, REPRODUCED
from bnlib.wording import OPTIMIZER, SHOWN, changed, machine, name, trained


def table(styler):
    """A table for reading: few digits, units, no index; for `DataFrame.style.pipe(plots.table)`.

    Columns that say nothing (no seed diverged, one dataset) or that the provenance table repeats are left out.
    """
    last = ["epochs", "parameters", "dataset"] if "mean" in styler.data else []          # what is asked for comes first
    data = styler.data[[*(c for c in styler.data if c not in last), *(c for c in last if c in styler.data)]]
    styler = data.style
    formats = {"mean": "{:.1f}", "std": "{:.1f}", "hours": "{:.2f}", "images/s": "{:,.0f}", "parameters": "{:,}",
               "chance": "{:.1f}", "model": name, "network": name, "trainable": trained, "trained": trained,
               "variant": changed, "dataset": lambda dataset: SHOWN.get(dataset, dataset), "device": machine}
    titles = {"mean": "test accuracy (%)", "std": "± std", "n": "seeds", "model": "network", "trainable": "trained",
              "parameters": "parameters trained", "chance": "chance (%)"}
    silent = [c for c in ("depth", "width", "seeds", "devices") if c in data and "mean" in data]
    silent += [c for c in ("diverged", "variant") if c in data and not data[c].any()]
    silent += ["dataset"] if "dataset" in data and data["dataset"].nunique() < 2 else []
    styler = styler.format({c: f for c, f in formats.items() if c in data}, na_rep="–")
    styler = styler.set_uuid("-".join(map(str, data.columns[:4])))          # the same HTML each time
    styler = styler.hide(axis="columns", subset=silent).format_index(lambda c: titles.get(c, c), axis=1)
    words = [c for c in data if c not in silent and data[c].dtype.kind not in "fiu"]
    styler = styler.set_properties(**{"text-align": "left"}, subset=words)
    return styler.hide(axis="index")


def verdicts(styler):
    """The verdict table, each verdict in its colour."""
    colours = {REPRODUCED: "#009E73", PARTLY: "#E69F00", NOT: "#D55E00", NOT_RUN: "#777777"}
    styler = styler.format(escape="html").set_uuid("verdicts")       # a claim may hold a `<`
    return styler.hide(axis="index").map(lambda v: f"color: {colours[v]}; font-weight: bold", subset=["verdict"])


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


def pruning(styler):
    """The table of `features.pruning`: each network before and after its silent channels went."""
    data = styler.data
    numbers = {"silent": "{:.1f}", "removed": "{:.1f}", "parameters": "{:,}", "parameters left": "{:,}",
               "difference": "{:.0e}", "images/s before": "{:,.0f}", "images/s after": "{:,.0f}"}
    titles = {"model": "network", "trainable": "trained", "silent": "silent (%)", "removed": "removed (%)",
              "difference": "largest difference of a probability"}
    styler = styler.format(numbers | {"model": name, "trainable": trained}).set_uuid("pruning")
    silent = [c for c in ("run", "dataset", "depth", "width") if c in data]
    silent += [c for c in ("seed", "epochs", "device") if c in data and data[c].nunique() < 2]
    styler = styler.hide(axis="columns", subset=silent).format_index(lambda c: titles.get(c, c), axis=1)
    return styler.hide(axis="index").set_properties(**{"text-align": "right"})


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


def side_by_side(styler):
    """The table of `analysis.residual_and_plain`, for `DataFrame.style.pipe`: accuracies in %."""
    accuracies = [column for column in styler.data if "," in column]
    styler = styler.format(dict.fromkeys(accuracies, "{:.2f}") | {"trained": trained}, na_rep="–")
    silent = [column for column in styler.data if column == "dataset" or styler.data[column].isna().all()]
    styler = styler.hide(axis="columns", subset=silent)
    return styler.hide(axis="index").set_uuid("side-by-side").set_properties(**{"text-align": "right"})
