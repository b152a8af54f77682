"""A residual block as one operation: against torch's modules in float64, against its own parts, and against itself."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnlib import convolution, models, native, residual
from bnlib.config import Config
from bnlib.device import autocast
from bnlib.freeze import freeze
from bnlib.models import BasicBlock
from bnlib.train import place, run

needs_cpp = pytest.mark.skipif(bool(native.why_not()), reason=f"C++ operation {native.why_not()}")
why_not = convolution.why_not("fp32")
needs_winograd = pytest.mark.skipif(bool(why_not), reason=f"Winograd: {why_not}")
needs_amx = pytest.mark.skipif(bool(residual.why_not_amx()), reason=f"AMX: {residual.why_not_amx()}")
#: images, channels, height, width: whole tiles and cut ones, one tile, strips of more tiles than a block has
SHAPES = [(40, 16, 32, 32), (3, 32, 12, 10), (2, 64, 4, 4), (1, 48, 7, 9), (3, 16, 10, 104)]
LEARNED = (0, 1, 2, 3, 6, 7, 8)          # of the arguments: images, weights, γ and β of both layers


def channels_last(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype).contiguous(memory_format=torch.channels_last)


def arguments(images, channels, height, width, mean=0.0):
    """Images, and of both layers weights, γ, β, running mean and variance."""
    def layer():
        return [0.1 * channels_last(channels, channels, 3, 3), torch.rand(channels), torch.randn(channels),
                torch.randn(channels), torch.rand(channels)]
    return [mean + channels_last(images, channels, height, width), *layer(), *layer()]


def by_torch(x, weight1, gamma1, beta1, mean1, var1, weight2, gamma2, beta2, mean2, var2, momentum, eps):
    y = F.relu(F.batch_norm(F.conv2d(x, weight1, padding=1), mean1, var1, gamma1, beta1, True, momentum, eps))
    return F.relu(F.batch_norm(F.conv2d(y, weight2, padding=1), mean2, var2, gamma2, beta2, True, momentum, eps) + x)


def outcome(block, given, dtype, learned=LEARNED):
    """Output, gradients and running statistics, in float64, of a block computed in `dtype`, or as what is given."""
    given = [each.detach().clone().to(dtype or each.dtype) for each in given]
    for number in learned:
        given[number].requires_grad_()
    y = block(*given, 0.1, 1e-5)
    weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    found = [y, *torch.autograd.grad(y, [given[number] for number in learned], weights)]
    statistics = [each for layer in range(1, len(given), 5) for each in given[layer + 3:layer + 5]]
    return [each.detach().double() for each in (*found, *statistics)]


@needs_cpp
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_agrees_with_torch_in_float64(shape, seeded):
    given = arguments(*shape)
    ours, theirs = (outcome(block, given, torch.float64) for block in (torch.ops.bnlib.basic_block, by_torch))
    for found, value in zip(ours, theirs, strict=True):
        assert found.shape == value.shape
        assert (found - value).norm() <= 1e-11 * value.norm()


@needs_cpp
@pytest.mark.parametrize(("mean", "allowed"), [(0, 2e-5), (10, 2e-4)])
def test_float32_is_as_near_to_float64_as_its_convolutions(mean, allowed, seeded):
    given = arguments(7, 16, 8, 8, mean)
    ours = outcome(torch.ops.bnlib.basic_block, given, torch.float32)
    for found, value in zip(ours, outcome(by_torch, given, torch.float64), strict=True):
        assert (found - value).norm() <= allowed * value.norm()


def by_torch_in_bf16(x, weight1, gamma1, beta1, mean1, var1, weight2, gamma2, beta2, mean2, var2, *momentum_and_eps):
    """As autocast has it: weights are rounded, batch norm's parameters and statistics stay in float32."""
    return by_torch(x, weight1.bfloat16(), gamma1, beta1, mean1, var1, weight2.bfloat16(), gamma2, beta2, mean2, var2,
                    *momentum_and_eps)


def in_bf16(given):
    """Images in bfloat16; weights, of which each is a bfloat16, in float32 as those that train."""
    return [each.bfloat16() if number == 0 else each.bfloat16().float() if number in (1, 6) else each
            for number, each in enumerate(given)]


