"""Many runs: in which order, within which time, with one progress bar."""

import re
import time
import warnings
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from bnlib import checkpoint, store
from bnlib.cluster import train_all
from bnlib.config import Config
from bnlib.names import InputError, choose
from bnlib.optim import work
from bnlib.stop import Paused
from bnlib.train import check_images, progress_bar, run

NAMED = 6                 # missing runs, at most, that a notebook names


class Runs(list):
    """The finished runs of a grid, in the grid's order; `.missing` are the configs without one.

    `.failed` are those of the missing that failed, each with its reason.
    """

    def __init__(self, runs: Iterable[store.Run], missing: list[Config], failed: dict[Config, str] | None = None):
        super().__init__(runs)
        self.missing, self.failed = missing, failed or {}

    def _repr_markdown_(self) -> str:
        text, more = f"{len(self)} of {len(self) + len(self.missing)} runs are there", len(self.missing) - NAMED
        named = ", ".join(f"`{config.id}`" for config in self.missing[:NAMED]) + f" and {more} more" * (more > 0)
        text += f"; not yet run: {named}" if self.missing else ""
        return text + "".join(f"; `{config.id}` failed: {why}" for config, why in self.failed.items()) + "."


def run_all(configs: Iterable[Config], *, budget: str | float | None = None, missing: str = "train", cluster=None,
            **options) -> Runs:
    """The runs of all configs, cheapest first, with one progress bar and an estimate of the time left.

    What another process is training comes last; a damaged record, or a run that fails, is named in a warning and counts
    as missing.

    budget: seconds, or a text such as `90s`, `30m`, `2h`; when it is spent, training stops at a checkpoint, and the
    next call goes on from there. missing: `train`, or `skip` to return only what is there. cluster: None trains in this
    process; a number of local workers, `local`, the address or file of a Dask scheduler, or a Dask Cluster or Client
    train there, longest first (docs/clusters.md). Other options as for `run`. Raises InputError for a budget, option
    or cluster that cannot be, and in this process where the only run fails, or the first two in the same way.
    """
    choose("missing", missing, ("train", "skip"))
    results = options.get("results", "results")
    deadline = None if budget is None else time.time() + seconds(budget)
    configs = list(dict.fromkeys(configs))
    found = {config: store.find_sound(config, results) for config in configs}
    for each in sorted(filter(None, found.values()), key=lambda each: each.config.dataset):
        check_images(each)
    to_train = sorted((c for c in configs if not found[c]), key=lambda c: (not started(c, results), work(c)))
    if missing == "train":                         # what a process left that was killed between record and clean-up
        for config in set(configs) - set(to_train):
            if started(config, results):
                run(config, **options)
    failed = {}
    late = deadline is not None and time.time() >= deadline
    if missing == "train" and to_train and cluster is not None and not late:
        trained, failed = train_all(to_train, cluster, deadline=deadline, **options)
        found |= trained
    elif missing == "train" and to_train and cluster is None:
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
                except (InputError, AssertionError) as error:          # of this run alone: the others may train
                    if len(to_train) == 1 or [*failed.values()] == [str(error)]:
                        raise
                    failed[config] = str(error)
                    warnings.warn(f"{config.id} failed: {error}", stacklevel=2)
    return Runs([found[c] for c in configs if found[c]], [c for c in configs if not found[c]], failed)


def started(config: Config, results: str | Path = "results") -> bool:
    """Whether a checkpoint of this config waits to be gone on with."""
    return checkpoint.waits(store.checkpoint_file(config, results))


def seconds(budget: str | float) -> float:
    """`90s`, `30m`, `1.5h` or a number of seconds → seconds. Raises InputError for anything else."""
    if isinstance(budget, int | float) and budget >= 0:
        return float(budget)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(budget).strip())
    if not found:
        raise InputError(f"budget={budget!r}: must be a time such as 90s, 30m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
