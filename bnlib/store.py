"""`results/`: write a record atomically, find it, load it as a `Run`, rebuild its network."""

import contextlib
import fnmatch
import gzip
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors.numpy import load, save
from torch import nn

from bnlib import models
from bnlib.config import Config, resolve
from bnlib.freeze import BN_PARTS, select
from bnlib.names import InputError

FORMAT = 2               # of the record: raised when its files change
PROTOCOL = 1             # of the science: raised when a config would give another result
SMALL = 96 * 1024        # bytes of trained tensors, beside batch norm's, that a record still stores
PORTABLE = {"bn", "gamma", "beta", "output", "none"}       # what trains of a run whose checkpoint git may track
FILES = ("history.csv", "tensors.safetensors", "trajectory.safetensors", "predictions.csv.gz")     # beside run.json
BEFORE = {"conv_path": "torch"}     # what the provenance of the first records does not say, being true of all of them
UNKNOWN = "0" * 64       # stands in run.json for its own SHA-256 while that is taken


class RecordError(InputError):
    """A record that cannot be read, or is not what was written; the message names it and says what to do."""


class Busy(Exception):
    """Another process is training this config."""


class Run:
    """One finished run, read from its record; files are read when first asked for, and compared with their checksums.

    `.id .config .metrics .provenance .status` come from `run.json`; `.history` is a DataFrame, one row an epoch;
    `.gamma .beta .running_mean .running_var` map a layer's name to its array, first layer first.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        try:
            text = (self.folder / "run.json").read_text(encoding="utf-8")
            self.record = json.loads(text)
            if self.record["format"] != FORMAT:
                raise RecordError(f"{self.folder}: record format {self.record['format']!r}, this bnlib reads {FORMAT}; "
                                  "remove the folder and run again, or use the bnlib that wrote it")
            own = self.record["sha256"]["run.json"]
            if own != _sha256(text.replace(own, UNKNOWN).encode()):
                raise self._changed("run.json")
            self.config = Config.from_dict(self.record["config"])
            self.id, self.status = self.record["id"], self.record["status"]
            self.metrics, self.provenance = self.record["metrics"], BEFORE | self.record["provenance"]
            check_science(self.record)
            if set(self.record["sha256"]) != {*FILES, "run.json"} or not self.record.keys() >= {
                    "protocol", "classes", "bn_layers", "complete"}:
                raise RecordError(f"{self.folder}: run.json lacks what a record has, or names other files; remove it")
            if self.id != self.config.id:
                raise RecordError(f"{self.folder}: named {self.id}, but its config gives {self.config.id}; remove it")
        except RecordError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
            raise RecordError(f"{self.folder}: no record that this bnlib can read ({error}); remove the folder and run "
                              "again, or use the bnlib that wrote it") from None

    def check(self) -> None:
        """Raises RecordError unless every file of the record is there as it was written, in a folder of its name."""
        if self.folder.name != self.id:
            raise RecordError(f"{self.folder}: holds the record of {self.id}; rename or remove it")
        for file in FILES:
            self._read(file)

    def _changed(self, file: str) -> RecordError:
        return RecordError(f"{self.folder / file}: changed since it was written (its SHA-256 is not that in run.json); "
                           "remove the record and run again")

    def __repr__(self):
        accuracy = self.metrics.get("test_accuracy")
        return f"Run({self.id}, {self.status}" + (f", test accuracy {accuracy:.2%})" if accuracy is not None else ")")

    def _read(self, file: str) -> bytes:
        """A file of the record. Raises RecordError if it is gone or not what was written."""
        try:
            content = (self.folder / file).read_bytes()
        except OSError as error:
            raise RecordError(f"{self.folder / file}: {error.strerror}; remove the record and run again") from None
        if _sha256(content) != self.record["sha256"][file]:
            raise self._changed(file)
        return content

    def files(self) -> dict[str, bytes]:
        """All files of the record by name. Raises RecordError if one is gone or not what was written."""
        return {"run.json": (self.folder / "run.json").read_bytes(), **{
            file: self._read(file) for file in self.record["sha256"] if file != "run.json"}}

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
        """`epochs` (E,), and `gamma` and `beta` after each of them: dicts of layer → (E, channels), float16.

        `bias` is the same of layers that have a bias in batch norm's stead. Where steps were logged, `steps` (S,),
        `step_loss` (S,), and `step_gamma`, `step_beta` and `step_bias` after each of them.
        """
        logged = load(self._read("trajectory.safetensors"))
        return {name: values if values.ndim == 1 else
                self._of_each_layer(values, "biased_layers" if name.endswith("bias") else "bn_layers")
                for name, values in logged.items()}

    def _of_each_layer(self, row: np.ndarray, which: str = "bn_layers") -> dict[str, np.ndarray]:
        """Values of all channels of the network, along the last axis, cut up by layer.

        Nothing for no values: group norm has no running statistics.
        """
        if not row.shape[-1]:
            return {}
        ends = np.cumsum(list(self.record[which].values()))
        return dict(zip(self.record[which], np.split(row, ends[:-1], axis=-1), strict=True))

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
            content = file.read_bytes()
            if _sha256(content) != self.record.get("weights_sha256", _sha256(content)):
                raise RecordError(f"{file}: changed since it was written; remove it and {self.folder} and run again")
            weights = load(content)
        network = models.from_config(config, self.record["classes"])
        if frozen_sha256(network, config.trainable) != self.provenance["frozen_sha256"]:
            raise InputError(f"{self.id}: the weights drawn from seed {config.seed} are not those of the record; "
                             "another version of NumPy or of bnlib drew them")
        kept = weights | {name: value for name, value in self.tensors.items() if name not in BN_PARTS}
        for part, name in BN_PARTS.items():
            kept |= {f"{layer}.{name}": row for layer, row in self._of_each_layer(self.tensors[part]).items()}
        network.load_state_dict({name: torch.from_numpy(value) for name, value in kept.items()}, strict=False)
        return network.eval()


#: What a row of a table says of its run.
ABOUT = ("run", "dataset", "model", "depth", "width", "trainable", "epochs", "seed")


def about(run: Run) -> dict:
    """What ABOUT names of a run: its id, and of its config the rest."""
    return {"run": run.id, **{key: getattr(run.config, key) for key in ABOUT[1:]}}


def check_science(record: dict) -> None:
    """AssertionError unless the record's accuracy is a count of its test images."""
    metrics = record["metrics"]
    right, images = metrics["test_correct"], metrics["test_images"]
    if not (0 <= right <= images and metrics["test_accuracy"] == right / images):
        raise AssertionError(f"{record['id']}: test accuracy {metrics['test_accuracy']} is not {right} of {images}")


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
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", run_id):
        raise InputError(f"run id {run_id!r}: must be a plain name such as {Config().id}")
    return resolve(results) / "runs" / run_id


