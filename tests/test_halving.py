"""A block that halves its images as one operation, by AMX: against torch's modules in float64, and against itself."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnlib import models, residual
from bnlib.models import BasicBlock
from tests import test_residual

pytestmark = pytest.mark.skipif(bool(residual.why_not_amx()), reason=f"AMX: {residual.why_not_amx()}")
#: images, channels in and out, height, width: a network's own, one image, parts of a tile, fewer channels out, a pixel
#: a map, as many channels as may be
SHAPES = [(40, 16, 32, 32, 32), (37, 32, 64, 16, 16), (1, 16, 32, 32, 32), (5, 48, 16, 12, 10), (9, 112, 80, 6, 18),
          (200, 16, 16, 2, 4), (7, 64, 128, 2, 2), (3, 64, 64, 2, 104), (7, 256, 512, 4, 4)]
LEARNED = (0, 1, 2, 3, 6, 7, 8, 11, 12, 13)       # of the arguments: images, weights, γ and β of the three layers
WEIGHTS = (1, 6, 11)


def channels_last(*shape):
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def arguments(images, inputs, outputs, height, width):
    """Images in bfloat16; of each layer weights, of which each is a bfloat16, γ, β, running mean and variance."""
    def layer(inputs, size):
        return [(0.1 * channels_last(outputs, inputs, size, size)).bfloat16().float(), torch.rand(outputs),
                torch.randn(outputs), torch.randn(outputs), torch.rand(outputs)]
    images = channels_last(images, inputs, height, width).bfloat16()
    return [images, *layer(inputs, 3), *layer(outputs, 3), *layer(inputs, 1)]


def by_torch(x, w1, gamma1, beta1, mean1, var1, w2, gamma2, beta2, mean2, var2, w3, gamma3, beta3, mean3, var3,
             *constants):
    y = F.relu(F.batch_norm(F.conv2d(x, w1, stride=2, padding=1), mean1, var1, gamma1, beta1, True, *constants))
    y = F.batch_norm(F.conv2d(y, w2, padding=1), mean2, var2, gamma2, beta2, True, *constants)
    return F.relu(y + F.batch_norm(F.conv2d(x, w3, stride=2), mean3, var3, gamma3, beta3, True, *constants))


def by_torch_in_bf16(*given):
    """As autocast has it: weights are rounded, batch norm's parameters and statistics stay in float32."""
    return by_torch(*(each.bfloat16() if number in WEIGHTS else each for number, each in enumerate(given)))


def outcome(block, given, dtype=None, learned=LEARNED):
    return test_residual.outcome(block, given, dtype, learned)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_near_to_float64_as_torchs_own_operations(shape, seeded):
    """Output, gradients and statistics, over five draws: which ReLU lets a value near zero pass is chance."""
    errors = []
    for _ in range(5):
        given = arguments(*shape)
        exact = outcome(by_torch, given, torch.float64)
        errors.append([[(found - value).norm() / value.norm() for found, value in zip(ones, exact, strict=True)]
                       for ones in (outcome(torch.ops.bnlib.halving_block, given), outcome(by_torch_in_bf16, given))])
    ours, theirs = torch.tensor(errors).mean(0)
    assert (ours <= 1.1 * theirs + 1e-6).all(), (ours / theirs).tolist()


def test_weights_in_bfloat16_give_the_same_as_rounded_ones_whether_they_train_or_not(seeded):
    given = arguments(5, 48, 16, 12, 10)
    as_bf16 = [each.bfloat16() if number in WEIGHTS else each for number, each in enumerate(given)]
    expected = outcome(torch.ops.bnlib.halving_block, given)
    is_weight = [number in (2, 5, 8) for number in range(len(expected))]          # of the outcome
    rounded = outcome(torch.ops.bnlib.halving_block, as_bf16)
    for found, value, is_rounded in zip(rounded, expected, is_weight, strict=True):
        assert torch.equal(found, value.bfloat16().double() if is_rounded else value)
    frozen = outcome(torch.ops.bnlib.halving_block, as_bf16, learned=[n for n in LEARNED if n not in WEIGHTS])
    kept = [value for value, left_out in zip(expected, is_weight, strict=True) if not left_out]
    assert all(map(torch.equal, frozen, kept))


@pytest.mark.parametrize("trained", [1, 6, 11])
def test_each_gradient_is_the_same_alone(trained, seeded):
    given = arguments(5, 16, 32, 12, 10)
    expected = outcome(torch.ops.bnlib.halving_block, given)[1 + LEARNED.index(trained)]
    assert torch.equal(outcome(torch.ops.bnlib.halving_block, given, learned=[trained])[1], expected)


