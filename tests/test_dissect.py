"""Batch norm taken apart, and residual beside plain networks: counts by hand, masks, schedules, tables."""

import dataclasses
import math
import types

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from bnlib import (
    Config,
    InputError,
    analysis,
    campaign,
    checkpoint,
    data,
    freeze,
    models,
    optim,
    plots,
    run,
    verdicts,
    wording,
)
from bnlib.bnrelu import BNReLU
from bnlib.deepobs import Dropout, SamePad, SamePool
from bnlib.profiles import MODIFICATIONS, PRESETS, modification, modified, profile, variant
from bnlib.train import evaluate_on_test_set
from tests.test_analysis import fake_run
from tests.test_train import one_epoch, same, stop_after

#: Seconds to train: 64 digits, 3c3d, an epoch or two.
SMALL = PRESETS["3c3d-cifar10"] | {"dataset": "digits", "n_train": 64, "batch_size": 32, "epochs": 2, "augment": "crop"}

# Channels or units of each layer that may have batch norm, and weights of each layer by its shape.
C3D3 = [64, 96, 128, 512, 256]
C3D3_WEIGHTS = [5 * 5 * 3 * 64, 3 * 3 * 64 * 96, 3 * 3 * 96 * 128, 3 * 3 * 128 * 512, 512 * 256, 256 * 10]
ALLCNNC = [96, 96, 96, 192, 192, 192, 192, 192]
ALLCNNC_WEIGHTS = [9 * 3 * 96, 9 * 96 * 96, 9 * 96 * 96, 9 * 96 * 192, *[9 * 192 * 192] * 3, 192 * 192, 192 * 100]


# ------------------------------------------------------------------------------------------ the networks

@pytest.mark.parametrize(("name", "classes", "channels", "weights"), [
    ("3c3d", 10, C3D3, C3D3_WEIGHTS), ("allcnnc", 100, ALLCNNC, ALLCNNC_WEIGHTS)])
def test_parameters_are_those_of_the_layers_shapes(name, classes, channels, weights):
    """A layer with batch norm has its γ and β and no bias; one without has a bias."""
    for mask in ("none", "first2", "last3", "all"):
        network = models.build(name, classes, positions=mask)
        with_bn = {"none": [], "first2": channels[:2], "last3": channels[-3:], "all": channels}[mask]
        biases = sum(channels) - sum(with_bn) + classes
        assert freeze.count(network, "bn") == 2 * sum(with_bn)
        assert freeze.count(network) == sum(weights) + biases + 2 * sum(with_bn)
    assert freeze.count(network, "output") == weights[-1] + classes


