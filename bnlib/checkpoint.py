"""All that changes while a run trains: saved after every epoch, loaded to go on."""

import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bnlib import optim, store

TRAJECTORY_BYTES = 40 * 1024        # a record's logged γ and β: 18 epochs of ResNet-14, fewer of larger networks


class Paused(Exception):
    """The time is up; training stopped at a checkpoint, and the next call goes on from there."""


class Progress:
    """All that changes while a run trains, saved after every epoch.

    Order and augmentation follow from seed and epoch (`data.TrainingBatches`), so no generator's state is part of it.
    """

    def __init__(self, network: nn.Module, optimizer, schedule, dataset_sha256: str):
        self.network, self.optimizer, self.schedule = network, optimizer, schedule
        self.science = {"protocol": store.PROTOCOL, "dataset": dataset_sha256}      # what a checkpoint must agree on
        self.made: list[dict] = []                    # device, precision and code of each part of the run
        self.epoch_seconds = 0.0                      # the last epoch with its evaluation
        self.history: list[dict] = []                 # one row an epoch
        self.affine: dict[int, dict] = {}             # epoch → γ and β of all layers then, float16
        self.began, self.seconds_before = time.time(), 0.0

    @property
    def diverged(self) -> bool:
        return bool(self.history) and not np.isfinite(self.history[-1]["train_loss"])

    def passed_through(self, made: dict) -> None:
        if made not in self.made:
            self.made.append(made)

    def made_with(self) -> dict[str, str]:
        """Device, precision and code of the run; all of them, in order, where it moved or was gone on with."""
        return {key: "; ".join(dict.fromkeys(str(made[key]) for made in self.made)) for key in self.made[0]}

    def log_affine(self, epoch: int) -> None:
        self.affine[epoch] = {part: in_one_row(self.network, part).half() for part in ("gamma", "beta")}

    def changing(self) -> dict[str, torch.Tensor]:
        """The network's tensors that the seed does not give back: what trains, and the running statistics."""
        return {name: tensor for name, tensor in self.network.state_dict(keep_vars=True).items()
                if tensor.requires_grad or not isinstance(tensor, nn.Parameter)}

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "network": {name: tensor.detach() for name, tensor in self.changing().items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
            "affine": self.affine,
            "seconds": self.seconds_before + time.time() - self.began,
            "made": self.made,
            "science": self.science,
        }
        partial = file.with_suffix(f".{os.getpid()}")
        torch.save(state, partial)
        os.replace(partial, file)

    def load(self, file: Path, device: torch.device) -> None:
        if not file.exists():
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        if state["science"] != self.science:
            warnings.warn(f"{file} is of another protocol or dataset; training begins anew", stacklevel=2)
            return
        self.network.load_state_dict(state["network"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for group in self.optimizer.param_groups:
            group["lr"] = optim.rate(float(group["lr"]), device)
        self.history, self.affine, self.made = state["history"], state["affine"], state["made"]
        self.seconds_before = state["seconds"]


def in_one_row(network: nn.Module, part: str) -> torch.Tensor:
    """`gamma`, `beta`, `running_mean` or `running_var` of all layers, first layer first, on the CPU."""
    name = store.BN_PARTS[part]
    return torch.cat([getattr(layer, name).detach().float().cpu() for layer in bn_layers(network).values()])


def bn_layers(network: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def logged_epochs(epochs: int, parameters: int) -> set[int]:
    """The epochs after which γ and β are logged: evenly spaced, the last included, fewer as networks grow."""
    times = int(np.clip(TRAJECTORY_BYTES / (2 * parameters), 2, 20))
    return {round(epoch) for epoch in np.linspace(epochs / times, epochs, times)} - {0}


def stop_in_time(deadline: float | None, epoch_seconds: float) -> None:
    """Raises Paused if another epoch as long as the last would end after the deadline."""
    if deadline is not None and time.time() + epoch_seconds > deadline:
        raise Paused
