"""The convolution, 3×3 by Winograd's algorithm and strided: against float64, against torch's, and against itself."""

import pytest
import torch
import torch.nn.functional as F

from bnlib import convolution, models, native
from bnlib.bnrelu import BNReLU
from bnlib.convolution import Convolution
from bnlib.freeze import freeze

needs_cpp = pytest.mark.skipif(bool(native.why_not()), reason=f"C++ operation {native.why_not()}")
needs_winograd, needs_winograd_in_bf16 = (pytest.mark.skipif(bool(why_not), reason=f"Winograd: {why_not}")
                                          for why_not in map(convolution.why_not, ("fp32", "bf16")))
#: images, inputs, outputs, height, width: whole tiles and cut ones, one tile, blocks begun and several, wide, no image
SHAPES = [(40, 16, 16, 32, 32), (3, 16, 32, 7, 9), (5, 32, 16, 8, 8), (1, 64, 48, 4, 4), (11, 16, 16, 1, 5),
          (3, 256, 256, 8, 8), (1, 16, 512, 8, 4), (2, 16, 80, 8, 8), (0, 16, 16, 8, 8)]


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
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-14), (torch.float32, 5e-6), (torch.bfloat16, 3e-3)])
def test_output_and_gradients_agree_with_float64(shape, dtype, allowed, seeded):
    images, inputs, outputs, height, width = shape
    if max(inputs, outputs) > 256 and dtype != torch.bfloat16:
        allowed *= 2 ** 0.5                     # errors of as many additions
    x, gradient = (channels_last(images, n, height, width, dtype=dtype) for n in (inputs, outputs))
    weight = channels_last(outputs, inputs, 3, 3, dtype=dtype)
    ours = outcome(torch.ops.bnlib.convolve_3x3, x, weight, gradient)
    exact = outcome(torchs, x.double(), weight.double(), gradient.double())
    for found, value in zip(ours, exact, strict=True):
        assert found.shape == value.shape
        assert (found - value).norm() <= allowed * value.norm()


@needs_cpp
@pytest.mark.parametrize("trains", [(True, False), (False, True)], ids=["input alone", "weights alone"])
def test_it_gives_the_gradient_that_is_asked_for(trains, seeded):
    """Also of a gradient that is one number for all, and of one that is not channels-last."""
    x, weight = channels_last(8, 16, 8, 8).requires_grad_(trains[0]), torch.randn(16, 16, 3, 3, requires_grad=trains[1])
    asked = x if trains[0] else weight
    for backwards in (lambda y: y.sum(), lambda y: (y.contiguous() * torch.arange(8.0)).sum()):
        ours, theirs = (torch.autograd.grad(backwards(convolve(x, weight)), asked)[0]
                        for convolve in (torch.ops.bnlib.convolve_3x3, torchs))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@needs_cpp
