"""What tests run in processes of their own, to kill them, to starve them of disk, or to have several at once."""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

import torch

from bnlib import data, grid, models, run, train
from bnlib.__main__ import main

#: Processes forked from one that has imported torch: a start takes a tenth of a second.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.workers"])
data.load("digits")                       # in the process that the others are forked from, once for all of them
models.multiply_adds("resnet8")


def start(work, *arguments) -> multiprocessing.Process:
    process = CONTEXT.Process(target=_alone, args=(work, *arguments))
    process.start()
    return process


def finish(work, *arguments) -> int:
    """Runs `work` to its end in a process of its own; its exit status, or minus the signal that killed it."""
    process = start(work, *arguments)
    process.join(120)
    assert process.exitcode is not None, f"{work.__name__} hangs"
    return process.exitcode


def _alone(work, *arguments) -> None:
    torch.set_num_threads(1)              # tiny networks, and several processes at once
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        sys.exit(work(*arguments))


def train_all(configs, results) -> None:
    grid.run_all(configs, results=results)


def train_all_and_say_who(configs, results, log: Path) -> None:
    """As `train_all`; adds a line to `log` for each run that this process trains to its end."""
    trains = train.train

    def said(config, *rest, **options):
        done = trains(config, *rest, **options)
        with log.open("a") as file:
            file.write(f"{config.id} {os.getpid()}\n")
        return done

    train.train = said
    runs = grid.run_all(configs, results=results)
    sys.exit(0 if len(runs) == len(configs) else 1)


def train_with_small_files(config, results, limit: int) -> int:
    """Trains where no file may grow beyond `limit` bytes, as on a disk that fills up. Status 3: refused, as it must."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return _trains(config, results)


def train_refused(config, results) -> int:
    return _trains(config, results)


def _trains(config, results) -> int:
    from bnlib import InputError
    try:
        run(config, results=results)
    except InputError as error:
        return 3 if "cannot be written" in str(error) else 4
    return 0


def train_and_die_at(config, results, number: int, after: bool) -> None:
    """Trains, and is killed at the `number`-th call that changes the disk, before it or after."""
    calls = 0

    def deadly(function):
        def called(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return called

    os.replace, os.fsync, os.unlink = deadly(os.replace), deadly(os.fsync), deadly(os.unlink)
    Path.rename, Path.mkdir, Path.unlink = deadly(Path.rename), deadly(Path.mkdir), deadly(Path.unlink)
    run(config, results=results)


def command(*words) -> int:
    return main(list(words))
