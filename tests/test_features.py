"""What features do: thresholds, activations and pruning, against plain hooks and against outputs."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from bnlib import InputError, data, features, models, run


@pytest.fixture
def network_with_dead_channels(seeded):
    """A ResNet-14 of which some channels between each block's convolutions are always 0; and which they are."""
    network = models.build("resnet14", 10)
    network.train()
    for _ in range(3):                                      # so that the running statistics are of some use
        network(torch.randn(16, 3, 32, 32))
    dead = {}
    for name, block in network.blocks.named_children():
        mask = np.random.default_rng(int(name)).random(block.bn1.num_features) < 0.4
        with torch.no_grad():
            block.bn1.weight[mask] = 0
            block.bn1.bias[mask] = -0.1
        dead[f"blocks.{name}.bn1"] = mask
    return network.eval(), dead


def test_a_pruned_network_has_the_same_outputs_and_fewer_parameters(network_with_dead_channels):
    network, dead = network_with_dead_channels
    pruned, images = features.prune(network, dead), torch.randn(32, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network(images), pruned(images), atol=1e-5)
    for name, block in pruned.blocks.named_children():
        left = int((~dead[f"blocks.{name}.bn1"]).sum())
        assert block.conv1.out_channels == block.conv2.in_channels == block.bn1.num_features == left
    removed = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in pruned.parameters())
    assert removed == sum(int(mask.sum()) * (9 * block.conv1.in_channels + 2 + 9 * block.conv2.out_channels)
                          for mask, block in zip(dead.values(), network.blocks, strict=True))


def test_pruning_leaves_the_network_it_is_given_alone(network_with_dead_channels):
    network, dead = network_with_dead_channels
    before = copy.deepcopy(network.state_dict())
    features.prune(network, dead)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_block_of_dead_channels_keeps_one(network_with_dead_channels):
    network, dead = network_with_dead_channels
    with torch.no_grad():
        network.blocks[0].bn1.weight.zero_()
        network.blocks[0].bn1.bias.fill_(-1)
    pruned = features.prune(network, dead | {"blocks.0.bn1": np.ones(16, bool)})
    images = torch.randn(8, 3, 32, 32)
    assert pruned.blocks[0].bn1.num_features == 1
    with torch.no_grad():
        assert torch.allclose(network(images), pruned(images), atol=1e-5)


def test_pruning_takes_the_weights_that_train_among_random_ones(network_with_dead_channels):
    network, dead = network_with_dead_channels
    models.choose_weights(network, per_channel=2, seed=0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, models.ChosenConv2d):
                module.chosen += 0.5
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(models.folded(network)(images), network(images))
        assert torch.allclose(features.prune(network, dead)(images), network(images), atol=1e-5)


def test_only_residual_networks_of_batch_norm_are_pruned():
    for network in (models.build("resnet8", 10, norm="group"), models.build("3c3d", 10)):
        with pytest.raises(InputError, match="pruning: takes a ResNet"):
            features.prune(network, {})


def test_activations_of_other_normalisations_and_of_dense_layers_are_counted(tiny, tmp_path):
    for fields, layers in (({"norm": "group"}, 7), ({"model": "3c3d", "positions": "first2", "trainable": "all"}, 5)):
        config = dataclasses.replace(tiny, **{"model": "resnet8"} | fields)
        channels = features.activations(run(config, results=tmp_path / "results"))
        assert channels["layer"].nunique() == layers and channels["zero"].between(0, 1).all()


def test_activations_are_those_that_a_plain_hook_counts(tiny_run):
    channels, seen, digits = features.activations(tiny_run), {}, data.load("digits")
    network = tiny_run.network()
    for name, module in network.named_modules():
        if type(module).__name__ == "BNReLU":
            module.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o.detach().clone()))
    with torch.no_grad():
        network(data.Normalise(digits, torch.device("cpu"), torch.float32)(digits.x_test))
    assert channels["layer"].drop_duplicates().tolist() == list(seen)
    for layer, rows in channels.groupby("layer"):
        zero = (seen[layer] == 0).float().mean((0, 2, 3)).numpy()
        assert np.allclose(rows.sort_values("channel")["zero"], zero, atol=2e-4)      # a sum may round to just above 0


def test_setting_gammas_to_zero_is_what_the_network_then_computes(tiny_run):
    table = features.thresholds([tiny_run], at=(0.0, 0.3, 10.0)).set_index("threshold")
    assert table.loc[0.0, "accuracy"] == pytest.approx(100 * tiny_run.metrics["test_accuracy"])
    gamma = np.concatenate(list(tiny_run.gamma.values()))
    assert table.loc[0.3, "zeroed"] == pytest.approx(100 * np.mean(np.abs(gamma) < 0.3))
    network = features.without_small(tiny_run.network(), 10.0)
    with torch.no_grad():                          # without any γ, all images look the same
        assert network(torch.randn(5, 3, 32, 32)).std(0).max() < 1e-6


def test_pruning_counts_what_it_removes(tiny_run, monkeypatch):
    """Three silent channels of the first block: 16·3·3 weights into each and out of it, its γ and its β."""
    drawn = tiny_run.network

    def silenced():
        network = drawn()
        network.blocks[0].bn1.bias.data[:3] = -1e3
        return network

    before = features.pruning([tiny_run]).iloc[0]
    assert before["removed"] == 0 and before["parameters left"] == tiny_run.metrics["parameters"]
    monkeypatch.setattr(tiny_run, "network", silenced)
    row = features.pruning([tiny_run]).iloc[0]
    assert row["removed"] == row["silent"] == pytest.approx(100 * 3 / row["channels"])
    assert row["parameters"] - row["parameters left"] == 3 * (2 * 16 * 9 + 2) and row["changed"] == 0


def test_a_kept_table_is_computed_once_and_only_for_what_it_lacks(tiny_run, tmp_path):
    asked = []

    def make(runs):
        asked.append([run.id for run in runs])
        return pd.DataFrame({"run": asked[-1], "value": 1 / 3})

    first, second = (features.kept("x", tmp_path, make, [tiny_run]) for _ in range(2))
    assert asked == [[tiny_run.id]] and first.equals(second) and (tmp_path / "tables/x.csv").exists()
    assert first.columns.tolist() == ["run", "value"]
    file = tmp_path / "tables/x.csv"
    pd.read_csv(file).assign(record="another").to_csv(file, index=False)          # as if the run was trained once more
    assert features.kept("x", tmp_path, make, [tiny_run]).equals(first) and asked == [[tiny_run.id]] * 2