@needs_amx
@pytest.mark.parametrize("shape", [*SHAPES, (37, 16, 12, 10), (9, 112, 5, 6), (20, 80, 3, 3), (3, 256, 8, 8)], ids=str)
def test_bfloat16_is_as_near_to_float64_as_torchs_own_operations(shape, seeded):
    """Output, gradients and statistics, over five draws: which ReLU lets a value near zero pass is chance. Among the
    shapes are parts of the batch that are no whole number of images at once."""
    errors = []
    for _ in range(5):
        given = in_bf16(arguments(*shape))
        exact = outcome(by_torch, given, torch.float64)
        errors.append([[(found - value).norm() / value.norm() for found, value in zip(ones, exact, strict=True)]
                       for ones in (outcome(torch.ops.bnlib.basic_block, given, None),
                                    outcome(by_torch_in_bf16, given, None))])
    ours, theirs = torch.tensor(errors).mean(0)
    assert (ours <= 1.1 * theirs + 1e-6).all(), (ours / theirs).tolist()


@needs_amx
def test_weights_in_bfloat16_give_the_same_as_rounded_ones_whether_they_train_or_not(seeded):
    given = in_bf16(arguments(5, 48, 7, 9))
    as_bf16 = [each.bfloat16() if number in (1, 6) else each for number, each in enumerate(given)]
    expected = outcome(torch.ops.bnlib.basic_block, given, None)
    for found, value in zip(outcome(torch.ops.bnlib.basic_block, as_bf16, None), expected, strict=True):
        assert torch.equal(found, value.bfloat16().double() if value.shape[1:] == (48, 3, 3) else value)
    frozen = outcome(torch.ops.bnlib.basic_block, as_bf16, None, [n for n in LEARNED if n not in (1, 6)])
    assert all(map(torch.equal, frozen, [value for value in expected if value.shape[1:] != (48, 3, 3)]))


@needs_cpp
@pytest.mark.parametrize("statistics", [0.0, 1e4, float("inf"), float("nan")])
def test_what_it_makes_of_a_batch_does_not_depend_on_the_running_statistics(statistics, seeded):
    given = arguments(8, 16, 8, 8)
    expected = torch.ops.bnlib.basic_block(*given, 0.0, 1e-5)
    for number in (4, 5, 9, 10):
        given[number].fill_(statistics)
    assert torch.equal(torch.ops.bnlib.basic_block(*given, 0.0, 1e-5), expected)
    assert torch.equal(torch.ops.bnlib.basic_block(*given, 0.1, 1e-5), expected)


@needs_cpp
@pytest.mark.parametrize("change", [list, pytest.param(in_bf16, marks=needs_amx)])
def test_a_nan_is_seen(change, seeded):
    given = change(arguments(8, 16, 8, 8))
    given[0][3, 5, 2, 2] = float("nan")
    assert torch.ops.bnlib.basic_block(*given, 0.1, 1e-5).isnan().all()
    assert all(given[number].isnan().any() for number in (4, 5, 9, 10))


@needs_cpp
@pytest.mark.parametrize("backwards", [
    lambda y: y.sum(), lambda y: (y.contiguous() * torch.arange(8.0)).sum(), lambda y: y.mean((0, 2, 3)).square().sum(),
], ids=["one number", "channels first", "expanded"])
def test_gradients_of_any_layout_are_taken(backwards, seeded):
    """Also twice, where the graph is kept, and of weights that are not channels-last."""
    given = arguments(8, 16, 8, 8)
    given[1], given[6] = given[1].contiguous(), given[6].contiguous()
    learned = [given[number].requires_grad_() for number in LEARNED]
    y = torch.ops.bnlib.basic_block(*given, 0.1, 1e-5)
    ours, again = (torch.autograd.grad(backwards(y), learned, retain_graph=True) for _ in range(2))
    theirs = torch.autograd.grad(backwards(by_torch(*given, 0.1, 1e-5)), learned)
    assert all(map(torch.equal, ours, again))
    for found, value in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-3 * value.abs().max().item())


@needs_cpp
def test_images_without_a_gradient_are_no_obstacle(seeded):
    given = arguments(8, 16, 8, 8)
    gammas = [given[number].requires_grad_() for number in (2, 7)]
    ours, theirs = (torch.autograd.grad(block(*given, 0.1, 1e-5).square().sum(), gammas)
                    for block in (torch.ops.bnlib.basic_block, by_torch))
    for found, value in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-3 * value.abs().max().item())


@needs_cpp
def test_it_passes_gradcheck_in_float64(seeded):
    given = [each.double() for each in arguments(2, 16, 4, 5)]
    for number in LEARNED:
        given[number].requires_grad_()

    def block(*learned):
        whole = [each.clone() for each in given]
        for number, each in zip(LEARNED, learned, strict=True):
            whole[number] = each
        return torch.ops.bnlib.basic_block(*whole, 0.1, 1e-5)

    assert torch.autograd.gradcheck(block, [given[number] for number in LEARNED], nondet_tol=0, fast_mode=True)


