"""One run, top to bottom: `run` loads or trains; set-up, loop, evaluation, checkpoint, resume, record."""

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from bnlib import bnrelu, checkpoint, convolution, data, models, optim, parallel, residual, store
from bnlib.checkpoint import Progress, affine, check_log, logged_epochs
from bnlib.config import Config
from bnlib.cuda import GraphedStep, graphed, own_stream
from bnlib.device import autocast, choose_device, choose_precision, commit, device_name, keep_memory
from bnlib.freeze import BN_PARTS, biased_layers, bn_layers, count, freeze, in_one_row, select, undecayed
from bnlib.lbfgs import HeldStep, check_batch
from bnlib.names import InputError
from bnlib.options import options_of
from bnlib.stop import Stop
from bnlib.streaming import Folder, StreamedBatches


def run(config: Config, *, results: str | Path = "results", device: str | None = None, precision: str | None = None,
        tensorboard: bool = False, deadline: float | None = None, bar=None, watch=None,
        wait: bool = True, unwanted: Callable[[], bool] | None = None) -> store.Run:
    """The run of this config: its record if there is one, else trained, from its checkpoint if it was interrupted.

    Two processes never train the same config: the second waits for the first and loads its record, or goes on from its
    checkpoint should it die.

    device: `cuda`, `mps` or `cpu`; None: the first of them that is there. precision: `bf16` or `fp32`; None: bf16
    where the device is fast at it. Both change speed, not the experiment; a config with fp32=True takes no bf16.
    deadline: `time.time()` at which to stop at a checkpoint, raising Paused; a signal stops it there too. bar: a
    progress bar to advance instead of one of its own. watch: called with the history so far (DataFrame, one row an
    epoch) after every epoch, and once more with that of the record; not where a record is loaded. wait: False raises
    Busy instead of waiting for another process. unwanted: asked about once a second whether to stop at a checkpoint,
    raising Paused. Raises InputError for a config, device, precision or dataset that
    cannot be, and RecordError for a record that is damaged.
    """
    found = store.find(config, results)
    parallel.join(device)
    if parallel.leaders(found is None):
        with store.lock(config, results, wait, deadline) if parallel.leads() else contextlib.nullcontext():
            parallel.leaders(True)                          # the others look when the first has the lock, not before
            found = store.find(config, results)             # another process may have finished it meanwhile
            if parallel.leaders(found is None):
                with Stop(deadline, unwanted) as stop, own_stream(choose_device(device)):
                    return train(config, stop, results=results, device=device, precision=precision,
                                 tensorboard=tensorboard, bar=bar, watch=watch)
    left = store.checkpoint_file(config, results)                       # by a process killed after it wrote the record
    if checkpoint.waits(left):
        with contextlib.suppress(store.Busy, InputError), store.lock(config, results, wait=False):
            checkpoint.remove(left)
    check_images(found)
    return found


def check_images(found: store.Run) -> None:
    """InputError where a record was made on other images than the official ones, or, of a set of one's own, than those
    that it has now."""
    name = found.config.dataset
    there = data.FINGERPRINTS.get(name) or (data.load(name).fingerprint if data.at_hand(name) else None)
    if there not in (None, found.provenance["dataset_sha256"]):
        raise InputError(f"{found.folder}: trained on other images than {name} now has; remove the record, or give the "
                         "new images another name")


# ---------------------------------------------------------------------------------------------- set-up

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
                for parameter in module.parameters(recurse=False):
                    if not parameter.requires_grad:
                        parameter.data = parameter.data.bfloat16()
    return trainable


