"""Batch norm, sum and ReLU in Triton: ours against torch's modules and against float64.

Where there is no GPU, Triton's interpreter runs the same kernels on the CPU, one program after the other.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from bnlib import bnrelu, cuda, models
from bnlib.device import choose_device
from bnlib.freeze import bn_layers

pytest.importorskip("triton", reason="no Triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"         # Triton reads it as it is imported
needs_triton = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="no GPU, and Triton not interpreted")
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="they run in this process")
def test_all_of_this_file_passes_where_triton_is_interpreted():
    done = subprocess.run([sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", __file__], text=True,
                          env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, timeout=300)
    assert done.returncode == 0 and " passed, 3 skipped" in done.stdout, done.stdout + done.stderr


def kernels(*given):
    from bnlib.native import gpu
    return gpu.BNReLU.apply(*given)


def torchs(x, add, gamma, beta, mean, var, seen, momentum, eps, relu):
    y = F.batch_norm(x, mean, var, gamma, beta, True, momentum, eps)
    y = y if add is None else y + add
    return F.relu(y) if relu else y


def outcome(function, x, add, gradient, dtype, weights, relu=True):
    """Output, gradients and running statistics of batch norm by `function`, in double precision."""
    channels = x.shape[1]
    x, add = (None if t is None else t.to(dtype).detach().requires_grad_() for t in (x, add))
    gamma = torch.linspace(-0.5, 1, channels, dtype=weights, device=DEVICE, requires_grad=True)
    beta = torch.linspace(-0.3, 0.3, channels, dtype=weights, device=DEVICE, requires_grad=True)
    mean, var = torch.zeros(channels, dtype=weights, device=DEVICE), torch.ones(channels, dtype=weights, device=DEVICE)
    seen = torch.tensor(6, device=DEVICE)
    y = function(x, add, gamma, beta, mean, var, seen, 0.1, 1e-5, relu)
    y.backward(gradient.to(dtype))
    found = {"y": y, "x": x.grad, "gamma": gamma.grad, "beta": beta.grad, "mean": mean, "var": var}
    return {name: t.detach().double() for name, t in (found | ({} if add is None else {"add": add.grad})).items()}, seen


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 16, 32, 32), (7, 64, 5, 5), (3, 32, 9, 7), (2, 512, 2, 2), (300, 16, 1, 1),
                                   (9, 512, 6, 6), (2, 1024, 2, 2)])
@pytest.mark.parametrize(("adds", "relu"), [(False, True), (True, True), (True, False), (False, False)])
def test_the_kernels_are_as_exact_as_torch(dtype, shape, adds, relu):
    """Of bf16 the interpreter cuts off what a GPU rounds, so that what is kept in bf16 may be twice as far off, and a
    little more where it is done twice."""
    draws = torch.Generator().manual_seed(0)

    def drawn():
        values = torch.randn(shape, generator=draws).to(DEVICE, dtype)
        return values.contiguous(memory_format=torch.channels_last)

    x, gradient, add = drawn() * 2 + 3, drawn(), drawn() if adds else None

    exact, _ = outcome(torchs, x, add, gradient, torch.float64, torch.float64, relu)
    their, _ = outcome(torchs, x, add, gradient, dtype, torch.float32, relu)
    ours, seen = outcome(kernels, x, add, gradient, dtype, torch.float32, relu)
    assert seen == 7
    cut_off = 2.2 if dtype == torch.bfloat16 and DEVICE == "cpu" else 1
    for name, truth in exact.items():
        size = truth.norm()
        assert (ours[name] - truth).norm() <= 1.1 * cut_off * (their[name] - truth).norm() + 1e-6 * size, name


@needs_gpu
def test_the_kernels_give_the_same_bits_twice():
    x = torch.randn(128, 16, 32, 32, device=DEVICE).contiguous(memory_format=torch.channels_last)
    first, second = (outcome(kernels, x, x, x, torch.float32, torch.float32)[0] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@needs_triton
def test_nan_stays():
    x = torch.randn(4, 16, 4, 4, device=DEVICE).contiguous(memory_format=torch.channels_last)
    x[0, 3, 0, 0] = torch.nan
    found, _ = outcome(kernels, x, None, x, torch.float32, torch.float32)
    assert found["y"][:, 3].isnan().all() and not found["y"][:, 4:].isnan().any()


@needs_triton
@pytest.mark.parametrize("trains", ["gamma", "beta"])
def test_images_without_gradient_and_one_of_gamma_and_beta_frozen(trains):
    """As in a first layer of which one alone trains; the gradient repeats one value a map, behind the mean of it."""
    x, found = torch.randn(6, 16, 5, 3, device=DEVICE).contiguous(memory_format=torch.channels_last), []
    for function in (kernels, torchs):
        gamma, var = torch.ones(2, 16, device=DEVICE)
        beta, mean = torch.zeros(2, 16, device=DEVICE)
        parameter = {"gamma": gamma, "beta": beta}[trains].requires_grad_()
        y = function(x, None, gamma, beta, mean, var, torch.tensor(0, device=DEVICE), 0.1, 1e-5, True)
        y.mean((2, 3)).square().sum().backward()
        found.append(parameter.grad)
    assert torch.allclose(*found, rtol=1e-5, atol=1e-7)


@needs_triton
@pytest.mark.parametrize("grad", [True, False])
def test_the_module_hands_the_kernels_what_is_its_own(grad, monkeypatch):
    """Momentum and ε too; and the statistics go on without gradients."""
    x = torch.randn(6, 16, 5, 3, device=DEVICE).contiguous(memory_format=torch.channels_last)
    ours, theirs = (kind(16, eps=1e-2, momentum=0.3).to(DEVICE) for kind in (bnrelu.BN, torch.nn.BatchNorm2d))
    monkeypatch.setattr(bnrelu.BN, "_has_kernels", lambda *_: True)
    with torch.set_grad_enabled(grad):
        found, expected = ours(x, x), theirs(x) + x
    assert torch.allclose(found, expected, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


@needs_gpu
def test_a_network_on_a_gpu_takes_the_kernels_and_learns_as_torch_does(monkeypatch):
    from bnlib.native import gpu
    choose_device("cuda")                              # no TF32, which makes small differences large
    torch.manual_seed(0)
    images = torch.randn(128, 3, 32, 32, device=DEVICE).contiguous(memory_format=torch.channels_last)
    taken, gradients, apply = [], {}, gpu.BNReLU.apply
    monkeypatch.setattr(gpu.BNReLU, "apply", lambda *given: taken.append(given) or apply(*given))
    for name in ("ours", "torch"):
        network = models.build("resnet14", 10).to(DEVICE, memory_format=torch.channels_last)
        if name == "torch":
            monkeypatch.setattr(bnrelu.BN, "_has_kernels", lambda *_: False)
        with cuda.own_stream(torch.device(DEVICE)):
            network(images).square().mean().backward()
            torch.cuda.current_stream().synchronize()
        gradients[name] = {name: p.grad for name, p in network.named_parameters()}
        assert len(taken) == len(bn_layers(network))
    for name, gradient in gradients["torch"].items():
        assert (gradients["ours"][name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-7, name