@needs_cpp
def test_a_second_derivative_is_refused_rather_than_wrong(seeded):
    given = arguments(2, 16, 4, 4)
    given[0].requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(torch.ops.bnlib.basic_block(*given, 0.1, 1e-5).sum(), given[0], create_graph=True)


@needs_cpp
@pytest.mark.parametrize("wrong", [{0: torch.randn(2, 16, 8, 8)}, {0: channels_last(2, 32, 8, 8)},
                                   {1: channels_last(16, 16, 3, 3, dtype=torch.bfloat16)}, {2: torch.rand(8)},
                                   {6: torch.randn(16, 16, 1, 1)}, {10: torch.rand(16, dtype=torch.float64)},
                                   {0: torch.empty(2, 16, 8, 8, device="meta")}, {0: channels_last(2, 0, 8, 8)}],
                         ids=["channels first", "channels", "bfloat16", "few γ", "1x1", "double", "meta", "none"])
def test_the_operation_refuses_what_it_would_read_wrongly(wrong):
    given = arguments(2, 16, 8, 8)
    for number, each in wrong.items():
        given[number] = each
    with pytest.raises(RuntimeError, match="basic_block: takes"):
        torch.ops.bnlib.basic_block(*given, 0.1, 1e-5)


@needs_cpp
@pytest.mark.parametrize(("change", "channels"), [
    (list, 32), *(pytest.param(in_bf16, channels, marks=needs_amx) for channels in (32, 80, 144))])
def test_the_result_does_not_depend_on_the_number_of_threads(change, channels, seeded):
    given, threads, found = change(arguments(37, channels, 12, 10)), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(outcome(torch.ops.bnlib.basic_block, given, None))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_cpp
def test_a_gradient_that_others_hold_is_left_as_it_was(seeded):
    given = arguments(8, 16, 8, 8)
    given[0].requires_grad_()
    gradient = channels_last(8, 16, 8, 8)
    before = gradient.clone()
    torch.autograd.grad(torch.ops.bnlib.basic_block(*given, 0.1, 1e-5), given[0], gradient)
    assert torch.equal(gradient, before)


class Twice(nn.Identity):
    def forward(self, x):
        return 2 * x


def block_of(shortcut="B", norm="batch", stride=1, final_relu=True):
    return BasicBlock(16, 16, stride, shortcut, norm, (3, 3), final_relu).to(memory_format=torch.channels_last).train()


@needs_winograd
def test_a_block_is_one_operation_in_training_and_its_parts_otherwise(seeded):
    x = channels_last(8, 16, 8, 8)
    assert residual.fused_layers(block_of(), x)
    for other in (block_of().eval(), block_of("plain"), block_of(norm="group"), block_of(norm="none"),
                  block_of(stride=2), block_of(final_relu=False), block_of().double(), block_of().bfloat16()):
        assert not residual.fused_layers(other, x)
    assert block_of().bfloat16()(x.bfloat16()).dtype == torch.bfloat16          # its convolutions alone are fast
    assert not residual.fused_layers(block_of(), x.contiguous()) and not residual.fused_layers(block_of(), x.double())


@needs_amx
def test_a_block_in_bfloat16_is_one_operation_where_all_its_parts_are_taken(seeded):
    x, block = channels_last(8, 16, 8, 8, dtype=torch.bfloat16), block_of()
    assert not residual.fused_layers(block, x)                               # float32 weights, and no autocast
    with torch.autocast("cpu", torch.bfloat16):
        assert residual.fused_layers(block, x)
        for other in (block_of().eval(), block_of("plain"), block_of().bfloat16()):
            assert not residual.fused_layers(other, x)
        for images in (x.contiguous(), x[:, :, 0], channels_last(8, 32, 8, 8, dtype=torch.bfloat16)):
            assert not residual.fused_layers(block, images)
    for layer in (block.conv1, block.conv2):
        layer.bfloat16()
    assert residual.fused_layers(block, x)
    block.bn1.eval()
    assert not residual.fused_layers(block, x)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=needs_winograd),
                                   pytest.param(torch.bfloat16, marks=needs_amx)])
def test_who_looks_at_all_modules_sees_a_blocks_parts(dtype, seeded):
    block, x, seen = block_of(), channels_last(8, 16, 8, 8, dtype=dtype), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            block(x)
    finally:
        handle.remove()
    assert {block.conv1, block.bn1, block.conv2, block.bn2} <= set(seen)


@pytest.mark.parametrize(("dtype", "stride"), [pytest.param(torch.float32, 1, marks=needs_winograd),
                                               pytest.param(torch.bfloat16, 1, marks=needs_amx),
                                               pytest.param(torch.bfloat16, 2, marks=needs_amx)])
