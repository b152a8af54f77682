"""NumPy against torch: layer by layer, whole networks, training, and speed. Comparisons are in float64.

A relative deviation is max |ours − torch's| / max |torch's| over one array. Equality is looked at on one thread:
NumPy's threads and torch's would wait for each other's turn on a core, and beside another busy process that takes a
hundred times as long.
"""

import time

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from bnlib.analysis import published
from bnlib.config import Config, generator
from bnlib.numpy_nn.convolution import Conv2d, LoopConv2d
from bnlib.numpy_nn.layers import BatchNorm2d, Layer, Linear
from bnlib.numpy_nn.networks import ResNet, ResNet101, freeze, loss_and_gradients
from bnlib.numpy_nn.optim import SGD
from bnlib.wording import Sentences
from bnlib.wording import name as shown

OUTPUTS, GRADIENTS, HISTORIES = 1e-8, 1e-6, 1e-6      # relative deviations up to which networks count as equal
KINDS = {Conv2d: ("convolution", ""), BatchNorm2d: ("γ", "β"), Linear: ("linear", "linear")}     # weight, bias
IMAGES, SIZE = 2, 33              # of a network's check: small, and odd, so that strides leave a rest


def relative(ours, theirs) -> float:
    """max |ours − theirs| / max |theirs|; absolute where theirs is all 0, infinite for other shapes and for NaN."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        return np.inf
    deviation = float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1))
    return np.inf if np.isnan(deviation) else deviation             # a table's maximum passes over NaN


# ------------------------------------------------------------------------------------------- equality

def by_torch(network):
    """The network, all of whose layers are computed by torch's own operations and none by bnlib's C++, in place."""
    for module in network.modules():
        for choice in ("_is_fast", "_skips"):
            if hasattr(module, choice):
                setattr(module, choice, lambda *_: False)
    return network


@threadpool_limits.wrap(limits=1)
def compare(layer: Layer, twin, x: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """One forward and backward pass of a layer or network and of its torch module, with the module's weights.

    The gradient at the output is drawn from the seed. Returns a row an array: name, kind (output, input, parameter,
    state) and its relative deviation; `state` is what the running statistics are afterwards.
    """
    import torch
    twin, x = by_torch(twin.double()), x.astype(np.float64)
    layer.astype(np.float64).load_state_dict(twin.state_dict()).train(twin.training)
    images = torch.from_numpy(x).clone().requires_grad_()
    twin.zero_grad()
    expected = twin(images)
    gradient = np.random.default_rng(seed).standard_normal(tuple(expected.shape))
    expected.backward(torch.from_numpy(gradient))
    output, x_grad = layer.forward(x), layer.backward(gradient)

    ours = layer.parameters()
    rows = [("output", "output", output, expected.detach()), ("x", "input", x_grad, images.grad)]
    rows += [(name, "parameter", ours[name].grad, parameter.grad) for name, parameter in twin.named_parameters()]
    state = layer.state_dict()
    rows += [(name, "state", state[name], buffer) for name, buffer in twin.named_buffers()]
    return pd.DataFrame([(name, kind, relative(a, b)) for name, kind, a, b in rows],
                        columns=["name", "kind", "deviation"])


def twins(name: str) -> tuple[Layer, "object"]:
    """(ours, torch's) of `resnet101`, of which torchvision has the twin, or of a CIFAR ResNet, of which bnlib has.

    Ten classes; γ ~ U(½, 3/2) and β ~ U(−½, ½), since at γ = 1 or β = 0 some mistakes would not show.
    """
    import torch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "resnet101":
            from torchvision.models import resnet101
            ours, twin = ResNet101(10), resnet101(weights=None, num_classes=10)
        else:
            from bnlib import models
            ours, twin = ResNet(name, 10), models.build(name, 10)
        for module in twin.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return ours, twin


def gradients(names=("resnet14", "resnet101")) -> pd.DataFrame:
    """`compare` for whole networks in training mode: network, name, kind (parameters: convolution, γ, β or linear) and
    deviation, a row an array."""
    tables = []
    for name in names:
        ours, theirs = twins(name)
        x = generator(0, "batches").standard_normal((IMAGES, 3, SIZE, SIZE))
        table = compare(ours, theirs, x)
        kinds = {prefix + part: kind for prefix, layer in ours.walk() if type(layer) in KINDS
                 for part, kind in zip(("weight", "bias"), KINDS[type(layer)], strict=True)}
        table["kind"] = table["name"].map(kinds).fillna(table["kind"])
        tables.append(table.assign(network=name))
    return pd.concat(tables, ignore_index=True)


def against_torch(table: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row a network: number of arrays with gradients, and the largest relative deviation of the outputs, of the
    gradient at the input, and of any parameter's gradient. table: from `gradients`, which it calls otherwise."""
    table = gradients() if table is None else table
    rows = []
    for network, part in table.groupby("network", sort=False):
        worst = part.groupby("kind")["deviation"].max()
        parameters = part[~part["kind"].isin(["output", "input", "state"])]
        rows.append({"network": network, "parameters": len(parameters), "outputs": worst["output"],
                     "input gradient": worst["input"], "parameter gradients": parameters["deviation"].max(),
                     "running statistics": worst["state"]})
    return pd.DataFrame(rows)


@threadpool_limits.wrap(limits=1)
def histories(model: str = "resnet14", steps: int = 20, batch_size: int = 8, seed: int = 0) -> pd.DataFrame:
    """BN-only training of one network on the same batches of digits, in NumPy and in torch.

    A row a step: step, loss (NumPy), loss (torch), accuracy (NumPy), accuracy (torch) of its batch, and `deviation`,
    the largest relative deviation of any γ, β or running statistic after the step.
    """
    import torch

    import bnlib.freeze
    from bnlib import data, models, optim
    config = Config(dataset="digits", model=model, trainable="bn", batch_size=batch_size, n_train=steps * batch_size,
                    augment="crop", seed=seed)
    dataset, device = data.load(config.dataset), torch.device("cpu")
    normalise = data.Normalise(dataset, device, torch.float32)
    chosen, _ = data.split(config, len(dataset.x_train))
    batches = data.TrainingBatches(*dataset.part(chosen), config, normalise, device)
    twin = by_torch(models.from_config(config, len(dataset.classes)).double())
    theirs = optim.optimizer(bnlib.freeze.freeze(twin, "bn").values(), config)
    network = ResNet(model, len(dataset.classes)).astype(np.float64).load_state_dict(twin.state_dict())
    ours = SGD(freeze(network, "bn"), config.lr, config.momentum, config.weight_decay)

    rows = []
    for step, (images, labels) in enumerate(batches.epoch(1), 1):
        images = images.double().contiguous()                  # or blocks would add their gradients in C++
        expected = twin(images)
        loss = torch.nn.functional.cross_entropy(expected, labels)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        mean, logits = loss_and_gradients(network, images.numpy(), labels.numpy())
        ours.step()
        state = network.state_dict()
        rows.append({"step": step, "loss (NumPy)": mean, "loss (torch)": loss.item(),
                     "accuracy (NumPy)": (logits.argmax(1) == labels.numpy()).mean(),
                     "accuracy (torch)": (expected.argmax(1) == labels).double().mean().item(),
                     "deviation": max(relative(state[name], tensor) for name, tensor in twin.state_dict().items())})
    return pd.DataFrame(rows)


def bars(table: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """The largest relative deviations of `against_torch` and `histories` beside the bars up to which they are none.

    Columns: compared (outputs, gradients, training), over (networks and arrays, or steps), deviation, bar.
    """
    networks = " and ".join(shown(network) for network in table["network"])
    losses = relative(history["loss (NumPy)"], history["loss (torch)"])
    rows = [("outputs", f"and running statistics of {networks}",
             table[["outputs", "running statistics"]].max().max(), OUTPUTS),
            ("gradients", f"input and {table['parameters'].sum()} parameter arrays of {networks}",
             table[["input gradient", "parameter gradients"]].max().max(), GRADIENTS),
            ("training", f"{len(history)} steps, BN only", max(losses, history["deviation"].max()), HISTORIES)]
    return pd.DataFrame(rows, columns=["compared", "over", "deviation", "bar"])


def verdict(table: pd.DataFrame) -> Sentences:
    """Whether NumPy equals torch by a table of `bars`, and how nearly."""
    equal = (table["deviation"] <= table["bar"]).all()
    return Sentences([f"**NumPy {'equals' if equal else 'does not equal'} torch**, by the largest deviation relative "
                      "to the largest value:",
                      *(f"{row.compared} ({row.over}): {row.deviation:.1e}, bar {row.bar:g}"
                        for row in table.itertuples())])


def learned(tables: dict[str, pd.DataFrame]) -> Sentences:
    """What the networks of `training.fit` reach on test images after the last epoch."""
    said = Sentences()
    for network, table in tables.items():
        last = table[table["part"] == "test"].iloc[-1]
        said.append(f"{network}: epoch {last['epoch']:.0f} ends with {100 * last['accuracy']:.1f} % of the test images "
                    f"right, F-score {100 * last['F-score']:.1f} %, loss {last['loss']:.2f}.")
    return said


# ------------------------------------------------------------------------------------------- speed

#: The convolutions timed: images, channels in and out, size, kernel, padding.
SHAPES = {"the study's shape": (8, 4, 2, (3, 5), 3, 3), "a real layer": (32, 16, 16, (32, 32), 3, 1)}
PASSES = 1000
PUBLISHED = {"im2col": "1000 iterations NumPy as matrix product", "loops": "1000 iterations NumPy loops",
             "torch": "1000 iterations torch"}


def speed(rounds: int = 9, threads: int = 2) -> pd.DataFrame:
    """Seconds for 1000 backward passes of a convolution, float32, with bias: im2col, loops and torch.

    Timings are interleaved in one process, `rounds` of each, all with so many threads; the median is reported. Fewer
    passes than 1000 are timed, by loops on one image of the batch, and scaled: `timed` says how many. Columns: shape,
    how, seconds, × torch, published (s, ResNet-101 study, on another machine), timed.
    """
    with threadpool_limits(threads):
        return _timed(rounds)


def compare_speed(table: pd.DataFrame) -> Sentences:
    """Of each shape of `speed`: how many times as long as torch a matrix product takes, and loops; and the study's."""
    said = Sentences()
    for shape, part in table.groupby("shape", sort=False):
        ours = part.set_index("how")
        times, theirs = ours["× torch"], ours["published"] / ours["published"]["torch"]
        study = "" if theirs.isna().any() else (f" (ResNet-101 study: {theirs['im2col']:.1f} and "
                                                f"{theirs['loops']:.0f} times)")
        said.append(f"{shape}: as a matrix product {times['im2col']:.1f} times as long as torch, by loops "
                    f"{times['loops']:,.0f} times{study}.")
    return said


def _timed(rounds: int) -> pd.DataFrame:
    rows = []
    for name, (n, inputs, outputs, size, kernel, padding) in SHAPES.items():
        x = generator(0, "batches").standard_normal((n, inputs, *size), np.float32)
        passes = {"the study's shape": 100, "a real layer": 3}[name]
        timed = {"im2col": (_backward(Conv2d, x, outputs, kernel, padding), passes, 1),
                 "torch": (_backward_of_torch(x, outputs, kernel, padding), passes, 1),
                 "loops": (_backward(LoopConv2d, x[:1], outputs, kernel, padding), 1, n)}
        seconds = {how: [] for how in timed}
        for _ in range(rounds):
            for how, (backward, count, scale) in timed.items():
                began = time.perf_counter()
                for _ in range(count):
                    backward()
                seconds[how].append((time.perf_counter() - began) / count * scale * PASSES)
        medians = {how: float(np.median(values)) for how, values in seconds.items()}
        rows += [{"shape": name, "how": how, "seconds": median, "× torch": median / medians["torch"],
                  "published": published(PUBLISHED[how])["value"].item() if name == "the study's shape" else np.nan,
                  "timed": f"{rounds} × {timed[how][1]}" + (f", 1 image of {n}" if timed[how][2] > 1 else "")}
                 for how, median in medians.items()]
    return pd.DataFrame(rows)


def _backward(kind, x, outputs, kernel, padding):
    layer = kind(x.shape[1], outputs, kernel, padding=padding)
    layer.weight.value[...] = generator(0, "weights").standard_normal(layer.weight.value.shape)
    gradient = np.ones_like(layer.forward(x))
    return lambda: layer.backward(gradient)


def _backward_of_torch(x, outputs, kernel, padding):
    import torch
    layer = torch.nn.Conv2d(x.shape[1], outputs, kernel, padding=padding)
    images = torch.from_numpy(x).requires_grad_()
    y = layer(images)
    gradient = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, (images, *layer.parameters()), gradient, retain_graph=True)
