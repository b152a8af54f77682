"""The grid on Dask: real workers, killed and starved; what comes back is what one process would have made."""

import asyncio
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pickle
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import scale
from bnlib import Config, InputError, checkpoint, data, plan, run, run_all, store
from bnlib.campaign import profile_configs
from bnlib.config import resolve
from bnlib.stop import Interrupted, Paused
from tests import workers
from tests.conftest import FULL, TALLY, TINY
from tests.test_train import stop_after

distributed = pytest.importorskip("distributed", reason="no Dask: `pip install dask distributed`")
from bnlib import cluster, connect, worker  # noqa: E402

LONGER = Config(**TINY | {"epochs": 40, "batch_size": 32})
#: Put into workers before they start: a run of seed 13 kills the process that trains it.
DEADLY = """
import os
from bnlib import worker
from bnlib.train import run
worker.run = lambda config, **options: os._exit(13) if config.seed == 13 else run(config, **options)
"""


@pytest.fixture(scope="module")
def two():
    """A real LocalCluster of two workers."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0) as running:
        yield running


class Outside:
    """A Dask scheduler and workers in processes of their own, as `dask scheduler` and `dask worker` start them."""

    def __init__(self, folder):
        self.folder, self.file, self.processes = folder, folder / "scheduler.json", []
        self.scheduler = self.start("scheduler", "--port=0", f"--scheduler-file={self.file}", "--no-dashboard")
        while not (self.file.exists() and self.file.stat().st_size) and self.scheduler.poll() is None:
            time.sleep(0.1)

    def start(self, what, *words, before="", **environment):
        code = f"{before}\nimport sys; from distributed.cli.dask_{what} import main; sys.exit(main())"
        self.processes.append(subprocess.Popen(
            [sys.executable, "-c", code, "--host=127.0.0.1", *words], cwd=self.folder, stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), **environment}))
        return self.processes[-1]

    def worker(self, *words, **options):
        return self.start("worker", f"--scheduler-file={self.file}", f"--local-directory={self.folder / 'scratch'}",
                          "--nthreads=1", "--no-dashboard", *words, **options)

    def stop(self):
        for process in self.processes:
            process.kill()                       # a worker ends with its nanny
            process.wait()


@pytest.fixture
def outside(tmp_path):
    started = Outside(tmp_path)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """Two workers elsewhere: no data, a current folder of their own, and death by seed 13."""
    folder = tmp_path_factory.mktemp("apart")
    started = Outside(folder)
    (folder / "deadly.py").write_text(DEADLY)
    (folder / "no-data").mkdir()
    for _ in range(2):
        started.worker("--preload", str(folder / "deadly.py"), BNLIB_DATA=str(folder / "no-data"))
    with distributed.Client(scheduler_file=str(started.file)) as client:
        client.wait_for_workers(2, timeout=60)       # the first, if alone when it begins, would train with two threads
    yield started
    started.stop()


def when(happens, act) -> threading.Thread:
    """Does `act` in another thread as soon as `happens()`."""
    def watch():
        while not happens():
            time.sleep(0.02)
        act()
        TALLY["faults injected"] += 1

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def alone(configs, tmp_path) -> list:
    """The runs of one process that nothing happens to, with one thread as each of two workers on two cores has.

    Gradients of convolutions are summed in another order by another number of threads, so that runs with `all` may
    differ in the last bit; those with `bn` do not.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [run(config, results=tmp_path / "alone/results", device="cpu") for config in configs]
    finally:
        torch.set_num_threads(threads)


def files(run) -> dict:
    """A record's files; of the history and run.json, what is not provenance."""
    found = run.files()
    found["history.csv"] = run.history.drop(columns="seconds").to_csv()
    found["run.json"] = {key: value for key, value in json.loads(found["run.json"]).items()
                         if key not in ("provenance", "sha256", "weights_sha256")}     # weights: see `docs/clusters.md`
    return found


def job_of(config, results, shared=True) -> dict:
    """What a worker is asked to train."""
    return {"config": config.to_dict(), "fingerprint": data.load(config.dataset).fingerprint, "topic": "call",
            "results": str(results), "shared": shared, "threads": 1, "environment": {}, "options": {"device": "cpu"}}


# ---------------------------------------------------------------------------------------------- order

