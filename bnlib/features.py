"""What the features of a trained network do on images: which can be set to zero, which never fire, which can go."""

import math
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from bnlib import data, store
from bnlib.analysis import DEAD
from bnlib.bnrelu import BNReLU
from bnlib.convolution import Convolution
from bnlib.device import device_name
from bnlib.freeze import bn_layers
from bnlib.models import BasicBlock, folded
from bnlib.names import InputError
from bnlib.store import Run, about
from bnlib.train import as_recorded, evaluate, evaluate_on_test_set

#: |γ| below which features are set to zero: from none to what no network survives.
THRESHOLDS = (0.0, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
ROUNDS = 5           # in which two networks take turns when they are timed


def with_networks(runs: Iterable[Run]) -> list[Run]:
    """The runs whose trained network and whose images are at hand."""
    found = []
    for run in runs:
        try:
            run.network()
        except InputError:            # weights of full training stay where it was done
            continue
        found += [run] if run.status == "done" and data.at_hand(run.config.dataset) else []
    return found


# ------------------------------------------------------------------------------------------- thresholds

def thresholds(runs: Iterable[Run], at: Iterable[float] = THRESHOLDS) -> pd.DataFrame:
    """Test accuracy after every γ with |γ| < threshold is set to zero: one row a run and threshold.

    As in Frankle et al. 2021, Sec. 5. Columns: those of `store.about`, threshold, zeroed (% of all γ), accuracy (%).
    """
    rows = []
    for run in runs:
        gamma = np.abs(np.concatenate(list(run.gamma.values())))
        network, found = run.network(), {}                    # found: by how many γ are zero, since more need not be
        for threshold in sorted(at):
            zeroed = int((gamma < threshold).sum())
            if zeroed not in found:
                found[zeroed] = evaluate_on_test_set(without_small(network, threshold), run.config)
            rows.append(about(run) | {"threshold": threshold, "zeroed": 100 * zeroed / len(gamma),
                                      "accuracy": 100 * found[zeroed].accuracy})
    return pd.DataFrame(rows)


@torch.no_grad()
def without_small(network: nn.Module, threshold: float) -> nn.Module:
    """The network with every γ of |γ| < threshold set to zero, in place."""
    for layer in bn_layers(network).values():
        layer.weight[layer.weight.abs() < threshold] = 0
    return network


# ------------------------------------------------------------------------------------------ activations

@torch.no_grad()
def activations(run: Run, part: str = "test") -> pd.DataFrame:
    """How often each ReLU's channels fire on all images of a part of the data, one row a channel.

    Columns: layer, number (1 for the first), channel, zero: share of outputs that are 0, over images and pixels.
    A channel with zero = 1 never fires. Raises InputError for torchvision's networks, which use one ReLU many times.
    """
    if run.config.model.startswith("imagenet"):
        raise InputError(f"{run.id}: activations are counted by ReLU, and torchvision's networks use one many times")
    device, loaded, normalise = as_recorded(run.config)
    network, fired = run.network().to(device, memory_format=torch.channels_last), {}

    def count(name):
        def hook(module, inputs, output):
            others = [d for d in range(output.ndim) if d != 1]                       # images and pixels
            fired[name] = fired.get(name, 0) + (output > 0).sum(others).double() / output[0, 0].numel()
        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.ReLU) or getattr(module, "relu", None) is True:      # alone, or with a normalisation
            module.register_forward_hook(count(name))
    batches = loaded.in_order(part, device, run.config.image_size)
    images = len(evaluate(network, batches, normalise, "fp32").predicted)
    return pd.concat([pd.DataFrame({"layer": name, "number": number, "channel": range(len(sums)),
                                    "zero": 1 - (sums / images).cpu().numpy()})
                      for number, (name, sums) in enumerate(fired.items(), 1)], ignore_index=True)


def activations_by_layer(runs: Iterable[Run]) -> pd.DataFrame:
    """For each ReLU of each run, in % on all test images: outputs that are 0, and channels that never fire."""
    rows = []
    for run in runs:
        for (number, layer), channels in activations(run).groupby(["number", "layer"]):
            rows.append(about(run) | {"number": number, "layer": layer, "zero": 100 * channels["zero"].mean(),
                                      "silent": 100 * (channels["zero"] == 1).mean()})
    return pd.DataFrame(rows)


