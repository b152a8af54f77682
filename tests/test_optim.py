"""Optimizers: the documented defaults, weight decay where it is asked for, LBFGS on a batch that stays as it is."""

import copy
import dataclasses
import inspect
import itertools
import sys
import types
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from bnlib import Config, InputError, analysis, data, lbfgs, models, optim, parallel, plots, run, train, verdicts
from bnlib.freeze import select, undecayed
from bnlib.optim import work
from bnlib.options import OPTIMIZERS, OPTIONS
from bnlib.profiles import variant
from bnlib.stop import Stop
from bnlib.train import make_step, place
from tests.test_train import same, stop_after

CPU = torch.device("cpu")
OTHERS = [name for name in OPTIMIZERS if name != "sgd"]


def other(tiny: Config, name: str, **changed) -> Config:
    """The small config with another optimizer, LBFGS with two batches an epoch."""
    own = dict.fromkeys(("lr", "momentum", "weight_decay", "milestones"))
    options = {"optimizer_options": "max_iter=3 max_eval=50 piece=30"} if name == "lbfgs" else {}
    return dataclasses.replace(tiny, **own | {"optimizer": name, "batch_size": 64} | options | changed)


# ------------------------------------------------------------------------------------------ defaults, options

@pytest.mark.parametrize("name", OTHERS)
def test_every_default_is_the_one_its_library_documents(name):
    theirs = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "lbfgs": torch.optim.LBFGS}
    kind = theirs.get(name) or optim._library()[name]
    documented = {key: p.default for key, p in inspect.signature(kind).parameters.items()}
    ours = OPTIONS[name] | {key: OPTIMIZERS[name][key] for key in ("lr", "weight_decay")}
    for key in {"piece"} if name == "lbfgs" else ():       # how a batch is cut up is no part of torch's
        del ours[key]
    if name == "lbfgs":
        assert ours.pop("weight_decay") == 0 and "weight_decay" not in documented
    assert ours == {key: documented[key] for key in ours}
    speed = {"params", "foreach", "fused", "capturable", "differentiable", "maximize", "kwargs"}
    elsewhere = {"line_search_fn", "decoupled_weight_decay"}       # always strong Wolfe; that is AdamW
    assert set(documented) == set(ours) | (speed | elsewhere) & set(documented)


def another(default):
    """A value of an option that is not its default."""
    return (not default if isinstance(default, bool) else tuple(0.5 for _ in default) if isinstance(default, tuple) else
            7 if isinstance(default, int) else 0.25)


@pytest.mark.parametrize(("name", "option"), [(name, option) for name, own in OPTIONS.items() for option in own])
def test_every_option_reaches_its_optimizer_as_do_rate_and_decay(name, option):
    value = 7 if option == "max_eval" else another(OPTIONS[name][option])
    config = Config(optimizer=name, optimizer_options=f"{option}={value}", lr=0.01, weight_decay=0.02)
    made = optim.optimizer([torch.nn.Parameter(torch.ones(2))], config)
    group = made.param_groups[0]
    assert group.get(option, getattr(made, option, None)) == value
    assert group["lr"] == 0.01 and group.get("weight_decay", getattr(made, "weight_decay", None)) == 0.02


def test_an_option_has_one_id_however_it_is_spelled():
    spellings = ["betas=(0.5,0.9) eps=1e-6", "eps=0.000001, betas=(.5, 0.9)", "betas=[0.5, .9]  eps=1e-6 amsgrad=False"]
    configs = {Config(optimizer="adam", optimizer_options=text) for text in spellings}
    assert {c.optimizer_options for c in configs} == {"betas=(0.5,0.9) eps=1e-06"} and len(configs) == 1
    assert Config(optimizer="adam", optimizer_options="eps=1e-8").id == Config(optimizer="adam").id
    for spelled, kept in (("beta3=.98", "beta3=0.98"), ("beta3=0", "beta3=0.0"), ("eps=None", "eps=None"),
                          ("growth_rate=inf", ""), ("growth_rate=2", "growth_rate=2.0")):
        assert Config(optimizer="prodigy", optimizer_options=spelled).optimizer_options == kept
    assert Config(optimizer="lbfgs", optimizer_options="max_eval=50.0").optimizer_options == "max_eval=50"


