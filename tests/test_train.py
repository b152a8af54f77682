"""One run: what is frozen stays, the same config gives the same run, an interrupted one ends the same."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bnlib import Config, InputError, checkpoint, data, freeze, models, native, optim, run, store, train
from bnlib.checkpoint import Progress
from bnlib.device import choose_precision, device_name
from bnlib.stop import Paused, Stop
from bnlib.train import evaluate, evaluate_on_test_set, make_step, place, train_epoch

CPU = torch.device("cpu")


def one_epoch(config: Config, precision="bf16"):
    """A network before and after one epoch of training, and its optimizer."""
    dataset = data.load(config.dataset)
    network = models.from_config(config, 10)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trainable = place(network, config, CPU, precision)
    normalise = data.Normalise(dataset, CPU, torch.bfloat16 if precision == "bf16" else torch.float32)
    batches = data.TrainingBatches(dataset.x_train[:config.n_train], dataset.y_train[:config.n_train], config,
                                   normalise, CPU)
    optimizer = optim.optimizer(trainable, config)
    schedule, step = optim.schedule(optimizer, config, len(batches)), make_step(network, optimizer, precision, CPU)
    progress = Progress(Path("unused"), network, optimizer, schedule, CPU, {})
    train_epoch(network, batches, step, schedule, progress, Stop())
    return network, before, optimizer


@pytest.mark.parametrize("trainable", ["all", "bn", "gamma", "beta", "output", "none", "bn+output", "gamma+output",
                                       "shortcut", "weights", "beta+shortcut"])
def test_frozen_parameters_are_bit_identical_and_have_no_gradient_buffers(trainable, tiny):
    network, before, optimizer = one_epoch(dataclasses.replace(tiny, trainable=trainable))
    chosen = freeze.select(network, trainable)
    in_optimizer = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        if name in chosen:
            assert not torch.equal(parameter, before[name]), f"{name} did not train"
        else:
            assert torch.equal(parameter.float(), before[name]), f"{name} changed"
            assert parameter.grad is None and not parameter.requires_grad and id(parameter) not in in_optimizer


@pytest.mark.parametrize("per_channel", [1, 2, 20])
def test_of_randomly_chosen_weights_only_those_change(per_channel, tiny):
    """Neither momentum nor weight decay nor rounding moves any other entry of a convolution, over many steps."""
    config = dataclasses.replace(tiny, trainable=f"random{per_channel}", weight_decay=0.1, n_train=512, batch_size=16)
    network, before, _ = one_epoch(config)
    whole, trained = models.build(config.model, 10), 0
    for (name, conv), (_, drawn) in zip(_convolutions(network), _convolutions(whole), strict=True):
        conv.float()
        conv._conv_forward = lambda x, weight, bias: weight            # the weights that this convolution multiplies by
        effective, initial = conv(None).detach().flatten(1), drawn.weight.detach().flatten(1)
        may_change = torch.zeros_like(initial, dtype=torch.bool).scatter(1, conv.index, True)
        assert (may_change.sum(1) == min(per_channel, initial.shape[1])).all()
        assert torch.equal(effective[~may_change], initial[~may_change]), name
        assert (effective[may_change] != initial[may_change]).float().mean() > 0.9, name
        trained += int(may_change.sum())
    assert trained == freeze.count(network, config.trainable)
    for name, parameter in network.named_parameters():
        assert name.endswith("chosen") or torch.equal(parameter.float(), before[name]), name


def _convolutions(network):
    return [(name, m) for name, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)]


def test_a_network_of_which_random_weights_trained_comes_back_from_its_record(tiny, tmp_path):
    r = run(dataclasses.replace(tiny, trainable="random2"), results=tmp_path / "results")
    assert r.record["complete"] and r.metrics["parameters_trained"] == freeze.count(r.network(), "bn")
    assert evaluate_on_test_set(r.network(), r.config).correct == r.metrics["test_correct"]


def same(a: store.Run, b: store.Run) -> bool:
    """Whether two runs have the same bytes in all that is measured; only seconds may differ."""
    measured = (run.history.drop(columns="seconds") for run in (a, b))
    pd.testing.assert_frame_equal(*measured, check_exact=True)
    files = ("tensors.safetensors", "trajectory.safetensors", "predictions.csv.gz")
    return all((a.folder / f).read_bytes() == (b.folder / f).read_bytes() for f in files)


@pytest.mark.parametrize("changed", [{}, {"trainable": "all"}, {"n_val": 100, "warmup_epochs": 1}])
def test_the_same_config_gives_the_same_run_twice(changed, tiny, tmp_path):
    config = dataclasses.replace(tiny, **changed)
    assert same(run(config, results=tmp_path / "a/results"), run(config, results=tmp_path / "b/results"))


class StopAfter(Stop):
    """Asks to stop once so many steps have been done since the run was begun or gone on with."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def asked(self):
        self.left -= 1
        return self.left < 0