def check_last_batch(network: nn.Module, images: int, size: tuple[int, int], config: Config) -> None:
    """InputError where an epoch's last batch, or a piece of one of LBFGS's, is too small for batch norm: where a map
    has one pixel, as after a dense layer, one image is no batch. size: of the images, in pixels."""
    def least(given: int) -> int:
        return config.bn_parts * (1 + (given < 2 * config.bn_parts and models.smallest_map(network, size) == 1))

    last = images % config.batch_size or config.batch_size
    if last < least(last):
        raise InputError(f"batch_size={config.batch_size}: leaves a last batch of {last} of {images:,} images; batch "
                         f"norm of {config.model} takes at least {least(last)}")
    if config.optimizer == "lbfgs":
        piece = options_of("lbfgs", config.optimizer_options)["piece"]
        smallest = min(size // -(-size // piece) for size in (min(config.batch_size, images), last))
        if smallest < least(smallest):
            raise InputError(f"optimizer_options={config.optimizer_options!r}: piece={piece} leaves pieces of "
                             f"{smallest} images; batch norm of {config.model} takes at least {least(smallest)}")


# ---------------------------------------------------------------------------------------------- training

def train(config: Config, stop: Stop, *, results: str | Path = "results", device: str | None = None,
          precision: str | None = None, tensorboard: bool = False, bar=None, watch=None) -> store.Run:
    """Trains the config to its end, or until `stop` is asked, and writes its record; arguments as for `run`."""
    if config.optimizer == "lbfgs" and parallel.processes() > 1:
        raise InputError("optimizer='lbfgs': several processes cannot share its batch; run it in one")
    if stop.asked():                                 # rather than after a set-up of seconds
        stop.end(config.id)
    began, code = time.time(), commit()
    device = choose_device(device)
    if config.fp32 and choose_precision(device, precision or "fp32") != "fp32":
        raise InputError(f"precision={precision!r}: this config asks for fp32=True")
    precision = choose_precision(device, "fp32" if config.fp32 else precision)
    keep_memory()

    store.check_writable(results)
    dataset = data.load(config.dataset)
    network = models.from_config(config, len(dataset.classes))
    frozen_sha256 = store.frozen_sha256(network, config.trainable)
    trainable = place(network, config, device, precision)
    synchronised = parallel.synchronise(network, config)

    normalise = data.Normalise(dataset, device, torch.bfloat16 if precision == "bf16" else torch.float32,
                               config.image_size, config.inputs)
    in_training, in_validation = data.split(config, dataset.n_train)
    batches = dataset.batches(in_training, config, normalise, device)
    size = (config.image_size, config.image_size) if config.image_size else batches.size
    if min(size) < 32:                               # which all networks but those for sequences take
        models.smallest_map(network, size)           # an error where these are too small
    check_last_batch(network, len(batches.labels), size, config)
    held_out = {"test": dataset.in_order("test", device, config.image_size)}
    if config.n_val:
        held_out["val"] = dataset.in_order("train", device, config.image_size, in_validation)

    optimizer = optim.optimizer(trainable, config, undecayed(network, config.decay))
    if config.optimizer == "lbfgs":
        check_batch(batches, optimizer)
    schedule = optim.schedule(optimizer, config, len(batches))
    progress = Progress(store.checkpoint_file(config, results), network, optimizer, schedule, device, {
        "protocol": store.PROTOCOL, "dataset": dataset.fingerprint, "config": config.id, "frozen": frozen_sha256},
        config.keep_affine)
    progress.load()
    norm_path = "synchronised" if synchronised else bnrelu.path(network, device, graphed(optimizer, device))
    conv_path, whole = convolution.path(network, device, precision), residual.path(network, device, precision)
    if whole:
        norm_path += ", whole blocks"
    if conv_path == "torch" and whole:
        conv_path = f"{whole}, whole blocks"
    processes = f" × {parallel.processes()} processes" if parallel.processes() > 1 else ""
    progress.add_provenance({"device": device_name(device) + processes, "precision": precision,
                             "bn_path": norm_path, "conv_path": conv_path, "commit": code})
    logged = sum(len(row) for row in affine(network, config.keep_affine).values())
    check_log(config, config.epochs * len(batches), logged)
    log_at = logged_epochs(config.epochs, logged)
    if 0 not in progress.affine:
        progress.log_affine(0)
    work = models.multiply_adds(config.model, config.image_size) * len(batches.labels) * optim.passes(config)
    events, step = open_events(results, config) if tensorboard and parallel.leads() else None, None

    with progress_bar(config.epochs * work, config.id, len(progress.history) * work, bar) as shown:
        for epoch in range(len(progress.history) + 1, config.epochs + 1):
            if progress.diverged and not progress.epoch.steps:       # an epoch that was begun is trained to its end
                break
            if step is None or epoch == config.bn_first + 1:         # another step where more begins to train
                freeze(network, "bn" if epoch <= config.bn_first else config.trainable)
                step = make_step(network, optimizer, precision, device)
            row = {"epoch": epoch, "lr": progress.epoch.lr}
            row |= train_epoch(network, batches, step, schedule, progress, stop)
            if progress.epoch.steps < len(batches):      # `train_epoch` was asked to stop
                progress.save()
                stop.end(config.id, epoch)
            if epoch < config.epochs:                # the last epoch's evaluation is the record's, below
                for name, images in held_out.items():
                    row |= evaluate(network, images, normalise, precision).row(name)
                log_events(events, row)
            progress.history.append(row)
            progress.begin_epoch()
            if epoch in log_at:
                progress.log_affine(epoch)
            progress.save()
            show(shown, work, row, len(batches.labels))
            if watch and parallel.leads():
                watch(pd.DataFrame(progress.history))

    # The record's numbers come from one evaluation in float32, so that another machine finds the same.
    network.float()
    normalise.dtype = torch.float32
    final = {name: evaluate(network, images, normalise, "fp32") for name, images in held_out.items()}
    for name, evaluation in final.items():
        progress.history[-1] |= evaluation.row(name)
    log_events(events, progress.history[-1], last=True)
    if watch and parallel.leads():
        watch(pd.DataFrame(progress.history))
    if store.frozen_sha256(network, config.trainable) != frozen_sha256:
        raise AssertionError(f"{config.id}: weights that should be frozen have changed; nothing was recorded")

    if parallel.leads():
        write_record(config, results, network, dataset, progress, final["test"], {
            **progress.made_with(),
            "seconds": round(time.time() - began + progress.seconds_before, 2),
            "images_per_second": round(len(batches.labels) / np.median([
                row["seconds"] / row.get("passes", 1) for row in progress.history]), 1),
            "dataset_sha256": dataset.fingerprint,
            "frozen_sha256": frozen_sha256,
        })
        checkpoint.remove(progress.file)
    parallel.leaders(True)                           # the others wait until it is written
    return store.find(config, results)


def train_epoch(network: nn.Module, batches: data.TrainingBatches | StreamedBatches, step, schedule, progress: Progress,
                stop: Stop) -> dict[str, float]:
    """What is left of one pass over the training images; their mean loss and accuracy while it went on.

    Nothing is read back from the device before the end of the epoch, but where steps are logged. Returns early when
    `stop` is asked.
    """
    network.train()
    check_mode(network, training=True)
    epoch, began = progress.epoch, time.time() - progress.epoch.seconds
    every, done = batches.config.log_every, len(progress.history) * len(batches)
    for images, labels in batches.epoch(len(progress.history) + 1, epoch.steps):
        if stop.asked():
            break
        if progress.due():
            progress.save()
        loss, logits = step(images, labels)
        schedule.step()
        epoch.loss_sum += loss * len(labels)
        epoch.correct += (logits.argmax(1) == labels).sum()
        epoch.steps += 1
        epoch.images_passed += getattr(step, "passes", 1) * len(labels)
        if every and (done + epoch.steps) % every == 0:
            progress.log_step(done + epoch.steps, loss)
        epoch.seconds = time.time() - began
    images = len(batches.labels)
    row = {"train_loss": epoch.loss_sum.item() / images, "train_accuracy": epoch.correct.item() / images,
           "seconds": time.time() - began}
    return row | ({"passes": epoch.images_passed / images} if isinstance(step, HeldStep) else {})


def make_step(network: nn.Module, optimizer, precision: str, device: torch.device):
    """`step(images, labels) -> (mean loss, logits)`: forward, loss, backward, optimizer; on a GPU as one graph.

    LBFGS goes over its batch many times (`lbfgs.HeldStep`).
    """
    if isinstance(optimizer, optim.LBFGS):
        return HeldStep(network, optimizer, precision, device)
    forward = parallel.spread(network)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(device, precision):
            logits = forward(images)
        loss = F.cross_entropy(logits.float(), labels)
        for parameter in trained:                    # a tenth of the time of `optimizer.zero_grad()`
            parameter.grad = None
        if loss.requires_grad:                       # not where nothing trains
            loss.backward()
        optimizer.step()
        return loss.detach(), logits.detach()

    return GraphedStep(step, network, optimizer) if graphed(optimizer, device) else step


@dataclass
class Evaluation:
    """What a network makes of a set of images, in their order."""

    loss: float                 # mean cross-entropy
    correct: int                # images whose most probable class is the right one
    top5: int | None            # images whose class is among the five most probable; None for ten classes or fewer
    predicted: np.ndarray       # (N,), the most probable class
    confidence: np.ndarray      # (N,), its probability

    @property
    def accuracy(self) -> float:
        return self.correct / len(self.predicted)

    def row(self, name: str) -> dict[str, float]:
        row = {f"{name}_loss": self.loss, f"{name}_accuracy": self.accuracy}
        return row if self.top5 is None else row | {f"{name}_top5_accuracy": self.top5 / len(self.predicted)}


@torch.no_grad()
def evaluate(network: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], normalise: data.Normalise,
             precision: str) -> Evaluation:
    """Loss and exact counts of correct predictions over all images, in evaluation mode.

    batches: images (uint8, N×H×W×C) and labels (N,) in order, as `in_order` of a dataset gives them.
    """
    network.eval()
    check_mode(network, training=False)
    logits, labels = [], []
    for images, those in batches:
        with autocast(images.device, precision):
            logits.append(network(normalise(images)).float())
        labels.append(those)
    logits, labels = torch.cat(logits), torch.cat(labels)
    confidence, predicted = logits.softmax(1).max(1)
    above = (~(logits <= logits.gather(1, labels[:, None]))).sum(1)      # classes more probable than the right one
    return Evaluation(F.cross_entropy(logits, labels).item(), int((predicted == labels).sum()),
                      int((above < 5).sum()) if logits.shape[1] > 10 else None,
                      predicted.cpu().numpy(), confidence.cpu().numpy())


