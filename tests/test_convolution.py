"""The 3×3 convolution by Winograd's algorithm: against float64, against torch's, and against itself."""

import pytest
import torch
import torch.nn.functional as F

from bnlib import convolution, models, native
from bnlib.convolution import Convolution
from bnlib.freeze import freeze

needs_cpp = pytest.mark.skipif(bool(native.fast_path()), reason=f"C++ operation {native.fast_path()}")
needs_winograd = pytest.mark.skipif(bool(convolution.path()), reason=f"Winograd's algorithm: {convolution.path()}")
#: images, inputs, outputs, height, width: whole tiles and cut ones, one tile, blocks begun and several
SHAPES = [(40, 16, 16, 32, 32), (3, 16, 32, 7, 9), (5, 32, 16, 8, 8), (1, 64, 48, 4, 4), (11, 16, 16, 1, 5)]


def channels_last(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype).contiguous(memory_format=torch.channels_last)


def outcome(convolve, x, weight, gradient):
    """Output, gradient of the input and of the weights, in float64."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = convolve(x, weight)
    return [each.detach().double() for each in (y, *torch.autograd.grad(y, (x, weight), gradient))]


def torchs(x, weight):
    return F.conv2d(x, weight, padding=1)


@needs_cpp
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-14), (torch.float32, 3e-6), (torch.bfloat16, 3e-3)])
def test_output_and_gradients_agree_with_float64(shape, dtype, allowed, seeded):
    images, inputs, outputs, height, width = shape
    x, gradient = (channels_last(images, n, height, width, dtype=dtype) for n in (inputs, outputs))
    weight = channels_last(outputs, inputs, 3, 3, dtype=dtype)
    ours = outcome(torch.ops.bnlib.convolve_3x3, x, weight, gradient)
    exact = outcome(torchs, x.double(), weight.double(), gradient.double())
    for found, value in zip(ours, exact, strict=True):
        assert found.shape == value.shape
        assert (found - value).norm() <= allowed * value.norm()


@needs_cpp
def test_it_passes_gradcheck_in_float64(seeded):
    x = channels_last(1, 16, 3, 5, dtype=torch.float64).requires_grad_()
    weight = torch.randn(16, 16, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(torch.ops.bnlib.convolve_3x3, (x, weight), nondet_tol=0, fast_mode=True)


@needs_winograd
def test_the_result_does_not_depend_on_the_number_of_threads(seeded):
    x, gradient, weight = channels_last(37, 32, 12, 10), channels_last(37, 16, 12, 10), torch.randn(16, 32, 3, 3)
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(outcome(torch.ops.bnlib.convolve_3x3, x, weight, gradient))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_winograd
def test_a_nan_is_passed_on_to_what_depends_on_it_and_no_further_than_a_tile():
    x = torch.zeros(2, 16, 16, 16).contiguous(memory_format=torch.channels_last)
    x[0, 3, 1, 1] = float("nan")
    y = Convolution(16, 16, 3, 1, 1, bias=False)(x).detach()
    assert y[0, :, 0:3, 0:3].isnan().all() and not y[1].isnan().any() and not y[0, :, 8:].isnan().any()


@needs_winograd
def test_a_bias_is_added(seeded):
    layer, x = Convolution(16, 32, 3, 1, 1), channels_last(2, 16, 8, 8)
    assert layer._is_fast(x, layer.weight)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layer", "x"), [
    ((16, 16, 3, 2, 1), channels_last(2, 16, 8, 8)), ((16, 16, 1), channels_last(2, 16, 8, 8)),
    ((3, 16, 3, 1, 1), channels_last(2, 3, 8, 8)), ((16, 24, 3, 1, 1), channels_last(2, 16, 8, 8)),
    ((16, 16, 3, 1, 0), channels_last(2, 16, 8, 8)), ((16, 16, 3, 1, 1), channels_last(2, 16, 2, 2)),
    ((16, 16, 3, 1, 1), torch.randn(2, 16, 8, 8)), ((16, 16, 3, 1, 1), channels_last(2, 16, 8, 8).bfloat16()),
], ids=["stride", "1x1", "inputs", "outputs", "no border", "2x2 pixels", "channels first", "bf16"])
def test_what_it_does_not_take_goes_through_torch(layer, x, seeded):
    layer = Convolution(*layer).to(x.dtype)
    assert not layer._is_fast(x, layer.weight)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding))


@needs_winograd
@pytest.mark.parametrize("model", ["resnet14", "resnet110"])
def test_a_network_gives_what_it_gives_by_torch(model, seeded):
    """Its loss and, up to a ReLU that rounds to the other sign, the gradients of γ, β and the weights."""
    found = []
    network = models.build(model, 10).to(memory_format=torch.channels_last).train()
    trained = list(freeze(network, "all").values())
    images, labels = channels_last(32, 3, 32, 32), torch.randint(0, 10, (32,))
    for fast in (True, False):
        for module in network.modules():
            if isinstance(module, Convolution) and not fast:
                module._is_fast = lambda *_: False
        loss = F.cross_entropy(network(images), labels)
        found.append((loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])))
    (ours, our_gradient), (theirs, their_gradient) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    assert torch.cosine_similarity(our_gradient, their_gradient, 0) > 0.999
