"""One run, top to bottom: `run` loads or trains; set-up, loop, evaluation, checkpoint, resume, record."""

import contextlib
import ctypes
import dataclasses
import os
import platform
import subprocess
import time
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from bnlib import bnrelu, data, models, optim, store
from bnlib.config import Config, InputError, choose
from bnlib.cuda import GraphedStep
from bnlib.freeze import count, freeze, select

PRECISIONS = ("bf16", "fp32")
TRAJECTORY_BYTES = 40 * 1024        # a record's logged γ and β: 18 epochs of ResNet-14, fewer of larger networks


class Paused(Exception):
    """The time is up; training stopped at a checkpoint, and the next call goes on from there."""


def run(config: Config, *, results: str | Path = "results", device: str | None = None, precision: str | None = None,
        tensorboard: bool = False, deadline: float | None = None, bar=None) -> store.Run:
    """The run of this config: its record if there is one, else trained, from its checkpoint if it was interrupted.

    device: `cuda`, `mps` or `cpu`; None: the first of them that is there. precision: `bf16` or `fp32`; None: bf16
    where the device is fast at it. Both change speed, not the experiment. deadline: `time.time()` at which to stop
    at a checkpoint, raising Paused. bar: a progress bar to advance instead of one of its own.
    Raises InputError for a config, device or dataset that cannot be.
    """
    found = store.find(config, results)
    if found is None:
        return train(config, results=results, device=device, precision=precision, tensorboard=tensorboard,
                     deadline=deadline, bar=bar)
    if config.dataset not in data.FINGERPRINTS and (
            data.load(config.dataset).fingerprint != found.provenance["dataset_sha256"]):
        raise InputError(f"{found.folder}: trained on other images than {config.dataset} now has; remove the record, "
                         "or give the new images another name")
    return found


# ---------------------------------------------------------------------------------------------- set-up

def choose_device(device: str | None = None) -> torch.device:
    """The device asked for, or the fastest there is. Raises InputError for one that is not there."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False      # fp32 means fp32
    torch.backends.cudnn.deterministic = True                                            # and the same twice
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = device or next(name for name, is_there in there.items() if is_there)
    if not there[choose("device", device, there)]:
        raise InputError(f"device={device!r}: not on this machine; there is {', '.join(n for n in there if there[n])}")
    return torch.device(device)


def choose_precision(device: torch.device, precision: str | None = None) -> str:
    """The precision asked for, or bf16 where the device computes faster in it than in fp32."""
    if precision is not None:
        return choose("precision", precision, PRECISIONS)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = device.type == "cpu" and {"avx512_bf16", "amx_bf16"} & set(bnrelu.processor().split())
    return "bf16" if fast else "fp32"


def place(network: nn.Module, config: Config, device: torch.device, precision: str) -> list[nn.Parameter]:
    """Freezes, moves and lays out the network for training, in place; returns the parameters that train.

    Frozen convolutions are cast once, so that no step casts them again, and have no gradient to compute. What trains
    stays in float32 and is cast by autocast.
    """
    trainable = list(freeze(network, config.trainable).values())
    network.to(device, memory_format=torch.channels_last)
    if precision == "bf16":
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                for parameter in module.parameters():
                    if not parameter.requires_grad:
                        parameter.data = parameter.data.bfloat16()
    return trainable


def keep_memory() -> None:
    """Tells glibc to keep freed memory: activations handed back and faulted in each step cost up to 30 %."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)           # M_MMAP_THRESHOLD: take large blocks from the heap
        libc.mallopt(-1, 2**31 - 1)         # M_TRIM_THRESHOLD: and keep them there


def autocast(device: torch.device, precision: str):
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


# ---------------------------------------------------------------------------------------------- training