def check_mode(network: nn.Module, training: bool) -> None:
    """AssertionError unless each batch norm uses the batch's statistics in training, its running ones in evaluation."""
    wrong = [name for name, layer in bn_layers(network).items() if layer.training is not training]
    if wrong:
        raise AssertionError(f"{', '.join(wrong[:3])}: batch norm is {'not ' * training}in training mode during "
                             f"{'training' if training else 'evaluation'}")


def as_recorded(config: Config, device: str | None = None
                ) -> tuple[torch.device, data.Dataset | Folder, data.Normalise]:
    """Device, dataset and normalisation as a record's own numbers are computed: in float32, on images as it saw them.
    """
    device, loaded = choose_device(device), data.load(config.dataset)
    return device, loaded, data.Normalise(loaded, device, torch.float32, config.image_size, config.inputs)


def evaluate_on_test_set(network: nn.Module, config: Config, device: str | None = None) -> Evaluation:
    """The network on all test images of a run's dataset, as its record is computed."""
    device, loaded, normalise = as_recorded(config, device)
    network = network.to(device, memory_format=torch.channels_last)
    return evaluate(network, loaded.in_order("test", device, config.image_size), normalise, "fp32")


# ---------------------------------------------------------------------------------------------- record

def write_record(config: Config, results, network: nn.Module, dataset: data.Dataset | Folder, progress: Progress,
                 final: Evaluation, provenance: dict) -> store.Run:
    """The run's record: what the seed does not give back, and where it all came from."""
    affine = select(network, "bn")
    others = {name: p for name, p in network.named_parameters() if p.requires_grad and name not in affine}
    complete, weights_sha256 = sum(p.numel() * p.element_size() for p in others.values()) <= store.SMALL, None
    tensors = {part: in_one_row(network, part).numpy() for part in BN_PARTS}
    if not config.keep_affine:
        complete, others = False, progress.changing()
        tensors = {part: row[:0] for part, row in tensors.items()}
    others = {name: p.detach().cpu().contiguous() for name, p in others.items()}
    if complete:
        tensors |= {name: tensor.numpy() for name, tensor in others.items()}
    else:
        weights_sha256 = store.keep_weights(config, results, {name: value.numpy() for name, value in others.items()})
    trajectory = {"epochs": np.array(list(progress.affine))}
    for part in progress.affine[0]:
        trajectory[part] = np.stack([at[part].numpy() for at in progress.affine.values()])
    if progress.steps:
        trajectory["steps"] = np.array(list(progress.steps))
        trajectory["step_loss"] = np.array([at["loss"] for at in progress.steps.values()], dtype=np.float32)
        for part in progress.affine[0] if config.keep_affine else ():
            trajectory[f"step_{part}"] = np.stack([at[part].numpy() for at in progress.steps.values()])

    biased = {name: len(layer.bias) for name, layer in biased_layers(network).items()}
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
        "bn_layers": {name: len(layer.weight) for name, layer in bn_layers(network).items()},
        **({"biased_layers": biased} if biased else {}),
        "complete": complete,
        "weights_sha256": weights_sha256,             # of what is kept beside the checkpoints, if anything is
        "provenance": provenance | {
            "finished": time.strftime("%Y-%m-%d", time.gmtime()),
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "numpy")},
        },
    }
    predictions = pd.DataFrame({"predicted": final.predicted, "confidence": final.confidence})
    return store.write(results, record, pd.DataFrame(progress.history), tensors, trajectory, predictions)


# -------------------------------------------------------------------------------------------- what is shown

def progress_bar(total: float, description: str, done: float = 0, bar=None):
    """A bar for `total` multiply–adds, or `bar` if one is given, which counts what is left of it.

    Quiet where there is neither a terminal nor a notebook, and where BNLIB_PROGRESS=0.
    """
    if bar is not None:
        bar.total -= done
        return contextlib.nullcontext(bar)
    from tqdm.auto import tqdm
    quiet = os.environ.get("BNLIB_PROGRESS") == "0" or not parallel.leads()
    disable = True if quiet else None                       # None: where it is no terminal
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