@pytest.mark.parametrize(("name", "size"), [("3c3d", 32), ("3c3d", 28), ("allcnnc", 32), ("allcnnc", 28)])
def test_a_network_of_deepobs_returns_a_logit_a_class(name, size):
    assert models.build(name, 7, positions="first1")(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_images_that_3c3d_cannot_take_are_one_line():
    with pytest.raises(InputError, match="3c3d: images of 64×64 pixels; its dense layers take those of 25 to 32"):
        models.build("3c3d", 10)(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("size", [5, 6, 12, 28])
def test_same_padding_is_that_of_tensorflow(size, seeded):
    """Of p = max((⌈n/2⌉ − 1)·2 + 3 − n, 0) pixels ⌊p/2⌋ come before the image and the rest after it."""
    total = max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0)
    pad = (total // 2, total - total // 2)
    x = torch.randn(2, 4, size, size)
    assert torch.equal(SamePad()(x), F.pad(x, (*pad, *pad)))
    assert torch.equal(SamePool()(x), F.max_pool2d(F.pad(x, (*pad, *pad), value=-math.inf), 3, 2))


def test_3c3d_computes_what_its_definition_says(seeded):
    """Layer by layer with torch's functions, batch norm at the second and the fourth."""
    network, x = models.build("3c3d", 10, positions="0,1,0,1,0").train(), torch.randn(4, 3, 32, 32)
    layers = [getattr(network, name) for name in ("conv1", "conv2", "conv3", "dense1", "dense2")]
    expected = x
    for i, layer in enumerate(layers):
        if i < 3:
            expected = F.conv2d(expected, layer.layer.weight, layer.layer.bias, padding=int(i == 2))
        else:
            expected = F.linear(expected.flatten(1), layer.layer.weight, layer.layer.bias)
        if i in (1, 3):
            assert layer.layer.bias is None
            expected = F.batch_norm(expected, None, None, layer.bn.weight, layer.bn.bias, training=True)
        expected = SamePool()(F.relu(expected)) if i < 3 else F.relu(expected)
    expected = F.linear(expected, network.output.weight, network.output.bias)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


def test_xavier_draws_convolutions_normal_and_dense_layers_uniform_and_biases_are_zero():
    network = models.build("3c3d", 10, conv_init="xavier", bn_init="ones", positions="none")
    assert network.conv3.layer.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * (96 + 128))), rel=0.02)
    dense, limit = network.dense1.layer.weight, math.sqrt(6 / (1152 + 512))
    assert dense.abs().max().item() <= limit * 1.005 and dense.std().item() == pytest.approx(limit / 3**0.5, rel=0.01)
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_plain_networks_are_residual_ones_without_their_shortcuts(seeded):
    plain, residual = models.build("plain8", 10), models.build("resnet8", 10)
    lacking = {name for name, _ in residual.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert lacking and all(".shortcut." in name for name in lacking)
    with torch.no_grad():
        x = block_input = torch.randn(2, 16, 8, 8)
        block = plain.blocks[0]
        expected = block.bn2(block.conv2(block.bn1(block.conv1(x))))
        torch.testing.assert_close(block(block_input), expected)


@pytest.mark.parametrize(("shortcut", "kinds"), [
    ("A", ["Identity", "PaddedShortcut", "PaddedShortcut"]), ("B", ["Identity", "Shortcut", "Shortcut"]),
    ("none", ["Identity", "NoShortcut", "NoShortcut"])])
def test_shortcuts_change_where_the_shape_changes_alone(shortcut, kinds):
    network = models.build("resnet8", 10, shortcut=shortcut)
    assert [type(block.shortcut).__name__ for block in network.blocks] == kinds


def test_without_its_final_relu_a_block_ends_in_the_sum(seeded):
    block, x = models.build("resnet8", 10, final_relu=False).blocks[0], torch.randn(2, 16, 8, 8)
    y = block(x)
    assert (y < 0).any()
    torch.testing.assert_close(torch.relu(y), models.build("resnet8", 10).blocks[0](x))


def test_without_normalisation_convolutions_have_biases_and_nothing_else_is_new():
    network = models.build("resnet8", 10, norm="none")
    channels = 16 + 2 * 16 + 3 * 32 + 3 * 64
    assert freeze.count(network, "bn") == 0
    assert freeze.count(network) == freeze.count(models.build("resnet8", 10)) - 2 * channels + channels


# ------------------------------------------------------------------------------------------ what trains

@pytest.mark.parametrize("name", [m for m in MODIFICATIONS if m != "vanilla"])
def test_what_a_modification_freezes_is_bit_identical_after_training(name):
    config = Config(**SMALL | {"epochs": 1} | modified(name, "1,0,0,1,1"))
    network, before, _ = one_epoch(config, "fp32")
    free_parts = {"gamma": "gamma" not in name and "fixed_bn" not in name,
                  "beta": "beta" not in name and "fixed_bn" not in name, "weights": "alone" not in name}
    for part, trains in free_parts.items():
        for key, parameter in freeze.select(network, part).items():
            assert torch.equal(parameter, before[key]) != trains, key
    for layer in (network.conv1, network.dense1, network.dense2):
        assert layer.layer.bias is None
        assert name != "fixed_bn" or bool((layer.bn.weight == 1).all() and (layer.bn.bias == 0).all())
    for layer in (network.conv2, network.conv3):
        assert not hasattr(layer, "bn") and layer.layer.bias is not None
    assert modification(config) == name


def test_vanilla_has_no_batch_norm_whatever_the_positions():
    config = Config(**SMALL | modified("vanilla", "all"))
    assert (config.positions, modification(config)) == ("0,0,0,0,0", "vanilla")


@pytest.mark.parametrize(("spelled", "letters"), [
    ("", "1,1,1,1,1"), ("all", "1,1,1,1,1"), ("none", "0,0,0,0,0"), ("first2", "1,1,0,0,0"), ("last3", "0,0,1,1,1"),
    ("1,0,0,1,1", "1,0,0,1,1")])
def test_positions_have_one_spelling(spelled, letters):
    assert Config(model="3c3d", trainable="all", positions=spelled).positions == letters
    assert len({Config(model="3c3d", trainable="all", positions=p).id for p in (spelled, letters)}) == 1


def test_weight_decay_acts_on_the_parts_asked_for_alone():
    """With no gradient, one step multiplies what decays by 1 − lr·wd and leaves the rest as it is."""
    network = models.build("3c3d", 10, positions="first2", bn_init="beta_one")
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for layer in (network.conv3, network.output):
        torch.nn.init.ones_(getattr(layer, "layer", layer).bias)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    config = Config(model="3c3d", positions="first2", decay="gamma+weights", weight_decay=0.5, lr=0.1, momentum=0.0)
    optim.optimizer(network.parameters(), config, freeze.undecayed(network, config.decay)).step()
    for name, parameter in network.named_parameters():
        factor = 1 if name.endswith("bias") else 0.95
        torch.testing.assert_close(parameter, before[name] * factor)


# ------------------------------------------------------------------------------------------ schedules

def rates(config: Config, steps: int) -> list[float]:
    optimizer = optim.optimizer([torch.nn.Parameter(torch.zeros(1))], config)
    schedule, found = optim.schedule(optimizer, config, steps // config.epochs), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(("schedule", "formula"), [
    ("constant", lambda t: 1.0),
    ("cosine", lambda t: (1 + math.cos(math.pi * t / 70)) / 2),
    ("cosine_restarts", lambda t: (1 + math.cos(math.pi * (t / 10 if t < 10 else (t - 10) / 20 if t < 30 else
                                                           (t - 30) / 40))) / 2),
    ("trapezoid", lambda t: min(1, (t + 1) / 8, (70 - t) / 8))])
