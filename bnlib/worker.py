"""What the workers of a Dask cluster do: say what they are, train a run, tell of its epochs, hand back its record."""

import contextlib
import hashlib
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from bnlib import checkpoint, data, store
from bnlib.config import Config
from bnlib.names import InputError
from bnlib.optim import work
from bnlib.stop import Paused
from bnlib.train import run

#: Tells the caller of an epoch, or of nothing (None), and returns whether the run is still wanted.
Report = Callable[[dict | None], bool]
TELL_SECONDS = 0.5        # at least, between two reports of a run
FETCH_BYTES = 64 << 20    # a checkpoint larger than that stays on its machine


#: The code that this process runs, whatever lies on its disk by now.
CODE = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*"))
                               if file.suffix in (".py", ".cpp", ".h"))).hexdigest()[:8]


class Died(Exception):
    """The process that trained a run has ended."""


def versions() -> dict[str, str]:
    """What must be the same wherever runs of one grid train: bnlib, down to its code, and torch."""
    from bnlib import __version__
    return {"bnlib": f"{__version__} ({CODE})", "torch": torch.__version__}


async def greet(marks: list[str], ids: list[str], sets: list[str], dask_worker) -> dict:
    """What a worker says of itself: versions, place, room, whether it sees the caller's folders, what it has."""
    from dask.system import CPU_COUNT
    resources = dask_worker.state.total_resources
    if "GPU" not in resources and torch.cuda.is_available():
        await dask_worker.set_resources(GPU=1)
    folder = Path(dask_worker.local_directory).parent / "bnlib"          # stays when the worker goes
    there = {run_id: store.record_folder(folder / "results", run_id) for run_id in ids}
    return {
        "versions": versions(),
        "machine": (socket.gethostname(), sorted(getattr(os, "sched_getaffinity", lambda _: ())(0))),
        "cores": CPU_COUNT, "slots": dask_worker.state.nthreads, "gpus": resources.get("GPU", 0.0),
        "shared": all(map(os.path.exists, marks)), "folder": str(folder),      # Path.exists raises if not allowed
        "lacks": [name for name in sets if not data.at_hand(name)],
        "finished": [run_id for run_id, record in there.items() if os.path.exists(record)],
    }


def train_job(job: dict, begun: bytes | None) -> dict[str, bytes] | None:
    """One run, as a Dask task: None where the record lies in the shared folder, else its files.

    begun: a checkpoint from elsewhere. Raises what `run` raises; Paused also where the task is no longer wanted.
    """
    from distributed import Status, get_worker
    worker = get_worker()
    key = worker.get_current_task()

    def report(event: dict | None) -> bool:
        if event is not None:
            worker.log_event(job["topic"], event)
        task = worker.state.tasks.get(key)
        return worker.status in (Status.running, Status.paused) and task is not None and task.state != "cancelled"

    return (train_here if worker.state.nthreads == 1 else train_beside)(job, begun, report)


def train_here(job: dict, begun: bytes | None, report: Report) -> dict[str, bytes] | None:
    """The run, in this process."""
    torch.set_num_threads(job["threads"])
    with environment(job["environment"]):
        return _train(job, begun, report)


