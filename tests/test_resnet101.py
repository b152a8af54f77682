"""ResNet-101's study: the same start with batch norm and without, records of the loss alone, verdicts on speed."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from bnlib import Config, InputError, analysis, models, plots, run, verdicts, verify
from bnlib.campaign import notebook_configs
from bnlib.config import resolve
from bnlib.train import evaluate_on_test_set
from tests.test_analysis import fake_run
from tests.test_train import same, stop_after

ALL = {"trainable": "all", "optimizer": "adam", "lr": None, "momentum": None, "weight_decay": None, "log_every": 1,
       "keep_affine": False}
MATTERS = "Batch norm speeds training up (by 0.05 nats or more)"
NO_FASTER = "AdaBound is no faster than Adam where they learn (within 0.05 nats)"


# ------------------------------------------------------------------------------------------ the same start

@pytest.mark.parametrize(("model", "init"), [
    ("imagenet_resnet18", "orthogonal"), ("imagenet_resnet50", "he_uniform"), ("imagenet_resnet101", "he_normal")])
def test_without_batch_norm_the_weights_are_those_beside_batch_norm_and_biases_are_0(model, init):
    batch, none = ({name: module for name, module in models.build(
        model, 10, seed=3, norm=norm, conv_init=init).named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
        for norm in ("batch", "none"))
    assert list(batch) == list(none) and len(batch) >= models.parse_model(model).depth
    assert all(torch.equal(batch[name].weight, none[name].weight) for name in batch)
    assert all(batch[name].bias is None for name in batch if name != "fc")
    assert not any(module.bias.any() for module in none.values())


def test_without_batch_norm_orthogonal_weights_begin_near_the_loss_of_guessing_and_hes_far_above(seeded):
    images, labels, loss = torch.randn(8, 3, 64, 64), torch.arange(8), {}
    for init in ("orthogonal", "he_normal"):
        network = models.build("imagenet_resnet50", 10, norm="none", conv_init=init)
        with torch.no_grad():
            loss[init] = nn.functional.cross_entropy(network(images), labels).item()
    assert loss["orthogonal"] < 1.5 * math.log(10) and loss["he_normal"] > 100 * math.log(10)


def test_the_grid_varies_norm_and_optimizer_and_nothing_else():
    deep = [c for c in notebook_configs(resolve("notebooks") / "11_optimizers.ipynb", profile_name="short")
            if not c.keep_affine and c.dataset == "cifar10"]
    assert {(c.norm, c.optimizer) for c in deep} == {(n, o) for n in ("batch", "none") for o in ("adam", "adabound")}
    assert len(deep) == 8 and len({dataclasses.replace(c, norm="batch", optimizer="adam", lr=1.0) for c in deep}) == 1
    assert {c.lr for c in deep} == {0.001, 0.0001}
    assert {(c.model, c.image_size) for c in deep} == {("imagenet_resnet101", 96)}
    assert 200 <= deep[0].n_train * deep[0].epochs / deep[0].batch_size <= 999


# ------------------------------------------------------------------------------------------ the loss alone

@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """With and without batch norm, Adam and AdaBound: eight steps each, each step's loss kept."""
    folder = tmp_path_factory.mktemp("four") / "results"
    shared = {"dataset": "digits", "model": "resnet8", "n_train": 256, "epochs": 2, "batch_size": 64, "augment": "none",
              "schedule": "constant"} | ALL
    return [run(Config(**shared | {"norm": norm, "optimizer": optimizer}), results=folder)
            for norm in ("batch", "none") for optimizer in ("adam", "adabound")]


def test_a_record_of_the_loss_alone_holds_each_steps_and_no_gamma(four):
    for r in four:
        assert r.trajectory["steps"].tolist() == list(range(1, 9)) and r.gamma == r.beta == r.running_var == {}
        of_an_epoch = r.trajectory["step_loss"].reshape(2, 4).mean(1)            # batches of one size
        assert of_an_epoch == pytest.approx(r.history["train_loss"], rel=1e-5)
        assert not r.record["complete"]
        assert not any(values.size for values in r.tensors.values())
        assert (r.folder / "trajectory.safetensors").stat().st_size < 1000         # of it 8 losses and 8 steps


def test_its_network_comes_back_from_the_weights_kept_beside(four):
    for r in four:
        again = evaluate_on_test_set(r.network(), r.config)
        assert again.correct == r.metrics["test_correct"]
        assert not verify.check(r.folder)[0].faults


def test_it_can_be_stopped_between_steps_and_ends_in_the_same_bytes(four, tmp_path, monkeypatch):
    for whole in (four[0], four[3]):
        for steps in (1, 4):
            stop_after(steps, whole.config, tmp_path / "results", monkeypatch)
        assert same(run(whole.config, results=tmp_path / "results"), whole)


def test_gamma_and_beta_are_left_out_only_where_weights_train_too():
    with pytest.raises(InputError, match=r"^keep_affine=False: where trainable='bn\+output'.*'all' or 'weights'"):
        Config(trainable="bn+output", keep_affine=False)
    assert Config(trainable="all", keep_affine=True).id == Config(trainable="all").id


# ------------------------------------------------------------------------------------------ table, figure, verdicts