def stop_after(steps: int, config: Config, results, monkeypatch):
    with pytest.raises(Paused), monkeypatch.context() as patch:
        patch.setattr(train, "Stop", lambda *_: StopAfter(steps))
        run(config, results=results)


@pytest.mark.parametrize("trainable", ["bn", "all"])
def test_a_run_stopped_within_and_between_epochs_ends_as_if_it_had_not_been(trainable, tiny, tmp_path, monkeypatch):
    config = dataclasses.replace(tiny, epochs=4, batch_size=32, trainable=trainable, warmup_epochs=1)
    whole = run(config, results=tmp_path / "whole/results")
    for steps in (0, 1, 4, 6):
        stop_after(steps, config, tmp_path / "stopped/results", monkeypatch)
    assert same(run(config, results=tmp_path / "stopped/results"), whole)
    assert not list((tmp_path / "stopped").glob("**/*.pt"))


def test_so_does_a_run_stopped_after_it_has_diverged(tiny, tmp_path, monkeypatch):
    """γ is no number after the second of epoch 2's four steps; stopped after the third."""
    config, make, taken = dataclasses.replace(tiny, epochs=4, batch_size=32), train.make_step, []

    def poisoned(network, *rest):
        step = make(network, *rest)

        def one(*batch):
            found = step(*batch)
            taken.append(batch)
            if len(taken) == 6:
                network.bn.weight.data[0] = torch.nan
            return found
        return one

    monkeypatch.setattr(train, "make_step", poisoned)
    whole = run(config, results=tmp_path / "whole/results")
    taken.clear()
    stop_after(8, config, tmp_path / "stopped/results", monkeypatch)
    assert len(taken) == 7 and whole.metrics["epochs_run"] == 2
    assert same(run(config, results=tmp_path / "stopped/results"), whole)


def test_batch_norm_trains_alone_for_as_many_epochs_as_asked_and_then_everything(tiny, tmp_path, monkeypatch):
    """Its first epoch is that of a run of γ and β alone; after it weights change too, also if stopped between."""
    config = dataclasses.replace(tiny, trainable="all", bn_first=1, epochs=4)
    alone = run(dataclasses.replace(tiny, epochs=4), results=tmp_path / "alone/results")
    whole = run(config, results=tmp_path / "whole/results")
    assert whole.history.loc[0, "test_loss"] == alone.history.loc[0, "test_loss"]
    assert (whole.history.loc[1:, "test_loss"] != alone.history.loc[1:, "test_loss"]).all()
    assert not torch.equal(whole.network().conv.weight, alone.network().conv.weight)
    for steps in (1, 2, 3):
        stop_after(steps, config, tmp_path / f"{steps}/results", monkeypatch)
        assert same(whole, run(config, results=tmp_path / f"{steps}/results"))


@pytest.mark.parametrize("changed", [{"norm": "group"}, {"norm": "layer", "trainable": "all"}, {"model": "resnet8c3"},
                                     {"dataset": "sequences", "model": "resnet1d8", "augment": "none"}])