def test_learning_rate_follows_the_schedule(schedule, formula):
    found = rates(Config(epochs=7, schedule=schedule, lr=0.5), 70)
    assert found == pytest.approx([0.5 * formula(t) for t in range(70)], abs=1e-9)


# ------------------------------------------------------------------------------------------ inputs and augmentation

@pytest.mark.parametrize(("inputs", "low", "high"), [("raw", 0, 255), ("unit", 0, 1)])
def test_inputs_keep_the_range_asked_for(inputs, low, high):
    digits = data.load("digits")
    seen = data.Normalise(digits, torch.device("cpu"), torch.float32, inputs=inputs)(digits.x_test)
    assert seen.min().item() == low and seen.max().item() == pytest.approx(high, rel=1e-5)


def test_imagenets_moments_are_taken_a_colour_each():
    images = torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    made = data.Dataset("x", images, torch.zeros(1), images, torch.zeros(1), ("a",), "")
    seen = data.Normalise(made, torch.device("cpu"), torch.float32, inputs="imagenet")(images)
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0, :, 0, 0], expected)


@pytest.mark.parametrize(("augment", "alike"), [("crop+flip+once", True), ("crop+flip", False)])
def test_an_image_augmented_once_is_the_same_in_every_epoch(augment, alike):
    digits = data.load("digits")
    config = Config(dataset="digits", augment=augment, batch_size=2000)
    normalise = data.Normalise(digits, torch.device("cpu"), torch.float32)
    batches = data.TrainingBatches(digits.x_train, digits.y_train, config, normalise, torch.device("cpu"))
    found = []
    for epoch in (1, 2):
        order = batches.draw(epoch)[0]
        (images, _), = batches.epoch(epoch)
        found.append(images[np.argsort(order)])
    assert not np.array_equal(batches.draw(1)[0], batches.draw(2)[0])
    assert torch.equal(*found) == alike


# ------------------------------------------------------------------------------------------ dropout