def scratch_folder(results: str | Path) -> Path:
    """Where large checkpoints, locks and event files of a results folder go, of no other: `build/`, which git ignores,
    for the project's own `results`; else a folder beside the results that has their name and `-scratch`."""
    results = resolve(results).resolve()         # one folder has one place for locks, also where a link leads to it
    own = results.name == "results" and (results.parent / "bnlib").is_dir()
    return results.parent / "build" if own else results.with_name(f"{results.name}-scratch")


def checkpoint_file(config: Config, results: str | Path = "results") -> Path:
    """Where the checkpoint of a run is while it trains.

    Where little trains it is small and lies among the results, which git tracks, so that another machine can go on.
    """
    if set(config.trainable.split("+")) <= PORTABLE and config.optimizer != "lbfgs":     # whose memory is large
        return resolve(results) / "partial" / config.id / "checkpoint.pt"
    return scratch_folder(results) / "checkpoints" / f"{config.id}.pt"


@contextlib.contextmanager
def lock(config: Config | str, results: str | Path = "results", wait: bool = True,
         deadline: float | None = None) -> Iterator[None]:
    """Held by the one process that trains this config, or the run of this id; given back when that process ends,
    however it ends.

    Raises Busy if another process holds it: at once without `wait`, else when the deadline (`time.time()`) has come.
    """
    run_id = config if isinstance(config, str) else config.id
    file = scratch_folder(results) / "checkpoints" / f"{run_id}.lock"
    held = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise
            logging.getLogger(__name__).warning("%s: another process is training it; waiting", run_id)
            held.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.time()))
    except Timeout:
        raise Busy(run_id) from None
    except OSError as error:
        raise InputError(f"{file.parent}: cannot be written ({error.strerror}); checkpoints need a folder on a disk "
                         "with room") from None
    try:
        yield
    finally:
        held.release()


