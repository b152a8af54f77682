"""`results/`: write a record atomically, find it, load it as a `Run`, rebuild its network."""

import fnmatch
import gzip
import hashlib
import io
import json
import os
import shutil
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load, save
from torch import nn

from bnlib import models
from bnlib.config import Config, InputError, resolve
from bnlib.freeze import select

FORMAT = 1               # of the record: raised when its files change
PROTOCOL = 1             # of the science: raised when a config would give another result
#: What a record keeps of each batch norm, and its name in `nn.BatchNorm2d`.
BN_PARTS = {"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_var": "running_var"}
SMALL = 64 * 1024        # bytes of trained tensors, beside batch norm's, that a record still stores


class Run:
    """One finished run, read from its record; files are read when first asked for.

    `.id .config .metrics .provenance .status` come from `run.json`; `.history` is a DataFrame, one row an epoch;
    `.gamma .beta .running_mean .running_var` map a layer's name to its array, first layer first.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        try:
            self.record = json.loads((self.folder / "run.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder}: not a run record ({error}); remove the folder and run again") from None
        if self.record.get("format") != FORMAT:
            raise InputError(f"{self.folder}: record format {self.record.get('format')!r}, this bnlib reads {FORMAT}; "
                             "remove the folder and run again, or use the bnlib that wrote it")
        try:
            self.config = Config.from_dict(self.record["config"])
        except InputError as error:
            raise InputError(f"{self.folder}: {error}; another version of bnlib wrote this record") from None
        self.id, self.status = self.record["id"], self.record["status"]
        self.metrics, self.provenance = self.record["metrics"], self.record["provenance"]

    def __repr__(self):
        accuracy = self.metrics.get("test_accuracy")
        return f"Run({self.id}, {self.status}" + (f", test accuracy {accuracy:.2%})" if accuracy is not None else ")")

    def _read(self, file: str) -> bytes:
        """A file of the record. Raises InputError if it is gone or not what was written."""
        try:
            content = (self.folder / file).read_bytes()
        except OSError as error:
            raise InputError(f"{self.folder / file}: {error.strerror}; remove the record and run again") from None
        if hashlib.sha256(content).hexdigest() != self.record["sha256"][file]:
            raise InputError(f"{self.folder / file}: changed since it was written (its SHA-256 is not run.json's); "
                             "remove the record and run again")
        return content

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch: epoch, lr, losses, accuracies as shares of 1, seconds."""
        return pd.read_csv(io.BytesIO(self._read("history.csv")))

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Predicted class and its confidence for each test image, in canonical order."""
        return pd.read_csv(io.BytesIO(gzip.decompress(self._read("predictions.csv.gz"))))

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """`gamma`, `beta`, `running_mean`, `running_var` of all layers in one row; other trained tensors by name."""
        return load(self._read("tensors.safetensors"))

    @cached_property
    def trajectory(self) -> dict:
        """`epochs` (E,), and `gamma` and `beta` after each of them: dicts of layer → (E, channels), float16."""
        logged = load(self._read("trajectory.safetensors"))
        return {"epochs": logged["epochs"], **{part: self._of_each_layer(logged[part]) for part in ("gamma", "beta")}}

    def _of_each_layer(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """Values of all channels of the network, along the last axis, cut up by layer."""
        ends = np.cumsum(list(self.record["bn_layers"].values()))
        return dict(zip(self.record["bn_layers"], np.split(row, ends[:-1], axis=-1), strict=True))

    @property
    def gamma(self) -> dict[str, np.ndarray]:
        return self._of_each_layer(self.tensors["gamma"])

    @property
    def beta(self) -> dict[str, np.ndarray]:
        return self._of_each_layer(self.tensors["beta"])

    @property
    def running_mean(self) -> dict[str, np.ndarray]:
        return self._of_each_layer(self.tensors["running_mean"])

    @property
    def running_var(self) -> dict[str, np.ndarray]:
        return self._of_each_layer(self.tensors["running_var"])

    def network(self) -> nn.Module:
        """The trained network, in evaluation mode and float32: frozen weights drawn from the seed, trained ones put in.

        The record of a network trained in full lacks its weights; they are in `build/` where it was trained.
        Raises InputError where they are not at hand, or where the drawn weights are not those of the training.
        """
        config, weights = self.config, {}
        if not self.record["complete"]:
            file = weights_file(config, self.folder.parent.parent)
            if not file.exists():
                raise InputError(f"{self.id}: trained weights this large are kept only where they were trained, at "
                                 f"{file}; to have them here, remove {self.folder} and run again")
            weights = load(file.read_bytes())
        network = models.from_config(config, self.record["classes"])
        if frozen_sha256(network, config.trainable) != self.provenance["frozen_sha256"]:
            raise InputError(f"{self.id}: the weights drawn from seed {config.seed} are not those of the record; "
                             "another version of NumPy or of bnlib drew them")
        kept = weights | {name: value for name, value in self.tensors.items() if name not in BN_PARTS}
        for part, name in BN_PARTS.items():
            kept |= {f"{layer}.{name}": row for layer, row in self._of_each_layer(self.tensors[part]).items()}
        network.load_state_dict({name: torch.from_numpy(value) for name, value in kept.items()}, strict=False)
        return network.eval()


def frozen_sha256(network: nn.Module, trainable: str) -> str:
    """SHA-256 over the parameters that `trainable` leaves frozen, as float32, in the network's order."""
    training, digest = select(network, trainable), hashlib.sha256()
    for name, parameter in network.named_parameters():
        if name not in training:
            digest.update(name.encode() + parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------- places

def record_folder(results: str | Path, run_id: str) -> Path:
    """Where the record of `run_id` is or will be. Raises InputError for an id that is no plain name."""
    if not run_id or run_id.startswith(".") or Path(run_id).name != run_id:
        raise InputError(f"run id {run_id!r}: must be a plain name such as {Config().id}")
    return resolve(results) / "runs" / run_id


def scratch_folder(results: str | Path) -> Path:
    """Where checkpoints and event files go: `build/`, which git ignores; beside results kept elsewhere."""
    results = resolve(results)
    return results.parent / "build" if (results.parent / "bnlib").is_dir() else results.parent


def checkpoint_file(config: Config, results: str | Path = "results") -> Path:
    """Where the checkpoint of a run is while it trains."""
    return scratch_folder(results) / "checkpoints" / f"{config.id}.pt"


def weights_file(config: Config, results: str | Path = "results") -> Path:
    """Where the weights of a network trained in full are kept, since its record does not hold them."""
    return scratch_folder(results) / "weights" / f"{config.id}.safetensors"


# ------------------------------------------------------------------------------------------ write, find

def write(results: str | Path, record: dict, history: pd.DataFrame, tensors: dict[str, np.ndarray],
          trajectory: dict[str, np.ndarray], predictions: pd.DataFrame | None) -> Run:
    """Writes a record whole or not at all: into a folder beside its place, then renamed to it."""
    files = {
        "history.csv": history.to_csv(index=False, float_format="%.7g").encode(),
        "tensors.safetensors": save(tensors),
        "trajectory.safetensors": save(trajectory),
    }
    if predictions is not None:
        text = io.BytesIO()
        with gzip.GzipFile(fileobj=text, mode="wb", mtime=0) as packed:
            packed.write(predictions.to_csv(index=False, float_format="%.2f").encode())
        files["predictions.csv.gz"] = text.getvalue()
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    record = {"format": FORMAT, "protocol": PROTOCOL, **record, "sha256": checksums}
    files["run.json"] = (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()

    folder = record_folder(results, record["id"])
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        shutil.rmtree(folder, ignore_errors=True)        # only a record of an older protocol can be there
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Run(folder)


def find(config: Config, results: str | Path = "results") -> Run | None:
    """The record of this config, or None if there is none of this protocol."""
    folder = record_folder(results, config.id)
    if not folder.exists():
        return None
    run = Run(folder)
    return run if run.record["protocol"] == PROTOCOL else None


def all_runs(results: str | Path = "results", **filters) -> list[Run]:
    """Every record of this protocol whose config fields match, in the order of their ids.

    A text may hold shell wildcards: `all_runs(model="resnet*", trainable="bn")`.
    Raises InputError for a filter that is no field of Config.
    """
    fields = Config().to_dict()
    for name in filters:
        if name not in fields:
            raise InputError(f"filter {name!r}: not a field of Config; fields: {', '.join(fields)}")
    runs = [Run(folder) for folder in sorted((resolve(results) / "runs").glob("[!.]*"))]
    return [run for run in runs if run.record["protocol"] == PROTOCOL
            and all(_matches(getattr(run.config, name), wanted) for name, wanted in filters.items())]


def _matches(value, wanted) -> bool:
    return fnmatch.fnmatch(value, wanted) if isinstance(value, str) and isinstance(wanted, str) else value == wanted


def load_runs(results: str | Path = "results", **filters) -> pd.DataFrame:
    """One row a run, indexed by its id: status, config, metrics, and what the provenance says of its making."""
    rows = {run.id: {"status": run.status, **run.config.to_dict(), "depth": run.config.depth, "width": run.config.width,
                     **run.metrics, **run.provenance}
            for run in all_runs(results, **filters)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("id")