def test_dropout_keeps_its_share_and_the_mean_and_does_nothing_in_evaluation(seeded):
    layer, x = Dropout(0.2), torch.ones(64, 16, 16, 16)
    layer.draw(np.random.default_rng(1))
    y = layer(x)
    kept = (y != 0).float()
    assert set(y.unique().tolist()) == {0.0, 1.25}
    assert kept.mean().item() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / x.numel()))
    for share in (kept.mean((1, 2, 3)), kept.mean((0, 2, 3)), kept.mean((0, 1)).flatten()):      # image, channel, pixel
        deviation = math.sqrt(0.16 / (x.numel() / len(share)))
        assert (share - 0.8).abs().max() < 5 * deviation
        assert share.std().item() == pytest.approx(deviation, rel=0.5)
    again = (layer(x) != 0).float()                                                            # another step
    assert (kept * again).mean().item() == pytest.approx(0.64, abs=0.01)
    assert torch.equal(layer.eval()(x), x)


def test_masks_follow_from_seed_and_step_and_not_from_torchs_state_and_parts_of_a_batch_fit_together():
    x, masks = torch.ones(8, 4, 6, 6), []
    for seed in (0, 0, 1):
        torch.manual_seed(len(masks))
        layer = next(m for m in models.build("allcnnc", 10, seed=seed).modules() if isinstance(m, Dropout)).train()
        masks.append([layer(x), layer(x)])
    assert torch.equal(masks[0][0], masks[1][0]) and torch.equal(masks[0][1], masks[1][1])
    assert not torch.equal(masks[0][0], masks[0][1]) and not torch.equal(masks[0][0], masks[2][0])
    halves = []
    for first in (0, 4):
        layer = next(m for m in models.build("allcnnc", 10).modules() if isinstance(m, Dropout)).train()
        layer.first = first
        halves.append(layer(x[:4]))
    assert torch.equal(torch.cat(halves), masks[0][0])


def test_a_network_with_dropout_stopped_within_an_epoch_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    config = Config(**PRESETS["allcnnc-cifar100"] | modified("trained_bn", "first2") | {
        "dataset": "digits", "n_train": 12, "batch_size": 4, "epochs": 1, "augment": "none", "log_every": 2})
    whole = run(config, results=tmp_path / "whole/results")
    stop_after(2, config, tmp_path / "stopped/results", monkeypatch)
    assert same(run(config, results=tmp_path / "stopped/results"), whole)
    assert whole.trajectory["steps"].tolist() == [2]


# ------------------------------------------------------------------------------------------ records

@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """3c3d with batch norm at two of five positions, each step logged."""
    config = Config(**SMALL | {"log_every": 1} | modified("trained_bn", "1,0,0,1,0"))
    return run(config, results=tmp_path_factory.mktemp("logged") / "results")


def test_a_record_logs_gamma_beta_and_the_biases_of_layers_without_them(logged):
    assert list(logged.gamma) == ["conv1.bn", "dense1.bn"]
    assert {layer: rows.shape for layer, rows in logged.trajectory["bias"].items()} == {
        "conv2.layer": (3, 96), "conv3.layer": (3, 128), "dense2.layer": (3, 256)}
    assert not logged.trajectory["bias"]["conv2.layer"][0].any() and logged.trajectory["bias"]["conv2.layer"][-1].any()


def test_each_step_is_logged_with_its_loss_on_request(logged):
    assert logged.trajectory["steps"].tolist() == [1, 2, 3, 4]
    losses = logged.trajectory["step_loss"].reshape(2, 2).mean(1)
    assert losses == pytest.approx(logged.history["train_loss"].to_numpy(), rel=1e-5)
    assert np.array_equal(logged.trajectory["step_gamma"]["conv1.bn"][-1], logged.trajectory["gamma"]["conv1.bn"][-1])


def test_logging_changes_nothing_that_is_measured(logged, tmp_path):
    plain = run(dataclasses.replace(logged.config, log_every=0), results=tmp_path / "results")
    pd.testing.assert_frame_equal(*(r.history.drop(columns="seconds") for r in (plain, logged)))
    assert "steps" not in plain.trajectory


def test_steps_logged_survive_a_stop_between_them(logged, tmp_path, monkeypatch):
    for steps in (1, 2):
        stop_after(steps, logged.config, tmp_path / "results", monkeypatch)
    assert same(run(logged.config, results=tmp_path / "results"), logged)


def test_more_steps_than_a_checkpoint_should_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "STEPS_BYTES", 1000)
    with pytest.raises(InputError, match=r"log_every=1: .*; must be 0 or at least"):
        run(Config(**SMALL | {"log_every": 1}), results=tmp_path / "results")


