"""The NumPy networks against torch, against central differences, and against their definitions."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import load_file
from threadpoolctl import threadpool_limits

from bnlib import InputError, data, models, native, numpy_nn, plots
from bnlib.numpy_nn import (
    SGD,
    Adam,
    BatchNorm2d,
    Conv2d,
    CrossEntropy,
    Flatten,
    GlobalAvgPool2d,
    Identity,
    Linear,
    LoopConv2d,
    MaxPool2d,
    OneConvolution,
    Parameter,
    ReLU,
    Residual,
    ResNet,
    ResNet101,
    Sequential,
    Sigmoid,
    check,
    draw,
    freeze,
    loss_and_gradients,
)
from bnlib.numpy_nn.convolution import SCRATCH, scratch_for
from bnlib.numpy_nn.networks import PaddedShortcut
from bnlib.numpy_nn.training import evaluate, fit, normalised, scores

nn = torch.nn


@pytest.fixture(autouse=True)
def one_thread():
    """Two thread pools on busy cores wait for each other."""
    torch.manual_seed(0)
    with threadpool_limits(1):
        yield


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# ------------------------------------------------------------------------------------------- layers

def bn(training, momentum=0.1, eps=1e-5):
    twin = nn.BatchNorm2d(4, eps=eps, momentum=momentum).train(training)
    with torch.no_grad():
        for tensor in (twin.weight, twin.bias, twin.running_mean):
            tensor.normal_()
        twin.running_var.uniform_(0.5, 2)
        twin.num_batches_tracked.fill_(3)                # the mean over all batches takes a quarter of a fourth one
    return BatchNorm2d(4, eps, momentum), twin


LAYERS = {
    "linear": (Linear(6, 3), nn.Linear(6, 3), (5, 6)),
    "linear without bias": (Linear(6, 3, bias=False), nn.Linear(6, 3, bias=False), (5, 6)),
    "convolution": (Conv2d(4, 2, 3), nn.Conv2d(4, 2, 3), (3, 4, 7, 6)),
    "convolution, padded": (Conv2d(4, 5, 3, padding=1, bias=False), nn.Conv2d(4, 5, 3, padding=1, bias=False),
                            (3, 4, 16, 15)),
    "convolution, stride 2": (Conv2d(4, 3, 3, 2, 1), nn.Conv2d(4, 3, 3, 2, 1), (2, 4, 8, 7)),
    "convolution, 7×7": (Conv2d(3, 4, 7, 2, 3), nn.Conv2d(3, 4, 7, 2, 3), (2, 3, 13, 12)),
    "convolution, 1×1": (Conv2d(4, 6, 1, 2), nn.Conv2d(4, 6, 1, 2), (2, 4, 5, 6)),
    "convolution, the study's shape": (Conv2d(4, 2, 3, padding=3), nn.Conv2d(4, 2, 3, padding=3), (8, 4, 3, 5)),
    "convolution in several parts": (Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1), (11, 8, 32, 32)),
    "convolution by loops": (LoopConv2d(3, 2, 3, 2, 1), nn.Conv2d(3, 2, 3, 2, 1), (2, 3, 6, 5)),
    "batch norm in training": (*bn(True), (3, 4, 5, 6)),
    "batch norm in evaluation": (*bn(False), (3, 4, 5, 6)),
    "batch norm, other eps and momentum": (*bn(True, 0.7, 0.3), (3, 4, 5, 6)),
    "batch norm, mean over all batches": (*bn(True, None), (3, 4, 5, 6)),
    "ReLU": (ReLU(), nn.ReLU(), (3, 4, 5)),
    "sigmoid": (Sigmoid(), nn.Sigmoid(), (3, 4, 5)),
    "max-pool": (MaxPool2d(2), nn.MaxPool2d(2), (2, 3, 7, 6)),
    "max-pool, overlapping": (MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1), (2, 3, 8, 7)),
    "global average pool": (GlobalAvgPool2d(), nn.AdaptiveAvgPool2d(1), (2, 3, 4, 5)),
    "flatten": (Flatten(), nn.Flatten(), (2, 3, 4, 5)),
    "sequential": (Sequential(Conv2d(3, 4, 3, bias=False), BatchNorm2d(4), ReLU(), Flatten(),
                              Linear(36, 2)),
                   nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                                 nn.Linear(36, 2)),
                   (4, 3, 5, 5)),
    "padded shortcut": (PaddedShortcut(3, 5, 2), models.PaddedShortcut(3, 5, (2, 2)), (2, 3, 5, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_gradients_and_statistics_are_torchs(name):
    layer, twin, shape = LAYERS[name]
    table = check.compare(layer, twin, normal(*shape))
    assert table["deviation"].max() < 1e-10, table


@pytest.mark.parametrize("factor", [1 + 1e-6, np.nan])
def test_the_comparison_sees_a_wrong_gradient(monkeypatch, factor):
    backward = Conv2d.backward
    monkeypatch.setattr(Conv2d, "backward", lambda self, gradient: backward(self, gradient * factor))
    table = check.compare(Conv2d(4, 2, 3), nn.Conv2d(4, 2, 3), normal(3, 4, 7, 6)).set_index("name")["deviation"]
    assert table["output"] < 1e-10 and (table[["x", "weight", "bias"]] > 1e-7).all()
    assert not check.relative(np.zeros(3), np.zeros((3, 1))) < np.inf


def test_the_verdict_follows_the_deviations():
    table = pd.DataFrame([{"network": "resnet14", "parameters": 47, "outputs": 1e-12, "input gradient": 1e-12,
                           "parameter gradients": 1e-9, "running statistics": 1e-12}])
    history = pd.DataFrame({"loss (NumPy)": [1.0, 2.0], "loss (torch)": [1.0, 2.0], "deviation": [0.0, 1e-9]})
    assert check.verdict(check.bars(table, history))[0].startswith("**NumPy equals torch**")
    for column, value in (("outputs", 1e-7), ("running statistics", 1e-7), ("input gradient", 1e-5),
                          ("parameter gradients", np.inf)):
        assert "does not equal" in check.verdict(check.bars(table.assign(**{column: value}), history))[0]
    assert "does not equal" in check.verdict(check.bars(table, history.assign(deviation=1e-3)))[0]


@settings(max_examples=60, deadline=None)
@given(st.tuples(*3 * [st.integers(1, 3)]), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3),
       st.tuples(*2 * [st.integers(4, 9)]), st.booleans())
def test_any_convolution_is_torchs_as_a_matrix_product_and_by_loops(sizes, kernel, stride, padding, image, bias):
    n, inputs, outputs = sizes
    twin = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)
    for kind in (Conv2d, LoopConv2d):
        table = check.compare(kind(inputs, outputs, kernel, stride, padding, bias), twin, normal(n, inputs, *image))
        assert table["deviation"].max() < 1e-10, table


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(4, 9), st.integers(4, 9), st.booleans())
def test_any_max_pool_is_torchs_and_of_equal_values_the_first_wins(kernel, stride, padding, height, width, ties):
    padding = min(padding, kernel // 2)
    x = normal(2, 3, height, width)
    x = np.sign(x) if ties else x
    table = check.compare(MaxPool2d(kernel, stride, padding), nn.MaxPool2d(kernel, stride, padding), x)
    assert table["deviation"].max() < 1e-12


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_any_batch_norm_is_torchs(n, channels, height, width, training):
    if training and n * height * width < 3:              # of two values the gradient is 0, but for eps and rounding
        return
    twin = nn.BatchNorm2d(channels).train(training)
    table = check.compare(BatchNorm2d(channels), twin, normal(n, channels, height, width) + 1)
    assert table["deviation"].max() < 1e-10, table


def central_differences(loss, array, step=1e-6):
    """∂loss/∂array, element by element; its error is of the order of step²."""
    slope = np.zeros_like(array)
    for at in np.ndindex(array.shape):
        value = array[at]
        array[at] = value + step
        high = loss()
        array[at] = value - step
        slope[at] = (high - loss()) / (2 * step)
        array[at] = value
    return slope


@pytest.mark.parametrize("layer", [
    Linear(3, 2), Conv2d(2, 2, 3, 2, 1), LoopConv2d(2, 2, 2), BatchNorm2d(2), ReLU(), Sigmoid(), MaxPool2d(2, 1),
    MaxPool2d(3, 2, 1), GlobalAvgPool2d(), Flatten(), BatchNorm2d(2).train(False), PaddedShortcut(2, 3, 2),
    Residual(Conv2d(2, 2, 3, padding=1), BatchNorm2d(2), Conv2d(2, 2, 1), ReLU()),
    Sequential(Conv2d(2, 3, 2), BatchNorm2d(3), ReLU(), GlobalAvgPool2d(), Flatten(), Linear(3, 2)),
], ids=repr)
def test_gradients_are_central_differences(layer):
    layer.astype(np.float64)
    for parameter in layer.parameters().values():
        parameter.value[...] = normal(*parameter.value.shape, seed=1)
    x = normal(2, 3) if isinstance(layer, Linear) else normal(2, 2, 4, 3)
    weights = normal(*layer.forward(x).shape, seed=2)
    x_grad = layer.backward(weights)
    computed = {"x": x_grad} | {name: p.grad for name, p in layer.parameters().items()}
    for name, array in {"x": x, **{name: p.value for name, p in layer.parameters().items()}}.items():
        slope = central_differences(lambda: (layer.forward(x) * weights).sum(), array)
        assert np.abs(computed[name] - slope).max() < 1e-7 * max(1, np.abs(slope).max()), name


def test_cross_entropy_and_its_gradient_are_torchs_even_where_exponentials_overflow():
    logits, labels = normal(6, 4) * 500, np.array([0, 3, 1, 1, 2, 0])
    theirs = torch.tensor(logits, requires_grad=True)
    expected = nn.functional.cross_entropy(theirs, torch.tensor(labels))
    expected.backward()
    loss = CrossEntropy()
    assert loss.forward(logits, labels) == pytest.approx(expected.item(), rel=1e-12)
    assert check.relative(loss.backward(), theirs.grad) < 1e-12


def test_the_gradient_of_cross_entropy_is_the_central_difference():
    logits, labels, loss = normal(3, 4), np.array([0, 3, 1]), CrossEntropy()
    loss.forward(logits, labels)
    slope = central_differences(lambda: CrossEntropy().forward(logits, labels), logits)
    assert np.abs(loss.backward() - slope).max() < 1e-8


def test_sigmoid_does_not_overflow():
    with np.errstate(all="raise"):
        assert Sigmoid().forward(np.array([-700.0, 0, 700])) == pytest.approx([np.exp(-700), 0.5, 1])


def test_a_convolution_keeps_its_input_and_no_columns():
    layer, x = Conv2d(8, 8, 3, padding=1), normal(64, 8, 32, 32).astype(np.float32)
    scratch_for.cache_clear()
    tracemalloc.start()
    y = layer.forward(x)
    x_grad = layer.backward(y)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held - y.nbytes - x_grad.nbytes < 3 * SCRATCH < 9 * x.nbytes                # 9·x: its columns


def test_float32_stays_float32_and_float64_float64():
    network = draw(ResNet("resnet8", 10), 0)
    for dtype in (np.float32, np.float64):
        network.astype(dtype)
        optimizer = Adam(freeze(network, "all"))
        _, logits = loss_and_gradients(network, normal(4, 3, 8, 8).astype(dtype), np.arange(4))
        optimizer.step()
        assert logits.dtype == dtype
        assert {p.grad.dtype for p in network.parameters().values()} == {np.dtype(dtype)}
        assert {a.dtype for n, a in network.state_dict().items() if "num" not in n} == {np.dtype(dtype)}


def test_the_largest_is_torchs_where_an_image_holds_infinities_and_what_is_no_number():
    for value in (-np.inf, np.nan, 1.0):
        x, layer = normal(2, 3, 7, 6), MaxPool2d(3, 2, 1)
        x[:, :, 2:5, :4] = value
        theirs = torch.tensor(x, requires_grad=True)
        pooled = nn.functional.max_pool2d(theirs, 3, 2, 1)
        np.testing.assert_array_equal(layer.forward(x), pooled.detach().numpy())
        gradient = normal(*pooled.shape, seed=1)
        pooled.backward(torch.from_numpy(gradient))
        np.testing.assert_allclose(layer.backward(gradient), theirs.grad.numpy(), rtol=1e-12)


def test_loops_compute_in_the_wider_of_two_types_as_the_matrix_product_does():
    x = normal(1, 2, 4, 4).astype(np.float32)
    state = {"weight": normal(3, 2, 3, 3), "bias": normal(3)}
    pair = [kind(2, 3, 3, padding=1).astype(np.float64).load_state_dict(state) for kind in (Conv2d, LoopConv2d)]
    for y in [layer.forward(x) for layer in pair]:
        assert y.dtype == np.float64
    gradients = [layer.backward(normal(1, 3, 4, 4)) for layer in pair]
    assert {g.dtype for g in gradients} == {np.dtype(np.float64)} and check.relative(*gradients) < 1e-12


# ------------------------------------------------------------------------------------------- optimizers

@pytest.mark.parametrize(("ours", "theirs", "options"), [
    (SGD, torch.optim.SGD, {}), (SGD, torch.optim.SGD, {"lr": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}),
    (Adam, torch.optim.Adam, {}), (Adam, torch.optim.Adam, {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.1})])
def test_optimizers_step_as_torchs_do(ours, theirs, options):
    parameter, tensor = Parameter(normal(3, 4)), torch.tensor(normal(3, 4), requires_grad=True)
    optimizer, twin = ours([parameter], **options), theirs([tensor], **options)
    for step in range(30):
        parameter.grad = normal(3, 4, seed=step)
        tensor.grad = torch.tensor(parameter.grad)
        optimizer.step()
        twin.step()
    assert check.relative(parameter.value, tensor.detach()) < 1e-12


def test_a_parameter_may_begin_to_train_later():
    for ours, theirs, options in ((SGD, torch.optim.SGD, {"momentum": 0.9}), (Adam, torch.optim.Adam, {})):
        parameters, tensors = ([make(normal(3)) for _ in range(2)] for make in (
            Parameter, lambda value: torch.tensor(value, requires_grad=True)))
        optimizer, twin = ours(parameters, **options), theirs(tensors, **options)
        for step in range(8):
            for number in range(2) if step > 4 else [0]:
                parameters[number].grad = normal(3, seed=step)
                tensors[number].grad = torch.tensor(parameters[number].grad)
            optimizer.step()
            twin.step()
        for parameter, tensor in zip(parameters, tensors, strict=True):
            assert check.relative(parameter.value, tensor.detach()) < 1e-12


# ------------------------------------------------------------------------------------------- networks

def test_drawing_makes_a_new_network_of_a_trained_one():
    network = draw(ResNet("resnet14", 10), 0)
    fresh = {name: array.copy() for name, array in network.state_dict().items()}
    for array in network.state_dict().values():
        array[...] = 7
    drawn = draw(network, 0).state_dict()
    assert all(np.array_equal(array, fresh[name]) for name, array in drawn.items())
    assert not np.array_equal(draw(network, 1).conv.weight.value, fresh["conv.weight"])
    last = network.blocks.children()[-1].conv2.weight.value                 # 36,864 normal numbers: their deviation
    assert last.std() == pytest.approx(np.sqrt(2 / (64 * 9)), rel=0.02)     # is known to 0.4 %
    for part, tensor in nn.BatchNorm2d(16).state_dict().items():
        assert np.array_equal(drawn[f"bn.{part}"], tensor.numpy())


@pytest.fixture(scope="module")
def gradients():
    return check.gradients(("resnet14", "resnet101"))


def test_whole_networks_with_batch_norm_have_torchs_outputs_and_gradients(gradients):
    table = check.against_torch(gradients).set_index("network")
    assert (table["outputs"] < 1e-8).all() and (table["running statistics"] < 1e-8).all()
    assert (table[["input gradient", "parameter gradients"]] < 1e-6).all(axis=None)
    assert table.loc["resnet101", "parameters"] == 3 * 104 + 2         # 104 convolutions with γ and β, and the output


def test_the_figure_of_deviations_has_a_dot_a_gradient(gradients):
    figure = plots.deviations(gradients, check.GRADIENTS)
    dots = [sum(len(c.get_offsets()) for c in axes.collections) for axes in figure.axes]
    assert dots == [47, 314]


def test_shortcuts_without_parameters_and_evaluation_give_torchs_gradients_too():
    twin = models.build("resnet8", 10, shortcut="A").eval()
    table = check.compare(ResNet("resnet8", 10, shortcut="A"), twin, normal(2, 3, 9, 10))
    assert table["deviation"].max() < 1e-10


def test_what_is_compared_with_is_torchs_own_and_not_bnlibs_cpp():
    x = torch.zeros(2, 16, 4, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert native.why_not() or models.build("resnet14", 10).double().bn._is_fast(x, None)     # else this could not fail
    ours, twin = check.twins("resnet14")
    check.compare(ours, twin, normal(2, 3, 9, 9))
    chosen = [module for module in twin.modules() if hasattr(module, "_is_fast")]
    assert chosen and not any(module._is_fast(x, module.weight) for module in chosen)
    with torch.profiler.profile() as seen:
        check.histories("resnet8", steps=1)
    called = {event.name for event in seen.events() if "bnlib" in event.name}
    assert called <= {"bnlib::augment"}                         # which makes the images that both are given
    with torch.profiler.profile() as seen:
        models.build("resnet8", 10).double()(torch.zeros(2, 3, 8, 8, dtype=torch.float64).to(
            memory_format=torch.channels_last)).sum().backward()
    assert native.why_not() or [event.name for event in seen.events() if "bnlib" in event.name]


def test_bn_only_histories_are_torchs():
    history = check.histories(steps=20)
    assert len(history) == 20 and history["loss (torch)"].nunique() == 20
    assert check.relative(history["loss (NumPy)"], history["loss (torch)"]) < 1e-6
    assert history["deviation"].max() < 1e-6
    assert (history["accuracy (NumPy)"] == history["accuracy (torch)"]).all()


def test_frozen_weights_have_no_gradient_and_keep_their_bits():
    network = ResNet("resnet8", 10).load_state_dict(models.build("resnet8", 10).state_dict())
    before = {name: p.value.copy() for name, p in network.parameters().items()}
    optimizer = SGD(freeze(network, "bn"), lr=0.1)
    loss_and_gradients(network, normal(4, 3, 8, 8), np.arange(4))
    optimizer.step()
    changed = {name for name, p in network.parameters().items() if not np.array_equal(p.value, before[name])}
    expected = {name for name, p in models.build("resnet8", 10).named_parameters() if "bn" in name or
                "shortcut.1" in name}
    assert changed == expected
    assert {name for name, p in network.parameters().items() if p.grad is not None} == expected


def test_what_is_frozen_after_training_stays_though_the_optimizer_holds_it():
    network = draw(ResNet("resnet8", 10), 0)
    freeze(network, "all")
    loss_and_gradients(network, normal(4, 3, 8, 8), np.arange(4))
    freeze(network, "bn")
    before = network.conv.weight.value.copy()
    SGD(network.parameters(), lr=0.1).step()
    assert np.array_equal(network.conv.weight.value, before)


@pytest.mark.parametrize("name", ["resnet14", "resnet101"])
def test_torch_loads_the_state_from_safetensors_and_it_holds_nothing_else(name, tmp_path):
    from torchvision.models import resnet101
    ours = ResNet101(10) if name == "resnet101" else ResNet(name, 10)
    with torch.device("meta"):
        twin = resnet101(num_classes=10) if name == "resnet101" else models.ResNet(14, 1, 10)
    assert list(ours.state_dict()) == list(twin.state_dict())
    if name == "resnet101":
        return                                                    # 180 MB need not be written to know
    draw(ours, 0).forward(normal(2, 3, 8, 8))
    save_file(ours.state_dict(), tmp_path / "state.safetensors")
    twin.to_empty(device="cpu").load_state_dict(load_file(tmp_path / "state.safetensors"), strict=True)
    assert torch.equal(twin.conv.weight, torch.from_numpy(ours.state_dict()["conv.weight"]))
    assert twin.bn.num_batches_tracked == 1


def test_loading_a_state_copies_it():
    state = models.build("resnet8", 10).state_dict()
    network = ResNet("resnet8", 10).load_state_dict(state)
    network.conv.weight.value += 1
    assert torch.equal(state["conv.weight"], models.build("resnet8", 10).conv.weight)


# ------------------------------------------------------------------------------------------- messages

X = normal(2, 3, 8, 8)


@pytest.mark.parametrize(("act", "message"), [
    (lambda: Linear(6, 3).forward(X), r"Linear\(6, 3\): expected an input \(N, 6\), given \(2, 3, 8, 8\)"),
    (lambda: Conv2d(4, 2, 3).forward(X), r"Conv2d\(4, 2, 3\): expected an input \(N, 4, H, W\), given \(2, 3, 8, 8\)"),
    (lambda: Conv2d(3, 2, 9).forward(X), r"images of at least 9 pixels a side \(kernel 9, padding 0\), given 8×8"),
    (lambda: Conv2d(3, 2, 3, 0), r"Conv2d: expected stride as a whole number of at least 1, given 0"),
    (lambda: MaxPool2d(9).forward(X), r"MaxPool2d\(9\): expected images of at least 9 pixels"),
    (lambda: MaxPool2d(2, padding=2), r"expected a padding from 0 to half the kernel, given 2"),
    (lambda: BatchNorm2d(4).forward(X), r"BatchNorm2d\(4\): expected an input \(N, 4, H, W\), given \(2, 3, 8, 8\)"),
    (lambda: BatchNorm2d(3).forward(X[:1, :, :1, :1]), r"expected more than 1 value a channel in training"),
    (lambda: ReLU().backward(X), r"ReLU: expected a gradient after a forward pass, given \(2, 3, 8, 8\)"),
    (lambda: [p := Flatten(), p.forward(X), p.backward(X)], r"expected a gradient \(2, 192\), given \(2, 3, 8, 8\)"),
    (lambda: Residual(Conv2d(3, 4, 1), Identity(), ReLU()).forward(X),
     r"Residual: expected a shortcut \(2, 4, 8, 8\), as the path gives, given \(2, 3, 8, 8\)"),
    (lambda: CrossEntropy().forward(normal(2, 3), np.array([0, 3])), r"expected labels from 0 to 2, given 0 to 3"),
    (lambda: CrossEntropy().forward(normal(2, 3), np.array([0, 1, 2])), r"expected 2 whole numbers as labels, given"),
    (lambda: Linear(6, 3).load_state_dict({"weight": X}), r"the state lacks bias \(1 in all\); expected 2 names"),
    (lambda: ReLU().load_state_dict({"weight": X}), r"the state has the unknown weight"),
    (lambda: Linear(6, 3, False).load_state_dict({"weight": X}), r"weight: expected shape \(3, 6\), given \(2, 3, 8"),
    (lambda: ResNet("resnet15", 10), r"resnet15: depth must be 6n\+2"),
    (lambda: ResNet101(10).forward(X[:1]), r"expected more than 1 value a channel in training, given \(1, 128, 1, 1\)"),
    (lambda: Conv2d(3, 2, (3, 3)), r"Conv2d: expected kernel as a whole number of at least 1, given \(3, 3\)"),
    (lambda: Conv2d(3, 2, 3, padding=-1), r"Conv2d: expected padding as a whole number of at least 0, given -1"),
    (lambda: MaxPool2d(0), r"MaxPool2d: expected kernel as a whole number of at least 1, given 0"),
    (lambda: Linear(-1, 3), r"Linear: expected inputs as a whole number of at least 1, given -1"),
    (lambda: Conv2d(3, 2, 3).forward(X[:0]), r"expected lengths of at least 1, given \(0, 3, 8, 8\)"),
    (lambda: Conv2d(3, 2, 3).forward(torch.zeros(X.shape)), r"expected a NumPy array, given torch.Tensor"),
    (lambda: Sequential(r := ReLU(), r), r"Sequential: expected layers, each once, given ReLU, ReLU"),
    (lambda: Sequential(ReLU(), None), r"Sequential: expected layers, each once, given ReLU, None"),
    (lambda: Residual(ReLU()), r"Residual: expected a path, a shortcut and a last layer, given 1 layers"),
    (lambda: Flatten().forward(X[:0]), r"Flatten: expected lengths of at least 1, given \(0, 3, 8, 8\)"),
    (lambda: ReLU().forward([1.0]), r"ReLU: expected a NumPy array, given builtins.list"),
    (lambda: [p := ReLU(), p.forward(X), p.backward([1.0])], r"ReLU: expected a NumPy array, given builtins.list"),
    (lambda: MaxPool2d(2).forward(X.astype(int)), r"MaxPool2d\(2\): expected float32 or float64, given int64"),
    (lambda: MaxPool2d(3, padding=0.5), r"MaxPool2d: expected padding as a whole number of at least 0, given 0.5"),
    (lambda: MaxPool2d(3, padding=2), r"MaxPool2d\(3\): expected a padding from 0 to half the kernel, given 2"),
    (lambda: PaddedShortcut(5, 3, 1), r"PaddedShortcut: expected outputs as a whole number of at least 5, given 3"),
    (lambda: Linear(6, 3).astype(np.float16), r"Linear\(6, 3\): expected float32 or float64, given float16"),
    (lambda: CrossEntropy().backward(), r"CrossEntropy: expected a forward pass before the backward one"),
    (lambda: Linear(6, 3, False).load_state_dict({"weight": torch.zeros(3, 6, dtype=torch.bfloat16)}),
     r"Linear\(6, 3\): expected arrays, or tensors that NumPy can read"),
    (lambda: SGD({"weight": X}, 0.1), r"optimizer: expected parameters, given ndarray"),
    (lambda: SGD(Linear(2, 3)), r"optimizer: expected a list or dict of parameters, given Linear"),
    (lambda: SGD([p := Parameter(X), p]), r"optimizer: expected each parameter once, given 2"),
    (lambda: SGD([Parameter(X)], lr=-1), r"SGD: expected lr from 0 to below inf, given -1"),
    (lambda: Adam([Parameter(X)], betas=(0.9, 1)), r"Adam: expected beta_2 from 0 to below 1, given 1"),
    (lambda: [p := Parameter(X), setattr(p, "grad", X[:1]), SGD([p]).step()],
     r"optimizer: expected a gradient \(2, 3, 8, 8\), given \(1, 3, 8, 8\)"),
    (lambda: Sequential(Sequential(c := Conv2d(3, 3, 1)), Sequential(c)), r"Sequential: expected layers, each once"),
    (lambda: Linear(6, 3, False).load_state_dict({"weight": [[1.0], [1.0, 2.0]]}), r"expected arrays, or tensors that"),
    (lambda: Linear(6, 3, False).load_state_dict([1.0]), r"Linear\(6, 3\): expected arrays, or tensors that NumPy"),
    (lambda: Linear(6, 3, False).load_state_dict({"weight": np.full((3, 6), "a")}),
     r"weight: expected numbers as of float32, given <U1"),
    (lambda: Linear(6, 3, False).load_state_dict({"weight": np.ones((3, 6), complex)}), r"given complex128"),
    (lambda: BatchNorm2d(3).load_state_dict(BatchNorm2d(3).state_dict() | {"num_batches_tracked": np.array(2.7)}),
     r"num_batches_tracked: expected numbers as of int64, given float64"),
    (lambda: ResNet("plain14", 10), r"network='plain14': expected a CIFAR ResNet, such as resnet14"),
    (lambda: OneConvolution(0, 10), r"OneConvolution: expected height as a whole number of at least 1, given 0"),
    (lambda: freeze(Linear(6, 3), "bnn"), r"trainable='bnn': not one of .* did you mean 'bn'"),
])
def test_what_does_not_fit_is_named_in_one_line_with_expected_and_given(act, message):
    with pytest.raises(InputError, match=message) as error:
        act()
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------- training and speed

def test_the_networks_learn_the_digits():
    digits = data.load("digits")
    table = fit(draw(OneConvolution((32, 32), 10), 0), digits, epochs=2)
    test = table[table["part"] == "test"]
    assert test["accuracy"].iloc[-1] > 0.85 and test["loss"].is_monotonic_decreasing
    assert (table["part"] == "batch").sum() == 2 * 23                 # 1,437 images, 64 a batch
    table = fit(draw(ResNet("resnet8", 10), 0), digits, epochs=1, n_train=128, n_test=20)
    assert np.isfinite(table.drop(columns="part")).all(axis=None)
    assert table.equals(fit(draw(ResNet("resnet8", 10), 0), digits, epochs=1, n_train=128, n_test=20))


def test_images_are_normalised_to_mean_0_and_deviation_1():
    digits = data.load("digits")
    images = normalised(digits.x_train, digits)
    assert images.shape == (1437, 3, 32, 32) and np.array_equal(images[:, 0], images[:, 2])
    assert images.mean() == pytest.approx(0, abs=1e-4) and images.std() == pytest.approx(1, abs=1e-4)


def test_testing_leaves_a_network_as_it_is():
    network, digits = draw(ResNet("resnet8", 10), 0), data.load("digits")
    images = normalised(digits.x_test[:64], digits)
    for _ in range(3):                                        # running statistics that are not those of a batch
        network.forward(images)
    before = {name: array.copy() for name, array in network.state_dict().items()}
    found = evaluate(network, images, digits.y_test[:64].numpy())
    assert all(np.array_equal(before[name], array) for name, array in network.state_dict().items())
    logits = network.train(False).forward(images)
    assert found["accuracy"] == (logits.argmax(1) == digits.y_test[:64].numpy()).mean()


def test_optimizers_take_a_networks_parameters_and_leave_what_has_no_gradient():
    for kind in (SGD, Adam):
        network = draw(OneConvolution((8, 8), 10), 0)
        freeze(network, "none")
        network.output.weight.requires_grad = True
        before = {name: array.copy() for name, array in network.state_dict().items()}
        loss_and_gradients(network, X.astype(np.float32), np.array([0, 1]))
        kind(network.parameters(), lr=0.1).step()
        moved = [name for name, array in network.state_dict().items() if not np.array_equal(before[name], array)]
        assert moved == ["output.weight"]


def test_narrow_networks_are_twins_too():
    x = normal(2, 3, 8, 8)
    twin = models.build("resnet8c2", 10).double().train()
    ours = ResNet("resnet8c2", 10).astype(np.float64).load_state_dict(twin.state_dict())
    np.testing.assert_allclose(ours.forward(x), twin(torch.from_numpy(x)).detach().numpy(), rtol=1e-9, atol=1e-12)


def test_scores_count_each_image_the_same():
    """Precision and recall by hand: class 0 both 1/2 and 1, class 1 both 1 and 1/2; F = 2PR/(P + R) = 2/3 each."""
    found = scores([(1.0, np.array([0, 0]), np.array([0, 1])), (4.0, np.array([1]), np.array([1]))])
    assert found == pytest.approx({"loss": 2.0, "accuracy": 2 / 3, "F-score": 2 / 3})


@pytest.mark.parametrize("threads", [1, 2])
def test_a_matrix_product_takes_at_most_as_long_as_the_bars_say(threads):
    for _ in range(3):                                      # a busy machine is given three tries
        ratio = check.speed(rounds=5, threads=threads).set_index(["shape", "how"])["× torch"]
        if ratio["the study's shape", "im2col"] <= 1.2 and ratio["a real layer", "im2col"] <= 6:
            break
    assert ratio["the study's shape", "im2col"] <= 1.2
    assert ratio["a real layer", "im2col"] <= 6
    assert ratio["the study's shape", "loops"] > ratio["the study's shape", "im2col"]


def test_networks_and_optimizers_run_without_torch():
    """The package's files alone, since `bnlib` itself trains with torch."""
    code = ("import sys, types; bnlib = types.ModuleType('bnlib'); bnlib.__path__ = [sys.argv[1]]; "
            "sys.modules['bnlib'] = bnlib; from bnlib.numpy_nn import convolution, layers, networks, optim; "
            "sys.exit('torch' in sys.modules)")
    folder = numpy_nn.__path__[0].rpartition("/")[0]
    assert subprocess.run([sys.executable, "-c", code, folder]).returncode == 0
