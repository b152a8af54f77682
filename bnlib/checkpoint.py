"""All that changes while a run trains: saved after every epoch and whenever training is stopped, loaded to go on."""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bnlib import optim, parallel, store
from bnlib.config import Config
from bnlib.freeze import biased_layers, in_one_row
from bnlib.names import InputError

STEPS_BYTES = 32 * 2**20            # of γ, β at single steps, which stand in every checkpoint
TRAJECTORY_BYTES = 40 * 1024        # a record's logged γ and β: 18 epochs of ResNet-14, fewer of larger networks
PACKED_BYTES = 8 * 2**20            # checkpoints smaller than that are compressed
SAVE_SECONDS = 300                  # within an epoch as long as that, a checkpoint is saved every so often


class Epoch:
    """What has been done of one epoch: steps, and sums over its images. On the device, read back at its end."""

    def __init__(self, device: torch.device, lr: float):
        self.steps, self.seconds, self.lr = 0, 0.0, round(lr, 9)            # lr: of the first step
        self.images_passed = 0                        # through the network; LBFGS takes a batch many times
        self.loss_sum = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device, dtype=torch.int64)


class Progress:
    """All that changes while a run trains, and its checkpoint: a file and the one before it, each with its SHA-256.

    Order and augmentation follow from seed and epoch (`data.TrainingBatches`), so no generator's state is part of it.
    """

    def __init__(self, file: Path, network: nn.Module, optimizer, schedule, device: torch.device, science: dict,
                 keep_affine: bool = True):
        self.file, self.previous = file, previous(file)
        self.network, self.optimizer, self.schedule, self.device = network, optimizer, schedule, device
        self.science = science                        # what a checkpoint must agree on, or it is another run's
        self.keep_affine = keep_affine                # whether γ and β are logged
        self.made: list[dict] = []                    # device, precision and code of each part of the run
        self.history: list[dict] = []                 # one row an epoch
        self.begin_epoch()
        self.affine: dict[int, dict] = {}             # epoch → γ and β of all layers then, float16
        self.steps: dict[int, dict] = {}              # step → the same, and the step's loss, where asked for
        self.began = self.saved = time.time()
        self.seconds_before = 0.0

    @property
    def diverged(self) -> bool:
        """Whether loss, γ or β is no longer a finite number."""
        if not self.history:
            return False
        affine = torch.cat([in_one_row(self.network, part) for part in ("gamma", "beta")])
        return not (np.isfinite(self.history[-1]["train_loss"]) and bool(affine.isfinite().all()))

    def add_provenance(self, made: dict) -> None:
        """Notes a device, precision and code that the run is trained with from here on; those of before stay."""
        if made not in self.made:
            self.made.append(made)

    def made_with(self) -> dict[str, str]:
        """Device, precision and code of the run; all of them, in order, where it moved or was gone on with."""
        keys = dict.fromkeys(key for made in self.made for key in made)
        return {key: "; ".join(dict.fromkeys(str(made.get(key, "not recorded")) for made in self.made)) for key in keys}

    def log_affine(self, epoch: int) -> None:
        self.affine[epoch] = affine(self.network, self.keep_affine)

    def log_step(self, step: int, loss: torch.Tensor) -> None:
        self.steps[step] = (affine(self.network) if self.keep_affine else {}) | {"loss": float(loss)}

    def begin_epoch(self) -> None:
        self.epoch = Epoch(self.device, float(self.optimizer.param_groups[0]["lr"]))

    def changing(self) -> dict[str, torch.Tensor]:
        """The network's tensors that the seed does not give back: what trains, and the running statistics."""
        return {name: tensor for name, tensor in self.network.state_dict(keep_vars=True).items()
                if tensor.requires_grad or not isinstance(tensor, nn.Parameter)}

    def due(self) -> bool:
        """Whether the last checkpoint is so old that one is worth its time within an epoch."""
        return time.time() - self.saved > SAVE_SECONDS

    def save(self) -> None:
        """Writes the checkpoint beside its place and renames it; the one before stays until the next.

        Only the first of several processes does. Raises InputError, and leaves both as they were, where it cannot be
        written.
        """
        if not parallel.leads():
            return
        content = io.BytesIO()
        torch.save({
            "network": {name: tensor.detach() for name, tensor in self.changing().items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
            "epoch": vars(self.epoch),
            "affine": self.affine,
            "steps": self.steps,
            "seconds": self.seconds_before + time.time() - self.began,
            "made": self.made,
            "science": self.science,
        }, content)
        partial = self.file.with_suffix(f".{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            packed = content.getvalue()
            if len(packed) < PACKED_BYTES:           # half of a small checkpoint is the file format's own
                packed = gzip.compress(packed, 1, mtime=0)
            store.write_through(partial, hashlib.sha256(packed).digest(), packed)
            if self.file.exists():
                os.replace(self.file, self.previous)
            os.replace(partial, self.file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            kept = "the one before it stays" if self.file.exists() or self.previous.exists() else "none is kept"
            raise InputError(f"{self.file}: the checkpoint cannot be written ({error.strerror}); {kept}") from None
        self.saved = time.time()

    def load(self) -> None:
        """Goes on from the checkpoint, or the one before it where that is damaged; a warning says what is lost.

        Raises InputError where it cannot be read.
        """
        there = [file for file in (self.file, self.previous) if file.exists()]
        state = read(there[0]) if there else None
        if there and state is None:
            state = read(there[1]) if len(there) > 1 else None
            where = f"the one before it, after epoch {len(state['history'])}" if state else "the start"
            warnings.warn(f"{there[0]} is damaged; training goes on from {where}", stacklevel=2)
            if parallel.leads():                     # or the next save would put it in the place of the sound one
                there[0].unlink(missing_ok=True)
        if state is not None:
            self._restore(state)
        parallel.check_same(epochs=len(self.history), steps=self.epoch.steps)

    def _restore(self, state: dict) -> None:
        if state["science"] != self.science:
            others = ", ".join(key for key in self.science if state["science"].get(key) != self.science[key])
            warnings.warn(f"{self.file} is of another {others}; training begins anew", stacklevel=2)
            return
        self.network.load_state_dict(state["network"], strict=False)
        own, saved = self.optimizer.state_dict(), state["optimizer"]
        for group, here in zip(saved["param_groups"], own["param_groups"], strict=True):
            group |= {how: here[how] for how in ("fused", "capturable", "foreach") if how in here}      # by this device
        self.optimizer.load_state_dict(saved)
        self.schedule.load_state_dict(state["schedule"])
        for group in self.optimizer.param_groups:
            group["lr"] = optim.rate(float(group["lr"]), self.device, optim.captured(self.optimizer))
        self.history, self.affine, self.made = state["history"], state["affine"], state["made"]
        self.steps = state.get("steps", {})
        self.seconds_before = state["seconds"]
        for name, value in state["epoch"].items():
            setattr(self.epoch, name, value.to(self.device) if isinstance(value, torch.Tensor) else value)


def remove(file: Path) -> None:
    """The run is recorded; its checkpoints have done their work."""
    for each in (file, previous(file), *file.parent.glob(f"{file.stem}.[0-9]*")):      # the last: of a killed `save`
        each.unlink(missing_ok=True)
    if file.parent.parent.name == "partial":         # a folder of its own
        with contextlib.suppress(OSError):
            file.parent.rmdir()


def waits(file: Path) -> bool:
    """Whether there is a checkpoint to go on from, this one or the one before it."""
    return file.exists() or previous(file).exists()


def previous(file: Path) -> Path:
    """Where the checkpoint before `file` is kept."""
    return file.with_suffix(".previous.pt")


def newest(file: Path) -> bytes | None:
    """The content of a checkpoint, or of the one before it where that is damaged or gone; None without either.

    Raises InputError as `read` does.
    """
    there = (each for each in (file, previous(file)) if each.exists())
    return next((each.read_bytes() for each in there if read(each) is not None), None)


def put_further(content: bytes, file: Path) -> tuple[int, int] | None:
    """Puts a checkpoint from elsewhere in its place, unless the one there has come as far with the same run; the epochs
    and steps that it has behind it, or None where it was not put."""
    theirs, here = unpacked(content), newest(file)
    if theirs is None:
        return None
    if here is not None and (ours := unpacked(here))["science"] == theirs["science"] and _done(ours) >= _done(theirs):
        return None
    store.put(file, content)
    return _done(theirs)


def reached(file: Path) -> tuple[int, int]:
    """The epochs, and steps of the next, that a run has behind it by its checkpoint; none without one that is sound."""
    with contextlib.suppress(InputError, OSError):               # the latter: it was renamed meanwhile
        if content := newest(file):
            return _done(unpacked(content))
    return 0, 0


def _done(state: dict) -> tuple[int, int]:
    return len(state["history"]), state["epoch"]["steps"]


def read(file: Path) -> dict | None:
    """What a checkpoint holds, or None if it is not what was written. Reading it runs no code.

    Raises InputError where it cannot be read now, which is no reason to give it up.
    """
    try:
        return unpacked(file.read_bytes())
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, zlib.error) as error:
        why = str(error).partition(". ")[0]
        raise InputError(f"{file}: the checkpoint cannot be read ({why}); try again, or remove it to begin anew"
                         ) from None


def unpacked(content: bytes) -> dict | None:
    """What the content of a checkpoint's file holds, or None if it is not what was written."""
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        return None
    content = content[32:]
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def affine(network: nn.Module, keep: bool = True) -> dict[str, torch.Tensor]:
    """What is logged of a network: γ and β of all layers in one row; and the biases of layers without them, if any.

    Not to be kept, rows without values.
    """
    if not keep:
        return {part: torch.zeros(0).half() for part in ("gamma", "beta")}
    parts = {part: in_one_row(network, part).half() for part in ("gamma", "beta")}
    biases = [layer.bias.detach().float().cpu() for layer in biased_layers(network).values()]
    return parts | ({"bias": torch.cat(biases).half()} if biases else {})


def logged_epochs(epochs: int, values: int) -> set[int]:
    """The epochs after which `values` of γ, β and biases are logged: evenly spaced, the last included, few if many."""
    times = int(np.clip(TRAJECTORY_BYTES / (2 * max(1, values)), 2, 20))
    return {round(epoch) for epoch in np.linspace(epochs / times, epochs, times)} - {0}


def check_log(config: Config, steps: int, values: int) -> None:
    """InputError where `log_every` would log so much, `values` at a time, that checkpoints became unwieldy."""
    if config.log_every and 2 * values * (steps // config.log_every) > STEPS_BYTES:
        least = -(-2 * values * steps // STEPS_BYTES)
        raise InputError(f"log_every={config.log_every}: {steps // config.log_every:,} times {values:,} values, more "
                         f"than {STEPS_BYTES >> 20} MB; must be 0 or at least {least}")