def test_sgds_defaults_are_the_papers_and_of_the_others_their_own():
    assert (Config().lr, Config().momentum, Config().weight_decay) == (0.1, 0.9, 1e-4)
    assert Config(optimizer="adam").lr == 1e-3 and Config(optimizer="adam").weight_decay == 0
    assert Config(optimizer="lbfgs").milestones == () and Config(optimizer="lbfgs").batch_size == 5000
    assert Config(lr=0.1).id == Config().id and Config(epochs=16).id == "cifar10-resnet14-bn-s0-78e9d3a6"
    with pytest.raises(InputError, match="adam has none; nor does it take over SGD's lr"):       # too high for Adam
        dataclasses.replace(Config(), optimizer="adam")


def test_a_variant_names_the_optimizer_and_not_what_it_brings_along():
    assert variant(Config(epochs=16, optimizer="adam")) == {"optimizer": "adam"}
    assert variant(Config(epochs=16, optimizer="lbfgs", optimizer_options="max_iter=5")) == {
        "optimizer": "lbfgs", "optimizer_options": "max_iter=5"}
    assert variant(Config(epochs=16, decay="beta")) == {"decay": "beta"}


def test_options_that_the_optimizer_refuses_are_one_line(tiny, tmp_path):
    for changed, said in (({"optimizer_options": "nesterov=True", "momentum": 0.0}, "^optimizer_options=.*sgd says:"),
                          ({"optimizer": "adabound", "momentum": None, "trainable": "all", "bn_first": 1},
                           "^bn_first=1: adabound counts its steps for all parameters together"),
                          ({"optimizer_options": "dampening=0.5", "trainable": "all", "bn_first": 1},
                           "sgd says: no dampening of parameters that begin to train after bn_first=1")):
        with pytest.raises(InputError, match=said) as error:
            run(dataclasses.replace(tiny, epochs=2, **changed), results=tmp_path / "results")
        assert "\n" not in str(error.value)


def test_without_the_library_its_optimizers_are_one_line_and_torchs_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(InputError, match="pip install pytorch-optimizer"):
        run(other(tiny, "adabound"), results=tmp_path / "results")
    assert run(other(tiny, "adam", epochs=1), results=tmp_path / "results").status == "done"


# ------------------------------------------------------------------------------------------ training

@pytest.mark.parametrize(("name", "trainable"), [*((name, "bn") for name in OTHERS), ("adam", "all")])
def test_a_run_stopped_between_steps_ends_in_the_same_bytes(name, trainable, tiny, tmp_path, monkeypatch):
    config = other(tiny, name, trainable=trainable, epochs=2)
    whole = run(config, results=tmp_path / "whole/results")
    assert not np.allclose(np.concatenate(list(whole.gamma.values())),
                           np.concatenate([g[0] for g in whole.trajectory["gamma"].values()]), atol=1e-5)
    with warnings.catch_warnings():                  # a checkpoint that cannot be read is a warning and a new start
        warnings.simplefilter("error")
        for steps in (1, 2):
            stop_after(steps, config, tmp_path / "stopped/results", monkeypatch)
        assert same(run(config, results=tmp_path / "stopped/results"), whole)


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"lbfgs"}))               # whose decay is in its loss
@pytest.mark.parametrize("decay", ["all", "gamma", "beta", "bn", "weights", "none"])
def test_weight_decay_moves_what_it_is_asked_to_and_nothing_else(name, decay):
    """Against the same step without decay; Prodigy takes none without a gradient, and its first are tiny."""
    gradient, options = (1.0, "d0=1.0") if name == "prodigy" else (0.0, "")
    after = []
    for strength in (0.1, 0.0):
        network = models.build("resnet8", 10, bn_init="beta_one")
        nonzero = {key for key, p in network.named_parameters() if p.abs().max() > 0}
        config = Config(optimizer=name, optimizer_options=options, weight_decay=strength, decay=decay, lr=0.1)
        optimizer = optim.optimizer(network.parameters(), config, undecayed(network, config.decay))
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        after.append(dict(network.named_parameters()))
    moved = {key for key, p in after[0].items() if not torch.equal(p, after[1][key])}
    assert moved == set(select(network, decay)) & nonzero


def test_histories_count_passes_for_lbfgs_alone(tiny, tiny_run, tmp_path):
    history = run(other(tiny, "lbfgs"), results=tmp_path / "results").history
    assert "passes" not in tiny_run.history and (history["passes"] >= 3 + 1).all()      # a look for each, and the last


# ------------------------------------------------------------------------------------------ LBFGS's batch