@pytest.mark.parametrize("statistics", [1e4, float("inf"), float("nan")])
def test_what_it_makes_of_a_batch_does_not_depend_on_the_running_statistics(statistics, seeded):
    given = arguments(8, 16, 32, 8, 8)
    expected = torch.ops.bnlib.halving_block(*given, 0.0, 1e-5)
    for number in (4, 5, 9, 10, 14, 15):
        given[number].fill_(statistics)
    assert torch.equal(torch.ops.bnlib.halving_block(*given, 0.1, 1e-5), expected)


def test_a_nan_is_seen(seeded):
    given = arguments(8, 16, 32, 8, 8)
    given[0][3, 5, 2, 2] = float("nan")
    assert torch.ops.bnlib.halving_block(*given, 0.1, 1e-5).isnan().all()
    assert all(given[number].isnan().all() for number in (4, 5, 9, 10)) and given[14].isnan().any()


@pytest.mark.parametrize("backwards", [
    lambda y: y.sum(), lambda y: (y.contiguous() * torch.arange(4.0)).sum(), lambda y: y.mean((0, 2, 3)).square().sum(),
], ids=["one number", "channels first", "expanded"])
def test_gradients_of_any_layout_are_taken(backwards, seeded):
    """Also twice, where the graph is kept, and of weights that are not channels-last: the same as of those that are."""
    given = arguments(8, 16, 32, 8, 8)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        learned = [given[number].detach().contiguous(memory_format=memory_format).requires_grad_() if number in WEIGHTS
                   else given[number].requires_grad_() for number in LEARNED]
        whole = list(given)
        for number, each in zip(LEARNED, learned, strict=True):
            whole[number] = each
        y = torch.ops.bnlib.halving_block(*whole, 0.1, 1e-5)
        found += [torch.autograd.grad(backwards(y), learned, retain_graph=True) for _ in range(2)]
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    exact = torch.autograd.grad(backwards(by_torch(*(each.float() for each in whole), 0.1, 1e-5)), learned)
    scale = max(value.norm() for value in exact)                    # some are zero but for rounding
    for ours, value in zip(found[0], exact, strict=True):
        assert (ours - value).norm() <= 0.1 * value.norm() + 0.01 * scale


def test_a_second_derivative_is_refused_rather_than_wrong(seeded):
    given = arguments(2, 16, 32, 4, 4)
    given[0].requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(torch.ops.bnlib.halving_block(*given, 0.1, 1e-5).sum(), given[0], create_graph=True)


@pytest.mark.parametrize("wrong", [
    {0: torch.randn(2, 16, 8, 8).bfloat16()}, {0: channels_last(2, 16, 8, 8)},
    {0: channels_last(2, 16, 7, 8).bfloat16()}, {0: channels_last(2, 16, 8, 7).bfloat16()},
    {0: channels_last(2, 32, 8, 8).bfloat16()}, {0: channels_last(0, 16, 8, 8).bfloat16()},
    {0: torch.empty(2, 16, 8, 8, dtype=torch.bfloat16, device="meta")},
    {1: channels_last(40, 16, 3, 3)}, {6: channels_last(32, 16, 3, 3)}, {7: torch.rand(16)},
    {11: channels_last(32, 16, 3, 3)}, {11: channels_last(32, 16, 1, 1).double()},
    {15: torch.rand(32, dtype=torch.float64)},
], ids=["channels first", "float", "odd height", "odd width", "channels", "none", "meta", "outputs", "inputs", "few γ",
        "3x3", "double", "double variance"])
def test_the_operation_refuses_what_it_would_read_wrongly(wrong):
    given = arguments(2, 16, 32, 8, 8)
    for number, each in wrong.items():
        given[number] = each
    with pytest.raises(RuntimeError, match="halving_block: takes"):
        torch.ops.bnlib.halving_block(*given, 0.1, 1e-5)


@pytest.mark.parametrize("channels", [(16, 32), (32, 64), (80, 144)])
def test_the_result_does_not_depend_on_the_number_of_threads(channels, seeded):
    """But for the strided convolutions' weights, whose gradients are torch's."""
    given, threads, found = arguments(37, *channels, 12, 10), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(outcome(torch.ops.bnlib.halving_block, given))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for number, (a, b) in enumerate(zip(found[0], other, strict=True)):
            by_torch_itself = number in (1 + LEARNED.index(1), 1 + LEARNED.index(11))
            assert (a - b).norm() <= 1e-3 * a.norm() if by_torch_itself else torch.equal(a, b)