def test_the_longest_run_starts_first_on_the_worker_with_the_most_room():
    configs = [Config(model=f"resnet{depth}") for depth in (14, 110, 32, 866)]
    order = cluster.longest_first(configs)
    assert [c.depth for c in order] == [866, 110, 32, 14]
    pairs = cluster.assign(order, {"a": 1, "b": 2}, lambda config, worker: 1)
    assert [(c.depth, where) for c, where in pairs] == [(866, "b"), (110, "a"), (32, "b")]


def test_small_networks_share_a_gpu_and_do_not_keep_a_large_one_waiting_for_ever():
    small, wide = [Config(seed=seed) for seed in range(9)], Config(model="resnet14x8")
    place = cluster.Place("a", slots=4, gpus=1.0, shared=True, folder="", machine="", cores=8, shipped=[])
    share = lambda config, _: place.share(config)        # noqa: E731
    assert len(cluster.assign(small, {"a": 1.0}, share)) == 4
    assert cluster.assign([wide, *small], {"a": 0.75}, share) == []
    assert cluster.assign([wide, *small], {"a": 1.0}, share) == [(wide, "a")]
    assert dataclasses.replace(place, slots=1).share(small[0]) == 1.0


@pytest.mark.parametrize(("given", "said"), [
    ("nowhere", "must be a number of local workers"), (0, "must be a number of local workers"),
    ("tcp://127.0.0.1:1", "no Dask scheduler answers there")])