def test_a_last_batch_of_one_image_is_refused_where_dense_layers_normalise(tmp_path):
    config = Config(**SMALL | {"n_train": 65})
    with pytest.raises(InputError, match="batch_size=32: leaves a last batch of 1 of 65 images"):
        run(config, results=tmp_path / "results")
    assert run(dataclasses.replace(config, positions="first3", epochs=1), results=tmp_path / "results").status == "done"
    small = dataclasses.replace(config, model="imagenet_resnet18", positions="", conv_init="he_normal")
    with pytest.raises(InputError, match="a last batch of 1 of 65 images"):                 # 1×1 pixels at the end
        run(small, results=tmp_path / "results")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BNReLU(16).train()(torch.ones(1, 16, 1, 1).to(memory_format=torch.channels_last))


def test_a_network_without_batch_norm_comes_back_from_its_weights(tmp_path):
    r = run(Config(**SMALL | {"epochs": 1} | modified("vanilla")), results=tmp_path / "results")
    assert r.gamma == {} and set(r.trajectory["bias"]) == {f"{n}.layer" for n in ("conv1", "conv2", "conv3", "dense1",
                                                                                  "dense2")}
    assert evaluate_on_test_set(r.network(), r.config).correct == r.metrics["test_correct"]
    assert analysis.dead_features([r]).empty and analysis.affine([r]).empty


def test_inputs_are_part_of_what_a_record_needs_to_be_checked(tiny, tmp_path):
    r = run(dataclasses.replace(tiny, inputs="raw"), results=tmp_path / "results")
    assert evaluate_on_test_set(r.network(), r.config).correct == r.metrics["test_correct"]


# ------------------------------------------------------------------------------------------ tables, verdicts

def test_the_surface_has_a_row_a_channel_in_the_order_of_their_ends(logged, tiny_run):
    table = analysis.surface(tiny_run, "bn")
    assert table.shape == (16, 3) and table.columns.tolist() == [0, 1, 2]
    assert (np.diff(table[2]) >= 0).all() and sorted(table[0]) == sorted(tiny_run.trajectory["gamma"]["bn"][0])
    assert analysis.surface(logged, "dense1.bn", "beta").shape == (512, 4)
    with pytest.raises(InputError, match=r"did you mean .conv1\.bn."):
        analysis.surface(logged, "conv1")


def test_layer_means_are_those_of_the_trajectory_and_biases_stand_for_beta(logged):
    table = analysis.layer_means([logged]).set_index(["layer", "epoch"])
    assert table.loc[("conv1", 2), "gamma"] == logged.trajectory["gamma"]["conv1.bn"][-1].astype(float).mean()
    assert np.isnan(table.loc[("conv2", 2), "gamma"])
    assert table.loc[("conv2", 2), "beta"] == logged.trajectory["bias"]["conv2.layer"][-1].astype(float).mean()
    assert table.reset_index().drop_duplicates("layer")["layer"].tolist() == ["conv1", "conv2", "conv3", "dense1",
                                                                              "dense2"]


def test_each_run_has_a_line_of_its_own_in_the_means_of_layers(logged):
    table = analysis.layer_means([logged])
    both = pd.concat([table, table.assign(run="another", seed=1)])
    lines = [len(axes.lines) for axes in plots.studies.layer_means(both).axes]
    assert lines == [2 * len(axes.lines) for axes in plots.studies.layer_means(table).axes]
    assert all(np.all(np.diff(line.get_xdata()) > 0) for axes in plots.studies.layer_means(both).axes
               for line in axes.lines)


def test_smoothing_leaves_parabolas_and_removes_noise():
    x = np.arange(30.0)
    assert plots.studies.smoothed(x**2, 7) == pytest.approx(x**2)
    assert plots.studies.smoothed(x, 0) is x and len(plots.studies.smoothed(x[:2], 9)) == 2
    noise = np.random.default_rng(0).normal(size=300)
    assert plots.studies.smoothed(noise, 31).std() < 0.5 * noise.std()


def test_residual_and_plain_stand_beside_the_published_numbers():
    table = analysis.residual_and_plain([fake_run(a, model=m, trainable="all") for m, a in (
        ("resnet20", 0.91), ("plain20", 0.89), ("resnet32", 0.92))])
    row = table.set_index("depth").loc[20]
    assert (row["residual, ours"], row["plain, ours"]) == (91, 89)
    assert (row["residual, study"], row["plain, study"], row["residual, He et al."]) == (88.66, 86.79, 91.25)
    assert np.isnan(row["plain, He et al."]) and np.isnan(table.set_index("depth").loc[32, "plain, ours"])