def test_gradients_are_the_same_where_what_was_kept_comes_back_in_another_layout(dtype, stride, seeded):
    found = []
    for elsewhere in (contextlib.nullcontext(), torch.autograd.graph.saved_tensors_hooks(torch.Tensor.contiguous,
                                                                                         lambda kept: kept)):
        torch.manual_seed(0)
        block, x = block_of(stride=stride), channels_last(8, 16, 8, 8, dtype=dtype).requires_grad_()
        with elsewhere, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = block(x)
        found.append(torch.autograd.grad(y.float().square().sum(), (x, *block.parameters())))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("change", [
    lambda block: block.bn1.register_forward_hook(lambda *_: None),
    lambda block: block.conv2.register_full_backward_hook(lambda *_: None), lambda block: block.bn1.eval(),
    lambda block: setattr(block.bn1, "forward", lambda x: x), lambda block: setattr(block, "shortcut", Twice()),
    lambda block: setattr(block.bn2, "running_var", torch.ones(16, dtype=torch.float64)),
    lambda block: setattr(block.bn2, "bias", nn.Parameter(torch.zeros(16, dtype=torch.float64))),
    lambda block: (setattr(block, "conv1", models.convolution(16, 32)), setattr(block, "bn1", models.BNReLU(32)),
                   setattr(block, "conv2", models.convolution(32, 16))),
    lambda block: setattr(block, "bn2", nn.SyncBatchNorm(16)), lambda block: setattr(block.bn1, "eps", 1e-3),
    lambda block: setattr(block, "conv1", nn.Conv2d(16, 16, 3, padding=1, bias=False)),
], ids=["hook", "backward hook", "frozen statistics", "forward", "shortcut", "double", "double β", "channels",
        "synchronised", "eps", "torch's convolution"])
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=needs_winograd),
                                   pytest.param(torch.bfloat16, marks=needs_amx)])
