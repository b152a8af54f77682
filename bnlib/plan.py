"""What a grid takes before it is run: hours, energy and cost, from images/s that were measured."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from bnlib import models, optim, store
from bnlib.config import Config, resolve
from bnlib.names import InputError


def measured(results: str | Path = "results") -> dict[str, dict[tuple[str, str], float]]:
    """Device → (network, what trains) → images/s: from `make bench`, else the median of the records of that device.

    Of devices on which both were measured, `bn` and `all`; from one alone the other cannot be estimated.
    """
    found: dict[str, dict] = {}
    records = store.load_runs(results, dataset="cifar10", image_size=None, fp32=False)
    if len(records):
        records = records[~records["device"].str.contains(";")]          # not runs that moved from one to another
        by = records.groupby(["device", "model", "trainable"])["images_per_second"].median()
        for (device, model, trainable), rate in by.items():
            found.setdefault(slug(device), {})[model, trainable] = rate
    for file in sorted((resolve(results) / "tables").glob("bench-*.csv")):
        table = pd.read_csv(file)
        for row in table[(table["table"] == "speed") & (table["figure"] == "images/s")].itertuples():
            model, trainable, lane = row.what.split()
            if lane == "ours":
                found.setdefault(file.stem.removeprefix("bench-"), {})[model, trainable] = float(row.value)
    return {device: rates for device, rates in found.items() if {"bn", "all"} <= {trained for _, trained in rates}}


def slug(device: str) -> str:
    """A device's name as `make bench` puts it into a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def images_per_second(config: Config, rates: dict[tuple[str, str], float]) -> tuple[float, bool]:
    """Images/s of training, and whether that was measured; else as that of the nearest network, by multiply–adds.

    What trains no convolution counts as `bn`, the rest as `all`. Raises InputError where nothing like it was measured.
    """
    parts = set(config.trainable.split("+"))
    mode = "all" if parts & {"all", "weights", "shortcut"} or "random" in config.trainable else "bn"
    if (config.model, mode) in rates and config.image_size is None and not config.fp32:
        return rates[config.model, mode], True
    near = {model: rate for (model, trainable), rate in rates.items() if trainable == mode}
    if not near:
        raise InputError(f"{config.model} {mode}: nothing like it was measured on this device; `make bench` measures")
    own = models.multiply_adds(config.model, config.image_size)
    model = min(near, key=lambda name: abs(np.log(models.multiply_adds(name) / own)))
    return near[model] * models.multiply_adds(model) / own, False


def hours(config: Config, rates: dict[tuple[str, str], float]) -> float:
    """Hours that a run trains on one device; evaluation, some per cent, comes on top."""
    return config.images * config.epochs * optim.passes(config) / images_per_second(config, rates)[0] / 3600


def table(configs: Iterable[Config], rates: dict[tuple[str, str], float]) -> pd.DataFrame:
    """A row a network, mode and number of epochs, smallest first: runs, images/s and whether measured, hours a run,
    hours in all."""
    rows = []
    for c in configs:
        rate, known = images_per_second(c, rates)
        rows.append({"network": c.model, "trained": c.trainable, "runs": 1, "images/s": rate,
                     "from": "measured" if known else "estimated", "epochs": c.epochs, "hours": hours(c, rates),
                     "hours a run": hours(c, rates), "size": models.multiply_adds(c.model, c.image_size)})
    by = pd.DataFrame(rows).groupby(["size", "network", "trained", "from", "images/s", "epochs"])
    return by.agg({"runs": "sum", "hours a run": "mean", "hours": "sum"}).reset_index().drop(columns="size")


def text(configs: list[Config], results: str | Path = "results", price: float | None = None,
         watts: float | None = None) -> str:
    """The plan of a grid for each device that was measured. price: of a device's hour; watts: what a device draws.

    Raises InputError where no device was measured.
    """
    said = {}
    for device, rates in measured(results).items():
        found = table(configs, rates)
        total = found["hours"].sum()
        known = found.loc[found["from"] == "measured", "hours"].sum() / total
        costs = [f"{total:,.0f} device-hours ({total / 24:,.0f} days of one)",
                 f"{known:.0%} of them from networks that were measured"]
        if not (resolve(results) / f"tables/bench-{device}.csv").exists():
            costs += ["speeds from its records, made while other runs may have shared it"]
        costs += [f"{total * watts / 1000:,.0f} kWh at {watts:g} W"] if watts is not None else []
        costs += [f"{total * price:,.2f} at {price:g} an hour"] if price is not None else []
        said[device] = (known, f"{device}: {len(configs)} runs, " + ", ".join(costs) + "\n" + found.to_string(
            index=False, formatters=dict.fromkeys(("images/s", "hours a run", "hours"), "{:,.1f}".format)))
    if not said:
        raise InputError(f"no images/s were measured in {resolve(results)}: `make bench` or a run on CIFAR-10 does it")
    return "\n\n".join(about for _, about in sorted(said.values(), reverse=True))      # the best known device first
