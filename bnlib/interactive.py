"""What moves while somebody looks: a curve that grows as a network trains, choices to click, a threshold to slide.

Where nobody looks, as when the report is rendered, or without ipywidgets, the same is shown as it stands.
"""

import dataclasses
import io
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bnlib.analysis import DEAD
from bnlib.config import Config
from bnlib.plots import Saved, history, progress, save
from bnlib.plots.pictures import switched_off
from bnlib.store import Run
from bnlib.train import run
from bnlib.wording import Sentences

#: What the panel offers beside what the notebook's parameters name.
NETWORKS = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet14x2")
TRAINABLE = ("bn", "all", "gamma", "beta", "output", "none")


def watched() -> bool:
    """Whether this is a notebook that somebody looks at: not where BNLIB_PROGRESS=0, as when the report is rendered."""
    if os.environ.get("BNLIB_PROGRESS") == "0" or find_spec("IPython") is None:
        return False
    from IPython import get_ipython
    return getattr(get_ipython(), "kernel", None) is not None


def with_widgets() -> bool:
    """Whether somebody looks and ipywidgets is there to give them something to move."""
    return watched() and find_spec("ipywidgets") is not None


def live_curve(config: Config) -> Callable[[pd.DataFrame], None] | None:
    """For `run(config, watch=live_curve(config))`: accuracy against epoch, drawn anew in its place after each epoch.

    None, so that nothing is drawn, where nobody looks.
    """
    if not watched():
        return None
    from IPython.display import Image, display
    shown = []                             # the one picture, once it is there

    def draw(so_far: pd.DataFrame) -> None:
        picture = Image(_png(progress(config, so_far)), width=480)
        if shown:
            shown[0].update(picture)
        else:
            shown.append(display(picture, display_id=True))

    return draw


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return file.getvalue()


def panel(config: Config, results: str | Path = "results"):
    """Network, what trains and epochs to choose, and a button that trains them with a live curve.

    config: what the choices start from; all else is as it says. Records go to `results`, as everywhere. Without
    ipywidgets, or where nobody looks: a sentence that says where to choose instead.
    """
    if not with_widgets():
        return Sentences(["In an open notebook, and with ipywidgets, network and epochs can be chosen here; the cell "
                          "tagged `parameters` does it everywhere."])
    import ipywidgets
    networks, modes = sorted({*NETWORKS, config.model}), list(dict.fromkeys([*TRAINABLE, config.trainable]))
    choices = {
        "model": ipywidgets.Dropdown(options=networks, value=config.model, description="network"),
        "trainable": ipywidgets.Dropdown(options=modes, value=config.trainable, description="trains"),
        "epochs": ipywidgets.BoundedIntText(config.epochs, min=1, max=1000, description="epochs")}
    button, curve = ipywidgets.Button(description="train"), ipywidgets.Image(format="png", width=480)
    said = ipywidgets.HTML()

    def train(_) -> None:
        chosen = dataclasses.replace(config, **{name: choice.value for name, choice in choices.items()})
        button.disabled, said.value = True, f"training {chosen.id} …"

        def draw(so_far: pd.DataFrame) -> None:
            curve.value = _png(progress(chosen, so_far))

        try:
            found = run(chosen, results=results, watch=draw)
            curve.value, said.value = _png(history(found)), repr(found)
        except Exception as error:                 # shown, as nothing else would show it
            said.value = f"{type(error).__name__}: {error}"
        finally:
            button.disabled = False

    button.on_click(train)
    return ipywidgets.VBox([ipywidgets.HBox([*choices.values(), button]), curve, said])


def threshold(runs: list[Run], thresholds: pd.DataFrame, figures: Path, below: float = DEAD):
    """A slider over the threshold on |γ|, and what it would switch off (`plots.pictures.switched_off`); trains nothing.

    The figure at `below` is saved. It alone is shown without ipywidgets, or where nobody looks.
    """
    saved = save(switched_off(runs, thresholds, below), "switched_off", figures)
    if not with_widgets() or not isinstance(saved, Saved):
        return saved
    import ipywidgets
    picture = ipywidgets.Image(format="png", width=saved.width)
    slider = ipywidgets.FloatLogSlider(below, min=-4, max=0, step=0.05, description="|γ| <", readout_format=".4f",
                                       continuous_update=False)

    def draw(change: dict) -> None:
        picture.value = _png(switched_off(runs, thresholds, change["new"]))

    slider.observe(draw, "value")
    draw({"new": below})
    return ipywidgets.VBox([slider, picture])