def test_a_block_of_other_parts_is_not_one_operation(dtype, change, seeded):
    block, x = block_of(), channels_last(8, 16, 8, 8, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert residual.fused_layers(block, x)
        change(block)
        assert not residual.fused_layers(block, x)


@needs_winograd
@pytest.mark.parametrize("trainable", ["bn", "gamma", "weights", "output", "all", "random2"])
def test_a_network_of_such_blocks_learns_as_one_of_their_parts(trainable, seeded, monkeypatch):
    """Loss, gradients, running statistics and the number of batches that they come from."""
    whole = models.from_config(Config(model="resnet14", trainable=trainable), 10)
    whole = whole.to(memory_format=torch.channels_last).train()
    parts = copy.deepcopy(whole)
    images, labels, found = channels_last(32, 3, 32, 32), torch.randint(0, 10, (32,)), []
    taken = []
    as_one = residual.forward
    monkeypatch.setattr(residual, "forward", lambda layers, x: taken.append(len(layers)) or as_one(layers, x))
    for network in (whole, parts):
        if network is parts:
            monkeypatch.setattr(residual, "fused_layers", lambda *_: [])
        trained = list(freeze(network, trainable).values())
        loss = F.cross_entropy(network(images), labels)
        gradients = torch.autograd.grad(loss, trained)
        found.append((loss.detach(), torch.cat([each.flatten() for each in gradients]),
                      torch.cat([each.double().flatten() for each in network.buffers()])))
    assert taken == [2] * 4                           # the six blocks, but for those with another number of outputs
    for ours, theirs in zip(*found, strict=True):     # a value near zero that one ReLU lets pass makes a thousandth
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm()


@needs_amx
@pytest.mark.parametrize("trainable", ["bn", "weights", "all", "random2"])
def test_a_network_in_bfloat16_is_as_near_to_float32_with_whole_blocks_as_with_their_parts(trainable, seeded,
                                                                                          monkeypatch):
    """Loss and gradients, of three networks and batches."""
    taken, as_one, errors = [], residual.forward, []
    for seed in range(3):
        images, labels, found = channels_last(64, 3, 32, 32), torch.randint(0, 10, (64,)), []
        for precision, way in (("fp32", "parts"), ("bf16", "whole"), ("bf16", "parts")):
            config = Config(model="resnet14", trainable=trainable, seed=seed)
            network = models.from_config(config, 10).train()
            trained = place(network, config, torch.device("cpu"), precision)
            with monkeypatch.context() as patched:
                if way == "parts":
                    patched.setattr(residual, "fused_layers", lambda *_: [])
                patched.setattr(residual, "forward", lambda layers, x: taken.append(len(layers)) or as_one(layers, x))
                with autocast(torch.device("cpu"), precision):
                    logits = network(images.to(torch.bfloat16 if precision == "bf16" else torch.float32))
            loss = F.cross_entropy(logits.float(), labels)
            found.append([loss.detach(), torch.cat([each.flatten() for each in torch.autograd.grad(loss, trained)])])
        exact, *others = found
        errors.append([[(ours - value).norm() / value.norm() for ours, value in zip(other, exact, strict=True)]
                       for other in others])
    whole, parts = torch.tensor(errors).mean(0)
    assert taken == [2, 2, 3, 2, 3, 2] * 3
    assert whole[1] <= 1.1 * parts[1] and whole[0] <= max(1.1 * parts[0], 2e-3), (whole, parts)


@pytest.mark.parametrize(("model", "precision"), [("resnet8", "fp32"), ("plain8", "fp32"), ("resnet8", "bf16")])
def test_the_record_says_whether_blocks_were_whole(model, precision, tmp_path, monkeypatch):
    """As they were."""
    taken, as_one = [], residual.forward
    monkeypatch.setattr(residual, "forward", lambda layers, x: taken.append(len(layers)) or as_one(layers, x))
    config = Config(dataset="digits", model=model, trainable="bn", epochs=1, n_train=128, augment="crop")
    made = run(config, results=tmp_path, precision=precision).provenance
    by_amx = precision == "bf16" and not residual.why_not_amx()
    whole = model == "resnet8" and (by_amx or (precision == "fp32" and not convolution.why_not("fp32")))
    assert bool(taken) == whole and made["bn_path"].endswith(", whole blocks") == whole
    assert made["conv_path"] == ("our AMX kernel, strided too, whole blocks" if whole and by_amx else
                                 "torch" if convolution.why_not(precision) else "Winograd, strips")


# ---------------------------------------------------------------------------------------------- a block's two ways

@needs_cpp
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 16, 7, 9), (3, 80, 4, 4)], ids=str)
def test_gradients_of_both_ways_are_added_to_the_same_bits_as_torchs(shape, dtype, seeded):
    x = channels_last(*shape, dtype=dtype).requires_grad_()
    a, b = (channels_last(*shape, dtype=dtype) for _ in range(2))
    a[0, :, 0, 0] = b[0, :, 0, 0] = -0.0
    before = a.clone(), b.clone()
    for one, other in ((a, b), (a.contiguous(), b)):
        both = residual.fork(x)
        assert all(torch.equal(each, x) and each.stride() == x.stride() for each in both)
        (found,) = torch.autograd.grad(both, x, (one, other))
        assert torch.equal(found, a + b) and torch.equal(found.signbit(), (a + b).signbit())
    assert all(map(torch.equal, before, (a, b)))                # others hold them
    alone, _ = residual.fork(x)
    (found,) = torch.autograd.grad(alone, x, a)
    assert torch.equal(found, a) and found[0, :, 0, 0].signbit().all()       # nothing is added to one alone


@needs_cpp
def test_both_ways_have_a_second_derivative(seeded):
    x = channels_last(2, 16, 3, 3, dtype=torch.float64).requires_grad_()

    def both(x):
        a, b = residual.fork(x)
        return a.square() + b.pow(3) * a

    assert torch.autograd.gradcheck(both, x) and torch.autograd.gradgradcheck(both, x)


@needs_cpp
@pytest.mark.parametrize("x", [torch.randn(2, 16, 3, 3), channels_last(2, 0, 3, 3), channels_last(2, 10, 3, 3),
                               channels_last(2, 16, 3, 3, dtype=torch.float16), torch.randn(2, 16)],
                         ids=["channels first", "no channels", "10 channels", "float16", "no maps"])
def test_other_images_go_both_ways_as_they_are(x):
    x.requires_grad_()
    assert all(each is x for each in residual.fork(x))
    with pytest.raises(RuntimeError, match="fork: takes"):
        torch.ops.bnlib.fork(x)


def test_images_without_a_gradient_go_both_ways_as_they_are():
    x = channels_last(2, 16, 3, 3)
    assert all(each is x for each in residual.fork(x))


def test_a_plain_block_has_one_way(seeded, monkeypatch):
    taken = []
    monkeypatch.setattr(residual, "fork", lambda x: taken.append(x) or (x, x))
    for block, ways in ((block_of("plain"), 0), (block_of(norm="group"), 0), (block_of(stride=2), 1)):
        block(channels_last(2, 16, 8, 8))
        assert len(taken) == ways