def test_a_gradient_that_others_hold_is_left_as_it_was(seeded):
    given = arguments(8, 16, 32, 8, 8)
    given[0].requires_grad_()
    gradient = channels_last(8, 32, 4, 4).bfloat16()
    before = gradient.clone()
    torch.autograd.grad(torch.ops.bnlib.halving_block(*given, 0.1, 1e-5), given[0], gradient)
    assert torch.equal(gradient, before)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(16, 16, 1), (16, 32, 2)])
def test_a_few_weights_of_each_channel_train_in_a_whole_block(inputs, outputs, stride, seeded):
    """Each convolution's gradient against that of the block's parts in float64."""
    block = BasicBlock(inputs, outputs, stride, "B", "batch", (3, 3))
    models.choose_weights(block, 2, seed=0)
    for part in block.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data, part.chosen.data = part.weight.bfloat16().float(), part.chosen.bfloat16().float()
    x = channels_last(40, inputs, 16, 16).bfloat16()
    exact = copy.deepcopy(block).double()
    block.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert residual.fused_layers(block, x)
        ours = block(x)
    theirs, found = exact(x.double()), []
    for network, y in ((block, ours), (exact, theirs)):
        slopes = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
        found.append(torch.autograd.grad(y, [value for name, value in network.named_parameters() if "chosen" in name],
                                         slopes))
    assert len(found[0]) == 2 + (stride == 2)
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 0.1 * b.norm()


def block_of(shortcut="B", norm="batch", stride=2, final_relu=True):
    block = BasicBlock(16, 32, stride, shortcut, norm, (3, 3), final_relu)
    return block.to(memory_format=torch.channels_last).train()


def test_a_block_is_one_operation_where_all_its_parts_are_taken(seeded):
    x, block = channels_last(8, 16, 8, 8).bfloat16(), block_of()
    assert not residual.fused_layers(block, x)                          # float32 weights, and no autocast
    with torch.autocast("cpu", torch.bfloat16):
        assert len(residual.fused_layers(block, x)) == 3
        for other in (block_of().eval(), block_of("A"), block_of("plain"), block_of("none"), block_of(norm="group"),
                      block_of(stride=1), block_of(final_relu=False), block_of().bfloat16()):
            assert not residual.fused_layers(other, x)
        for images in (x.contiguous(), x[:, :, :7].contiguous(memory_format=torch.channels_last), x[:0],
                       channels_last(8, 32, 8, 8).bfloat16()):
            assert not residual.fused_layers(block, images)
    assert not residual.fused_layers(block, x.float())                  # Winograd's has no strides
    assert residual.path(block, x.device, "bf16") == "our AMX kernel, strided too"
    assert residual.path(block, x.device, "fp32") == ""


class Half(models.Shortcut):
    def forward(self, x):
        return super().forward(x) / 2


@pytest.mark.parametrize("change", [
    lambda block: setattr(block, "shortcut", Half(16, 32, (2, 2), "batch")),
    lambda block: torch.nn.utils.parametrize.register_parametrization(block.conv1, "weight", nn.Identity()),
    lambda block: setattr(block.conv1, "weights", lambda: block.conv1.weight / 2),
    lambda block: block.shortcut.register_forward_hook(lambda *_: None),
    lambda block: block.shortcut[0].register_full_backward_hook(lambda *_: None),
    lambda block: setattr(block.shortcut[1], "forward", lambda x: x), lambda block: block.shortcut[1].eval(),
    lambda block: setattr(block.shortcut[1], "eps", 1e-3), lambda block: block.shortcut.append(nn.Identity()),
    lambda block: block.shortcut.__setitem__(1, models.BNReLU(32)),
    lambda block: block.shortcut.__setitem__(0, models.convolution(16, 32, 2)),
    lambda block: setattr(block, "conv1", models.Convolution(16, 32, 3, 2, 0, bias=False)),
    lambda block: setattr(block.shortcut[1], "running_var", torch.ones(32, dtype=torch.float64)),
], ids=["another shortcut", "parametrised", "weights", "hook", "backward hook", "forward", "frozen statistics", "eps",
        "more", "ReLU", "3x3", "no border", "double"])
def test_a_block_of_other_parts_is_not_one_operation(change, seeded):
    block, x = block_of(), channels_last(8, 16, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert residual.fused_layers(block, x)
        change(block)
        assert not residual.fused_layers(block, x)
