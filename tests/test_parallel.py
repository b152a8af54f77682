"""Two processes that torchrun starts, sharing each batch over loopback, beside one process with the same batches."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from torch import nn

from bnlib import Config, InputError, freeze, models, parallel, run, store
from tests.sharing import CONFIGS, OPTIONS
from tests.test_train import same


def torchrun(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What `sharing.py` leaves: records of two processes, and what they found."""
    folder = tmp_path_factory.mktemp("shared")
    torchrun("-m", "tests.sharing", folder)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return tmp_path_factory.mktemp("alone") / "results"


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_train_the_network_that_one_trains(name, shared, alone):
    """Up to rounding, also where 93 images leave a batch of 29, and where masks drop values."""
    two, one = store.find(CONFIGS[name], shared / "results"), run(CONFIGS[name], results=alone, **OPTIONS)
    assert two.provenance["device"].endswith("× 2 processes") and "×" not in one.provenance["device"]
    columns = ["train_loss", "train_accuracy", "test_loss"]
    np.testing.assert_allclose(two.history[columns], one.history[columns], rtol=2e-3)
    assert np.allclose(two.history["train_loss"].iloc[0], one.history["train_loss"].iloc[0], rtol=1e-4)
    for part in ("gamma", "beta", "running_mean", "running_var"):
        for layer, values in getattr(one, part).items():
            np.testing.assert_allclose(getattr(two, part)[layer], values, rtol=2e-3, atol=2e-3)
    moved = [(one.trajectory["gamma"][layer][0] != one.trajectory["gamma"][layer][-1]).any() for layer in one.gamma]
    assert all(moved) == (name != "none")


def test_a_stop_asked_of_one_process_stops_both_and_the_run_goes_on_to_the_same_bytes(shared):
    assert json.loads((shared / "found.json").read_text())["stopped at a checkpoint"]
    whole, stopped = (store.find(CONFIGS["all"], shared / part) for part in ("results", "stopped/results"))
    assert same(stopped, whole)
    assert not list(shared.rglob("*.pt"))


def test_a_run_that_others_finish_meanwhile_is_loaded_by_all_processes(shared):
    loaded, trained = (store.find(CONFIGS["bn"], shared / part) for part in ("meanwhile/results", "results"))
    assert same(loaded, trained)


def test_bn_only_sends_the_gradients_of_gamma_and_beta_alone(shared):
    found = json.loads((shared / "found.json").read_text())
    assert found["sent"] == freeze.count(models.build("resnet8", 10), "bn")


def test_batch_norm_may_see_each_processs_own_images_alone(shared):
    """Then each half of a batch is normalised as if it were a batch, and the run is another one."""
    assert json.loads((shared / "found.json").read_text())["apart"] < 1e-4
    apart = store.find(dataclasses.replace(CONFIGS["bn"], bn_parts=2), shared / "results")
    assert apart.id != CONFIGS["bn"].id and apart.provenance["bn_path"] != "synchronised"
    together = store.find(CONFIGS["bn"], shared / "results")
    assert together.provenance["bn_path"] == "synchronised"
    assert abs(apart.history["train_loss"] - together.history["train_loss"]).max() > 1e-3


def test_a_part_a_process_takes_as_many_processes(tmp_path):
    with pytest.raises(InputError, match=r"bn_parts=2: takes as many processes, of which there are 1: torchrun"):
        run(dataclasses.replace(CONFIGS["bn"], bn_parts=2), results=tmp_path / "results")


def test_the_command_line_under_torchrun_leaves_one_record_and_says_so_once(tmp_path, alone):
    done = torchrun("-m", "bnlib", "train", "resnet8", "--dataset", "digits", "--n-train", 93, "--epochs", 2,
                    "--batch-size", 32, "--augment", "crop", "--device", "cpu", "--precision", "fp32",
                    "--results", tmp_path / "results")
    (record,) = (tmp_path / "results/runs").iterdir()
    assert record.name == CONFIGS["bn"].id and done.stdout.count("test accuracy") == 1
    one = run(CONFIGS["bn"], results=alone, **OPTIONS)
    np.testing.assert_allclose(store.Run(record).history["train_loss"], one.history["train_loss"], rtol=1e-4)


def test_a_network_of_torchs_own_batch_norm_shares_its_statistics_too(monkeypatch):
    class Own(nn.BatchNorm2d):
        pass

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Own(4))
    monkeypatch.setattr(parallel, "processes", lambda: 2)
    assert parallel.synchronise(network, Config())
    assert all(isinstance(module, parallel.Synchronised) for module in network[1:]) and isinstance(network[2], Own)
