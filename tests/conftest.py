"""Small real runs that many tests look at, trained once a session."""

import os
import signal

import hypothesis
import pytest
import torch
from matplotlib import pyplot as plt

os.environ["BNLIB_PROGRESS"] = "0"
from bnlib import Config, data, run
from bnlib.device import cores
from bnlib.names import InputError

hypothesis.settings.register_profile("bnlib", deadline=None)         # a busy machine is no fault of the code
hypothesis.settings.load_profile("bnlib")

if together := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):     # side by side, each and what it starts has its cores
    threads = max(1, cores() // int(together))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(threads)

FULL = os.environ.get("BNLIB_FAULTS") == "full"        # as `make test-faults` sets it; else a short form
TALLY = {"faults injected": 0, "runs lost": 0, "results differing": 0}

#: Seconds to train: 128 digits, a ResNet-8, two epochs.
TINY = {"dataset": "digits", "model": "resnet8", "n_train": 128, "epochs": 2, "batch_size": 64, "augment": "crop"}


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):        # of one process of several, which ends
        session.config.workeroutput["tally"] = TALLY


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    for what, number in getattr(node, "workeroutput", {}).get("tally", {}).items():
        TALLY[what] += number


def pytest_terminal_summary(terminalreporter):
    if TALLY["faults injected"]:
        terminalreporter.write_line("; ".join(f"{what}: {number:,}" for what, number in TALLY.items()))


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """This process and those that it starts hear SIGINT, which a background job ignores, and training with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def no_figures_left_open():
    yield
    plt.close("all")


@pytest.fixture
def tiny() -> Config:
    return Config(**TINY)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    return run(Config(**TINY), results=tmp_path_factory.mktemp("tiny") / "results")


@pytest.fixture(scope="session")
def cifar10():
    """The real CIFAR-10, where it lies under $BNLIB_DATA or data/."""
    folder = data.resolve(os.environ.get("BNLIB_DATA") or "data")
    if not (folder / "cifar10.npz").exists() and not (folder / "cifar-10-batches-py").exists():
        pytest.skip(f"no CIFAR-10 in {folder.name}/: `python -m bnlib data cifar10` fetches it")
    try:
        return data.load("cifar10")
    except InputError as error:
        pytest.fail(str(error))


@pytest.fixture
def seeded():
    torch.manual_seed(0)