def weights_file(config: Config, results: str | Path = "results") -> Path:
    """Where the weights of a network trained in full are kept, since its record does not hold them."""
    return scratch_folder(results) / "weights" / f"{config.id}.safetensors"


# ------------------------------------------------------------------------------------------ write, find

def write(results: str | Path, record: dict, history: pd.DataFrame, tensors: dict[str, np.ndarray],
          trajectory: dict[str, np.ndarray], predictions: pd.DataFrame) -> Run:
    """Writes a record whole or not at all: into a folder beside its place, then renamed to it.

    Raises InputError where it cannot be written, and AssertionError for what no run can have measured.
    """
    check_science(record)
    if len(predictions) != record["metrics"]["test_images"]:
        raise AssertionError(f"{record['id']}: {len(predictions)} predictions for {record['metrics']['test_images']}")
    if record["status"] == "done" and not all(np.isfinite(values).all() for values in tensors.values()):
        raise AssertionError(f"{record['id']}: a trained tensor holds NaN or infinity; nothing was recorded")
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.write(predictions.to_csv(index=False, float_format="%.2f").encode())
    files = dict(zip(FILES, (history.to_csv(index=False, float_format="%.7g").encode(), save(tensors), save(trajectory),
                             packed.getvalue()), strict=True))
    checksums = {name: _sha256(content) for name, content in files.items()}
    files["run.json"] = sealed({"format": FORMAT, "protocol": PROTOCOL, **record, "sha256": checksums})

    return _put_in_place(results, record["id"], files)


def receive(results: str | Path, run_id: str, files: dict[str, bytes]) -> Run:
    """Writes a record whose files, as `Run.files` gives them, were made on another machine, as `write` does.

    Raises RecordError where they are not a whole and unchanged record of that id.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / run_id
        trial.mkdir()
        for name, content in files.items():
            (trial / Path(name).name).write_bytes(content)
        found = sound(trial)
        if set(files) != set(found.record["sha256"]):
            raise RecordError(f"{run_id}: came with other files than its record names; run again")
    return _put_in_place(results, run_id, files)


def _put_in_place(results: str | Path, run_id: str, files: dict[str, bytes]) -> Run:
    folder = record_folder(results, run_id)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for left_over in folder.parent.glob(f".{folder.name}.*"):       # of a process that was killed at this point
            shutil.rmtree(left_over)
        partial.mkdir(parents=True)
        for name, content in files.items():
            write_through(partial / name, content)
        shutil.rmtree(folder, ignore_errors=True)        # only a record of an older protocol can be there
        partial.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: the record cannot be written ({error.strerror}); the trained run waits in its "
                         "checkpoint: mend that and run again") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Run(folder)


def keep_weights(config: Config, results: str | Path, weights: dict[str, np.ndarray] | bytes) -> str:
    """Writes weights too large for a record to where `Run.network` looks for them; returns their SHA-256.

    weights: tensors by name, or the content of such a file from another machine. Raises InputError where they cannot be
    written.
    """
    file, content = weights_file(config, results), weights if isinstance(weights, bytes) else save(weights)
    try:
        put(file, content)
    except OSError as error:
        raise InputError(f"{file}: the weights cannot be written ({error.strerror}); the trained run waits in its "
                         "checkpoint: mend that and run again") from None
    return _sha256(content)


def check_writable(results: str | Path) -> None:
    """InputError unless a record and checkpoints can be written: better now than after hours of training."""
    for folder in (resolve(results) / "runs", scratch_folder(results) / "checkpoints"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); results={str(results)!r} must be a "
                             "folder on a disk with room") from None


def sealed(record: dict) -> bytes:
    """The text of run.json, with its own SHA-256, taken while UNKNOWN stands in its place, as the last of `sha256`."""
    whole = {**record, "sha256": {**record["sha256"], "run.json": UNKNOWN}}
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    return text.replace(UNKNOWN, _sha256(text.encode())).encode()


def write_through(file: Path, *parts) -> None:
    """Writes a file and waits until the disk has it, so that a rename after it never names half a file."""
    with file.open("wb") as out:
        for part in parts:
            out.write(part)
        out.flush()
        os.fsync(out.fileno())


def put(file: Path, content: bytes) -> None:
    """A file that is there whole or not at all, in a folder that is made for it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        write_through(partial, content)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def find(config: Config, results: str | Path = "results") -> Run | None:
    """The record of this config, or None if there is none of this protocol. Raises RecordError for a damaged one, and
    for one of a later protocol, which would be trained over."""
    folder = record_folder(results, config.id)
    run = sound(folder) if folder.exists() else None
    if run and run.record["protocol"] > PROTOCOL:
        raise RecordError(f"{folder}: of protocol {run.record['protocol']}, and this bnlib has {PROTOCOL}; take a "
                          "later one")
    return run if run and run.record["protocol"] == PROTOCOL else None


