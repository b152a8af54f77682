"""A Dask cluster in the words of a command line: a number of workers here, an address, a scheduler's file."""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from bnlib.names import InputError

CONNECT_SECONDS = 10.0    # until a scheduler that does not answer counts as none
RUNS_A_GPU = 4            # that share one at a time, at most


@contextlib.contextmanager
def connect(cluster) -> Iterator:
    """A Dask client of `cluster`: a number of local workers, `local`, an address, a scheduler file, Cluster or Client.

    What was started here ends here; what was given stays. Raises InputError for what is none of these, or no answer.
    """
    try:
        from distributed import Client
        from distributed.deploy import Cluster
    except ModuleNotFoundError as error:
        raise InputError(f"cluster={cluster!r}: needs {error.name}: `pip install dask distributed`") from None
    if isinstance(cluster, Client):
        yield cluster
        return
    where = str(cluster)
    with contextlib.ExitStack() as opened:
        if isinstance(cluster, Cluster):
            target = {"address": cluster}
        elif where == "local" or (where.isdigit() and int(where) > 0):
            with deaf_to_interrupts():                       # this process stops its workers, at a checkpoint
                target = {"address": opened.enter_context(local(None if where == "local" else int(where)))}
        elif "://" in where:
            target = {"address": where}
        elif Path(where).is_file():
            target = {"address": address_in(Path(where))}
        else:
            raise InputError(f"cluster={cluster!r}: must be a number of local workers, local, an address such as "
                             "tcp://host:8786, a scheduler file that is there, or a Dask Cluster or Client")
        try:
            client = opened.enter_context(Client(**target, set_as_default=False, timeout=CONNECT_SECONDS))
        except (OSError, ValueError) as error:
            raise InputError(f"cluster={cluster!r}: no Dask scheduler answers there ({error})") from None
        yield client


def address_in(file: Path) -> str:
    """Of the scheduler that wrote the file. Raises InputError where none did, which Dask answers with an assertion."""
    try:
        address = json.loads(file.read_text())["address"]
        if "://" not in address:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"cluster={str(file)!r}: holds no address of a Dask scheduler; must be what "
                         "`dask scheduler --scheduler-file` wrote") from None
    return address


@contextlib.contextmanager
def deaf_to_interrupts():
    """Processes that are started within do not hear a terminal's Ctrl-C, which goes to all that it shows."""
    if threading.current_thread() is not threading.main_thread():         # Python gives signals to no other thread
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def local(workers: int | None = None):
    """A cluster of this machine: one worker process a GPU, else one for each two cores, or as many as are asked for.

    Its dashboard is bound to loopback; `BNLIB_DASHBOARD=0.0.0.0:8787` in the environment tells it otherwise.
    """
    from dask.system import CPU_COUNT
    from distributed import Nanny, Scheduler, SpecCluster
    gpus = torch.cuda.device_count()
    cards = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",")
    workers = workers or gpus or max(1, CPU_COUNT // 2)

    def options(i: int) -> dict:
        if not gpus:
            return {"nthreads": 1}
        share = min(1.0, gpus / workers)
        return {"nthreads": max(1, int(RUNS_A_GPU * share)), "resources": {"GPU": share},
                "env": {"CUDA_VISIBLE_DEVICES": cards[i % gpus]}}

    common = {"host": "127.0.0.1", "memory_limit": 0, "dashboard": False, "silence_logs": 40}
    dashboard = os.environ.get("BNLIB_DASHBOARD") or f"127.0.0.1:{free_port(8787)}"
    return SpecCluster(
        scheduler={"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": dashboard}},
        workers={i: {"cls": Nanny, "options": common | options(i)} for i in range(workers)}, silence_logs=40)


def free_port(wanted: int) -> int:
    """The wanted port of this machine if it is free, else 0, by which the system chooses one."""
    with socket.socket() as trial:
        return 0 if trial.connect_ex(("127.0.0.1", wanted)) == 0 else wanted