def test_every_kind_of_network_trains_and_comes_back_from_its_record(changed, tiny, tmp_path):
    r = run(dataclasses.replace(tiny, **changed), results=tmp_path / "results")
    found = evaluate_on_test_set(r.network(), r.config)
    assert found.correct == r.metrics["test_correct"]
    assert (found.predicted == r.predictions["predicted"]).all()
    assert bool(len(r.running_mean)) == (r.config.norm == "batch")


def test_checkpoints_within_an_epoch_change_nothing(tiny, tmp_path, monkeypatch):
    whole = run(tiny, results=tmp_path / "whole/results")
    saves, save = [], checkpoint.Progress.save
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", -1)
    monkeypatch.setattr(checkpoint.Progress, "save", lambda self: saves.append(self.epoch.steps) or save(self))
    assert same(run(tiny, results=tmp_path / "often/results"), whole)
    assert saves == [0, 1, 0, 0, 1, 0]                # before each of an epoch's two steps, and after the epoch


def test_a_checkpoint_of_another_protocol_is_not_gone_on_with(tiny, tmp_path, monkeypatch):
    config = dataclasses.replace(tiny, epochs=3)
    whole = run(config, results=tmp_path / "whole/results")
    with monkeypatch.context() as patch:
        patch.setattr(store, "PROTOCOL", 0)
        stop_after(4, config, tmp_path / "stopped/results", monkeypatch)
    with pytest.warns(UserWarning, match="another protocol; training begins anew"):
        assert same(run(config, results=tmp_path / "stopped/results"), whole)


def test_a_run_out_of_time_stops_at_a_checkpoint_and_leaves_no_record(tiny, tmp_path):
    with pytest.raises(Paused):
        run(dataclasses.replace(tiny, epochs=500), results=tmp_path / "results", deadline=time.time() + 1)
    assert store.checkpoint_file(dataclasses.replace(tiny, epochs=500), tmp_path / "results").exists()
    assert list((tmp_path / "results/runs").iterdir()) == []


def test_a_finished_run_is_loaded_and_not_trained_again(tiny_run, monkeypatch):
    monkeypatch.setattr(train, "train", None)
    again = run(tiny_run.config, results=tiny_run.folder.parent.parent)
    assert again.id == tiny_run.id


def test_network_reproduces_the_recorded_accuracy_and_predictions_exactly(tiny_run):
    found = evaluate_on_test_set(tiny_run.network(), tiny_run.config)
    assert found.correct == tiny_run.metrics["test_correct"]
    assert found.loss == tiny_run.metrics["test_loss"]
    assert np.array_equal(found.predicted, tiny_run.predictions["predicted"])
    assert np.allclose(found.confidence, tiny_run.predictions["confidence"], atol=0.00501)


def test_the_last_row_of_the_history_is_the_record(tiny_run):
    last = tiny_run.history.iloc[-1]
    assert tiny_run.metrics["test_accuracy"] == tiny_run.metrics["test_correct"] / 360
    assert last["test_accuracy"] == pytest.approx(tiny_run.metrics["test_accuracy"], rel=1e-6)
    assert list(tiny_run.history["epoch"]) == [1, 2]