def test_a_cluster_that_is_none_is_named_in_one_line(given, said, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("bnlib.connect.CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match=said) as error:
        run_all([tiny], cluster=given, results=tmp_path / "results")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"address": 8786}', '{"address": "head"}'])
def test_a_file_that_no_scheduler_wrote_is_named_in_one_line(content, tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text(content)
    with pytest.raises(InputError, match="holds no address of a Dask scheduler; must be"), connect.connect(file):
        pass


# ---------------------------------------------------------------------------------------------- the same records

def test_two_workers_make_the_records_of_one_process_file_by_file(two, tmp_path, monkeypatch):
    configs = [Config(**TINY | {"trainable": what, "epochs": 3}, seed=s) for what in ("bn", "all") for s in (0, 1)]
    said, said_by = [], cluster.Grid.said
    monkeypatch.setattr(cluster.Grid, "said", lambda grid: said.append(said_by(grid)) or said[-1])
    runs = run_all(configs, cluster=two, results=tmp_path / "results")
    assert [r.config for r in runs] == configs and not runs.missing and not runs.failed
    for ours, single in zip(runs, alone(configs, tmp_path), strict=True):
        assert files(ours) == files(single)
    assert said[-1][0] == "4/4 done, 0 running, 0 waiting, 0 failed, 2 workers"
    assert any(" on tcp://127.0.0.1:" in line for lines in said for line in lines)
    left = {f.name for f in tmp_path.rglob("*") if f.name.startswith(".bnlib") or f.suffix == ".pt"}
    assert not left


def test_epochs_and_speed_are_told_while_a_run_goes_on(two, tmp_path, monkeypatch):
    said, said_by = [], cluster.Grid.said
    monkeypatch.setattr(cluster.Grid, "said", lambda grid: said.append(said_by(grid)) or said[-1])
    assert len(run_all([dataclasses.replace(LONGER, epochs=80)], cluster=two, results=tmp_path / "results")) == 1
    assert any("epoch " in line and "images/s" in line for lines in said for line in lines[1:])


def test_a_number_of_workers_is_a_cluster_whose_dashboard_is_printed(tiny, tmp_path, capsys):
    assert len(run_all([tiny], cluster="1", results=tmp_path / "results")) == 1
    assert "dashboard: http://127.0.0.1:" in capsys.readouterr().out


def test_a_budget_stops_workers_at_a_checkpoint(two, tmp_path):
    run_all([Config(**TINY, seed=s) for s in (0, 1)], cluster=two, results=tmp_path / "results")   # both begun and warm
    long = dataclasses.replace(LONGER, epochs=2000)
    began = time.time()
    runs = run_all([long], cluster=two, budget="4s", results=tmp_path / "results")
    assert runs.missing == [long] and not runs.failed and time.time() - began < 20
    assert store.checkpoint_file(long, tmp_path / "results").exists()


@pytest.mark.skipif(not FULL, reason="only in full: make test-faults")
def test_runs_that_share_a_worker_have_a_process_each(tmp_path):
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, resources={"GPU": 1}, dashboard_address=None,
                                  memory_limit=0) as shared:
        configs = [Config(**TINY, seed=s) for s in (0, 1)]
        runs = run_all(configs, cluster=shared, results=tmp_path / "results", device="cpu")
    assert len(runs) == 2
    assert [files(r) for r in runs] == [files(r) for r in alone(configs, tmp_path)]


def test_a_signal_to_the_process_beside_a_worker_pauses_its_run(tmp_path, monkeypatch):
    process, pipe = worker.start_child()
    monkeypatch.setattr(worker, "_idle", [(process, pipe)])
    job = job_of(LONGER, tmp_path / "results")
    with pytest.raises(Paused):
        worker.train_beside(job, None, lambda event: process.send_signal(signal.SIGTERM) or True)
    worker.train_beside(job, None, lambda event: process.send_signal(signal.SIGINT) or True)   # the caller's
    assert store.find(LONGER, tmp_path / "results")
    assert worker._idle == [(process, pipe)] and process.poll() is None
    process.kill()


def test_an_interruption_comes_through_a_pipe_as_it_was():
    content = io.BytesIO()
    pickler = pickle.Pickler(content)
    pickler.dispatch_table = {}            # where tblib, which Dask imports, has put a way of its own
    pickler.dump(Interrupted("stopped by SIGTERM", signal.SIGTERM))
    sent = pickle.loads(content.getvalue())
    assert (str(sent), sent.signal) == ("stopped by SIGTERM", signal.SIGTERM)


# ---------------------------------------------------------------------------------------------- elsewhere

def test_workers_without_folder_and_data_get_the_data_once_and_send_the_record_back(apart, tmp_path, monkeypatch):
    draws = np.random.default_rng(0)
    images, labels = draws.integers(0, 256, (160, 32, 32, 3), np.uint8), np.arange(160) % 4
    np.savez(tmp_path / "noise.npz", x_train=images[:128], y_train=labels[:128], x_test=images[128:],
             y_test=labels[128:], classes=np.array(list("abcd")))
    monkeypatch.setenv("BNLIB_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    here = "/proc/self/cwd/results"                  # for each process the one in its own current folder
    if not os.path.exists("/proc/self/cwd"):
        pytest.skip("no /proc, by which one path is two folders")
    fields = TINY | {"dataset": "noise", "n_train": None}
    configs = [Config(**fields, seed=0), Config(**fields | {"model": "resnet14", "trainable": "all"})]
    runs = run_all(configs, cluster=apart.file, results=here)
    assert [r.config for r in runs] == configs
    assert not (apart.folder / "results/runs").exists() or not list((apart.folder / "results/runs").iterdir())
    for ours, single in zip(runs, alone(configs, tmp_path), strict=True):
        assert files(ours) == files(single)
        assert ours.network() is not None            # weights too large for a record came back with it
    shipped = list(apart.folder.rglob("noise.npz"))
    assert len(shipped) == 1 and not list((apart.folder / "scratch/dask-scratch-space/bnlib/results/runs").iterdir())


@pytest.mark.parametrize("fields", [{}, {"model": "resnet14", "trainable": "all"}])
def test_a_record_that_a_lost_caller_left_on_a_worker_is_fetched_and_not_trained_again(fields, apart, tmp_path,
                                                                                      monkeypatch):
    config = Config(**TINY | fields, seed=5)
    left = run(config, results=apart.folder / "scratch/dask-scratch-space/bnlib/results")
    made = left.files()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster.Grid, "submit", lambda *_: pytest.fail("sent to a worker"))
    found, = run_all([config], cluster=apart.file, results="/proc/self/cwd/results")
    assert found.files() == made and not left.folder.exists()
    assert found.network() is not None               # whose weights may be too large for a record


def test_a_record_on_other_images_is_no_record_of_this_run(tiny_run):
    results, images = tiny_run.folder.parent.parent, tiny_run.provenance["dataset_sha256"]
    assert worker.read_record(results, tiny_run.id, images) == tiny_run.files()
    assert worker.read_record(results, tiny_run.id, "of others") is None


def test_a_damaged_record_is_trained_again_in_a_folder_of_the_workers_own_alone(tiny, tmp_path):
    record = store.record_folder(tmp_path / "results", tiny.id) / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    with pytest.raises(store.RecordError):
        worker.train_here(job_of(tiny, tmp_path / "results"), None, lambda event: True)
    made = worker.train_here(job_of(tiny, tmp_path / "results", shared=False), None, lambda event: True)
    assert made == store.find(tiny, tmp_path / "results").files()


def test_a_run_that_kills_its_workers_is_given_up_at_the_third_and_the_rest_goes_on(apart, tmp_path):
    good, deadly = Config(**TINY, seed=1), Config(**TINY, seed=13)
    with pytest.warns(UserWarning, match=f"{deadly.id} failed: died 3 times"):
        runs = run_all([good, deadly], cluster=apart.file, results=tmp_path / "results")
    assert [r.config for r in runs] == [good] and runs.missing == [deadly]
    assert "died 3 times" in runs.failed[deadly]
    TALLY["faults injected"] += 3


def test_a_worker_that_lacks_one_set_gets_that_one_and_reads_its_own(tmp_path, monkeypatch):
    """And what the process of a worker was told for one run is forgotten after it."""
    monkeypatch.setenv("BNLIB_DATA", "its own")
    with worker.environment({"BNLIB_DATA": "shipped", "BNLIB_NEW": "1"}):
        assert (os.environ["BNLIB_DATA"], os.environ["BNLIB_NEW"]) == ("shipped", "1")
    assert os.environ["BNLIB_DATA"] == "its own" and "BNLIB_NEW" not in os.environ
    place, sent = cluster.Place("tcp://there:1", 1, 0, False, "there", "there", 2, ["noise"]), []
    grid = cluster.Grid.__new__(cluster.Grid)
    grid.fingerprints, grid.places = {"noise": "a" * 64, "digits": "b"}, {place.address: place}
    grid.waiting = [Config(**TINY), Config(**TINY | {"dataset": "noise", "n_train": None})]
    grid.topic, grid.results, grid.options, grid.deadline, grid.running = "call", tmp_path, {}, None, {}
    grid.inbox = queue.Queue()
    grid.client = types.SimpleNamespace(submit=lambda work, job, *rest, **options: sent.append(job) or
                                        types.SimpleNamespace(add_done_callback=lambda call: None))
    for config in list(grid.waiting):
        grid.submit(config, place, None, None)
    assert [job["environment"] for job in sent] == [{}, {"BNLIB_DATA": f"there/data/{'a' * 16}"}]


def lonely_grid(tmp_path, **client) -> cluster.Grid:
    """A grid that knows one worker and trains nothing."""
    grid = cluster.Grid.__new__(cluster.Grid)
    grid.places, grid.refused, grid.marks, grid.configs, grid.fingerprints = {"tcp://first:1": None}, set(), [], {}, {}
    grid.waiting, grid.running, grid.put_off, grid.deadline, grid.results = [], {}, {}, None, tmp_path / "results"
    grid.taken_in, grid.deaths, grid.furthest, grid.found, grid.failed = True, Counter(), Counter(), {}, {}
    grid.reached = {}
    grid.client = types.SimpleNamespace(**client)
    return grid


def test_a_checkpoint_is_fetched_within_an_epoch_that_lasts(tmp_path):
    """And a run that got further within it is not given up at its third death."""
    config, long_ago = Config(**TINY), time.time() - checkpoint.SAVE_SECONDS - 1
    place = cluster.Place("tcp://there:1", 1, 0, False, "there", "there", 2, [])
    grid = lonely_grid(tmp_path, status="running", nthreads=lambda: {place.address: 1})
    grid.places, asked, steps = {place.address: place}, [], iter(range(1, 100))

    def content(steps):
        packed = io.BytesIO()
        torch.save({"history": [], "epoch": {"steps": steps}, "science": {}}, packed)
        return hashlib.sha256(packed.getvalue()).digest() + packed.getvalue()
    grid.ask = lambda address, question, *_: asked.append(question) or content(next(steps))
    for death in range(1, 2 * cluster.DEATHS):
        grid.running = {config: cluster.Running(types.SimpleNamespace(cancel=lambda: None), place,
                                                contextlib.ExitStack(), fetched=long_ago)}
        grid.look()
        grid.look()                                                         # fetched just now
        assert asked == [worker.read_checkpoint] * death
        grid.died(config, "it is gone")
        assert config in grid.waiting and not grid.failed
        grid.waiting = []
    with pytest.warns(UserWarning, match="died 3 times without getting further"):
        for _ in range(cluster.DEATHS - 1):
            grid.died(config, "it is gone")
    assert config in grid.failed


#: What a worker of another machine says of itself.
SAID = {"versions": worker.versions(), "slots": 1, "gpus": 0, "shared": False, "folder": "there", "machine": "there",
        "cores": 2, "lacks": [], "finished": []}


@pytest.mark.parametrize("said", [ModuleNotFoundError("No module named 'bnlib'"), SAID | {"lacks": ["large_digits"]}],
                         ids=["without bnlib", "without images that are streamed"])
def test_a_worker_that_comes_later_and_is_of_no_use_gets_no_runs(said, tmp_path):
    grid = lonely_grid(tmp_path, run=lambda question, *_, workers, **__: {
        workers[0]: said if question is worker.greet else False})
    with pytest.warns(UserWarning, match="it gets no runs"):
        grid.greet(["tcp://late:1"])
    assert grid.refused == {"tcp://late:1"} and list(grid.places) == ["tcp://first:1"]


def test_a_worker_of_no_use_ends_a_grid_only_where_there_has_been_no_other(tmp_path):
    """Neither one that answers before a good one does, nor one that is left when the good ones have gone."""
    said = {"tcp://a:1": SAID | {"versions": {"bnlib": "9.9"}}, "tcp://b:1": SAID}
    grid = lonely_grid(tmp_path, run=lambda *_, workers, **__: {address: said[address] for address in workers})
    grid.places, grid.taken_in = {}, False
    with pytest.raises(InputError, match=r"tcp://a:1 has bnlib 9\.9"):
        grid.greet(["tcp://a:1"])
    with pytest.warns(UserWarning, match=r"tcp://a:1 has bnlib 9\.9.*; it gets no runs"):
        grid.greet(["tcp://a:1", "tcp://b:1"])
    assert list(grid.places) == ["tcp://b:1"]
    grid.places.clear()
    with pytest.warns(UserWarning, match=r"tcp://a:1 has bnlib 9\.9.*; it gets no runs"):
        grid.greet(["tcp://a:1"])


def test_a_worker_whose_disk_has_no_room_for_the_data_gets_no_runs(tmp_path):
    (tmp_path / "data").write_text("a file, so that no folder can be made here")

    def answer(question, *arguments, workers, **_):
        if question is worker.greet:
            return {workers[0]: SAID | {"lacks": ["digits"], "folder": str(tmp_path)}}
        try:
            return {workers[0]: question(*arguments)}
        except Exception as error:
            return {workers[0]: error}
    grid = lonely_grid(tmp_path, run=answer)
    with pytest.warns(UserWarning, match=r"digits\.npz: cannot be written on .*; it gets no runs"):
        grid.greet(["tcp://full:1"])
    assert list(grid.places) == ["tcp://first:1"]


def test_a_worker_that_may_not_look_into_a_folder_does_not_see_it(tmp_path, monkeypatch):
    """A name too long stands for such a folder, since tests may be root's, who looks into all; both are an OSError."""
    unseen = tmp_path / ("x" * 300)
    monkeypatch.setenv("BNLIB_DATA", str(unseen))
    state = types.SimpleNamespace(total_resources={"GPU": 0}, nthreads=1)
    there = types.SimpleNamespace(state=state, local_directory=str(unseen / "scratch"))
    said = asyncio.run(worker.greet([str(unseen / "mark")], ["some-run"], ["mnist"], there))
    assert not said["shared"] and said["lacks"] == ["mnist"] and said["finished"] == []


def test_a_worker_that_goes_while_it_is_sent_a_checkpoint_ends_nothing(tiny, tmp_path, monkeypatch):
    def gone(*_, workers, **__):
        raise KeyError(workers[0])
    stop_after(1, tiny, tmp_path / "results", monkeypatch)
    grid = lonely_grid(tmp_path, scatter=gone)
    grid.places["tcp://first:1"] = cluster.Place("tcp://first:1", 1, 0, False, "there", "there", 2, [])
    grid.waiting = [tiny]
    grid.start()
    assert grid.waiting == [tiny] and tiny in grid.put_off


def test_a_record_left_on_a_worker_is_let_be_while_another_process_has_the_run(tiny, tmp_path):
    grid = lonely_grid(tmp_path, run=lambda question, *_, workers, **__: {
        workers[0]: SAID | {"finished": [tiny.id]} if question is worker.greet else pytest.fail("fetched")})
    grid.configs, grid.waiting = {tiny.id: tiny}, [tiny]
    with store.lock(tiny, grid.results):
        grid.greet(["tcp://late:1"])
    assert "tcp://late:1" in grid.places and grid.waiting == [tiny]


def test_a_run_that_gets_further_between_deaths_of_its_workers_is_not_given_up(tiny, tmp_path):
    grid = lonely_grid(tmp_path)
    grid.configs = {tiny.id: tiny}
    place = cluster.Place("tcp://first:1", 1, 0, True, "there", "there", 2, [])
    future = types.SimpleNamespace(cancel=lambda: None)

    def dies_after(done):
        grid.running[tiny] = cluster.Running(future, place, contextlib.ExitStack())
        grid.told({"id": tiny.id, "done": done, "text": ""})
        grid.died(tiny, "pre-empted")
    for done in (1, 2, 3, 4, 4):
        dies_after(done)
        assert grid.waiting == [tiny] and not grid.failed
        grid.waiting.clear()
    with pytest.warns(UserWarning, match="died 3 times without getting further"):
        dies_after(3)
    assert tiny in grid.failed and not grid.waiting


def test_a_disk_that_is_full_here_fails_a_run_at_once_and_counts_as_no_death(tiny, tmp_path):
    grid = lonely_grid(tmp_path)
    weights = store.weights_file(tiny, grid.results)
    weights.parent.parent.mkdir(parents=True)
    weights.parent.write_text("a file, so that no folder can be made here")
    done = types.SimpleNamespace(status="finished", result=lambda timeout: {"weights": b""})
    place = cluster.Place("tcp://first:1", 1, 0, False, "there", "there", 2, [])
    grid.running[tiny] = cluster.Running(done, place, contextlib.ExitStack())
    with pytest.warns(UserWarning, match="the weights cannot be written"):
        grid.ended(done)
    assert tiny in grid.failed and not grid.deaths


def test_that_there_are_no_workers_is_said_once_each_time_the_last_has_gone(tmp_path, monkeypatch, capsys):
    grid, clock = lonely_grid(tmp_path), types.SimpleNamespace()
    grid.scheduler, grid.told_at, grid.seen_at, grid.lonely = "tcp://head:1", 0, 0, False
    monkeypatch.setattr(cluster, "time", types.SimpleNamespace(time=lambda: clock.now))
    bar, said = types.SimpleNamespace(disable=False, set_description_str=lambda text: None), []
    for clock.now, there in ((5, 0), (11, 0), (30, 0), (50, 1), (55, 0), (61, 0), (90, 0)):
        grid.places = dict.fromkeys(range(there))
        grid.show(bar, [])
        if capsys.readouterr().err == "tcp://head:1: no workers; waiting\n":
            said.append(clock.now)
    assert said == [11, 61]


def test_images_of_a_run_that_has_begun_go_to_workers_that_come_later(tiny, tmp_path):
    asked = []
    grid = lonely_grid(tmp_path, run=lambda question, marks, ids, sets, **_: asked.append(sets) or {})
    grid.waiting, grid.running = [tiny], {dataclasses.replace(tiny, dataset="mnist", n_train=8): None}
    grid.greet(["tcp://late:1"])
    assert asked == [["digits", "mnist"]]


def test_a_checkpoint_that_has_come_less_far_takes_no_place(tiny, tmp_path, monkeypatch):
    stop_after(1, tiny, tmp_path / "less", monkeypatch)
    stop_after(3, tiny, tmp_path / "further", monkeypatch)
    less, further = (store.checkpoint_file(tiny, tmp_path / name) for name in ("less", "further"))
    early, late = less.read_bytes(), further.read_bytes()
    assert checkpoint.put_further(early, further) is None and further.read_bytes() == late
    assert checkpoint.put_further(late, less) == (1, 0) and less.read_bytes() == late
    less.write_bytes(b"damaged")
    checkpoint.previous(less).write_bytes(early)
    assert checkpoint.newest(less) == early


def test_a_checkpoint_on_other_images_gives_way_however_far_it_has_come(tiny, tmp_path, monkeypatch):
    stop_after(1, tiny, tmp_path / "now", monkeypatch)
    monkeypatch.setattr(store, "PROTOCOL", 0)                      # which is a part of the science, as the images are
    stop_after(3, tiny, tmp_path / "before", monkeypatch)
    now, before = (store.checkpoint_file(tiny, tmp_path / name) for name in ("now", "before"))
    assert checkpoint.put_further(now.read_bytes(), before) == (0, 0) and before.read_bytes() == now.read_bytes()


@pytest.mark.parametrize(("model", "share"), [
    ("resnet14", 0.25), ("resnet110x2", 0.5), ("resnet14x8", 1), ("plain20", 0.25), ("imagenet_resnet152", 1),
    ("imagenet_vgg16_bn", 1), ("3c3d", 1)])
def test_of_a_gpu_the_narrow_networks_for_small_images_ask_a_part(model, share):
    assert cluster.gpu_share(Config(model=model)) == share


def test_two_calls_with_one_config_and_two_folders_have_a_record_each(two, tiny, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    threads = [threading.Thread(target=run_all, args=([dataclasses.replace(tiny, epochs=6)],),
                                kwargs={"cluster": two, "results": folder}) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    first, second = (store.find(dataclasses.replace(tiny, epochs=6), folder) for folder in folders)
    assert files(first) == files(second)


def test_what_fp32_takes_is_estimated_from_the_fast_precision():
    rates = {("resnet14", "bn"): 100.0}
    assert plan.images_per_second(Config(), rates) == (100.0, True)
    assert plan.images_per_second(Config(fp32=True), rates) == (pytest.approx(100.0), False)


def test_the_simulated_grid_keeps_sixteen_workers_busy():
    rates = next(iter(plan.measured().values()))
    hours = {config: plan.hours(config, rates) for config in scale.grids()["every mode"]}
    assert scale.simulate(hours, 16, failures=0.01)["utilisation"] >= 0.9


def test_a_worker_that_comes_later_with_another_version_gets_no_runs(two, tiny, tmp_path, monkeypatch):
    """Of two workers the second in order answers as one of another version would."""
    changed, greet = {"versions": {"bnlib": "9.9"}}, distributed.Client.run

    def answer(client, question, *arguments, **options):
        said = greet(client, question, *arguments, **options)
        return {address: words | (changed if i else {}) if isinstance(words, dict) and "versions" in words else words
                for i, (address, words) in enumerate(sorted(said.items()))}
    monkeypatch.setattr(distributed.Client, "run", answer)
    with pytest.warns(UserWarning, match=r"has bnlib 9\.9, and here is bnlib .*; it gets no runs"):
        runs = run_all([dataclasses.replace(tiny, seed=s) for s in (0, 1)], cluster=two, results=tmp_path / "results")
    assert len(runs) == 2


def test_ctrl_c_stops_at_checkpoints_and_says_how_to_go_on(two, tmp_path):
    long, results = dataclasses.replace(LONGER, epochs=400), tmp_path / "results"
    when(store.checkpoint_file(long, results).exists, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT: 0 runs are done, the others stop at checkpoints"):
        run_all([long], cluster=two, results=results)
    assert store.checkpoint_file(long, results).exists() and not list(results.rglob(".bnlib-*"))


def test_a_run_that_is_called_off_stops_within_its_epoch(two, tmp_path):
    """At a checkpoint, about a second later; a worker that closes has four."""
    long = Config(**TINY | {"model": "resnet110", "n_train": 1400, "batch_size": 4, "epochs": 1})
    file = store.checkpoint_file(long, tmp_path / "results")

    def save_every(seconds):
        checkpoint.SAVE_SECONDS = seconds

    with distributed.Client(two, set_as_default=False) as client:
        client.run(save_every, 0.1)                  # so that there is a sign of it having begun
        try:
            when(file.exists, lambda: os.kill(os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
                run_all([long], cluster=two, results=tmp_path / "results", device="cpu")
            time.sleep(4)
            stopped = checkpoint.reached(file)
            time.sleep(1)
        finally:
            client.run(save_every, checkpoint.SAVE_SECONDS)
    assert checkpoint.reached(file) == stopped and (0, 0) < stopped < (0, 350)


def test_a_worker_of_another_version_is_an_error_that_names_both(outside, tiny, tmp_path):
    outside.worker("--no-nanny", before="import bnlib; bnlib.__version__ = '9.9'")
    with pytest.raises(InputError, match=r"worker tcp://127.0.0.1:\d+ has bnlib 9\.9 \(\w+\) and torch .* here is "
                                         rf"bnlib {worker.versions()['bnlib'].split()[0]}"):
        run_all([tiny], cluster=outside.file, results=tmp_path / "results")


# ---------------------------------------------------------------------------------------------- killed

def test_a_worker_killed_in_mid_run_loses_no_run_and_no_bit(two, tmp_path):
    configs, results = [dataclasses.replace(LONGER, seed=s) for s in (0, 1)], tmp_path / "results"
    with distributed.Client(two, set_as_default=False) as client:
        victim = next(iter(client.run(os.getpid).values()))
    when(lambda: all(store.checkpoint_file(c, results).exists() for c in configs),
         lambda: os.kill(victim, signal.SIGKILL))
    seen, died = [], cluster.Grid.died
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.Grid, "died", lambda grid, *why: seen.append(why) or died(grid, *why))
        runs = run_all(configs, cluster=two, results=results)
    assert len(runs) == 2 and len(seen) == 1
    assert [files(r) for r in runs] == [files(r) for r in alone(configs, tmp_path)]


@pytest.mark.skipif(not FULL, reason="only in full: make test-faults")
def test_a_worker_elsewhere_killed_in_mid_run_is_followed_by_one_with_its_checkpoint(outside, tmp_path, monkeypatch):
    long = dataclasses.replace(LONGER, epochs=60)
    monkeypatch.setattr(cluster, "FETCH_SECONDS", 0.0)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    results = "/proc/self/cwd/results"
    words = "--no-nanny", f"--local-directory={tmp_path / 'first/scratch'}"
    first = outside.worker(*words)
    when(store.checkpoint_file(long, results).exists,
         lambda: first.kill() or outside.worker("--no-nanny", f"--local-directory={tmp_path / 'second/scratch'}"))
    sent, submit = [], cluster.Grid.submit
    monkeypatch.setattr(cluster.Grid, "submit", lambda grid, config, place, begun, held: sent.append(begun) or
                        submit(grid, config, place, begun, held))
    found, = run_all([long], cluster=outside.file, results=results)
    assert len(sent) == 2 and sent[0] is None and sent[1] is not None
    assert files(found) == files(alone([long], tmp_path)[0])


@pytest.mark.skipif(not FULL, reason="only in full: make test-faults")
def test_a_lost_scheduler_is_said_and_the_next_call_goes_on(outside, tmp_path):
    long, results = dataclasses.replace(LONGER, epochs=200), tmp_path / "shared/results"
    outside.worker()
    when(store.checkpoint_file(long, results).exists, outside.scheduler.kill)
    with pytest.raises(InputError, match="the scheduler is lost"):
        run_all([LONGER, long], cluster=outside.file, results=results)
    assert workers.finish(workers.train_all, [LONGER, long], results) == 0
    again = [store.find(config, results) for config in (LONGER, long)]
    assert [files(r) for r in again] == [files(r) for r in alone([LONGER, long], tmp_path)]


# ---------------------------------------------------------------------------------------------- Slurm

SLURM = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort=36817
SlurmdPort=36818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP
"""


@pytest.fixture
def slurm(tmp_path):
    """A Slurm of one node, this machine, in a folder of its own."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name)]
    if missing or os.geteuid():
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm" if missing else "Slurm's daemons need root")
    pytest.importorskip("dask_jobqueue")
    with tempfile.TemporaryDirectory(prefix="slurm") as name:          # munge refuses folders that others may write to
        folder = Path(name)
        os.chmod(folder, 0o755)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        os.chmod(folder / "munge.key", 0o600)
        conf = folder / "slurm.conf"
        conf.write_text(SLURM.format(host=socket.gethostname().split(".")[0], folder=folder, cores=os.cpu_count(),
                                     memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10 >> 20))
        daemons = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=(folder / "log").open("a"),
                                    env=os.environ | {"SLURM_CONF": str(conf)}) for words in (
            ["munged", "--foreground", "--force", f"--socket={folder / 'munge.socket'}",
             f"--key-file={folder / 'munge.key'}", f"--pid-file={folder / 'munged.pid'}",
             f"--seed-file={folder / 'munged.seed'}", f"--log-file={folder / 'munged.log'}"],
            ["slurmctld", "-D", "-f", str(conf)], ["slurmd", "-D", "-f", str(conf)])]
        yield conf
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


@pytest.mark.skipif(not FULL, reason="only in full: make test-faults")
def test_a_real_slurm_runs_the_demo_grid_through_the_ready_script(slurm, tmp_path):
    for name in ("bnlib", "notebooks", "docs"):
        shutil.copytree(resolve(name), tmp_path / name)
    environment = os.environ | {"SLURM_CONF": str(slurm), "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    for _ in range(60):
        idle = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True)
        if idle.stdout.strip() == "idle":
            break
        time.sleep(1)
    else:
        said = (slurm.parent / "log").read_text()[-300:]
        pytest.skip(f"Slurm does not start here: {idle.stdout} {idle.stderr} {said}")
    done = subprocess.run([sys.executable, "docs/bnlib-slurm.py", "--profile=demo", "--jobs=2", "--cores=1",
                           "--memory=3GB", "--interface=lo", "--walltime=01:00:00"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = len(profile_configs("demo"))
    assert f"{wanted} runs of profile demo are there, 0 are missing" in done.stdout
    assert len(store.all_runs(tmp_path / "build/demo/results")) == wanted