def silent(channels: pd.DataFrame) -> dict[str, np.ndarray]:
    """From `activations`: for each layer the channels that never fire, as a mask."""
    return {layer: rows.sort_values("channel")["zero"].to_numpy() == 1
            for layer, rows in channels.groupby("layer", sort=False)}


# ---------------------------------------------------------------------------------------------- pruning

@torch.no_grad()
def prune(network: nn.Module, dead: dict[str, np.ndarray]) -> nn.Module:
    """A copy of the network without the dead channels between the two convolutions of each block.

    dead: layer's name → mask of its channels whose output is always 0. A channel of zeros adds nothing to the next
    convolution, so the copy computes the same outputs. Channels that go through a shortcut have other sources and stay.
    Raises InputError for a network without residual blocks of batch norm.
    """
    pruned = folded(network)
    blocks = [(name, block) for name, block in pruned.named_modules() if isinstance(block, BasicBlock)]
    if not blocks or not all(isinstance(block.bn1, BNReLU) for _, block in blocks):
        raise InputError("pruning: takes a ResNet of bnlib with batch norm")
    for name, block in blocks:
        keep = torch.from_numpy(np.flatnonzero(~dead[f"{name}.bn1"]))
        keep = keep if len(keep) else torch.zeros(1, dtype=torch.int64)          # a convolution has a channel at least
        block.conv1 = _convolution(block.conv1, block.conv1.weight[keep])
        block.conv2 = _convolution(block.conv2, block.conv2.weight[:, keep])
        layer = BNReLU(len(keep))
        layer.load_state_dict({key: value if value.ndim == 0 else value[keep]
                               for key, value in block.bn1.state_dict().items()})
        block.bn1 = layer
    return pruned.eval()


def _convolution(like: nn.Conv2d, weight: torch.Tensor) -> nn.Conv2d:
    outputs, inputs = weight.shape[:2]
    made = Convolution(inputs, outputs, like.kernel_size, like.stride, like.padding, bias=False)
    made.weight = nn.Parameter(weight.clone())
    return made


def pruning(runs: Iterable[Run]) -> pd.DataFrame:
    """Each network before and after its silent channels are removed, one row a run.

    A channel is silent if it fires on no training image. Columns: those of `store.about`, channels, silent (%),
    removed (%, those between a block's convolutions), parameters and parameters left; on test images, changed
    (predicted otherwise) and difference (the largest of a predicted probability); images/s before and after; device.
    """
    rows = []
    for run in runs:
        channels = activations(run, "train")
        network, dead = folded(run.network()), silent(channels)
        pruned = prune(network, dead)
        inner = [mask for layer, mask in dead.items() if layer.endswith(".bn1")]
        before, after = (evaluate_on_test_set(n, run.config) for n in (network, pruned))
        rows.append(about(run) | {
            "channels": len(channels), "silent": 100 * float((channels["zero"] == 1).mean()),
            "removed": 100 * sum(mask.sum() for mask in inner) / len(channels),
            "parameters": _parameters(network), "parameters left": _parameters(pruned),
            "changed": int((before.predicted != after.predicted).sum()),
            "difference": float(np.abs(before.confidence - after.confidence).max()),
            **_speed(network, pruned, run)})
    return pd.DataFrame(rows)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _speed(network: nn.Module, pruned: nn.Module, run: Run) -> dict:
    """Images/s of both networks, which take turns: of the first the median, of the second that by the median ratio."""
    device, loaded, normalise = as_recorded(run.config)
    batches = list(islice(loaded.in_order("test", device, run.config.image_size), 2))
    seconds = []
    for _ in range(ROUNDS):
        took = []
        for each in (network, pruned):
            began = time.perf_counter()
            evaluate(each.to(device), batches, normalise, "fp32")
            took.append(time.perf_counter() - began)
        seconds.append(took)
    before = sum(len(labels) for _, labels in batches) / np.median([first for first, _ in seconds])
    gain = np.median([first / second for first, second in seconds])
    return {"images/s before": before, "images/s after": before * gain, "device": device_name(device)}


# ------------------------------------------------------------------------------------------------- maps

