"""Batch norm, sum and ReLU: ours against torch's modules and against float64."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest
import torch

from bnlib import Config, bnrelu, freeze, models, native
from bnlib.config import resolve
from bnlib.convolution import Convolution
from bnlib.device import autocast
from bnlib.train import place

needs_cpp = pytest.mark.skipif(bool(native.why_not()), reason=f"C++ operation {native.why_not()}")


@needs_cpp
def test_another_copy_of_the_project_takes_the_build_that_is_there(tmp_path):
    """Although a process killed as it built has left its lock."""
    (library,) = native.build_folder().glob("*.so")
    (library.parent / "lock").touch()
    built = library.stat().st_mtime_ns
    shutil.copytree(resolve("bnlib"), tmp_path / "bnlib")
    done = subprocess.run([sys.executable, "-c", "from bnlib import native; print(native.__file__, native.why_not())"],
                          cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, text=True, capture_output=True,
                          timeout=60)
    assert done.stdout == f"{tmp_path}/bnlib/native/__init__.py \n", done.stderr
    assert library.stat().st_mtime_ns == built


def test_a_torch_installed_elsewhere_has_a_build_of_its_own(monkeypatch):
    here = native.build_folder()
    assert native.build_folder() == here
    monkeypatch.setattr(torch, "__file__", "/elsewhere/torch/__init__.py")
    assert native.build_folder() != here


def channels_last(*shape, dtype):
    return (torch.randn(*shape) * 2 + 3).to(dtype).contiguous(memory_format=torch.channels_last)


def outcome(kind, x, add, gradient, dtype, fast):
    """Output, all gradients, running statistics and evaluation of one module, in `dtype`."""
    module = kind(x.shape[1])
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-0.5, 1, x.shape[1]))
        module.bias.copy_(torch.linspace(-0.3, 0.3, x.shape[1]))
    if dtype == torch.float64:
        module = module.double()
    if not fast:
        module._is_fast = lambda *_: False
    x = x.detach().to(dtype).requires_grad_()
    add = None if add is None else add.detach().to(dtype).requires_grad_()
    y = module(x, add)
    y.backward(gradient.to(dtype))
    found = {"y": y, "x": x.grad, "gamma": module.weight.grad, "beta": module.bias.grad,
             "running_mean": module.running_mean, "running_var": module.running_var}
    if add is not None:
        found["add"] = add.grad
    module.eval()
    with torch.no_grad():
        found["evaluation"] = module(x, add)
    return {name: tensor.detach().double() for name, tensor in found.items()}


@needs_cpp
@pytest.mark.parametrize("kind", [bnrelu.BN, bnrelu.BNReLU])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("channels", [16, 32, 48, 64, 112, 256])
def test_it_agrees_with_fp64_as_well_as_torchs_own_modules(kind, dtype, adds, channels, seeded):
    x = channels_last(37, channels, 7, 9, dtype=dtype)
    add, gradient = (torch.randn_like(x) for _ in range(2))
    add = add if adds else None
    exact = outcome(kind, x, add, gradient, torch.float64, fast=False)
    torchs = outcome(kind, x, add, gradient, dtype, fast=False)
    ours = outcome(kind, x, add, gradient, dtype, fast=True)
    for name, value in exact.items():
        error, allowed = ((other[name] - value).norm() / value.norm() for other in (ours, torchs))
        assert error <= 1.1 * allowed + 2e-7, name


@needs_cpp
def test_the_result_does_not_depend_on_the_number_of_threads(seeded):
    x = channels_last(64, 16, 32, 32, dtype=torch.bfloat16)
    gradient, threads = torch.randn_like(x), torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(outcome(bnrelu.BNReLU, x, None, gradient, torch.bfloat16, fast=True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in found[0])


@needs_cpp
def test_a_nan_is_passed_on():
    x = channels_last(4, 16, 8, 8, dtype=torch.bfloat16)
    x[0, 0, 0, 0] = float("nan")
    assert bnrelu.BNReLU(16)(x).isnan().any()


@pytest.mark.parametrize("x", [torch.randn(4, 10, 8, 8), torch.randn(4, 16, 8, 8), torch.randn(4, 16, 8, 8).double()])
def test_what_the_operation_does_not_take_goes_through_torchs_modules(x):
    """Odd channel counts, other memory formats, other dtypes: the same result as nn.BatchNorm2d and ReLU."""
    ours, theirs = (kind(x.shape[1]).to(x.dtype) for kind in (bnrelu.BNReLU, torch.nn.BatchNorm2d))
    assert torch.equal(ours(x), theirs(x).relu())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(ours.running_var, theirs.running_var)


@needs_cpp
@pytest.mark.parametrize("change", [
    {"x": channels_last(4, 16, 3, 3, dtype=torch.float64)}, {"x": torch.randn(4, 16, 3, 3)},
    {"x": channels_last(4, 10, 3, 3, dtype=torch.float32)}, {"x": channels_last(4, 0, 3, 3, dtype=torch.float32)},
    {"add": channels_last(4, 16, 3, 2, dtype=torch.float32)}, {"add": channels_last(4, 16, 3, 3, dtype=torch.float64)},
    {"gamma": torch.ones(8)}, {"gamma": torch.ones(32)[::2]}, {"gamma": torch.ones(1).expand(16)},
    {"beta": torch.zeros(16, dtype=torch.bfloat16)}, {"mean": torch.zeros(16, device="meta")},
    {"var": torch.ones(16, dtype=torch.float64)}], ids=lambda change: next(iter(change)))
def test_the_operation_refuses_what_it_would_read_wrongly(change):
    given = {"x": channels_last(4, 16, 3, 3, dtype=torch.float32), "add": None, "gamma": torch.ones(16),
             "beta": torch.zeros(16), "mean": torch.zeros(16), "var": torch.ones(16)} | change
    with pytest.raises(RuntimeError, match="bn_relu: takes"):
        torch.ops.bnlib.bn_relu_train(*given.values(), 0.1, 1e-5, True)
    with pytest.raises(RuntimeError, match="bn_relu: takes"):
        torch.ops.bnlib.bn_relu_evaluate(*given.values(), 1e-5, True)


@pytest.mark.parametrize("change", [
    lambda module: setattr(module, "weight", torch.nn.Parameter(torch.ones(32)[::2])),
    lambda module: setattr(module, "running_var", torch.ones(32)[::2]),
    lambda module: module.register_parameter("bias", None), lambda module: setattr(module, "momentum", None)],
    ids=["strided γ", "strided variance", "no β", "mean of all batches"])
def test_a_module_of_other_values_is_torchs(change, seeded):
    x, ours, theirs = channels_last(4, 16, 3, 3, dtype=torch.float32), bnrelu.BNReLU(16), torch.nn.BatchNorm2d(16)
    for module in (ours, theirs):
        change(module)
    assert torch.equal(ours(x), theirs(x).relu()) and torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.eval()(x), theirs.eval()(x).relu())


def test_a_batch_of_no_images_is_torchs(seeded):
    x, ours, theirs = channels_last(0, 16, 3, 3, dtype=torch.float32), bnrelu.BNReLU(16), torch.nn.BatchNorm2d(16)
    assert ours(x).shape == theirs(x).shape == x.shape and torch.equal(ours.running_var, theirs.running_var)


@needs_cpp
@pytest.mark.parametrize("adds", [False, True])
def test_gradients_are_the_same_where_what_was_kept_comes_back_in_another_layout(adds, seeded):
    found = []
    for elsewhere in (contextlib.nullcontext(), torch.autograd.graph.saved_tensors_hooks(torch.Tensor.contiguous,
                                                                                         lambda kept: kept)):
        torch.manual_seed(0)
        module, x = bnrelu.BNReLU(16), channels_last(4, 16, 5, 3, dtype=torch.float32).requires_grad_()
        with elsewhere:
            y = module(x, torch.randn_like(x) if adds else None)
        found.append(torch.autograd.grad(y.square().sum(), (x, module.weight, module.bias)))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(("model", "norm", "way"), [
    ("resnet14", "batch", "C++"), ("resnet14c8", "batch", "C++ and torch"), ("resnet14c2", "batch", "torch"),
    ("resnet14", "group", "torch")])
def test_the_record_says_which_way_batch_norm_goes(model, norm, way):
    network, why_not = models.build(model, 10, norm=norm), native.why_not()
    taken = {"C++" if each._is_fast(channels_last(2, each.num_features, 4, 4, dtype=torch.float32), None) else "torch"
             for each in network.modules() if isinstance(each, bnrelu.BN)}
    said = bnrelu.path(network, torch.device("cpu"), False)
    assert said == (f"torch ({why_not})" if why_not else way)
    assert why_not or said == " and ".join(sorted(taken) or ["torch"])


@needs_cpp
@pytest.mark.parametrize("kind", [bnrelu.BN, bnrelu.BNReLU])
@pytest.mark.parametrize("adds", [False, True])
def test_the_operation_passes_gradcheck_in_float64(kind, adds, seeded):
    module = kind(16).double()
    x, add = (torch.randn(2, 16, 2, 3, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
              .requires_grad_() for _ in range(2))
    assert module._is_fast(x, add)

    def f(x, add, weight, bias):
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x, add if adds else None))

    assert torch.autograd.gradcheck(f, (x, add, module.weight, module.bias), nondet_tol=0)


def affine_gradients(precision: str, fast: bool, images, labels) -> torch.Tensor:
    """All γ and β gradients of a ResNet-14 at initialisation, in one vector; `fp64` or as training computes them."""
    network, config = models.build("resnet14", 10), Config(batch_size=len(images))
    if precision == "fp64":
        network, images = network.double(), images.double()
    else:
        place(network, config, torch.device("cpu"), precision)
        images = images.bfloat16() if precision == "bf16" else images
    if not fast:
        for module in network.modules():
            if isinstance(module, bnrelu.BN | Convolution):
                module._is_fast = lambda *_: False
    with autocast(torch.device("cpu"), precision):
        logits = network.train()(images.contiguous(memory_format=torch.channels_last))
    loss = torch.nn.functional.cross_entropy(logits.double(), labels)
    return torch.cat([g.double() for g in torch.autograd.grad(loss, list(freeze.select(network, "bn").values()))])


@needs_cpp
def test_bf16_gradients_of_a_network_agree_with_fp64_as_well_as_torchs_own(seeded):
    """bf16 gradients at initialisation are noisy in torch's modules and in ours; so the error is compared with theirs.

    In the mean over several batches, since each path rounds otherwise. In fp32 a network's error is that of the few
    ReLUs whose input rounds to the other sign, which is chance; there the single layer's test above decides.
    """
    ours, torchs = [], []
    for _ in range(6):
        images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
        exact = affine_gradients("fp64", False, images, labels)
        for errors, fast in ((ours, True), (torchs, False)):
            found = affine_gradients("bf16", fast, images, labels)
            errors.append(float((found - exact).norm() / exact.norm()))
    assert sum(ours) <= 1.1 * sum(torchs)


def test_a_network_compiles_and_exports(seeded):
    """There torch's modules stand in, since a compiler cannot look into the C++ operations."""
    network = models.build("resnet14", 10).to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(torch.compile(network, backend="aot_eager")(images), network(images))
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(network, (images,)).module()(images), network(images))
