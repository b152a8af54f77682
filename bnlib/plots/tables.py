"""Tables for reading, for `DataFrame.style.pipe`: few digits, units, no index."""

import zlib

import numpy as np

from bnlib.verdicts.rules import AGREES, DISAGREES, NOT, NOT_RUN, OF_OUR_OWN, PARTLY, REPRODUCED, UNDECIDED
from bnlib.wording import OPTIMIZER, machine, name, shown, trained

#: How cells of a column are written, in whichever table it is.
_FORMATS = {"mean": "{:.1f}", "hours": "{:.2f}", "images/s": "{:,.0f}", "parameters": "{:,}",
            "chance": "{:.1f}", "model": name, "network": name, "trainable": trained, "trained": trained,
            "dataset": shown, "device": machine,
            "optimizer": OPTIMIZER.get, "passes": "{:.0f}"}
#: What a column is called, in whichever table it is.
_TITLES = {"mean": "test accuracy (%)", "n": "seeds", "model": "network", "trainable": "trained",
           "chance": "chance (%)"}


def _for_reading(styler, uuid: str, formats: dict, titles: dict, hidden=()):
    """Cells and titles in words, without the index and the columns `hidden`; words to the left, numbers to the right.

    uuid: names the table in its HTML, which is the same each time.
    """
    data = styler.data
    hidden = [column for column in dict.fromkeys(hidden) if column in data]
    written = {column: how for column, how in (_FORMATS | formats).items() if column in data}
    sides = {column: "right" if data[column].dtype.kind in "fiu" else "left" for column in data}
    styler = styler.format(written, na_rep="–").set_uuid(uuid).hide(axis="index").hide(axis="columns", subset=hidden)
    styler = styler.format_index(lambda column: (_TITLES | titles).get(column, column), axis=1)
    return styler.set_table_styles({column: [{"selector": "", "props": f"text-align: {side}"}]
                                    for column, side in sides.items()})


def table(styler):
    """A table for reading: few digits, units, no index; for `DataFrame.style.pipe(plots.table)`.

    Accuracies come as mean ± standard deviation. Columns that say nothing (no seed diverged, one dataset) or that the
    provenance table repeats are left out.
    """
    data, hidden = styler.data, []
    if "mean" in data:
        # What is asked for comes first, as a phone shows it.
        last = ["variant", "n", "precision", "parameters", "dataset"]
        data = data[[*(c for c in data if c not in ("mean", *last)), *(c for c in ("mean", *last) if c in data)]]
        if "std" in data:
            data = data.assign(mean=[_spread(*both) for both in zip(data["mean"], data["std"], strict=True)])
        hidden = ["std", "depth", "width", "seeds", "devices"]
    hidden += [c for c in ("diverged", "variant") if c in data and not data[c].any()]
    hidden += [c for c in ("dataset", "precision") if c in data and data[c].nunique() < 2]
    formats = {"mean": str} if "std" in data else {}
    return _for_reading(data.style, "-".join(map(str, data.columns[:4])), formats, {"parameters": "parameters trained"},
                        hidden)


def _spread(mean: float, std: float) -> str:
    """`84.9 ± 0.6`, in a line, its tens under the tens of others; `–` where no seed came to an end."""
    if np.isnan(mean):
        return "–"
    return f"{mean:.1f}".rjust(4, "\u2007") + ("" if np.isnan(std) else f"\u00a0±\u00a0{std:.1f}")


#: Sign and colour of a verdict, paler where it is one so far; the colours are for bars, too pale for text.
VERDICT_SIGNS = {REPRODUCED: ("✓", "#009E73"), AGREES: ("(✓)", "#7FCEB9"), PARTLY: ("½", "#E69F00"),
                 NOT: ("✗", "#D55E00"), DISAGREES: ("(✗)", "#EAAE7F"), UNDECIDED: ("?", "#0072B2"),
                 NOT_RUN: ("–", "#999999")}
VERDICT_SIGNS |= {own: VERDICT_SIGNS[verdict] for verdict, own in OF_OUR_OWN.items()}


def verdicts(styler):
    """The verdict table, each verdict with its sign, and a bar of its colour."""
    named = zlib.crc32(" ".join(styler.data["claim"]).encode())           # a page has two of them
    styler = styler.format(escape="html").set_uuid(f"verdicts-{named}")   # a claim may hold a `<`
    styler = styler.format(lambda verdict: f"{VERDICT_SIGNS[verdict][0]} {verdict}", subset=["verdict"])
    return styler.hide(axis="index").map(
        lambda verdict: f"border-left: 0.4em solid {VERDICT_SIGNS[verdict][1]}; padding-left: 0.5em; font-weight: bold",
        subset=["verdict"])


def optimizers(styler):
    """The table of `analysis.optimizers`: what was chosen for each optimizer and where it came."""
    formats = {"seconds": "{:,.0f}", "test_accuracy": "{:.1f}", "val_accuracy": "{:.1f}", "test_loss": "{:.3f}",
               "beta": "{:.2f}"}
    titles = {"val_accuracy": "validation (%)", "test_accuracy": "test (%)", "test_loss": "test loss",
              "seconds": "seconds of training", "beta": "β, root mean square", "device": "on"}
    hidden = ["run", "dataset", "options", "length", "val_loss", "status", "chosen"]
    apart = ["dataset", "model", "trainable", "seed", "length", "optimizer"]
    hidden += ["task"] if not styler.data.duplicated(apart).any() else []        # an id, which these tell as well
    hidden += [column for column in ("model", "seed", "device") if styler.data[column].nunique() < 2]
    return _for_reading(styler, "optimizers", formats, titles, hidden)


def pruning(styler):
    """The table of `features.pruning`: each network before and after its silent channels went."""
    formats = {"silent": "{:.1f}", "removed": "{:.1f}", "parameters left": "{:,}", "difference": "{:.0e}",
               "images/s before": "{:,.0f}", "images/s after": "{:,.0f}"}
    titles = {"silent": "silent (%)", "removed": "removed (%)",
              "difference": "largest difference of a probability"}
    alike = [c for c in ("seed", "epochs", "device") if c in styler.data and styler.data[c].nunique() < 2]
    return _for_reading(styler, "pruning", formats, titles, ["run", "dataset", "depth", "width", *alike])


def equality(styler):
    """The table of `numpy_nn.check.against_torch`: relative deviations with their order of magnitude."""
    deviations = {c: "{:.1e}" for c in styler.data if styler.data[c].dtype.kind == "f"}
    return _for_reading(styler, "equality", deviations, {"parameters": "arrays with gradients"})


def speed(styler):
    """The table of `numpy_nn.check.speed`."""
    formats = {"seconds": "{:,.2f}", "× torch": "{:,.2f}", "published": "{:.1f}"}
    titles = {"seconds": "1,000 passes (s)", "published": "published (s)", "timed": "passes timed"}
    return _for_reading(styler, "speed", formats, titles)


def side_by_side(styler):
    """The table of `analysis.residual_and_plain`, for `DataFrame.style.pipe`: accuracies in %."""
    accuracies = [column for column in styler.data if "," in column]
    nothing = [column for column in styler.data if styler.data[column].isna().all()]
    return _for_reading(styler, "side-by-side", dict.fromkeys(accuracies, "{:.2f}"), {}, ["dataset", *nothing])
