"""Networks against the paper's tables and against definitions."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from bnlib import Config, InputError, freeze, models
from bnlib.config import resolve

# Depth → parameters of batch norm, of all; width → the same (Frankle et al. 2021, Table 1 and App. A).
BY_DEPTH = {14: (1_120, 175_258), 32: (2_464, 466_906), 56: (4_256, 855_770), 110: (8_288, 1_730_714),
            218: (16_352, 3_480_602), 434: (32_480, 6_980_378), 866: (64_736, 13_979_930)}
BY_WIDTH = {1: (1_120, 175_258), 2: (2_240, 696_618), 4: (4_480, 2_777_674), 8: (8_960, 11_093_130),
            16: (17_920, 44_337_418), 32: (35_840, 177_279_498)}
TABLE = {f"resnet{d}": n for d, n in BY_DEPTH.items()} | {f"resnet14x{w}": n for w, n in BY_WIDTH.items()}


@pytest.mark.parametrize("name", TABLE)
def test_parameters_are_those_of_the_papers_table(name):
    with torch.device("meta"):
        network = models.architecture(name, classes=10)
    assert (freeze.count(network, "bn"), freeze.count(network)) == TABLE[name]


def test_shortcuts_without_parameters_leave_the_counts_of_the_earlier_study():
    network = models.build("resnet32", 10, shortcut="A")
    assert (freeze.count(network), freeze.count(network, "bn")) == (464_154, 2_272)


def test_the_padded_shortcut_takes_every_other_pixel_and_adds_channels_of_zeros():
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    expected = torch.zeros(1, 3, 2, 2)
    expected[0, 0], expected[0, 1] = torch.tensor([[0.0, 2], [8, 10]]), torch.tensor([[16.0, 18], [24, 26]])
    assert torch.equal(models.PaddedShortcut(2, 3, (2, 2))(x), expected)


def test_a_narrow_network_has_the_channels_of_its_name_and_wide_ones_have_one_name():
    network = models.build("resnet14c3", 10)
    assert [block.conv1.out_channels for block in network.blocks] == [3, 3, 6, 6, 12, 12]
    assert [Config(model=f"resnet14c{c}").model for c in (16, 32, 24)] == ["resnet14", "resnet14x2", "resnet14c24"]


def test_narrow_networks_train_on_two_threads_with_an_odd_last_batch(tmp_path):
    """In a process of its own: with torch's own strided 1×1 convolution it died within a few epochs."""
    code = ("from bnlib import Config, run; run(Config(dataset='digits', n_train=93, model='resnet8c4', epochs=30, "
            "trainable='all', batch_size=31, augment='crop'), results='results', device='cpu')")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(resolve("."))})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("model", "within"), [("resnet14", 0.3), ("resnet32", 0.22), ("resnet56", 0.1),
                                               ("resnet110", 0.1)])
def test_a_narrow_network_has_about_as_many_parameters_as_the_batch_norm_of_another(model, within):
    assert freeze.count(models.build(freeze.narrow(model), 10)) == pytest.approx(TABLE[model][0], rel=within)


def test_the_network_for_sequences_is_that_of_one_dimensional_convolutions(seeded):
    """Block by block with torch's conv1d, whose strides and padding run along the sequence alone."""
    network, f = models.build("resnet1d8", 12).eval(), torch.nn.functional

    def conv(x, module):
        return f.conv1d(x, module.weight[:, :, 0], stride=module.stride[1], padding=module.kernel_size[1] // 2)

    def bn(x, m):
        return f.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)

    sequences = torch.randn(4, 3, 50)
    with torch.no_grad():
        x = f.relu(bn(conv(sequences, network.conv), network.bn))
        for block in network.blocks:
            y = bn(conv(f.relu(bn(conv(x, block.conv1), block.bn1)), block.conv2), block.bn2)
            if isinstance(block.shortcut, models.Shortcut):
                x = bn(conv(x, block.shortcut[0]), block.shortcut[1])
            x = f.relu(y + x)
        expected = network.output(x.mean(2))
        torch.testing.assert_close(network(sequences[:, :, None]), expected)


@pytest.mark.parametrize(("norm", "groups"), [("group", [2, 4, 8]), ("layer", [1, 1, 1])])
def test_other_normalisations_stand_where_batch_norm_stood(norm, groups, seeded):
    """Against torch's own function, with as many γ and β; logits do not depend on the batch's other images."""
    network = models.build("resnet8", 10, norm=norm)
    assert [block.bn2.num_groups for block in network.blocks] == groups
    assert freeze.count(network, "bn") == freeze.count(models.build("resnet8", 10), "bn")
    layer, x, more = network.blocks[1].bn2, torch.randn(2, 32, 8, 8), torch.randn(2, 32, 8, 8)
    expected = torch.nn.functional.group_norm(x, groups[1], layer.weight, layer.bias)
    torch.testing.assert_close(layer(x, add=more), torch.relu(expected + more))
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(network(images)[:2], network(images[:2]))


