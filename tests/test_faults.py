"""Faults injected, not hoped away: killed, full, damaged, crowded. In full by `make test-faults`: 8 to 15 minutes.

In each test a run must end in the same bytes as one that nothing happened to, and no damaged record may pass.
"""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bnlib import (
    Config,
    InputError,
    checkpoint,
    data,
    load_runs,
    models,
    parallel,
    run,
    run_all,
    stop,
    store,
    train,
    worker,
)
from bnlib.campaign import profile_configs
from bnlib.checkpoint import previous
from bnlib.verify import differences, verify
from tests import workers
from tests.conftest import FULL, TALLY, TINY
from tests.test_train import stop_after

#: About two seconds in a process of its own: long enough to be killed in many places.
LONGER = Config(**TINY | {"epochs": 30, "batch_size": 32})


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    """The run of each config that nothing happened to, trained by the same kind of process."""
    results, found = tmp_path_factory.mktemp("unharmed") / "results", {}

    def of(config):
        if config not in found:
            assert workers.finish(workers.train_all, [config], results) == 0
            found[config] = store.find(config, results)
        return found[config]

    return of


def recovers(config, results, unharmed) -> None:
    """Run once more, undisturbed: the record is there, and it is the unharmed one."""
    assert workers.finish(workers.train_all, [config], results) == 0
    recovered = store.find(config, results)
    TALLY["runs lost"] += recovered is None
    assert recovered is not None
    found = differences(recovered, unharmed(config))
    TALLY["results differing"] += bool(found)
    assert not found
    left = [f.name for f in (results / "runs").iterdir() if f.name != config.id]
    assert not left and not list(store.checkpoint_file(config, results).parent.glob("*[!k]"))


# ---------------------------------------------------------------------------------------------- killed

@pytest.mark.parametrize("trainable", ["bn", "all"] if FULL else ["bn"])
def test_a_run_killed_at_random_moments_ends_in_the_same_bytes(trainable, unharmed, tmp_path):
    config, results = dataclasses.replace(LONGER, trainable=trainable), tmp_path / "results"
    draws, kills = np.random.default_rng(0), 0
    while kills < (100 if FULL else 20):
        process = workers.start(workers.train_all, [config], results)
        process.join(draws.uniform(0.05, 0.5))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if store.find(config, results) is not None:          # done before all kills: once more from the start
            recovers(config, results, unharmed)
            shutil.rmtree(results)
    TALLY["faults injected"] += kills
    recovers(config, results, unharmed)


@pytest.mark.parametrize("number", range(1, 30) if FULL else (2, 5, 8, 11, 14))
@pytest.mark.parametrize("after", [False, True] if FULL else [False])
def test_a_run_killed_while_it_writes_ends_in_the_same_bytes(number, after, tiny, unharmed, tmp_path):
    status = workers.finish(workers.train_and_die_at, tiny, tmp_path / "results", number, after)
    assert status in (-signal.SIGKILL, 0)
    TALLY["faults injected"] += status != 0
    recovers(tiny, tmp_path / "results", unharmed)