def test_a_second_derivative_is_refused_rather_than_wrong(seeded):
    x, weight = channels_last(1, 16, 4, 4).requires_grad_(), torch.randn(16, 16, 3, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(torch.ops.bnlib.convolve_3x3(x, weight).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(BNReLU(16)(x).sum(), x, create_graph=True)


@needs_cpp
@pytest.mark.parametrize(("x", "weight"), [
    (torch.randn(2, 16, 8, 8), torch.randn(16, 16, 3, 3)), (channels_last(2, 32, 8, 8), torch.randn(16, 16, 3, 3)),
    (channels_last(2, 16, 8, 8), torch.randn(24, 16, 3, 3)), (channels_last(2, 16, 8, 8), torch.randn(16, 16, 1, 1)),
    (channels_last(2, 16, 8, 8, dtype=torch.float16), torch.randn(16, 16, 3, 3)),
    (channels_last(2, 16, 8, 8), torch.randn(0, 16, 3, 3)), (channels_last(2, 0, 8, 8), torch.randn(16, 0, 3, 3)),
], ids=["channels first", "channels", "outputs", "1x1", "half", "no outputs", "no channels"])
def test_the_operation_refuses_what_it_would_read_wrongly(x, weight):
    with pytest.raises(RuntimeError, match="convolve_3x3: takes"):
        torch.ops.bnlib.convolve_3x3(x, weight)


@pytest.mark.parametrize("layer", [Convolution(16, 16, 3, 1, 1), Convolution(32, 16, 3, 1, 1)])
def test_a_wrong_number_of_channels_is_torchs_error(layer):
    x = channels_last(2, 48, 32, 32)
    with pytest.raises(RuntimeError, match="channels"):
        layer(x)
    with pytest.raises(RuntimeError, match="running_mean"):
        BNReLU(layer.in_channels)(x)


@needs_cpp
def test_it_passes_gradcheck_in_float64(seeded):
    x = channels_last(1, 16, 3, 5, dtype=torch.float64).requires_grad_()
    weight = torch.randn(16, 16, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(torch.ops.bnlib.convolve_3x3, (x, weight), nondet_tol=0, fast_mode=True)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("outputs", [16, 80])                  # one range of the gradient of the weights, and two
def test_the_result_does_not_depend_on_the_number_of_threads(outputs, dtype, seeded):
    x, gradient = (channels_last(37, n, 12, 10, dtype=dtype) for n in (32, outputs))
    weight = torch.randn(outputs, 32, 3, 3, dtype=dtype)
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
    layer, x = Convolution(16, 32, 3, 1, 1), channels_last(8, 16, 8, 8)
    assert layer._is_fast(x, layer.weight)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), rtol=0, atol=1e-5)


@needs_winograd_in_bf16
def test_a_bias_in_float32_leaves_bf16_images_bf16(seeded):
    layer, x = Convolution(16, 32, 3, 1, 1), channels_last(8, 16, 8, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer._is_fast(x, layer.weight)
        y = layer(x)
    exact = torchs(x.double(), layer.weight.double()) + layer.bias.double()[:, None, None]
    assert y.dtype == torch.bfloat16 and (y - exact).norm() <= 5e-3 * exact.norm()


@pytest.mark.parametrize(("layer", "x"), [
    ((16, 16, 3, 2, 1), channels_last(2, 16, 8, 8)), ((16, 16, 1), channels_last(2, 16, 8, 8)),
    ((3, 16, 3, 1, 1), channels_last(2, 3, 8, 8)), ((16, 24, 3, 1, 1), channels_last(2, 16, 8, 8)),
    ((16, 16, 3, 1, 0), channels_last(8, 16, 8, 8)), ((16, 16, 3, 1, 1), channels_last(8, 16, 6, 6)),
    ((16, 16, 3, 1, 2, 2), channels_last(8, 16, 8, 8)), ((16, 32, 3, 1, 1, 1, 2), channels_last(8, 16, 8, 8)),
    ((16, 16, 3, 1, 1), torch.randn(8, 16, 8, 8)), ((16, 16, 3, 1, 1), channels_last(8, 16, 8, 8).double()),
    ((16, 16, 3, 1, 1), torch.randn(16, 8, 8)), ((32, 32, 3, 1, 1), channels_last(7, 32, 8, 8)),
], ids=["stride", "1x1", "inputs", "outputs", "no border", "6x6 pixels", "dilation", "groups", "channels first",
        "double", "one image", "few tiles"])
def test_what_it_does_not_take_goes_through_torch(layer, x, seeded):
    layer = Convolution(*layer).to(x.dtype)
    assert not layer._is_fast(x, layer.weight)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation,
                                          layer.groups))


@needs_winograd_in_bf16
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=["frozen", "trained"])
def test_bf16_images_stay_bf16_and_weights_that_train_have_gradients_in_float32(weights, seeded):
    layer, x = Convolution(16, 32, 3, 1, 1, bias=False).to(weights), channels_last(8, 16, 8, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer._is_fast(x, layer.weight)
        y = layer(x)
    weight = layer.weight.detach().double().requires_grad_()
    exact = torchs(x.double(), weight)
    assert y.dtype == torch.bfloat16 and (y - exact).norm() <= 2e-3 * exact.norm()      # rounded weights: 2.4e-3
    gradient, its_exact = torch.autograd.grad(y.sum(), layer.weight)[0], torch.autograd.grad(exact.sum(), weight)[0]
    allowed = 3e-3 if weights == torch.bfloat16 else 1e-5                               # not rounded on the way
    assert gradient.dtype == weights and (gradient - its_exact).norm() <= allowed * its_exact.norm()
    assert layer._is_fast(x, layer.weight) == (weights == torch.bfloat16)           # without autocast, as torch's


@needs_winograd
def test_autocast_takes_torchs_way_where_it_would_cast_the_images(seeded):
    layer, x = Convolution(16, 16, 3, 1, 1), channels_last(8, 16, 8, 8)
    assert layer._is_fast(x, layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer._is_fast(x, layer.weight) and layer(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert not layer._is_fast(x.bfloat16(), layer.weight) and layer(x.bfloat16()).dtype == torch.float16


@pytest.mark.parametrize(("flags", "fp32", "bf16"), [
    ("avx2", True, False), ("avx2 avx512f", True, True), ("avx2 avx512f avx512_bf16", True, True),
    ("avx2 avx512f amx_bf16", True, False), ("", False, False)],
    ids=["AVX2", "AVX-512", "AVX512-bf16", "AMX", "other"])
def test_it_is_taken_where_it_has_been_measured_to_be_faster(flags, fp32, bf16, monkeypatch):
    monkeypatch.setattr(native, "processor", lambda: ("", frozenset(flags.split())))
    monkeypatch.setattr(native, "why_not", lambda: "")
    monkeypatch.setattr(convolution, "why_not", convolution.why_not.__wrapped__)
    network, cpu = models.build("resnet14", 10), torch.device("cpu")
    assert [convolution.path(network, cpu, precision) for precision in ("fp32", "bf16")] == [
        "Winograd, strips" if taken else "torch" for taken in (fp32, bf16)]


@needs_winograd
@pytest.mark.parametrize("model", ["resnet14", "resnet110"])
def test_a_network_gives_what_it_gives_by_torch(model, seeded):
    """Its loss and, up to a ReLU that rounds to the other sign, the gradients of γ, β and the weights."""
    found, taken = [], []
    network = models.build(model, 10).to(memory_format=torch.channels_last).train()
    trained = list(freeze(network, "all").values())
    images, labels = channels_last(32, 3, 32, 32), torch.randint(0, 10, (32,))
    convolutions = [module for module in network.modules() if isinstance(module, Convolution)]
    for module in convolutions:
        module.register_forward_pre_hook(lambda module, x: taken.append(module._is_fast(x[0], module.weight)))
    for fast in (True, False):
        for module in convolutions:
            if not fast:
                module._is_fast = lambda *_: False
        loss = F.cross_entropy(network(images), labels)
        found.append((loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])))
    # all but the first, whose image has three channels, and of two stages the first and its shortcut, with a stride
    assert sum(taken) == len(convolutions) - 5 and len(taken) == 2 * len(convolutions)
    (ours, our_gradient), (theirs, their_gradient) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    assert torch.cosine_similarity(our_gradient, their_gradient, 0) > 0.999


# ---------------------------------------------------------------------------------------------- strided, 1×1

@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "stride", "size"), [
    (16, (2, 2), (9, 8)), (32, (1, 2), (1, 33)), (4, (3, 2), (7, 5)), (64, (2, 2), (1, 1))], ids=str)