@torch.no_grad()
def feature_maps(runs: Iterable[Run], images: int = 2, each: int = 3) -> pd.DataFrame:
    """What a few channels of a layer put out on a few test images: those of largest |γ| and those of smallest.

    The layer: of those between a block's two convolutions, where ReLU follows batch norm and no shortcut is added, and
    of these where maps are largest, the one with most |γ| < 0.01. The images: those predicted right with most
    confidence, of a class each. One row a run, image and channel; columns: those of `store.about`, image (number in
    the test set), class, layer, channel, gamma, beta, values: the map, line by line. An image itself is `layer`
    "image", a row a colour, in 0–255.
    """
    rows = []
    for run in runs:
        device, loaded, normalise = as_recorded(run.config)
        chosen = _surest(run, loaded.y_test.numpy(), images)
        shown = loaded.x_test[chosen]
        seen = _within_blocks(run.network().to(device), normalise(shown.to(device)))
        largest = max(maps.shape[-1] for maps in seen.values())
        layer = max((layer for layer in seen if seen[layer].shape[-1] == largest),
                    key=lambda layer: int((np.abs(run.gamma[layer]) < DEAD).sum()))
        order = np.argsort(-np.abs(run.gamma[layer]), kind="stable")
        for i, image in enumerate(chosen):
            pictured = about(run) | {"image": image, "class": loaded.classes[loaded.y_test[image]]}
            rows += [pictured | {"layer": "image", "channel": channel, "values": _written(values)}
                     for channel, values in enumerate(shown[i].permute(2, 0, 1).numpy())]
            rows += [pictured | {"layer": layer, "channel": channel, "gamma": run.gamma[layer][channel],
                                 "beta": run.beta[layer][channel], "values": _written(seen[layer][i, channel])}
                     for channel in (*order[:each], *order[-each:])]
    return pd.DataFrame(rows)


def _within_blocks(network: nn.Module, images: torch.Tensor) -> dict[str, np.ndarray]:
    """What stands between the two convolutions of each block: layer's name → (N, C, H, W)."""
    seen = {}
    for name, block in network.named_modules():
        if isinstance(block, BasicBlock):
            block.bn1.register_forward_hook(
                lambda module, inputs, output, layer=f"{name}.bn1": seen.update({layer: output.cpu().numpy()}))
    network(images)
    return seen


def _surest(run: Run, labels: np.ndarray, count: int) -> list[int]:
    """The test images that the run predicts right with most confidence, one a class."""
    found = run.predictions.assign(label=labels)
    found = found[found["predicted"] == found["label"]].sort_values("confidence", ascending=False, kind="stable")
    return found.drop_duplicates("label").index[:count].tolist()


def _written(values: np.ndarray) -> str:
    """A map as text for a table: its values line by line, three digits each."""
    return " ".join(f"{value:.3g}" for value in values.ravel())


def as_map(values: str) -> np.ndarray:
    """A square map as `feature_maps` writes it: text → (H, H)."""
    row = np.array(values.split(), dtype=float)
    return row.reshape(math.isqrt(len(row)), -1)


# ----------------------------------------------------------------------------------------------- tables

def kept(name: str, results: str | Path, make: Callable[[list[Run]], pd.DataFrame],
         runs: Iterable[Run]) -> pd.DataFrame:
    """The rows of these runs in `results/tables/<name>.csv`; `make` adds those of runs that it lacks.

    So what takes networks and images to compute is computed once, and a report can be drawn without them. Runs whose
    network or images are not at hand have no rows, nor do those whose record is another than the rows were made from.
    """
    table, runs = store.kept_table(name, results), list(runs)
    table = pd.DataFrame({"run": [], "record": []}) if table is None or "record" not in table else table
    records = {run.id: f"r{run.record['sha256']['run.json'][:8]}" for run in runs}
    table = table[table["record"] == table["run"].map(records).fillna(table["record"])]
    lacking = with_networks(run for run in runs if run.id not in set(table["run"]))
    if lacking:
        made = make(lacking)
        table = pd.concat([table, made.assign(record=made["run"].map(records))], ignore_index=True)
        store.keep_table(table.sort_values("run", kind="stable"), name, results)
        table = store.kept_table(name, results)                # the same digits, whether just made or kept
    return table[table["run"].isin([run.id for run in runs])].drop(columns="record").reset_index(drop=True)