PLAIN, RESIDUAL = "Full training of plain networks: the deepest loses to the shallowest", (
    "Full training of residual networks: the deepest does not lose to the shallowest")
SURVIVES, B_AND_A = "Without shortcuts BN only keeps half of what it has above guessing", (
    "Shortcuts with a convolution (B) do at least as well as with zeros (A)")


def test_claims_on_shortcuts_are_judged_by_the_stated_rules():
    def verdict(runs):                                 # where seeds make no difference, as two runs besides tell
        return verdicts.table(runs, repeated=[fake_run(seed=s) for s in (0, 1)]).set_index("claim")["verdict"]

    def line(kind, accuracies, seeds=range(3), **fields):
        return [fake_run(a, model=f"{kind}{d}", seed=s, **fields) for s in seeds for d, a in accuracies.items()]
    full = {"trainable": "all"}
    falling = line("plain", {20: 0.89, 32: 0.90, 56: 0.84}, **full)
    rising = line("resnet", {20: 0.89, 32: 0.90, 56: 0.91}, **full)
    both = verdict(falling + rising)
    assert both[PLAIN] == both[RESIDUAL] == "reproduced"
    assert verdict(falling)[PLAIN] == verdict(rising)[RESIDUAL] == "not yet run"            # the other kind is missing
    first = [run for run in falling + rising if run.config.seed == 0]
    assert verdict(first)[PLAIN] == verdict(first)[RESIDUAL] == "agrees so far"             # one seed
    shallow = [run for run in falling + rising if run.config.depth < 44]
    assert verdict(shallow)[PLAIN] == verdict(shallow)[RESIDUAL] == "not yet run"           # nothing that is deep
    swapped = verdict(line("plain", {20: 0.89, 56: 0.90}, **full) + line("resnet", {20: 0.91, 56: 0.89}, **full))
    assert swapped[PLAIN] == swapped[RESIDUAL] == "not reproduced"
    deeper = line("resnet", {14: 0.99}, **full)                                     # at a depth that the other has not
    assert verdict(falling + rising + deeper)[RESIDUAL] == "reproduced"
    zeros = line("resnet", {20: 0.88}, shortcut="A", **full)
    assert verdict(rising + zeros)[B_AND_A] == "reproduced" and verdict(zeros)[B_AND_A] == "not yet run"
    assert verdict(rising + zeros[:1])[B_AND_A] == "agrees so far"
    residual = line("resnet", {20: 0.50, 32: 0.50, 56: 0.50}, [0])
    for accuracy, expected in ((0.31, "holds"), (0.29, "does not hold")):           # half of 40 points above chance: 30
        assert verdict(residual + line("plain", dict.fromkeys((20, 32, 56), accuracy), [0]))[SURVIVES] == expected
    assert verdict(residual)[SURVIVES] == "not yet run"


def test_the_grids_hold_what_the_claims_on_shortcuts_are_judged_by():
    """Every run that `10_residual_vs_plain` plans, as if it had been trained with the result that each claim says."""
    for name in ("short", "paper"):
        runs = []
        for config in campaign.profile_configs(name, ["10_residual_vs_plain"]):
            loss = config.depth * (0.002 if config.model.startswith("plain") else -0.0001) + 0.01 * (
                config.shortcut == "A")
            runs.append(fake_run(0.9 - loss, **{f.name: getattr(config, f.name) for f in dataclasses.fields(config)}))
        found = verdicts.table(runs).set_index("claim")["verdict"]
        assert {found[claim] for claim in (PLAIN, RESIDUAL, B_AND_A)} == {"reproduced"} and found[SURVIVES] == "holds"


def test_figures_name_in_words_what_each_modification_leaves_of_batch_norm():
    called = [wording.half(modification) for modification in MODIFICATIONS]
    assert called[:3] == ["no batch norm", "all of batch norm", "normalisation alone"]
    assert called[-1] == "with γ, without β; weights frozen" and len(set(called)) == len(MODIFICATIONS)
    assert wording.half("output+weights") == "output+weights"        # some other choice of what trains