def test_accuracy_is_an_exact_count_over_batches_of_unequal_size(seeded):
    """1,030 images make batches of 500, 500 and 30; labels equal the brightest channel for exactly 700 of them."""
    images = torch.randint(0, 100, (1030, 8, 8, 3), dtype=torch.uint8)
    labels = torch.arange(1030) % 3
    for i in range(700):
        images[i, ..., labels[i]] = 255
    images[range(700, 1030), ..., (labels[700:] + 1) % 3] = 255

    class Brightest(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    class Plain:
        def __call__(self, images):
            return images.float().permute(0, 3, 1, 2)

    found = evaluate(Brightest(), data.in_order(images, labels), Plain(), "fp32")
    assert found.correct == 700 and found.accuracy == 700 / 1030


def test_a_run_that_diverges_is_recorded_as_such(tiny, tmp_path):
    r = run(dataclasses.replace(tiny, lr=1e38, epochs=5), results=tmp_path / "results")
    assert r.status == "diverged" and r.metrics["epochs_run"] < 5 and r.metrics["train_loss"] is None
    assert store.load_runs(tmp_path / "results").loc[r.id, "status"] == "diverged"


def test_a_record_on_other_images_than_the_official_ones_is_refused(tiny_run, monkeypatch):
    train.check_images(tiny_run)
    monkeypatch.setitem(tiny_run.provenance, "dataset_sha256", "other")
    with pytest.raises(InputError, match="trained on other images than digits"):
        train.check_images(tiny_run)


@pytest.mark.parametrize(("model", "size"), [("imagenet_vgg11_bn", 16), ("allcnnc", 8)])
def test_images_too_small_for_a_network_are_an_error_in_one_line(model, size, tiny, tmp_path):
    with pytest.raises(InputError, match=f"images of {size}×{size} pixels are too small for this network"):
        run(dataclasses.replace(tiny, model=model, image_size=size), results=tmp_path / "results")


def test_validation_images_are_logged_beside_train_and_test(tiny, tmp_path):
    r = run(dataclasses.replace(tiny, n_val=200), results=tmp_path / "results")
    assert {"train_accuracy", "val_accuracy", "test_accuracy"} <= set(r.history.columns)
    counts = r.history["val_accuracy"] * 200
    assert np.allclose(counts, counts.round(), atol=1e-3)


def test_learning_rate_follows_warm_up_and_milestones():
    config = Config(epochs=8, warmup_epochs=2, milestones=(0.5, 0.75))
    optimizer = optim.optimizer([torch.nn.Parameter(torch.zeros(1))], config)
    schedule, rates = optim.schedule(optimizer, config, steps_per_epoch=10), []
    for _ in range(80):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.1 * min(1, (i + 1) / 21) * (1 if i < 40 else 0.1 if i < 60 else 0.01) for i in range(80)]
    assert rates == pytest.approx(expected)


def test_trajectory_holds_gamma_and_beta_from_the_start_to_the_end(tiny_run):
    assert tiny_run.trajectory["epochs"].tolist() == [0, 1, 2]
    for layer, gamma in tiny_run.gamma.items():
        assert tiny_run.trajectory["gamma"][layer].shape == (3, len(gamma))
        assert np.array_equal(tiny_run.trajectory["gamma"][layer][-1], gamma.astype(np.float16))


def test_who_watches_is_told_after_every_epoch_and_last_of_all_what_the_record_holds(tiny, tmp_path):
    told = []
    r = run(tiny, results=tmp_path / "results", watch=told.append)
    assert [len(history) for history in told] == [1, 2, 2]
    assert "test_accuracy" in told[0] and np.isnan(told[1]["test_accuracy"].iloc[-1])
    assert np.allclose(told[-1][r.history.columns], r.history, rtol=1e-6)
    run(tiny, results=tmp_path / "results", watch=told.append)                 # a record is loaded
    assert len(told) == 3


def test_tensorboard_events_are_written_on_request(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    r = run(tiny, results=tmp_path / "results", tensorboard=True)
    events = EventAccumulator(str(tmp_path / "results-scratch/tensorboard" / r.id)).Reload()
    assert [e.step for e in events.Scalars("test_accuracy")] == [1, 2]
    assert events.Scalars("test_accuracy")[-1].value == pytest.approx(r.metrics["test_accuracy"])


@pytest.mark.parametrize(("flags", "unit", "precision"), [
    ("avx avx2 fma", " (AVX2)", "fp32"), ("avx2 avx512f", " (AVX512)", "fp32"),
    ("avx2 avx512f avx512_bf16", " (AVX512-bf16)", "bf16"), ("amx_bf16 avx2 avx512_bf16 avx512f", " (AMX)", "bf16"),
    ("asimd", "", "fp32")])
def test_a_processor_is_named_by_its_vector_unit_which_settles_the_precision(flags, unit, precision, monkeypatch):
    monkeypatch.setattr(native, "processor", lambda: ("A Processor", frozenset(flags.split())))
    cpu = torch.device("cpu")
    assert device_name(cpu) == f"A Processor{unit}, {torch.get_num_threads()} threads"
    assert choose_precision(cpu) == precision


def test_a_device_that_is_not_there_is_named(tiny, tmp_path):
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        run(tiny, results=tmp_path, device="coda")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"there is .*cpu"):
            run(tiny, results=tmp_path, device="cuda")