def train(config: Config, *, results: str | Path = "results", device: str | None = None, precision: str | None = None,
          tensorboard: bool = False, deadline: float | None = None, bar=None) -> store.Run:
    """Trains the config to its end and writes its record; arguments as for `run`."""
    began, code = time.time(), commit()
    device = choose_device(device)
    precision = choose_precision(device, precision)
    keep_memory()

    dataset = data.load(config.dataset)
    network = models.build(config.model, len(dataset.classes), seed=config.seed, conv_init=config.conv_init,
                           bn_init=config.bn_init)
    frozen_sha256 = store.frozen_sha256(network, config.trainable)
    trainable = place(network, config, device, precision)

    normalise = data.Normalise(dataset, device, torch.bfloat16 if precision == "bf16" else torch.float32)
    in_training, in_validation = data.split(config, len(dataset.x_train))
    batches = data.TrainingBatches(*dataset.part(in_training), config, normalise, device)
    held_out = {"test": (dataset.x_test.to(device), dataset.y_test.to(device))}
    if config.n_val:
        held_out["val"] = tuple(part.to(device) for part in dataset.part(in_validation))

    optimizer = optim.optimizer(trainable, config)
    schedule = optim.schedule(optimizer, config, len(batches))
    step = make_step(network, optimizer, precision, device)
    progress = Progress(network, optimizer, schedule, dataset.fingerprint)
    checkpoint = store.checkpoint_file(config, results)
    progress.load(checkpoint, device)
    progress.passed_through({"device": device_name(device), "precision": precision, "bn_path": bn_path(device),
                             "commit": code})
    log_at = logged_epochs(config.epochs, count(network, "bn"))
    if not progress.history:
        progress.log_affine(0)
    work = models.multiply_adds(config.model) * len(batches.labels)
    events = open_events(results, config) if tensorboard else None

    with progress_bar(config.epochs * work, config.id, len(progress.history) * work, bar) as shown:
        for epoch in range(len(progress.history) + 1, config.epochs + 1):
            if progress.diverged:
                break
            stop_in_time(deadline, progress.epoch_seconds)
            epoch_began = time.time()
            row = {"epoch": epoch, "lr": round(float(optimizer.param_groups[0]["lr"]), 9)}
            row |= train_epoch(network, batches, epoch, step, schedule)
            row["seconds"] = time.time() - epoch_began
            if epoch < config.epochs:                # the last epoch's evaluation is the record's, below
                for name, (images, labels) in held_out.items():
                    row |= evaluate(network, images, labels, normalise, precision).row(name)
                log_events(events, row)
            progress.history.append(row)
            if epoch in log_at:
                progress.log_affine(epoch)
            progress.save(checkpoint)
            progress.epoch_seconds = time.time() - epoch_began
            show(shown, work, row, len(batches.labels))

    # The record's numbers come from one evaluation in float32, so that another machine finds the same.
    network.float()
    normalise.dtype = torch.float32
    final = {name: evaluate(network, images, labels, normalise, "fp32") for name, (images, labels) in held_out.items()}
    for name, evaluation in final.items():
        progress.history[-1] |= evaluation.row(name)
    log_events(events, progress.history[-1], last=True)
    if store.frozen_sha256(network, config.trainable) != frozen_sha256:
        raise AssertionError(f"{config.id}: weights that should be frozen have changed; nothing was recorded")

    finished = write_record(config, results, network, dataset, progress, final["test"], {
        **progress.made_with(),
        "seconds": round(time.time() - began + progress.seconds_before, 2),
        "images_per_second": round(len(batches.labels) / np.median([row["seconds"] for row in progress.history]), 1),
        "dataset_sha256": dataset.fingerprint,
        "frozen_sha256": frozen_sha256,
    })
    checkpoint.unlink(missing_ok=True)
    return finished


def train_epoch(network: nn.Module, batches: data.TrainingBatches, epoch: int, step, schedule) -> dict[str, float]:
    """One pass over the training images; their mean loss and accuracy while it went on.

    Nothing is read back from the device before the end of the epoch.
    """
    network.train()
    loss_sum = torch.zeros((), device=batches.device)
    correct = torch.zeros((), device=batches.device, dtype=torch.int64)
    for images, labels in batches.epoch(epoch):
        loss, logits = step(images, labels)
        schedule.step()
        loss_sum += loss * len(labels)
        correct += (logits.argmax(1) == labels).sum()
    return {"train_loss": loss_sum.item() / len(batches.labels), "train_accuracy": correct.item() / len(batches.labels)}


def make_step(network: nn.Module, optimizer, precision: str, device: torch.device):
    """`step(images, labels) -> (mean loss, logits)`: forward, loss, backward, optimizer; on a GPU as one graph.

    `BNLIB_GRAPHS=0` in the environment keeps the plain step on a GPU too.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(device, precision):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), labels)
        for parameter in trained:                    # a tenth of the time of `optimizer.zero_grad()`
            parameter.grad = None
        if loss.requires_grad:                       # not where nothing trains
            loss.backward()
        optimizer.step()
        return loss.detach(), logits.detach()

    graphs = device.type == "cuda" and os.environ.get("BNLIB_GRAPHS") != "0"
    return GraphedStep(step, network, optimizer) if graphs else step


@dataclass
class Evaluation:
    """What a network makes of a set of images, in their order."""

    loss: float                 # mean cross-entropy
    correct: int                # images whose most probable class is the right one
    predicted: np.ndarray       # (N,), the most probable class
    confidence: np.ndarray      # (N,), its probability

    @property
    def accuracy(self) -> float:
        return self.correct / len(self.predicted)

    def row(self, name: str) -> dict[str, float]:
        return {f"{name}_loss": self.loss, f"{name}_accuracy": self.accuracy}


@torch.no_grad()
def evaluate(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, normalise: data.Normalise,
             precision: str) -> Evaluation:
    """Loss and exact count of correct predictions over all `images` (uint8, N×H×W×C), in evaluation mode."""
    network.eval()
    logits = []
    for part in images.split(500):
        with autocast(images.device, precision):
            logits.append(network(normalise(part)).float())
    logits = torch.cat(logits)
    confidence, predicted = logits.softmax(1).max(1)
    return Evaluation(F.cross_entropy(logits, labels).item(), int((predicted == labels).sum()),
                      predicted.cpu().numpy(), confidence.cpu().numpy())


def evaluate_on_test_set(network: nn.Module, dataset: str, device: str | None = None) -> Evaluation:
    """The network on all test images of a dataset, in float32, as the record's own numbers are computed."""
    device, loaded = choose_device(device), data.load(dataset)
    network = network.to(device, memory_format=torch.channels_last)
    return evaluate(network, loaded.x_test.to(device), loaded.y_test.to(device),
                    data.Normalise(loaded, device, torch.float32), "fp32")