@pytest.fixture
def held(tiny):
    return held_step(other(tiny, "lbfgs", weight_decay=0.01, decay="gamma"))


def held_step(config: Config):
    """An LBFGS step over 64 digits in three pieces, the network's inputs and running means noted at each pass."""
    network, dataset = models.from_config(config, 10), data.load("digits")
    trainable = place(network, config, CPU, "fp32")
    network.train()
    optimizer = optim.optimizer(trainable, config, undecayed(network, config.decay))
    normalise = data.Normalise(dataset, CPU, torch.float32)
    batches = data.TrainingBatches(dataset.x_train[:128], dataset.y_train[:128], config, normalise, CPU)
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(
        (inputs[0].clone(), torch.is_grad_enabled(), [layer.running_mean.clone() for layer in _bn(network)],
         [layer.running_var.clone() for layer in _bn(network)])))
    return network, batches, make_step(network, optimizer, "fp32", CPU), seen


def _bn(network):
    return [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_every_pass_of_a_step_sees_the_same_pixels_and_moves_no_running_statistics(held):
    _, batches, step, seen = held
    for images, labels in batches.epoch(1):
        seen.clear()
        step(images, labels)
        searching = [one for one in seen if one[1]]
        assert step.passes >= 5 and len(seen) == 3 * step.passes and len(searching) == len(seen) - 3
        for number, (part, _, means, variances) in enumerate(searching):
            assert torch.equal(part, images.tensor_split(3)[number % 3])
            for before, now in zip(searching[0][2] + searching[0][3], means + variances, strict=True):
                assert torch.equal(before, now)


def test_dropout_is_the_same_in_every_pass_of_a_step_and_another_in_each_piece_and_step(tiny):
    network, batches, step, _ = held_step(other(tiny, "lbfgs", model="allcnnc", image_size=None))
    masks, of_steps = [], []
    network.dropout1.register_forward_hook(lambda module, inputs, output: masks.append(output == 0))
    for images, labels in batches.epoch(1):
        masks.clear()
        step(images, labels)
        assert step.passes >= 5 and len(masks) == 3 * step.passes
        assert all(torch.equal(mask, masks[number % 3]) for number, mask in enumerate(masks))
        of_steps += [mask[:21] for mask in masks[:3]]
    assert not any(torch.equal(*pair) for pair in itertools.combinations(of_steps, 2))


def test_after_a_step_running_statistics_are_the_means_over_its_pieces(held):
    network, batches, step, _ = held
    for images, labels in batches.epoch(1):
        loss, logits = step(images, labels)
    outputs = [network.conv(part) for part in images.tensor_split(3)]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    variance = torch.stack([y.var((0, 2, 3), unbiased=True) for y in outputs]).mean(0)
    torch.testing.assert_close(network.bn.running_mean, mean)
    torch.testing.assert_close(network.bn.running_var, variance)
    again = torch.cat([network(part) for part in images.tensor_split(3)])        # what it returns is of now
    torch.testing.assert_close(logits, again)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(again, labels))


def test_the_loss_that_lbfgs_sees_is_one_function_with_its_gradient(held):
    """The whole batch's mean cross-entropy and ½λΣγ², whatever the pieces; twice the same bits."""
    network, batches, step, _ = held
    images, labels = next(iter(batches.epoch(1)))
    pieces = list(zip(images.tensor_split(3), labels.tensor_split(3), strict=True))
    values = [step._loss(pieces, 64) for _ in range(2)]
    gradients = [p.grad.clone() for p in step.trained]
    assert torch.equal(*values)
    logits = torch.cat([network(part) for part, _ in pieces])
    gammas = list(select(network, "gamma").values())
    expected = torch.nn.functional.cross_entropy(logits, labels) + 0.005 * sum(g.square().sum() for g in gammas)
    torch.testing.assert_close(values[0], expected.detach())
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, step.trained), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_lbfgs_keeps_no_curvature_between_two_batches(held):
    """Three iterations give two differences of gradients of one batch; a third would be of two batches."""
    _, batches, step, _ = held
    for number, (images, labels) in enumerate(batches.epoch(1), 1):
        step(images, labels)
        state = step.optimizer.state[step.trained[0]]
        assert len(state["old_dirs"]) == 2 * number and state["n_iter"] == 3 * number


