"""What is to be run: the grids that the notebooks list, what of them is worth most first, and how much is there."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bnlib import data, freeze, store
from bnlib.config import Config, resolve
from bnlib.grid import Runs, run_all
from bnlib.names import InputError
from bnlib.profiles import OF_THE_PAPER, modified, profile, variant
from bnlib.wording import changed


def notebook_configs(notebook: Path, **parameters) -> list[Config]:
    """The grid that a notebook lists, each config once: its cells tagged `parameters` and `grid`, run with these.

    So the list a reader sees in the notebook is the one that `campaign` trains. Empty where no cell is tagged `grid`.
    Raises InputError where the parameters make no grid.
    """
    cells = json.loads(Path(notebook).read_text())["cells"]
    names = {"Config": Config, "freeze": freeze, "modified": modified, "profile": profile}
    for tag in ("parameters", "grid"):
        for cell in cells:
            if tag in cell["metadata"].get("tags", ()):
                try:
                    exec("".join(cell["source"]), names)
                except InputError:
                    raise
                except Exception as error:             # whatever the cell of somebody's notebook does
                    raise InputError(f"{Path(notebook).stem}: no grid comes of these parameters: {error}") from None
        if tag == "parameters":
            names.update(parameters)
    return list(dict.fromkeys(names.get("configs", [])))


def possible(configs: Iterable[Config], results: str | Path = "results") -> list[Config]:
    """The configs whose images are here or can be downloaded, as ImageNet's cannot, or whose record is here."""
    return [c for c in configs if data.obtainable(c.dataset) or store.record_folder(results, c.id).exists()]


def profile_configs(profile_name: str, notebooks: Iterable[str] | None = None, **parameters) -> list[Config]:
    """All configs that the notebooks (None: all of them) list for a profile, each once."""
    folder = resolve("notebooks")
    names = sorted(file.stem for file in folder.glob("*.ipynb")) if notebooks is None else notebooks
    if not names:
        raise InputError(f"{folder}: no notebooks there, which list the grids; run from the repository's folder")
    return list(dict.fromkeys(
        config for name in names
        for config in notebook_configs(folder / f"{name}.ipynb", profile_name=profile_name, **parameters)))


def depth_and_width(profile_name: str) -> list[Config]:
    """The paper's own grid: its networks by depth and width, without the short trials beside them."""
    return [c for c in profile_configs(profile_name, ["01_depth", "02_width"]) if not variant(c, OF_THE_PAPER)]


def tiers() -> dict[str, list[Config]]:
    """What the report needs, in the order in which it is worth most: a tier's name → its configs.

    The first tier is the paper's grid of depths and widths once; the second gives its headline number its own 160
    epochs and five seeds; the third asks its other questions.
    """
    short, paper = map(depth_and_width, ("short", "paper"))
    alone = [c for c in paper if c.trainable == "bn"]
    wanted = {
        "16 epochs, seed 0: depth and width": [c for c in short if c.seed == 0],
        "160 epochs: ResNet-14, five seeds; ResNet-32 and -56": [
            *(c for c in alone if c.model == "resnet14"),
            *(c for c in paper if c.seed == 0 and (c.model, c.trainable) in (
                ("resnet14", "all"), ("resnet32", "bn"), ("resnet56", "bn")))],
        "16 epochs: all notebooks, seed 0": [
            *(c for c in profile_configs("short") if c.seed == 0),
            *(c for c in profile_configs("short", ["04_what_trains"]) if c.model == "resnet14"
              and c.trainable in ("bn", "gamma", "beta", "output", "random2"))],
        "16 epochs, more seeds: depth and width": short,
        "160 epochs: deeper and wider, BN only, seed 0": [c for c in alone if c.seed == 0],
        "everything else": [*profile_configs("short"), *profile_configs("paper")],
    }
    listed: set[Config] = set()
    for name, configs in wanted.items():              # each config in the first tier that asks for it
        wanted[name] = [c for c in dict.fromkeys(configs) if c not in listed]
        listed.update(configs)
    return wanted


def planned_runs(profiles: list[str], results: str | Path = "results") -> Runs:
    """What is there of the profiles' grids, and nothing else that may lie in `results`, such as somebody's tweaks."""
    configs = [config for profile_name in profiles for config in profile_configs(profile_name)]
    return run_all(configs, missing="skip", results=results)


def coverage(profiles: list[str], results: str | Path = "results") -> pd.DataFrame:
    """How much of each profile's grid has been run: a row a network and mode, `done of wanted` seeds a profile."""
    rows = [{"depth": config.depth, "width": config.width, "network": config.model, "trained": config.trainable,
             "variant": changed(variant(config)), "profile": profile_name, "done": _done(config, results)}
            for profile_name in profiles for config in profile_configs(profile_name)]
    keys = ["depth", "width", "network", "trained", "variant"]
    return _counted(rows, keys, profiles).reset_index(["network", "trained", "variant"]).reset_index(drop=True)


def coverage_by_notebook(profiles: list[str], results: str | Path = "results") -> pd.DataFrame:
    """How much of each notebook's grid has been run: `done of wanted` runs a profile; one that two notebooks list is
    counted in both."""
    rows = [{"notebook": notebook.stem, "profile": profile_name, "done": _done(config, results)}
            for notebook in sorted(resolve("notebooks").glob("*.ipynb")) for profile_name in profiles
            for config in notebook_configs(notebook, profile_name=profile_name)]
    return _counted(rows, ["notebook"], profiles).reset_index()


def _done(config: Config, results: str | Path) -> bool:
    return store.find_sound(config, results) is not None         # one that diverged has been run


def _counted(rows: list[dict], keys: list[str], profiles: list[str]) -> pd.DataFrame:
    """`done of wanted` for each of the keys, a column a profile; a dash where a profile has none."""
    cells = pd.DataFrame(rows).groupby([*keys, "profile"])["done"].agg(["sum", "count"])
    stated = cells["sum"].astype(str) + " of " + cells["count"].astype(str)
    return stated.unstack("profile").reindex(columns=profiles).fillna("–").rename_axis(columns=None)