def test_a_strided_1x1_convolution_skips_pixels_first_and_is_the_same(inputs, stride, size, dtype, seeded,
                                                                       monkeypatch):
    """Output and gradients, up to the order of sums; what it does not see has no gradient."""
    layer = Convolution(inputs, 32, 1, stride).to(dtype)
    x, skipped, by_ours = channels_last(3, inputs, *size, dtype=dtype), [], torch.ops.bnlib.skip
    monkeypatch.setattr(torch.ops.bnlib, "skip", lambda *given: skipped.append(given) or by_ours(*given))
    found = []
    for convolve in (layer, lambda x: F.conv2d(x, layer.weight, layer.bias, stride)):
        given = x.clone().requires_grad_()
        y = convolve(given)
        weights = torch.linspace(-1, 2, y.numel()).view(y.shape).to(dtype)
        found.append((y, *torch.autograd.grad(y, (given, layer.weight, layer.bias), weights)))
    assert len(skipped) == 1
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).double().norm() <= 8 * torch.finfo(dtype).eps * theirs.double().norm()
    seen = torch.zeros(size, dtype=torch.bool)
    seen[::stride[0], ::stride[1]] = True
    assert not found[0][1][:, :, ~seen].any() and found[0][1][:, :, seen].any()


def test_other_convolutions_do_not_skip():
    x = channels_last(2, 32, 8, 8)
    for layer in (Convolution(32, 32, 3, 2), Convolution(32, 32, 1), Convolution(32, 32, 1, 2, groups=2),
                  Convolution(32, 32, 1, 2, padding=1)):
        assert not layer._skips(x)
    assert not Convolution(32, 32, 1, 2)._skips(x.to("meta"))


@needs_cpp
def test_skipping_has_a_second_derivative_and_takes_gradients_of_any_layout(seeded):
    x = channels_last(2, 3, 5, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: torch.ops.bnlib.skip(x, 2, 3).pow(3), x)
    for number in (1.0, torch.arange(3 * 2.0, dtype=torch.float64).view(1, 3, 2).expand(2, 3, 3, 2)[:, :, :3]):
        ours, theirs = (torch.autograd.grad((skip(x) * number).sum(), x)[0] for skip in (
            lambda x: torch.ops.bnlib.skip(x, 2, 3), lambda x: x[:, :, ::2, ::3]))
        assert torch.equal(ours, theirs)


@needs_cpp
@pytest.mark.parametrize(("x", "steps"), [(torch.randn(2, 16, 8, 8), (2, 2)), (torch.randn(2, 16), (2, 2)),
                                          (channels_last(0, 16, 8, 8), (2, 2)), (channels_last(2, 16, 8, 8), (0, 2)),
                                          (channels_last(2, 16, 8, 8), (2, -1))])
def test_skipping_refuses_what_it_would_read_wrongly(x, steps):
    with pytest.raises(RuntimeError, match="skip: takes"):
        torch.ops.bnlib.skip(x, *steps)