def test_parameters_of_a_built_network_are_counted_by_kind():
    network = models.build("resnet14", 10)
    counts = {what: freeze.count(network, what) for what in ("bn", "gamma", "beta", "output", "none", "bn+output")}
    assert counts == {"bn": 1120, "gamma": 560, "beta": 560, "output": 650, "none": 0, "bn+output": 1770}


@pytest.mark.parametrize("size", [28, 32])
def test_a_network_takes_images_of_any_size_and_returns_a_logit_a_class(size):
    assert models.build("resnet8", 7)(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_initial_weights_are_he_normal_and_gamma_uniform():
    network = models.build("resnet14x8", 10)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 50_000:
            fan_in = module.in_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
            assert abs(module.weight.mean().item()) < 0.02 * math.sqrt(2 / fan_in)
    gamma = torch.cat([m.weight for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert gamma.min() >= 0 and gamma.max() < 1 and gamma.mean().item() == pytest.approx(0.5, abs=0.02)
    assert all(not m.bias.any() for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_the_draw_depends_on_the_seed_and_not_on_torchs_global_state():
    torch.manual_seed(1)
    first = models.build("resnet8", 10, seed=3).state_dict()
    torch.manual_seed(2)
    second = models.build("resnet8", 10, seed=3).state_dict()
    other = models.build("resnet8", 10, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])


def test_frozen_weights_are_the_same_network_in_bf16_and_fp32():
    network = models.build("resnet8", 10)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            assert torch.equal(module.weight.bfloat16().float(), module.weight)


def test_the_forward_pass_is_that_of_the_definition(seeded):
    """Block by block with torch's functions: relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""
    network = models.build("resnet8", 10).eval()
    f = torch.nn.functional

    def bn(x, m):
        return f.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)

    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        x = f.relu(bn(f.conv2d(images, network.conv.weight, padding=1), network.bn))
        for block in network.blocks:
            y = f.relu(bn(f.conv2d(x, block.conv1.weight, stride=block.conv1.stride, padding=1), block.bn1))
            y = bn(f.conv2d(y, block.conv2.weight, padding=1), block.bn2)
            if isinstance(block.shortcut, models.Shortcut):
                conv, norm = block.shortcut
                x = bn(f.conv2d(x, conv.weight, stride=conv.stride), norm)
            x = f.relu(y + x)
        expected = f.linear(f.adaptive_avg_pool2d(x, 1).flatten(1), network.output.weight, network.output.bias)
        torch.testing.assert_close(network(images), expected)


def test_multiply_adds_of_resnet20_are_those_of_its_convolutions():
    """He et al. 2015's ResNet-20 does about 41 million; the 1×1 shortcuts of option B add a little."""
    assert models.multiply_adds("resnet20") == pytest.approx(41e6, rel=0.02)


def test_unknown_initialisation_is_named():
    with pytest.raises(InputError, match="conv_init='he'"):
        models.build("resnet8", 10, conv_init="he")


@pytest.mark.parametrize(("how", "holds"), [
    ("he_normal", lambda w, sigma: stats.kstest(w / sigma, "norm").pvalue > 1e-3),
    ("he_uniform", lambda w, sigma: stats.kstest(w / (np.sqrt(3) * sigma), "uniform", (-1, 2)).pvalue > 1e-3),
    ("binary", lambda w, sigma: np.allclose(np.abs(w), sigma, rtol=0.005) and 0.45 < (w > 0).mean() < 0.55),
])
def test_weights_are_drawn_from_their_distribution(how, holds):
    weight = models.build("resnet14", 10, conv_init=how).blocks[5].conv2.weight.detach().numpy()
    assert holds(weight.ravel(), np.sqrt(2 / (64 * 9)))


def test_orthogonal_weights_have_orthonormal_rows_or_columns():
    network = models.build("resnet14", 10, conv_init="orthogonal")
    rows = network.blocks[5].conv2.weight.detach().flatten(1)                     # 64 × 576
    assert torch.allclose(rows @ rows.T, torch.eye(64), atol=0.01)
    columns = network.blocks[2].shortcut[0].weight.detach().flatten(1)            # 32 × 16
    assert torch.allclose(columns.T @ columns, torch.eye(16), atol=0.01)


@pytest.mark.parametrize(("how", "low", "high", "beta"), [
    ("uniform", 0, 1, 0), ("signed", -1, 1, 0), ("ones", 1, 1, 0), ("beta_one", 0, 1, 1)])
def test_gamma_and_beta_start_as_asked(how, low, high, beta):
    network = models.build("resnet110", 10, bn_init=how)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    gamma = torch.cat([layer.weight.detach() for layer in layers])
    assert low <= gamma.min() and gamma.max() <= high and all((layer.bias == beta).all() for layer in layers)
    if low < high:
        assert abs(gamma.mean() - (low + high) / 2) < 0.03 and gamma.min() < low + 0.01 and gamma.max() > high - 0.01