@contextlib.contextmanager
def environment(changes: dict[str, str]):
    """The process's environment with these changes, and afterwards without them."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _train(job: dict, begun: bytes | None, report: Report) -> dict[str, bytes] | None:
    config, results = Config.from_dict(job["config"]), job["results"]
    if (found := data.load(config.dataset).fingerprint) != job["fingerprint"]:
        raise InputError(f"{config.dataset}: fingerprint {found[:16]}… on {socket.gethostname()}, and "
                         f"{job['fingerprint'][:16]}… where the run was asked for; both must have the same images")
    if not job["shared"]:
        try:
            store.find(config, results)
        except store.RecordError:        # of this machine alone, so nobody needs it mended
            shutil.rmtree(store.record_folder(results, config.id), ignore_errors=True)
    if begun is not None:                # from the caller, who may have an older one than this machine
        checkpoint.put_further(begun, store.checkpoint_file(config, results))
    done = run(config, results=results, bar=Reporter(config, report), wait=False, unwanted=lambda: not report(None),
               **job["options"])
    return None if job["shared"] else _with_weights(done, results)


def _with_weights(found: store.Run, results: str) -> dict[str, bytes]:
    """The files of a record, and the weights that are too large for it."""
    weights = store.weights_file(found.config, results)
    return found.files() | ({"weights": weights.read_bytes()} if weights.exists() else {})


class Reporter:
    """Stands where a progress bar would: tells the caller of each epoch, and stops a run that nobody waits for."""

    def __init__(self, config: Config, report: Report):
        self.config, self.report, self.text, self.last = config, report, "", 0.0
        self.total = self.whole = work(config)
        self.done = 0.0

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.text = text

    def update(self, units: float) -> None:
        self.done += units
        if time.time() - self.last > TELL_SECONDS:
            self.last = time.time()
            if not self.report({"id": self.config.id, "done": self.whole - self.total + self.done, "text": self.text}):
                raise Paused


_idle: list[tuple[subprocess.Popen, Connection]] = []        # processes beside this worker that wait for a run


def train_beside(job: dict, begun: bytes | None, report: Report) -> dict[str, bytes] | None:
    """As `train_here`, in another process: runs that share a worker, and a GPU, do not wait for one interpreter."""
    try:
        process, pipe = _idle.pop()
    except IndexError:                   # or another thread of this worker was quicker
        process, pipe = start_child()
    try:
        pipe.send((job, begun))
        while (answer := pipe.recv())[0] == "report":
            pipe.send(report(answer[1]))
    except (EOFError, OSError):
        raise Died(f"the process beside the worker ended with status {process.wait()}") from None
    _idle.append((process, pipe))
    kind, value = answer
    if kind == "error":
        raise value
    return value


def start_child() -> tuple[subprocess.Popen, Connection]:
    ours, theirs = multiprocessing.Pipe()          # not multiprocessing.Process: a worker may be a daemon
    with theirs:
        number = theirs.fileno()
        process = subprocess.Popen([sys.executable, "-c", f"from bnlib.worker import child; child({number})"],
                                   pass_fds=[number])
    return process, ours


def child(number: int) -> None:
    """Trains what comes through the pipe; when the worker ends, so does the pipe, and so does this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(number)

    def report(event: dict | None) -> bool:
        try:
            pipe.send(("report", event))
            return pipe.recv()
        except (EOFError, OSError):              # the worker is gone: stop at a checkpoint
            return False

    with contextlib.suppress(EOFError, OSError):
        while True:
            job, begun = pipe.recv()
            try:
                answer = "done", train_here(job, begun, report)
            except KeyboardInterrupt:            # a signal, as to all processes of a job that is out of time
                answer = "error", Paused()
            except Exception as error:
                answer = "error", error
            pipe.send(answer)


def read_checkpoint(results: str, config: dict) -> bytes | None:
    """A run's checkpoint that lies here, or the one before it where that is damaged; None of a large network's."""
    file = store.checkpoint_file(Config.from_dict(config), results)
    return checkpoint.newest(file) if not file.exists() or file.stat().st_size <= FETCH_BYTES else None


def read_record(results: str, run_id: str, fingerprint: str) -> dict[str, bytes] | None:
    """The files of a record that lies here, with weights too large for it; None of one that is damaged, of an older
    protocol or of other images than those of this fingerprint, and has to be trained again."""
    try:
        found = store.Run(store.record_folder(results, run_id))
        good = found.record["protocol"] == store.PROTOCOL and found.provenance["dataset_sha256"] == fingerprint
        return _with_weights(found, results) if good else None
    except store.RecordError:
        return None


def holds(folder: str, name: str) -> bool:
    """Whether this machine has the images that the caller has: of other ones the folder is another."""
    return (Path(folder) / f"{name}.npz").exists()


def forget(results: str, config: dict) -> None:
    """The caller has the record; this machine needs its copy no longer."""
    config = Config.from_dict(config)
    shutil.rmtree(store.record_folder(results, config.id), ignore_errors=True)
    checkpoint.remove(store.checkpoint_file(config, results))
    store.weights_file(config, results).unlink(missing_ok=True)


def put_data(folder: str, name: str, content: bytes) -> None:
    """Raises InputError where it cannot be written: an OSError would be taken for a worker that is gone."""
    file = Path(folder) / f"{name}.npz"
    try:
        store.put(file, content)
    except OSError as error:
        raise InputError(f"{file}: cannot be written on {socket.gethostname()} ({error.strerror}); data that a worker "
                         "lacks needs room in its local directory") from None