def find_sound(config: Config, results: str | Path = "results") -> Run | None:
    """As `find`, but a damaged record is none, with a warning that names it."""
    folder = record_folder(results, config.id)
    return _if_sound(folder) if folder.exists() else None


def sound(folder: Path) -> Run:
    """The record in a folder, every file of it checked. Raises RecordError for a damaged one."""
    run = Run(folder)
    run.check()
    return run


def _if_sound(folder: Path) -> Run | None:
    """The record in a folder, of this protocol; None, with a warning, where it is damaged."""
    try:
        run = sound(folder)
    except RecordError as error:
        warnings.warn(f"kept out: {error}", stacklevel=3)
        return None
    return run if run.record["protocol"] == PROTOCOL else None


def folders(results: str | Path = "results") -> list[Path]:
    """The folders of all records, sound or not, in the order of their names."""
    return sorted((resolve(results) / "runs").glob("[!.]*"))


def all_runs(results: str | Path = "results", **filters) -> list[Run]:
    """Every record of this protocol whose config fields match, in the order of their ids.

    A text may hold shell wildcards: `all_runs(model="resnet*", trainable="bn")`. A damaged record is left out, with a
    warning that names it. Raises InputError for a filter that is no field of Config.
    """
    fields = Config().to_dict()
    for name in filters:
        if name not in fields:
            raise InputError(f"filter {name!r}: not a field of Config; fields: {', '.join(fields)}")
    return [run for run in map(_if_sound, folders(results)) if run and all(
        _matches(getattr(run.config, name), wanted) for name, wanted in filters.items())]


def repeats(results: str | Path = "results") -> list[Run]:
    """The records in `results/checks/`: configs trained once more in another way, which no table of runs takes in."""
    return [run for folder in sorted((resolve(results) / "checks").glob("*")) for run in all_runs(folder)]


def _matches(value, wanted) -> bool:
    return fnmatch.fnmatch(value, wanted) if isinstance(value, str) and isinstance(wanted, str) else value == wanted


def load_runs(results: str | Path = "results", **filters) -> pd.DataFrame:
    """One row a run, indexed by its id: status, config, metrics, and what the provenance says of its making."""
    rows = {run.id: {"status": run.status, **run.config.to_dict(), "depth": run.config.depth, "width": run.config.width,
                     **run.metrics, **run.provenance}
            for run in all_runs(results, **filters)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("id")


# ------------------------------------------------------------------------------------------------ tables

def keep_table(table: pd.DataFrame, name: str, results: str | Path = "results") -> pd.DataFrame:
    """The table itself; it is written to `results/tables/<name>.csv`, six digits a number."""
    file = _table_file(name, results)
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False, float_format="%.6g")
    return table


def kept_table(name: str, results: str | Path = "results") -> pd.DataFrame | None:
    """What `keep_table` wrote, if it did."""
    file = _table_file(name, results)
    return pd.read_csv(file) if file.exists() else None


def _table_file(name: str, results: str | Path) -> Path:
    return resolve(results) / "tables" / f"{name}.csv"