def test_a_config_that_asks_for_fp32_trains_in_it_and_is_another_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("bnlib.native.processor", lambda: ("", {"avx512_bf16"}))            # where bf16 is the default
    config = dataclasses.replace(tiny, fp32=True)
    assert run(config, results=tmp_path).provenance["precision"] == "fp32" and config.id != tiny.id
    with pytest.raises(InputError, match="precision='bf16': this config asks for fp32=True"):
        run(dataclasses.replace(config, seed=5), results=tmp_path, precision="bf16")
    with pytest.raises(InputError, match="fp61"):
        run(dataclasses.replace(config, seed=5), results=tmp_path, precision="fp61")


def test_how_an_optimizer_computes_is_for_the_device_to_say_and_not_for_the_checkpoint(tiny, tmp_path, monkeypatch):
    config, make, made = dataclasses.replace(tiny, optimizer="adam", momentum=None), optim.optimizer, []
    stop_after(3, config, tmp_path / "results", monkeypatch)

    def another(*arguments):
        made.append(make(*arguments))
        made[-1].param_groups[0]["fused"] = False
        return made[-1]
    monkeypatch.setattr(optim, "optimizer", another)
    run(config, results=tmp_path / "results")
    assert made[0].param_groups[0]["fused"] is False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("fields", [{}, {"optimizer": "adam", "momentum": None, "lr": None},
                                    {"trainable": "all", "bn_first": 1}])
def test_on_a_gpu_the_graph_changes_speed_and_nothing_else(fields, tiny, tmp_path, monkeypatch):
    """The same kernels run: a step too many, or a statistic that is not put back, is hundreds of times as far off."""
    config = dataclasses.replace(tiny, n_train=130, warmup_epochs=1, **fields)       # the last batch has another shape
    graphed = run(config, results=tmp_path / "graphed/results", device="cuda")
    monkeypatch.setenv("BNLIB_GRAPHS", "0")
    plain = run(config, results=tmp_path / "plain/results", device="cuda")
    for score in ("train_loss", "test_loss"):
        assert np.allclose(graphed.history[score], plain.history[score], rtol=1e-3)
    for part in ("gamma", "beta", "running_mean", "running_var"):
        ours, theirs = getattr(graphed, part), getattr(plain, part)
        assert all(np.allclose(ours[layer], theirs[layer], rtol=1e-3, atol=1e-4) for layer in theirs)


def test_batch_norm_alone_learns_the_digits(tmp_path):
    """Far above chance: 36 of 360 right by chance, with a standard deviation of under 6."""
    r = run(Config(dataset="digits", epochs=6, batch_size=32, augment="none"), results=tmp_path / "results")
    assert r.metrics["test_accuracy"] > 0.5
    assert r.metrics["parameters_trained"] == 1120


def test_cifar10_is_the_official_one(cifar10):
    """Means and deviations as everyone quotes them, to four digits."""
    mean, std = cifar10.moments
    assert np.allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)
    assert np.allclose(std, [0.2470, 0.2435, 0.2616], atol=5e-5)
    assert cifar10.y_train.bincount().tolist() == [5000] * 10 and cifar10.y_test.bincount().tolist() == [1000] * 10


def test_a_committed_network_makes_its_recorded_predictions_on_real_images(cifar10):
    """On another machine a sum may round otherwise and turn an image or two that lie on the fence."""
    runs = store.all_runs(dataset="cifar10", model="resnet14", trainable="bn")
    if not runs:
        pytest.skip("no ResNet-14 in results/ yet")
    found = evaluate_on_test_set(runs[0].network(), runs[0].config, "cpu")
    assert np.mean(found.predicted == runs[0].predictions["predicted"]) >= 0.999
    assert abs(found.accuracy - runs[0].metrics["test_accuracy"]) <= 0.001