# ------------------------------------------------------------------------------------ checkpoint and resume

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


# ---------------------------------------------------------------------------------------------- record

def write_record(config: Config, results, network: nn.Module, dataset: data.Dataset, progress: Progress,
                 final: Evaluation, provenance: dict) -> store.Run:
    """The run's record: what the seed does not give back, and where it all came from."""
    affine = select(network, "bn")
    others = {name: p for name, p in network.named_parameters() if p.requires_grad and name not in affine}
    complete = sum(p.numel() * p.element_size() for p in others.values()) <= store.SMALL
    tensors = {part: in_one_row(network, part).numpy() for part in store.BN_PARTS}
    others = {name: p.detach().cpu().contiguous() for name, p in others.items()}
    if complete:
        tensors |= {name: tensor.numpy() for name, tensor in others.items()}
    else:
        keep_weights(store.weights_file(config, results), others)
    trajectory = {"epochs": np.array(list(progress.affine))}
    for part in ("gamma", "beta"):
        trajectory[part] = np.stack([at[part].numpy() for at in progress.affine.values()])

    last = {name: value for name, value in progress.history[-1].items() if name not in ("epoch", "lr", "seconds")}
    record = {
        "id": config.id,
        "status": "diverged" if progress.diverged else "done",
        "config": config.to_dict(),
        "metrics": {
            **{name: value if np.isfinite(value) else None for name, value in last.items()},
            "test_correct": final.correct,
            "test_images": len(final.predicted),
            "epochs_run": len(progress.history),
            "parameters_trained": count(network, config.trainable),
            "parameters": count(network),
        },
        "classes": len(dataset.classes),
        "bn_layers": {name: layer.num_features for name, layer in bn_layers(network).items()},
        "complete": complete,
        "provenance": provenance | {
            "finished": time.strftime("%Y-%m-%d", time.gmtime()),
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "numpy")},
        },
    }
    predictions = pd.DataFrame({"predicted": final.predicted, "confidence": final.confidence})
    return store.write(results, record, pd.DataFrame(progress.history), tensors, trajectory, predictions)


def keep_weights(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Weights too large for the repository, beside the checkpoints, where `Run.network` looks for them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    save_file(tensors, partial)
    os.replace(partial, file)


def device_name(device: torch.device) -> str:
    """The device's model, such as `NVIDIA H200` or `AMD EPYC, 2 threads`; never the host's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        return f"{model}, {torch.get_num_threads()} threads"
    return f"{platform.machine()} {device.type}"


def bn_path(device: torch.device) -> str:
    """Which of its two paths `BNReLU` takes here, and if it is torch's, why."""
    if device.type != "cpu":
        return "torch, CUDA graph" if device.type == "cuda" and os.environ.get("BNLIB_GRAPHS") != "0" else "torch"
    why_not = bnrelu.fast_path()
    return f"torch ({why_not})" if why_not else "C++"


@cache
def commit() -> str | None:
    """The git commit of this code, with `+` where bnlib has uncommitted changes; None outside a repository."""
    here = Path(__file__).parent

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", str(here)) else "")
    return None


# -------------------------------------------------------------------------------------------- what is shown

def progress_bar(total: float, description: str, done: float = 0, bar=None):
    """A bar for `total` multiply–adds, or `bar` if one is given, which counts what is left of it.

    Quiet where there is neither a terminal nor a notebook, and where BNLIB_PROGRESS=0.
    """
    if bar is not None:
        bar.total -= done
        return contextlib.nullcontext(bar)
    from tqdm.auto import tqdm
    disable = True if os.environ.get("BNLIB_PROGRESS") == "0" else None          # None: where it is no terminal
    return tqdm(total=total, initial=done, desc=description, leave=False, disable=disable,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")


def show(bar, work: float, row: dict, images: int) -> None:
    accuracy = f", {row['test_accuracy']:.1%}" if "test_accuracy" in row else ""
    bar.set_postfix_str(f"epoch {row['epoch']}, {images / row['seconds']:,.0f} images/s{accuracy}", refresh=False)
    bar.update(work)


def open_events(results, config: Config):
    """A writer of TensorBoard event files under `build/tensorboard/<run id>`."""
    from torch.utils.tensorboard import SummaryWriter
    events = SummaryWriter(store.scratch_folder(results) / "tensorboard" / config.id)
    events.add_text("config", "\n".join(f"    {key}: {value}" for key, value in dataclasses.asdict(config).items()))
    return events


def log_events(events, row: dict, last: bool = False) -> None:
    if events is not None:
        for name, value in row.items():
            if name != "epoch":
                events.add_scalar(name, value, row["epoch"])
        events.close() if last else events.flush()