def test_a_grid_killed_at_random_moments_trains_nothing_twice_and_loses_nothing(tmp_path, unharmed):
    configs = profile_configs("smoke", None if FULL else ["01_depth"])
    draws, seen = np.random.default_rng(1), {}
    for _ in range(30 if FULL else 4):
        process = workers.start(workers.train_all, configs, tmp_path / "results")
        process.join(draws.uniform(0.2, 1.5))
        TALLY["faults injected"] += process.is_alive()
        process.kill()
        process.join()
        written = {f.name: f.stat().st_mtime_ns for f in store.folders(tmp_path / "results")}
        assert written.items() >= seen.items()                # what was finished stays, and is not written again
        seen = written
    assert workers.finish(workers.train_all, configs, tmp_path / "results") == 0
    runs = store.all_runs(tmp_path / "results")
    assert {run.config for run in runs} == set(configs) and len(runs) >= 8
    assert all(not finding.faults for finding in verify(tmp_path / "results"))
    assert not differences(runs[0], unharmed(runs[0].config))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_with_a_checkpoint_and_how_to_go_on(number, tmp_path, unharmed):
    config, results = dataclasses.replace(LONGER, epochs=400), tmp_path / "results"
    fields = TINY | {"epochs": 400, "batch_size": 32}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items() if name != "model"]
    process = subprocess.Popen([sys.executable, "-m", "bnlib", "train", config.model, *flags, f"--results={results}"],
                               stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    checkpoint = store.checkpoint_file(config, results)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"{config.id}: stopped by {number.name} in epoch " in said and "goes on from there" in said
    assert said.count("\n") == 1 and checkpoint.exists()
    TALLY["faults injected"] += 1
    if FULL:
        recovers(config, results, unharmed)


@pytest.mark.skipif(not FULL, reason="only in full: make test-faults")
def test_a_notebooks_stop_button_stops_at_a_checkpoint_and_the_cell_goes_on(tmp_path):
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(cwd=str(tmp_path), env=os.environ | {"OMP_NUM_THREADS": "1"})
    config = dataclasses.replace(LONGER, epochs=400)
    cell = f"from bnlib import *\nr = run(Config(**{config.to_dict()}), results={str(tmp_path / 'results')!r})"
    client.execute(cell)
    while not store.checkpoint_file(config, tmp_path / "results").exists():
        time.sleep(0.05)
    manager.interrupt_kernel()
    assert client.get_shell_msg(timeout=60)["content"]["ename"] == "Interrupted"
    TALLY["faults injected"] += 1
    assert client.execute_interactive(cell, timeout=120, output_hook=lambda _: None)["content"]["status"] == "ok"
    manager.shutdown_kernel(now=True)
    assert store.find(config, tmp_path / "results") is not None


# ---------------------------------------------------------------------------------------------- disk

@pytest.mark.parametrize("limit", range(0, 40_000, 1000) if FULL else (0, 6_000, 20_000))
def test_where_files_cannot_grow_nothing_partial_is_left_and_nothing_is_lost(limit, tiny, unharmed, tmp_path):
    status = workers.finish(workers.train_with_small_files, tiny, tmp_path / "results", limit)
    assert status in (0, 3)
    TALLY["faults injected"] += status == 3
    if status == 3 and (tmp_path / "results/runs").exists():
        assert list((tmp_path / "results/runs").iterdir()) == []
    recovers(tiny, tmp_path / "results", unharmed)


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this machine mounts no tmpfs: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_loses_no_run(small_disk, tiny, unharmed):
    results, filler = small_disk / "results", small_disk / "filler"
    for free in range(0, 120, 8 if FULL else 40):                 # kilobytes left on the disk
        filler.write_bytes(bytes(1024 * (248 - free)))
        status = workers.finish(workers.train_refused, tiny, results)
        assert status in (0, 3)
        TALLY["faults injected"] += status == 3
        if status == 3 and (results / "runs").exists():
            assert list((results / "runs").iterdir()) == []
        filler.unlink()
        recovers(tiny, results, unharmed)
        shutil.rmtree(results)


def test_results_that_cannot_be_written_are_refused_before_training(small_disk, tiny, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"):
        run(tiny, results=small_disk / "results")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        run(tiny, results=tmp_path / "file")


# ---------------------------------------------------------------------------------------------- crowded

def test_eight_processes_asked_for_the_same_four_runs_train_each_once(tiny, unharmed, tmp_path):
    configs = [dataclasses.replace(tiny, seed=seed) for seed in range(4)]
    processes = [workers.start(workers.train_all_and_say_who, configs, tmp_path / "results", tmp_path / "log")
                 for _ in range(8)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 8
    trained = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(trained) == sorted(config.id for config in configs)
    assert not any(differences(store.find(config, tmp_path / "results"), unharmed(config)) for config in configs)


def test_a_process_that_waits_goes_on_when_the_one_that_trains_is_killed(unharmed, tmp_path):
    first = workers.start(workers.train_all, [LONGER], tmp_path / "results")
    while not store.checkpoint_file(LONGER, tmp_path / "results").exists():
        time.sleep(0.01)
    second = workers.start(workers.train_all, [LONGER], tmp_path / "results")
    time.sleep(0.5)
    first.kill()
    TALLY["faults injected"] += 1
    second.join(60)
    assert second.exitcode == 0 and not differences(store.find(LONGER, tmp_path / "results"), unharmed(LONGER))


# ---------------------------------------------------------------------------------------------- damaged

#: What may happen to a file: one bit turned, an end cut off, bytes put after it or anywhere in it.
DAMAGE = {
    "flip": lambda content, at: content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1:],
    "cut": lambda content, at: content[:at],
    "append": lambda content, at: content + bytes([at % 256]),
    "insert": lambda content, at: content[:at] + b" " + content[at:],
}


@pytest.fixture(scope="module")
def two_records(tmp_path_factory):
    """A results folder with two sound records."""
    results = tmp_path_factory.mktemp("records") / "results"
    for seed in (0, 1):
        run(Config(**TINY, seed=seed), results=results)
    return results


@settings(max_examples=2000 if FULL else 150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4), st.sampled_from(sorted(DAMAGE)), st.floats(0, 1, exclude_max=True))
@example(4, "append", 0.1)
def test_a_damaged_record_is_always_named_and_never_in_a_table(two_records, tmp_path, number, kind, where):
    sound, hurt = (Config(**TINY, seed=seed) for seed in (0, 1))
    results = tmp_path / "results"
    shutil.rmtree(results, ignore_errors=True)
    shutil.copytree(two_records, results)
    file = sorted(store.record_folder(results, hurt.id).iterdir())[number]
    content = file.read_bytes()
    file.write_bytes(DAMAGE[kind](content, int(where * len(content))))
    TALLY["faults injected"] += 1
    with pytest.warns(UserWarning, match=f"kept out: .*{hurt.id}"):
        assert list(load_runs(results).index) == [sound.id]
    with pytest.warns(UserWarning, match=f"kept out: .*{hurt.id}"):
        runs = run_all([sound, hurt], results=results)
    assert [r.id for r in runs] == [sound.id] and runs.missing == [hurt]
    with pytest.raises(store.RecordError, match=hurt.id):
        run(hurt, results=results)


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_a_damaged_checkpoint_falls_back_to_the_one_before(kind, tiny, unharmed, tmp_path, monkeypatch):
    config, results = dataclasses.replace(tiny, epochs=5), tmp_path / "results"
    whole = unharmed(config)
    for damaged, said in ((1, "from the one before it, after epoch 2"), (2, "from the start")):
        stop_after(6, config, results, monkeypatch)                # two steps an epoch
        file = store.checkpoint_file(config, results)
        for each in (file, previous(file))[:damaged]:
            each.write_bytes(DAMAGE[kind](each.read_bytes(), 5000))
            TALLY["faults injected"] += 1
        sent = worker.read_checkpoint(str(results), config.to_dict())
        assert sent == (previous(file).read_bytes() if damaged == 1 else None)
        with pytest.warns(UserWarning, match=f"{file.name} is damaged; training goes on {said}"):
            again = run(config, results=results)
        assert not differences(again, whole)
        shutil.rmtree(again.folder)


def test_an_older_checkpoint_that_cannot_be_read_does_not_keep_from_a_sound_one(tiny, unharmed, tmp_path, monkeypatch):
    config, results = dataclasses.replace(tiny, epochs=5), tmp_path / "results"
    stop_after(6, config, results, monkeypatch)
    older, read = previous(store.checkpoint_file(config, results)), checkpoint.read

    def fails(file):
        if file == older:
            raise InputError(f"{file}: the checkpoint cannot be read")
        return read(file)

    assert older.exists()
    monkeypatch.setattr(checkpoint, "read", fails)
    assert not differences(run(config, results=results), unharmed(config))


@pytest.mark.parametrize("error", [store.RecordError, None])
def test_a_noted_interruption_is_obeyed_whatever_else_goes_wrong(error):
    with pytest.raises(KeyboardInterrupt), stop.Stop():
        os.kill(os.getpid(), signal.SIGINT)
        if error:
            raise error("meanwhile")


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop.Stop() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert not asked.asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_checkpoint_that_cannot_be_read_just_now_is_not_given_up(tiny, unharmed, tmp_path, monkeypatch):
    config, results = dataclasses.replace(tiny, epochs=5), tmp_path / "results"
    stop_after(6, config, results, monkeypatch)
    file = store.checkpoint_file(config, results)
    kept, read_bytes = file.read_bytes(), type(file).read_bytes
    with monkeypatch.context() as patched:
        def fails(path):
            if path == file:
                raise OSError(23, "Too many open files")
            return read_bytes(path)
        patched.setattr(type(file), "read_bytes", fails)
        with pytest.raises(InputError, match=r"the checkpoint cannot be read .*Too many open files.*; try again"):
            run(config, results=results)
    assert file.read_bytes() == kept and not differences(run(config, results=results), unharmed(config))


def test_a_signal_that_comes_while_the_processes_agree_is_not_lost(monkeypatch):
    with pytest.raises(KeyboardInterrupt), stop.Stop() as asked:
        def agree(*values):
            signal.raise_signal(signal.SIGINT)
            return list(values)
        with monkeypatch.context() as patched:
            patched.setattr(parallel, "largest", agree)
            assert not asked.asked()
        assert asked.asked()


def test_a_checkpoint_of_another_config_is_not_gone_on_with(tiny, unharmed, tmp_path, monkeypatch):
    mine, other = dataclasses.replace(tiny, epochs=5), dataclasses.replace(tiny, epochs=5, seed=1)
    whole = unharmed(mine)
    stop_after(6, other, tmp_path / "results", monkeypatch)
    shutil.copytree(store.checkpoint_file(other, tmp_path / "results").parent,
                    store.checkpoint_file(mine, tmp_path / "results").parent)
    with pytest.warns(UserWarning, match="of another config, frozen; training begins anew"):
        assert not differences(run(mine, results=tmp_path / "results"), whole)


def test_a_sound_checkpoint_outlives_the_damaged_one_it_stood_in_for(tiny, tmp_path, monkeypatch):
    config, results = dataclasses.replace(tiny, epochs=5), tmp_path / "results"
    stop_after(6, config, results, monkeypatch)
    file = store.checkpoint_file(config, results)
    file.write_bytes(b"damaged")
    sound = previous(file).read_bytes()
    with pytest.warns(UserWarning, match="damaged"):
        stop_after(1, config, results, monkeypatch)
    assert previous(file).read_bytes() == sound


def test_loading_a_record_leaves_the_checkpoint_of_a_neighbours_run_alone(tiny, tmp_path, monkeypatch):
    run(tiny, results=tmp_path / "a")
    stop_after(1, tiny, tmp_path / "b", monkeypatch)
    run(tiny, results=tmp_path / "a")
    run_all([tiny], results=tmp_path / "a")
    assert store.checkpoint_file(tiny, tmp_path / "b").exists()


def test_weights_of_full_training_that_were_damaged_are_named(tiny, tmp_path):
    r = run(dataclasses.replace(tiny, trainable="all"), results=tmp_path / "results")
    file = store.weights_file(r.config, tmp_path / "results")
    file.write_bytes(DAMAGE["flip"](file.read_bytes(), 5000))
    finding, = verify(tmp_path / "results")
    assert "changed since it was written" in finding.faults[0]


def test_weights_that_cannot_be_written_leave_no_record_and_the_run_in_its_checkpoint(tiny, tmp_path):
    config, results = dataclasses.replace(tiny, trainable="all"), tmp_path / "results"
    place = store.weights_file(config, results).parent
    place.parent.mkdir()
    place.write_text("in the way")
    with pytest.raises(InputError, match="weights cannot be written"):
        run(config, results=results)
    assert list((results / "runs").iterdir()) == [] and store.checkpoint_file(config, results).exists()
    place.unlink()
    assert run(config, results=results).metrics["epochs_run"] == config.epochs


@pytest.mark.parametrize("change", [
    {"sha256": {}}, {"sha256": {"../../../etc/hostname": "0" * 64}}, {"complete": None}])
def test_a_record_that_names_other_files_or_lacks_a_key_is_refused(change, two_records, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(two_records, results)
    hurt = store.folders(results)[0]
    record = {key: value for key, value in (store.Run(hurt).record | change).items() if value is not None}
    (hurt / "run.json").write_bytes(store.sealed(record))
    with pytest.warns(UserWarning, match=f"kept out: .*{hurt.name}"):
        assert len(load_runs(results)) == 1


def test_a_signal_while_the_record_is_written_is_obeyed_after_it(tiny, tmp_path, monkeypatch):
    write = store.write
    monkeypatch.setattr(store, "write", lambda *record: os.kill(os.getpid(), signal.SIGINT) or write(*record))
    with pytest.raises(KeyboardInterrupt):
        run(tiny, results=tmp_path / "results")
    assert store.find(tiny, tmp_path / "results") is not None


def test_verify_names_what_is_wrong_and_passes_what_is_right(two_records, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(two_records, results)
    first, second = store.folders(results)
    assert [f.faults for f in verify(results, retrain=1)] == [[], [], []]
    record = store.Run(second).record
    (second / "run.json").write_bytes(store.sealed(record | {"metrics": record["metrics"] | {
        "test_correct": record["metrics"]["test_correct"] + 1}}))
    assert "is not" in next(f for f in verify(results) if f.name == second.name).faults[0]
    shutil.copytree(first, results / "runs/renamed")
    assert "holds the record of" in next(f for f in verify(results) if f.name == "renamed").faults[0]


def test_verify_finds_predictions_that_the_network_does_not_make(tiny_run, tmp_path):
    predictions = tiny_run.predictions.assign(predicted=lambda t: (t["predicted"] + 1) % 10)
    store.write(tmp_path / "results", tiny_run.record, tiny_run.history, tiny_run.tensors,
                {"epochs": np.arange(1)}, predictions)
    finding, = verify(tmp_path / "results")
    assert finding.faults == ["360 of 360 predictions are not what its network gives"]


# ---------------------------------------------------------------------------------------------- wrong science

def test_weights_that_should_be_frozen_and_changed_are_not_recorded(tiny, tmp_path, monkeypatch):
    step = train.train_epoch

    def meddled(network, *rest):
        with torch.no_grad():
            network.blocks[0].conv1.weight[0, 0, 0, 0] += 1
        return step(network, *rest)

    monkeypatch.setattr(train, "train_epoch", meddled)
    with pytest.raises(AssertionError, match="weights that should be frozen have changed"):
        run(tiny, results=tmp_path / "results")
    assert list((tmp_path / "results/runs").iterdir()) == []


@pytest.mark.parametrize(("stuck", "said"), [(False, "not in training mode during training"),
                                             (True, "in training mode during evaluation")])
def test_batch_norm_in_the_wrong_mode_is_caught(stuck, said, tiny, tmp_path, monkeypatch):
    place = train.place

    def sticking(network, *rest):
        network.blocks[1].bn2.training = stuck
        network.blocks[1].bn2.train = lambda mode=True: network.blocks[1].bn2
        return place(network, *rest)

    monkeypatch.setattr(train, "place", sticking)
    with pytest.raises(AssertionError, match=rf"blocks\.1\.bn2: batch norm is {said}"):
        run(tiny, results=tmp_path / "results")


def test_test_images_among_the_training_images_are_refused(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    labels = np.arange(20) % 2
    np.savez(tmp_path / "leaky.npz", x_train=images[:15], y_train=labels[:15], x_test=images[13:], y_test=labels[13:],
             classes=np.array(["a", "b"]))
    with pytest.raises(InputError, match="2 test images are training images too"):
        data.load("leaky", tmp_path)


def test_nan_in_gamma_is_a_run_that_diverged_and_never_one_that_is_done(tiny, tiny_run, tmp_path, monkeypatch):
    step = train.train_epoch

    def poisoned(network, *rest):
        row = step(network, *rest)
        network.bn.weight.data[0] = torch.nan
        return row

    monkeypatch.setattr(train, "train_epoch", poisoned)
    assert run(tiny, results=tmp_path / "results").status == "diverged"
    tensors = {name: values.copy() for name, values in tiny_run.tensors.items()}
    tensors["gamma"][3] = np.nan
    with pytest.raises(AssertionError, match="holds NaN"):
        store.write(tmp_path / "other", tiny_run.record, tiny_run.history, tensors, {}, tiny_run.predictions)


@pytest.mark.parametrize("metrics", [{"test_accuracy": 0.123}, {"test_correct": 361}, {"test_images": 359}])
def test_an_accuracy_that_is_no_share_of_the_test_images_is_not_recorded(metrics, tiny_run, tmp_path):
    record = tiny_run.record | {"metrics": tiny_run.metrics | metrics}
    with pytest.raises(AssertionError):
        store.write(tmp_path, record, tiny_run.history, tiny_run.tensors, {}, tiny_run.predictions)
    folder = shutil.copytree(tiny_run.folder, tmp_path / tiny_run.id)
    (folder / "run.json").write_bytes(store.sealed(record))
    with pytest.raises(store.RecordError, match="test accuracy"):
        store.Run(folder)


# ---------------------------------------------------------------------------------------------- no code, no traces

def test_no_name_from_outside_reaches_a_path(tmp_path):
    for name in ("../x", "/x", "a/b", "..", "a\\b", "", "a b", "a\0b"):
        with pytest.raises(InputError):
            Config(dataset=name)
        with pytest.raises(InputError):
            models.build(name, 10)
        with pytest.raises(InputError):
            store.record_folder(tmp_path, name)


def test_a_sound_grid_gives_no_warning(two_records):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_runs(two_records)) == 2