def test_lbfgs_takes_fewer_epochs_of_its_batch_than_its_passes_and_lowers_the_loss(tiny, tmp_path):
    history = run(other(tiny, "lbfgs", epochs=4, batch_size=128, optimizer_options="max_iter=10"),
                  results=tmp_path / "results").history
    assert history["train_loss"].is_monotonic_decreasing and (history["passes"] <= 14).all()


@pytest.mark.parametrize("trainable", ["none", "output", "random2", "weights"])
def test_lbfgs_trains_whatever_trains(trainable, tiny, tmp_path):
    found = run(other(tiny, "lbfgs", trainable=trainable, epochs=1), results=tmp_path / "results")
    begun = models.from_config(found.config, 10)
    moved = {name for name, value in found.network().named_parameters() if not value.equal(begun.get_parameter(name))}
    assert moved == set(select(begun, trainable))


def test_an_lbfgs_run_whose_loss_is_no_number_is_recorded_as_diverged(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(lbfgs.F, "cross_entropy", lambda logits, labels: (logits * np.nan).sum())
    assert run(other(tiny, "lbfgs"), results=tmp_path / "results").status == "diverged"


@pytest.mark.parametrize(("changed", "said"), [
    ({"batch_size": 90}, "batch_size=90: leaves a last batch of 38 of 128 images, too few for LBFGS; 64 or 128 divide "
                         "them evenly"),
    # 128 images of 3·32·32 numbers, twice, of 2 bytes; two pairs of γ and β, 672 numbers of 4 bytes
    ({"batch_size": 128}, "batch_size=128: LBFGS holds a batch while it steps, and 2 pairs of steps and gradients, "
                          "0.00158 GB; this cpu has 0.001 GB; at most 80"),
    ({"optimizer_options": "max_iter=3 history_size=500"},
     "history_size=500: LBFGS remembers as many pairs of steps and gradients, 0.00269 GB; this cpu has 0.001 GB; at "
     "most 186"),
    ({"model": "imagenet_resnet18", "image_size": 64, "optimizer_options": "max_iter=3 history_size=2"},
     "batch_size=64: LBFGS holds a batch while it steps, and 2 pairs of steps and gradients, 0.0033 GB; this cpu has "
     "0.001 GB; at most 17")])
def test_a_batch_that_cannot_be_held_is_one_line(changed, said, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(lbfgs, "memory", lambda device: 10**6)
    config = other(tiny, "lbfgs", **{"optimizer_options": "max_iter=3 history_size=2"} | changed)
    with pytest.raises(InputError) as error:
        run(config, results=tmp_path / "results", precision="bf16")
    assert str(error.value) == said


def test_pieces_too_small_for_batch_norm_and_several_processes_are_one_line(tiny, tmp_path, monkeypatch):
    dense = other(tiny, "lbfgs", model="3c3d", trainable="all", optimizer_options="max_iter=3 piece=1")
    with pytest.raises(InputError, match="piece=1 leaves pieces of 1 images; batch norm of 3c3d takes at least 2"):
        run(dense, results=tmp_path / "results")
    monkeypatch.setattr(parallel, "processes", lambda: 2)
    with pytest.raises(InputError, match="optimizer='lbfgs': several processes cannot share its batch"):
        train.train(other(tiny, "lbfgs"), Stop(), results=tmp_path / "results")


def test_decay_of_weights_waits_while_gamma_and_beta_train_alone(tiny, tmp_path):
    config = other(tiny, "lbfgs", trainable="all", bn_first=1, weight_decay=0.01, decay="weights")
    found = run(config, results=tmp_path / "results")
    begun, ended = models.from_config(config, 10), found.network()
    assert not ended.conv.weight.equal(begun.conv.weight) and found.history["train_loss"].is_monotonic_decreasing


def test_a_plan_counts_the_passes_of_lbfgs(tiny):
    assert work(other(tiny, "lbfgs", optimizer_options="max_iter=8")) == 11 * work(tiny)      # 8·5/4 looks and the last
    assert work(other(tiny, "adam")) == work(tiny)


@pytest.mark.parametrize("name", OTHERS)
def test_real_images_train_with_every_optimizer(name, cifar10, tmp_path):
    config = Config(model="resnet8", shortcut="A", optimizer=name, n_train=400, epochs=1, seed=1,
                    **{"batch_size": 400, "optimizer_options": "max_iter=3"} if name == "lbfgs" else {})
    history = run(config, results=tmp_path / "results").history
    assert np.isfinite(history["test_loss"]).all() and history["test_accuracy"].between(0, 1).all()


# ------------------------------------------------------------------------------------------ tables, figures, verdicts

@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """SGD at two settings, Adam, AdaBound and LBFGS at one; SGD with decay on β and on nothing."""
    folder = tmp_path_factory.mktemp("compared") / "results"
    shared = {"dataset": "digits", "model": "resnet8", "shortcut": "A", "n_train": 128, "n_val": 100, "epochs": 4,
              "batch_size": 64, "augment": "crop"}
    of_lbfgs = {"optimizer": "lbfgs", "batch_size": 128, "optimizer_options": "max_iter=3 history_size=5", "epochs": 2}
    settings = [{}, {"lr": 0.5}, {"optimizer": "adam"}, {"optimizer": "adabound"}, of_lbfgs,
                *({"weight_decay": 0.1, "decay": decay, "lr": 0.5} for decay in ("beta", "none"))]
    return [run(Config(**shared | setting), results=folder) for setting in settings]


def test_the_setting_is_chosen_on_the_validation_images(compared):
    table = analysis.optimizers(analysis.own_decay(compared))
    assert len(table) == 5 and (table.groupby("optimizer")["chosen"].sum() == 1).all()      # none of the decay's runs
    of_sgd = table[table["optimizer"] == "sgd"].sort_values(["val_accuracy", "val_loss"], ascending=[False, True])
    assert of_sgd["chosen"].tolist() == [True, False]
    ours = dict(zip(table["optimizer"], table["passes"], strict=False))
    assert ours["sgd"] == 4 and ours["lbfgs"] == compared[4].history["passes"].sum() >= 6


def tried(right: float, status="done", passes=16, **fields):
    """What the comparison reads of a run of this accuracy on the validation images."""
    config = Config(**{"n_val": 5000, "epochs": 16} | fields)
    history = pd.DataFrame({"epoch": range(1, config.epochs + 1), "seconds": 1.0, "passes": passes / config.epochs})
    return types.SimpleNamespace(config=config, id=config.id, status=status, history=history, beta={"bn": np.ones(2)},
                                 provenance={"device": "CPU", "precision": "bf16", "conv_path": "torch"},
                                 metrics={f"{part}_{kind}": right for part in ("val", "test")
                                          for kind in ("accuracy", "loss")})


def chosen(*runs) -> list[bool]:
    return analysis.optimizers(runs)["chosen"].tolist()


def test_a_setting_of_which_a_seed_diverged_is_not_chosen():
    steady = [tried(0.6, seed=s) for s in range(3)]
    wild = [tried(0.9, lr=0.3), *(tried(0.0, "diverged", lr=0.3, seed=s) for s in (1, 2))]
    assert chosen(*steady, *wild) == [True] * 3 + [False] * 3


def test_a_setting_is_chosen_among_those_of_its_task_and_length():
    """Momentum and schedule are an optimizer's own; another shortcut, or ten times the passes, is another question."""
    assert chosen(tried(0.5), tried(0.6, momentum=0.5), tried(0.55, schedule="cosine")) == [False, True, False]
    assert chosen(tried(0.5), tried(0.6, shortcut="A"), tried(0.7, epochs=160)) == [True] * 3
    of_lbfgs = {"optimizer": "lbfgs", "optimizer_options": "max_iter=5", "epochs": 3}
    assert chosen(*(tried(right, passes=n, batch_size=size, **of_lbfgs)              # whatever its searches came to
                    for right, n, size in ((0.5, 31, 5000), (0.6, 33, 1000)))) == [False, True]


def test_only_the_smallest_and_the_largest_rate_are_at_the_edge_of_what_was_tried():
    for best, edge in ((0.03, True), (0.1, False), (0.3, True)):
        runs = [tried(0.6 if lr == best else 0.5, lr=lr) for lr in (0.03, 0.1, 0.3)]
        said, = analysis.searched(analysis.optimizers(runs))
        assert said.endswith(", at the edge of what was tried in lr.") == edge
    of_lbfgs = [tried(right, optimizer="lbfgs", batch_size=size, epochs=3, optimizer_options=f"history_size={memory}")
                for right, size, memory in ((0.5, 1000, 10), (0.6, 5000, 50), (0.5, 15000, 10))]
    said, = analysis.searched(analysis.optimizers(of_lbfgs))
    assert said.endswith(", at the edge of what was tried in history_size.")


@pytest.mark.parametrize(("one", "other", "said"), [
    ({"optimizer": "adam"}, {"optimizer": "adam", "batch_size": 32}, ("lr 0.001", "lr 0.001, batch 32")),
    ({"optimizer": "adam"}, {"optimizer": "adam", "weight_decay": 0.1}, ("lr 0.001", "lr 0.001, weight decay 0.1")),
    ({}, {"momentum": 0.5}, ("lr 0.1", "lr 0.1, momentum 0.5")),
    ({"optimizer": "lbfgs"}, {"optimizer": "lbfgs", "lr": 0.25}, ("batch 5,000", "batch 5,000, lr 0.25"))])
def test_settings_that_differ_are_told_apart(one, other, said):
    assert tuple(analysis.optimizers([tried(0.5, **one), tried(0.6, **other)])["setting"]) == said


def test_a_batch_that_all_but_lbfgs_share_goes_without_saying():
    runs = [tried(0.5, batch_size=64, **fields) for fields in ({}, {"optimizer": "adam"}, {"optimizer": "lbfgs"})]
    assert analysis.optimizers(runs)["setting"].tolist() == ["lr 0.1", "lr 0.001", "batch 64"]


def test_logged_losses_stand_where_their_step_was(tiny, tmp_path):
    """Two steps an epoch, of which every third is logged: the third of four ends one and a half epochs."""
    r = run(dataclasses.replace(tiny, n_train=64, batch_size=32, epochs=2, log_every=3), results=tmp_path / "results")
    assert analysis.logged_losses(r)[["step", "epoch", "passes"]].to_numpy().tolist() == [[3, 1.5, 1.5]]


def test_choosing_does_not_look_at_the_test_images(compared, monkeypatch):
    before = analysis.optimizers(compared)["chosen"].tolist()
    for r in compared:
        monkeypatch.setitem(r.metrics, "test_accuracy", 1 - r.metrics["test_accuracy"])
        monkeypatch.setitem(r.metrics, "test_loss", -r.metrics["test_loss"])
    assert analysis.optimizers(compared)["chosen"].tolist() == before


def test_what_was_tried_and_chosen_is_said(compared):
    said = analysis.searched(analysis.optimizers(analysis.own_decay(compared)))
    assert len(said) == 4 and said[0].startswith("SGD, BN only: tried lr 0.1; lr 0.5; chosen lr 0.")
    assert "edge of what was tried" in said[0] and "edge" not in said[-1]
    assert "on β alone" in analysis.restrained(compared[5:])[0]


def test_decay_of_whatever_is_said_and_drawn(compared):
    for on, said in (("bn", "on γ and β"), ("weights", "on weights"), ("gamma+weights", "on weights and γ"),
                     ("none", "on neither"), ("gamma", "on γ alone"), ("all", "on γ and β")):
        r = copy.copy(compared[5])
        r.config = dataclasses.replace(r.config, decay=on)
        assert f"0.1 {said}: root mean square" in analysis.restrained([r])[0]
        legend = plots.growth(analysis.growth([r])).legends[0]
        assert [text.get_text() for text in legend.get_texts()] == [said]


def test_growth_ends_at_the_records_beta(compared):
    table = analysis.growth(compared[5:])
    last = table[table["decay"] == "none"].iloc[-1]
    assert last["beta"] == pytest.approx(analysis.root_mean_square(compared[6].beta), rel=1e-3)
    assert table.groupby("decay")["beta"].first().eq(0).all()              # β starts at 0


YES, NO, AGREES = "holds so far", "does not hold so far", "agrees so far"


def _verdicts(runs):
    return verdicts.table(runs, dataset="digits").set_index("claim")


def test_verdicts_on_optimizers_follow_the_runs(compared, monkeypatch):
    table = _verdicts(compared)
    names = [c for c in table.index if c.startswith(("LBFGS", "AdaBound is no better", "Weight decay on β"))]
    assert len(names) == 4 and (_verdicts(compared[:2]).loc[names, "verdict"] == "not yet run").all()
    restrained = table.loc["Weight decay on β restrains its growth, BN only"]
    sizes = [analysis.root_mean_square(r.beta) for r in compared[5:]]
    assert restrained["verdict"] == (
        "agrees so far" if sizes[0] < sizes[1] else "disagrees so far")          # on one network
    assert f"β {sizes[0]:.2f} with decay of 0.1 on β alone, {sizes[1]:.2f} without" in restrained["ours"]
    adam, adabound = compared[2], compared[3]
    for right, verdict in ((0.9, "disagrees so far"), (0.51, "agrees so far"), (0.1, "agrees so far")):
        monkeypatch.setitem(adabound.metrics, "test_accuracy", right)
        monkeypatch.setitem(adam.metrics, "test_accuracy", 0.5)
        assert _verdicts(compared).loc["AdaBound is no better than Adam (within 2 points)", "verdict"] == verdict


@pytest.mark.parametrize(("losses", "said", "by_passes", "by_epochs"), [
    ((2.15, 1.0), "2.15 in 3 passes, SGD in 4 passes, to a test loss of 1.00 in 6 passes, SGD never", YES, AGREES),
    ((2.2, 2.1), "2.20 in 3 passes, SGD in 3 passes, to a test loss of 2.10 in 6 passes, SGD in 4 passes", NO, AGREES),
    ((2.25, 1.9), "2.25 in 3 passes, SGD in 3 passes, to a test loss of 1.90 in 6 passes, SGD never", NO, AGREES),
    ((2.4, 2.3), "2.40 in 3 passes, SGD in 1 passes, to a test loss of 2.30 in 6 passes, SGD in 2 passes", NO,
     "disagrees so far")])
def test_lbfgs_is_faster_where_it_comes_to_most_of_its_losses_sooner(losses, said, by_passes, by_epochs, compared,
                                                                     monkeypatch):
    """SGD's test loss falls 2.4, 2.3, 2.2, 2.1 over four passes; LBFGS has two rows of three passes."""
    for r in compared[:2]:
        monkeypatch.setitem(r.__dict__, "history", r.history.assign(test_loss=[2.4, 2.3, 2.2, 2.1]))
    monkeypatch.setitem(compared[4].__dict__, "history", compared[4].history.assign(passes=3.0, test_loss=losses))
    table = _verdicts(compared)
    row = table.loc["LBFGS converges in fewer passes, BN only"]
    assert row["verdict"] == by_passes and said in row["ours"]
    row = table.loc["LBFGS converges in fewer epochs, BN only"]
    assert row["verdict"] == by_epochs and f"to a test loss of {losses[0]:.2f} in epoch 1, SGD in epoch" in row["ours"]


def test_seconds_are_compared_on_one_machine_only(compared, monkeypatch):
    """Three runs, one of them trained elsewhere: a line each against epochs, two against seconds."""
    runs = compared[:3]
    monkeypatch.setitem(runs[1].provenance, "device", "another CPU, 1 threads")
    assert analysis.timed_alike(runs) == [runs[0], runs[2]] and analysis.timed_alike([]) == []
    monkeypatch.setitem(runs[2].provenance, "conv_path", "another")
    assert analysis.timed_alike(runs) == [runs[0]]
    monkeypatch.undo()
    monkeypatch.setitem(runs[1].provenance, "device", "another CPU, 1 threads")
    figure = plots.courses(runs, "bn")
    assert [len(axes.lines) for axes in figure.axes] == [6, 6, 4] * 2           # each run's training and test
    assert "seconds: only of what was trained on" in figure.get_suptitle()
    table = analysis.optimizers(runs)
    assert "another CPU, 1 thread, " in table.style.pipe(plots.optimizers).to_html()
    assert runs[0].provenance["device"] not in table[table["device"] == table["device"][0]].style.pipe(
        plots.optimizers).to_html()


def test_each_figure_is_drawn_and_so_is_its_absence(compared, tmp_path):
    table = analysis.optimizers(compared)
    logged = run(dataclasses.replace(compared[4].config, log_every=1), results=tmp_path / "results")
    figures = [plots.courses([*compared[:4], logged], "bn"), plots.courses([], "bn"), plots.searched(table),
               plots.searched(table[:0]), plots.growth(analysis.growth(compared[5:])),
               plots.growth(analysis.growth([]))]
    for number, figure in enumerate(figures):
        plots.save(figure, str(number), tmp_path)
    assert len(figures[0].axes) == 6 and not figures[1].axes
    assert len(figures[0].axes[0].lines[-2].get_xdata()) == 2         # the steps that LBFGS logged, dashed
    assert "max_iter" in table[table["chosen"]].style.pipe(plots.optimizers).to_html()