def test_the_table_has_each_logged_loss_and_the_seconds_until_then(four):
    table = analysis.with_and_without(four)
    assert len(table) == 4 * 8 and table["seconds"].groupby(table["run"]).is_monotonic_increasing.all()
    for r in four:
        rows = table[table["run"] == r.id].set_index("step")
        assert rows.loc[8, "seconds"] == pytest.approx(2 * r.history["seconds"].min())           # two epochs
        assert rows.loc[4, "seconds"] == pytest.approx(r.history["seconds"].min())
        assert np.array_equal(rows["loss"], r.trajectory["step_loss"])
    said = analysis.speeds(four)
    assert len(said) == 4 and "with batch norm, Adam, lr 0.001: a training loss of " in said[0]
    assert f"{four[0].trajectory['step_loss'][-1]:.2f} over the last tenth of 8 steps" in said[0]


def test_seconds_on_another_machine_are_left_out(four, monkeypatch):
    monkeypatch.setitem(four[1].provenance, "device", "another CPU")
    table = analysis.with_and_without(four)
    assert set(table["run"][table["seconds"].isna()]) == {four[1].id}
    assert [", in " in said for said in analysis.speeds(four)] == [True, False, True, True]


def test_the_figure_is_drawn_and_so_is_its_absence(four, tmp_path):
    table = analysis.with_and_without(four)
    lines = plots.with_and_without(table).axes[0].lines
    dashed = [line.get_label() for line in lines if line.get_linestyle() == "--"]
    assert [label for label in dashed if "without" in label] == dashed and len(dashed) == 2
    two = table.assign(dataset=np.where(table["step"] % 2, "digits", "cifar10"))
    for number, figure in enumerate([plots.with_and_without(two), plots.with_and_without(table[:0])]):
        plots.save(figure, str(number), tmp_path)
    assert not figure.axes


def judged(losses: dict, claim: str, sets=("digits",)) -> str:
    """The verdict on runs of these losses, at (norm, optimizer) or (norm, optimizer, lr), on each set of images."""
    runs = []
    for dataset in sets:
        for (norm, optimizer, *lr), value in losses.items():
            fields = ALL | {"optimizer": optimizer, "norm": norm, "dataset": dataset, "model": "imagenet_resnet101"}
            runs.append(fake_run(epochs=1, **fields | {"lr": lr[0] if lr else None}))
            runs[-1].record = {"classes": 10}
            runs[-1].trajectory = {"steps": np.arange(1, 21), "step_loss": np.r_[np.full(18, 9.0), value, value]}
    return verdicts.table(runs, "digits").set_index("claim").loc[claim, "verdict"]


def of(batch_adam, batch_adabound, none_adam, none_adabound) -> dict:
    return {("batch", "adam"): batch_adam, ("batch", "adabound"): batch_adabound, ("none", "adam"): none_adam,
            ("none", "adabound"): none_adabound}


YES, NO = "agrees so far", "disagrees so far"


@pytest.mark.parametrize(("losses", "matters", "no_faster"), [
    (of(1.0, 1.2, 2.3, 2.3), YES, YES),  # on one set of images
    (of(1.0, 1.2, 1.02, 1.27), "undecided", YES),  # by less than counts as ahead
    (of(1.0, 1.2, 2.0, 1.1), "undecided", NO),  # in one of two pairs, and in the mean
    (of(1.0, 1.2, 1.1, 0.8), NO, NO),  # in one of two pairs alone
    (of(np.nan, 1.0, 2.0, np.nan), "undecided", "undecided"),  # one on either side
    (of(np.nan, 1.0, np.nan, 2.0), YES, NO),  # where both diverged neither is ahead
    (of(1.2, 1.0, 2.3, 2.2), YES, NO),  # AdaBound is ahead
    (of(1.2, 1.0, 2.3, 2.4), YES, NO),  # ahead in one of two pairs
    (of(1.0, 0.97, 2.3, 2.3), YES, YES),  # ahead by next to nothing
    (of(2.4, 2.4, 2.3, 2.3), NO, "not yet run"),  # nobody learns
    (of(1.0, 1.0, np.nan, np.nan), YES, YES),  # what diverged did not come anywhere
    (of(1.0, 1.0, np.nan, 2.3), YES, YES)])
def test_verdicts_on_speed_follow_their_rules(losses, matters, no_faster):
    assert (judged(losses, MATTERS), judged(losses, NO_FASTER)) == (matters, no_faster)


def test_a_verdict_on_speed_takes_all_four_the_best_rate_of_each_and_three_sets_of_images():
    losses = of(1.0, 1.2, 2.3, 2.3)
    sets = ("digits", "cifar10", "stanford_cars_64x96")
    assert [judged(losses, claim, sets) for claim in (MATTERS, NO_FASTER)] == ["reproduced"] * 2
    assert judged(losses | {("none", "adam", 1e-4): 0.9}, MATTERS) == "undecided"
    better = losses | {("none", optimizer, 1e-4): 0.9 for optimizer in ("adam", "adabound")}
    assert judged(better, MATTERS, sets) == "not reproduced"
    del losses["none", "adam"]
    assert [judged(losses, claim, sets) for claim in (MATTERS, NO_FASTER)] == ["not yet run"] * 2