def test_which_half_is_told_by_the_last_quarter_of_training():
    def fake(trainable, accuracies, positions="all", **changes):
        fields = {"trainable": trainable, "positions": positions, "epochs": 8} | changes
        made = fake_run(**PRESETS["3c3d-cifar10"] | fields)
        made.history = pd.DataFrame({"epoch": range(1, len(accuracies) + 1), "test_accuracy": accuracies})
        return made
    runs = [fake("all", [0.1] * 6 + [0.72, 0.74], "none"), fake("weights", [0.9] * 6 + [0.76, 0.78])]
    (said,) = analysis.which_half(runs)
    assert "(`vanilla`) 73.0 ± 1.4 %, normalisation alone (`fixed_bn`) 77.0 ± 1.4 %" in said
    runs.append(fake("all", [0.1] * 6 + [0.77, 0.78]))
    assert analysis.which_half(runs)[1] == ("From no batch norm to normalisation alone +4.0 points, from "
                                            "there to training γ and β too +0.5 points (less than epochs deviate, "
                                            "1.6).")
    (row,) = analysis.by_positions([runs[-1], fake("all", [0.9] * 6 + [0.71, 0.70], seed=1)]).itertuples()
    assert (round(row.mean, 6), row.n) == (74.0, 2) and round(row.std ** 2, 6) == round((9 + 16 + 9 + 16) / 3, 6)
    assert analysis.which_half([]) == [] and analysis.by_positions([]).empty
    (alone,) = analysis.which_half([fake("weights", [0.76, 0.78, 0.8, 0.8], epochs=4)])          # of one epoch and seed
    assert "(`fixed_bn`) 80.0 %." in alone


def test_what_weight_decay_alone_would_leave_of_gamma(logged):
    """Against a γ that is multiplied step by step; no batch norm, no decay of γ, no plain SGD: nothing to say."""
    gamma = 1.0
    for _ in range(4):
        gamma -= logged.config.lr * logged.config.weight_decay * gamma
    (said,) = analysis.decayed([logged])
    assert f"weight decay alone would leave {gamma:.3f}" in said
    assert f"conv1 {logged.gamma['conv1.bn'].mean(dtype=float):.3f}" in said
    others = [types.SimpleNamespace(config=dataclasses.replace(logged.config, **change), gamma=logged.gamma)
              for change in ({"decay": "weights"}, {"momentum": 0.9}, {"schedule": "cosine"})]
    assert analysis.decayed(others) == []


def test_a_preset_takes_the_place_of_3c3d_and_what_a_profile_shortens_stays_short():
    short, paper = (profile(name, preset="allcnnc-cifar100-adam") for name in ("short", "paper"))
    assert (short.dissect["epochs"], paper.dissect["epochs"]) == (16, 350) and short.dissect["lr"] == 5.7e-4
    assert len(paper.masks) == 16 and short.masks == ["all"] and paper.rates == [5.7e-5, 5.7e-4, 5.7e-3]
    config = Config(**paper.dissect)
    assert (config.optimizer, config.optimizer_options, config.model) == ("adam", "betas=(0.521,0.943)", "allcnnc")
    with pytest.raises(InputError, match=r"preset=.allcnnc..*did you mean"):
        profile("short", preset="allcnnc")


def test_a_surface_of_a_layer_that_is_not_there_and_a_window_that_cannot_be_are_errors(logged):
    with pytest.raises(InputError, match=r"layer='conv9\.bn'"):
        plots.studies.surfaces([logged], "conv9.bn")
    with pytest.raises(InputError, match="smooth=-3: must be 0, as measured, or a window of at least 3 epochs"):
        plots.studies.courses(analysis.histories([logged]), smooth=-3)


def test_plain_networks_and_those_of_deepobs_are_no_runs_of_the_papers_protocol():
    runs = [fake_run(model="resnet14"), fake_run(model="plain14"), fake_run(**PRESETS["3c3d-cifar10"])]
    assert analysis.plain(runs) == runs[:1]
    assert variant(runs[2].config) == {} and variant(runs[1].config) == {}
    assert variant(Config(**PRESETS["3c3d-cifar10"] | {"positions": "first1"})) == {"positions": "1,0,0,0,0"}
