"""Many runs: in which order, within which time, with one progress bar; and the grids that the notebooks list."""

import json
import re
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bnlib import checkpoint, data, freeze, store
from bnlib.cluster import train_all
from bnlib.config import Config, InputError, choose, resolve
from bnlib.optim import work
from bnlib.profiles import OF_THE_PAPER, modified, profile, variant
from bnlib.stop import Paused
from bnlib.train import progress_bar, run
from bnlib.wording import changed

NAMED = 6                 # missing runs, at most, that a notebook names


class Runs(list):
    """The finished runs of a grid, in the grid's order; `.missing` are the configs without one.

    `.failed` are those of the missing that failed on a cluster, each with its reason.
    """

    def __init__(self, runs: Iterable[store.Run], missing: list[Config], failed: dict[Config, str] | None = None):
        super().__init__(runs)
        self.missing, self.failed = missing, failed or {}

    def _repr_markdown_(self) -> str:
        text, more = f"{len(self)} of {len(self) + len(self.missing)} runs are there", len(self.missing) - NAMED
        named = ", ".join(f"`{config.id}`" for config in self.missing[:NAMED]) + f" and {more} more" * (more > 0)
        return text + (f"; not yet run: {named}." if self.missing else ".")


def run_all(configs: Iterable[Config], *, budget: str | float | None = None, missing: str = "train", cluster=None,
            **options) -> Runs:
    """The runs of all configs, cheapest first, with one progress bar and an estimate of the time left.

    What another process is training comes last; a damaged record is named in a warning and counts as missing.

    budget: seconds, or a text such as `90s`, `30m`, `2h`; when it is spent, training stops at a checkpoint, and the
    next call goes on from there. missing: `train`, or `skip` to return only what is there. cluster: None trains in this
    process; a number of local workers, `local`, the address or file of a Dask scheduler, or a Dask Cluster or Client
    train there, longest first (docs/clusters.md). Other options as for `run`. Raises InputError for a budget, option
    or cluster that cannot be.
    """
    choose("missing", missing, ("train", "skip"))
    results = options.get("results", "results")
    deadline = None if budget is None else time.time() + seconds(budget)
    configs = list(dict.fromkeys(configs))
    found = {config: store.find_sound(config, results) for config in configs}
    to_train = sorted((c for c in configs if not found[c]), key=lambda c: (not started(c, results), work(c)))
    if missing == "train":                         # what a process left that was killed between record and clean-up
        for config in set(configs) - set(to_train):
            if started(config, results):
                run(config, **options)
    failed = {}
    if missing == "train" and to_train and cluster is not None:
        trained, failed = train_all(to_train, cluster, deadline=deadline, **options)
        found |= trained
    elif missing == "train" and to_train:
        queue, busy = deque(to_train), 0           # busy: how many in a row are being trained by other processes
        with progress_bar(sum(map(work, to_train)), f"{len(to_train)} runs") as bar:
            while queue and (deadline is None or time.time() < deadline):
                config = queue.popleft()
                bar.set_description_str(f"{len(to_train) - len(queue)}/{len(to_train)} {config.id}")
                try:
                    found[config] = run(config, deadline=deadline, bar=bar, wait=busy > len(queue), **options)
                    busy = 0
                except store.Busy:
                    queue.append(config)
                    busy += 1
                except Paused:
                    break
                except store.RecordError:          # named by find_sound above; somebody must look at it
                    pass
    return Runs([found[c] for c in configs if found[c]], [c for c in configs if not found[c]], failed)


def started(config: Config, results: str | Path = "results") -> bool:
    """Whether a checkpoint of this config waits to be gone on with."""
    return checkpoint.waits(store.checkpoint_file(config, results))


def seconds(budget: str | float) -> float:
    """`90s`, `30m`, `1.5h` or a number of seconds → seconds. Raises InputError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(budget).strip())
    if not found:
        raise InputError(f"budget={budget!r}: must be a time such as 90s, 30m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def notebook_configs(notebook: Path, **parameters) -> list[Config]:
    """The grid that a notebook lists: its cells tagged `parameters` and `grid`, run with these parameters.

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
                except TypeError as error:             # such as a field that Config has not
                    raise InputError(f"{Path(notebook).stem}: no grid comes of these parameters: {error}") from None
        if tag == "parameters":
            names.update(parameters)
    return names.get("configs", [])


def possible(configs: Iterable[Config], results: str | Path = "results") -> list[Config]:
    """The configs whose images are here, or whose record is; for sets that nobody can download, such as ImageNet."""
    return [c for c in configs if data.at_hand(c.dataset) or store.record_folder(results, c.id).exists()]


def campaign_configs(profile_name: str, notebooks: Iterable[str] | None = None, **parameters) -> list[Config]:
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
    return [c for c in campaign_configs(profile_name, ["01_depth", "02_width"]) if not variant(c, OF_THE_PAPER)]


def campaign_tiers() -> dict[str, list[Config]]:
    """What the report needs, in the order in which it is worth most: a tier's name → its configs.

    The first tier answers each question of the paper once; the second gives its headline number its own 160 epochs and
    five seeds.
    """
    short, paper = map(depth_and_width, ("short", "paper"))
    alone = [c for c in paper if c.trainable == "bn"]
    tiers = {
        "16 epochs, seed 0: depth and width": [c for c in short if c.seed == 0],
        "160 epochs: ResNet-14, five seeds; ResNet-32 and -56": [
            *(c for c in alone if c.model == "resnet14"),
            *(c for c in paper if c.seed == 0 and (c.model, c.trainable) in (
                ("resnet14", "all"), ("resnet32", "bn"), ("resnet56", "bn")))],
        "16 epochs: all notebooks, seed 0": [
            *(c for c in campaign_configs("short") if c.seed == 0),
            *(c for c in campaign_configs("short", ["04_what_trains"]) if c.model == "resnet14"
              and c.trainable in ("bn", "gamma", "beta", "output", "random2"))],
        "16 epochs, more seeds: depth and width": short,
        "160 epochs: deeper and wider, BN only, seed 0": [c for c in alone if c.seed == 0],
        "160 epochs: everything": [*campaign_configs("short"), *campaign_configs("paper")],
    }
    listed: set[Config] = set()
    for name, configs in tiers.items():              # each config in the first tier that asks for it
        tiers[name] = [c for c in dict.fromkeys(configs) if c not in listed]
        listed.update(configs)
    return tiers


def planned_runs(profiles: list[str], results: str | Path = "results") -> Runs:
    """What is there of the profiles' grids, and nothing else that may lie in `results`, such as somebody's tweaks."""
    configs = [config for profile_name in profiles for config in campaign_configs(profile_name)]
    return run_all(configs, missing="skip", results=results)


def coverage(profiles: list[str], results: str | Path = "results") -> pd.DataFrame:
    """How much of each profile's grid has been run: a row a network and mode, `done of wanted` seeds a profile."""
    rows = [{"depth": config.depth, "width": config.width, "network": config.model, "trained": config.trainable,
             "variant": changed(variant(config)), "profile": profile_name, "done": _done(config, results)}
            for profile_name in profiles for config in campaign_configs(profile_name)]
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
