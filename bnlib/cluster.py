"""A grid on many machines: the workers of a Dask cluster train; this process orders runs, counts deaths, keeps records.

    train_all(configs, cluster)   connect, then until all is done: look who is there · start the longest · hear
      └ on a worker               worker.train_job, which calls train.run
"""

import contextlib
import io
import os
import queue
import signal
import sys
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bnlib import checkpoint, data, store, worker
from bnlib.config import Config, resolve
from bnlib.connect import RUNS_A_GPU, connect
from bnlib.names import InputError, parse_model
from bnlib.optim import work
from bnlib.stop import Interrupted, Paused, Stop
from bnlib.train import progress_bar

DEATHS = 3                # of its workers without getting further, after which a run is reported failed
LOOK_SECONDS = 1.0        # between two looks at which workers are there
FETCH_SECONDS = 10.0      # between two copies of a checkpoint from a worker without the results folder
BUSY_SECONDS = 5.0        # until a run is tried again that another process trains
LONELY_SECONDS = 10.0     # without any worker, until that is said
TELL_SECONDS = 60.0       # between two lines of progress where there is no terminal for a bar
SHOWN = 4                 # running runs that have a line of their own beside the bar


# ------------------------------------------------------------------------------------------- which run, where

def longest_first(configs: Iterable, cost: Callable = work) -> list:
    """The order in which runs start: the last one to start is short, and keeps nobody waiting."""
    return sorted(configs, key=cost, reverse=True)


def gpu_share(config: Config) -> float:
    """The part of a GPU that a run asks for: the narrow layers of networks for small images leave most of it idle.
    Estimated, not measured."""
    narrow = parse_model(config.model).family in ("resnet", "plain", "resnet1d")
    return min(1.0, config.width / RUNS_A_GPU) if narrow else 1.0


def assign(waiting: Iterable, free: dict[str, float], share: Callable[..., float]) -> list[tuple]:
    """(run, worker) pairs to start now: runs in their order, each on the worker with the most room.

    free: worker → room, in GPUs or runs at a time. share(run, worker): the room that the run takes there. A worker
    without enough of it is kept for that run, which smaller ones would otherwise overtake for ever.
    """
    room, pairs = dict(free), []
    for each in waiting:
        if not room:
            break
        roomiest = max(room, key=room.get)
        left = room.pop(roomiest) - share(each, roomiest)
        if left >= -1e-9:
            pairs.append((each, roomiest))
            if left > 1e-9:
                room[roomiest] = left
    return pairs


# ------------------------------------------------------------------------------------------- here

@dataclass
class Place:
    """A worker, as this process knows it."""

    address: str
    slots: int                # runs at a time
    gpus: float               # what it offers of them; 0: runs are counted
    shared: bool              # whether it sees the results folder and the checkpoints
    folder: str               # of its machine, for what is not shared
    machine: str              # host and cores, which several workers may share
    cores: int
    shipped: list[str]        # sets of images that it lacked

    @property
    def room(self) -> float:
        return self.gpus or self.slots

    def share(self, config: Config) -> float:
        """The room that a run takes: a part of a GPU, or one of the runs at a time."""
        return min(self.gpus, max(gpu_share(config), self.gpus / self.slots)) if self.gpus else 1.0


@dataclass
class Running:
    """A run that a worker trains."""

    future: object
    place: Place
    held: contextlib.ExitStack          # the run's lock, where the worker cannot hold it
    done: float = 0.0                   # multiply–adds
    text: str = "starting"
    #: when its checkpoint was copied last, as `time.time()` counts
    fetched: float = field(default_factory=time.time)


def train_all(configs: list[Config], cluster, *, results: str | Path = "results", deadline: float | None = None,
              **options) -> tuple[dict[Config, store.Run], dict[Config, str]]:
    """Trains the configs on a cluster, longest first: the runs, and the reason for each that failed.

    cluster: as for `connect`. deadline: `time.time()` at which workers stop at a checkpoint. Other options as for
    `run`. What neither finished nor failed is not yet done. A run whose worker dies goes on from its checkpoint on
    another, until three in a row have died without getting further. SIGINT and SIGTERM stop workers at a checkpoint.
    Raises InputError where the scheduler is lost or the first workers have other versions; one that comes with or after
    a good one is left out.
    """
    results = resolve(results)
    store.check_writable(results)
    with connect(cluster) as client, Stop() as stop, contextlib.ExitStack() as opened:
        if client.dashboard_link:
            print(f"dashboard: {client.dashboard_link}", flush=True)
        grid = Grid(client, configs, results, deadline, options)
        opened.callback(grid.close)
        bar = opened.enter_context(progress_bar(sum(map(work, configs)), ""))
        lines = [opened.enter_context(status_line(place)) for place in range(1, SHOWN + 1)]
        try:
            while (grid.waiting and not grid.late()) or grid.running:
                if stop.asked():
                    name = signal.Signals(stop.signal).name
                    raise Interrupted(f"stopped by {name}: {len(grid.found)} runs are done, the others stop at "
                                      "checkpoints; the same command or cell goes on", stop.signal)
                grid.look()
                grid.start()
                grid.hear(time.time() + LOOK_SECONDS)
                grid.show(bar, lines)
        except OSError as error:
            if client.status == "running":
                raise
            raise InputError(f"{grid.scheduler}: the scheduler is lost ({error}); {len(grid.found)} runs are done: "
                             "start it and run again, which goes on from the checkpoints") from None
    return grid.found, grid.failed


def status_line(place: int):
    """A line of text below the progress bar, where there is one."""
    from tqdm.auto import tqdm
    disable = True if os.environ.get("BNLIB_PROGRESS") == "0" else None
    return tqdm(total=1, position=place, bar_format="{desc}", leave=False, disable=disable)


class Grid:
    """The runs of one call: who waits, who trains where, who is done, who failed and why."""

    def __init__(self, client, configs: list[Config], results: Path, deadline: float | None, options: dict):
        self.client, self.results, self.deadline, self.options = client, results, deadline, options
        self.scheduler = client.scheduler.address
        self.configs = {config.id: config for config in configs}
        self.waiting = longest_first(configs)
        self.put_off: dict[Config, float] = {}        # until when: another process trains it
        self.running: dict[Config, Running] = {}
        self.found: dict[Config, store.Run] = {}
        self.failed: dict[Config, str] = {}
        self.deaths: Counter = Counter()              # of each run's workers, since it got further than ever before
        self.furthest: Counter = Counter()            # multiply–adds, of which its worker has told
        self.reached: dict[Config, tuple[int, int]] = {}        # epochs and steps, of its checkpoint at the last death
        self.places: dict[str, Place] = {}
        self.taken_in = False                         # a worker, ever
        self.refused: set[str] = set()                # workers of other versions
        self.told_at = self.seen_at = time.time()     # when progress was printed last, and a worker there
        self.lonely = False                           # for so long that it has been said
        self.fingerprints: dict[str, str] = {}
        self.inbox: queue.Queue = queue.Queue()       # futures that are done, and what workers tell of their runs
        self.topic = f"bnlib-{uuid.uuid4().hex}"
        client.subscribe_topic(self.topic, lambda event: self.inbox.put(event[1]))
        self.marks = []                               # files by which a worker knows that it sees the same folders
        for folder in (results / "runs", store.scratch_folder(results) / "checkpoints"):
            self.marks.append(folder / f".{self.topic}")
            store.put(self.marks[-1], b"")

    def close(self) -> None:
        """Calls off what still runs: its worker stops at a checkpoint, about a second later."""
        for mark in self.marks:
            mark.unlink(missing_ok=True)
        for running in self.running.values():
            running.held.close()
        with contextlib.suppress(OSError):
            self.client.cancel([running.future for running in self.running.values()])
            self.client.unsubscribe_topic(self.topic)

    def late(self) -> bool:
        return self.deadline is not None and time.time() >= self.deadline

    # ---------------------------------------------------------------------------------- which workers

    def look(self) -> None:
        """Greets workers that have come, and counts the deaths of runs whose workers have gone."""
        if self.client.status != "running":
            raise OSError("no connection")
        there = self.client.nthreads()
        for address in set(self.places) - set(there):
            del self.places[address]
            for config in [c for c, running in self.running.items() if running.place.address == address]:
                self.died(config, f"{address} is gone")
        for config, running in self.running.items():         # an epoch may be hours, and its worker gone before its end
            if not running.place.shared and time.time() - running.fetched > checkpoint.SAVE_SECONDS:
                running.fetched = time.time()
                self.fetch(config, running.place)
        if come := sorted(set(there) - set(self.places) - self.refused):
            self.greet(come)

    def greet(self, addresses: list[str]) -> None:
        """Takes in workers of these versions, one of which must come first; data goes to machines that lack some."""
        sets = sorted({config.dataset for config in (*self.waiting, *self.running)})
        said = self.client.run(worker.greet, [str(mark) for mark in self.marks], list(self.configs), sets,
                               workers=addresses, on_error="return")
        own, unfit = worker.versions(), {}                       # unfit: address → why
        for address, words in said.items():
            if isinstance(words, OSError):                       # gone again
                continue
            if isinstance(words, Exception):
                unfit[address] = (f"worker {address} cannot answer ({type(words).__name__}: {words}); it needs "
                                  f"{_in_words(own)}, as here")
                continue
            if words["versions"] != own:
                unfit[address] = (f"worker {address} has {_in_words(words['versions'])}, and here is "
                                  f"{_in_words(own)}; they must be the same")
                continue
            place = Place(address, words["slots"], words["gpus"], words["shared"], words["folder"],
                          str(words["machine"]), words["cores"], words["lacks"])
            try:
                self.ship(place)
            except InputError as error:
                unfit[address] = str(error)
                continue
            self.places[address], self.taken_in = place, True
            for run_id in words["finished"] if not words["shared"] else ():     # for a caller that was lost
                config = self.configs[run_id]
                if config in self.waiting:
                    try:
                        self.fetch_record(config, place)
                    except InputError as error:
                        self.fail(config, str(error))
        for address, why in unfit.items():
            self.refuse(address, why)

    def fetch_record(self, config: Config, place: Place) -> None:
        """Takes the record of a waiting run from a worker, unless another process trains it or has put it here."""
        with contextlib.suppress(store.Busy), store.lock(config, self.results, wait=False):
            if found := store.find(config, self.results):
                return self.keep(config, found)
            self.receive(config, place.address, self.ask(
                place.address, worker.read_record, self.results_on(place), config.id,
                self.fingerprint(config.dataset)))

    def refuse(self, address: str, why: str) -> None:
        """Leaves a worker out. Raises InputError where none has been taken in yet: the next may be like it."""
        if not self.taken_in:
            raise InputError(why)
        warnings.warn(f"{why}; it gets no runs", stacklevel=2)
        self.refused.add(address)

    def fingerprint(self, name: str) -> str:
        if name not in self.fingerprints:
            self.fingerprints[name] = data.FINGERPRINTS.get(name) or data.load(name).fingerprint
        return self.fingerprints[name]

    def folder_of(self, name: str, place: Place) -> str:
        """Where data that is shipped lies: other images under the same name have another folder."""
        return str(Path(place.folder) / "data" / self.fingerprint(name)[:16])

    def ship(self, place: Place) -> None:
        """Sends datasets to the machine of a worker, unless another worker there has them by now."""
        for name in place.shipped:
            folder = self.folder_of(name, place)
            if not self.ask(place.address, worker.holds, folder, name):
                found, content = data.load(name), io.BytesIO()
                if not isinstance(found, data.Dataset):
                    raise InputError(f"{name}: images that are streamed from disk are not sent to other machines; put "
                                     f"the folder {name} under $BNLIB_DATA of each of them")
                np.savez(content, classes=np.array(found.classes), **{
                    part: getattr(found, part).numpy() for part in ("x_train", "y_train", "x_test", "y_test")})
                self.ask(place.address, worker.put_data, folder, name, content.getvalue())

    def ask(self, address: str, question: Callable, *arguments):
        """What a function returns on a worker; None where the worker is gone. Raises what the function raises."""
        answer = self.client.run(question, *arguments, workers=[address], on_error="return").get(address)
        if isinstance(answer, Exception) and not isinstance(answer, OSError):
            raise answer
        return None if isinstance(answer, OSError) else answer

    # ---------------------------------------------------------------------------------- which runs

    def start(self) -> None:
        """Starts waiting runs, longest first, where there is room."""
        if self.late():
            return
        room = {address: place.room for address, place in self.places.items()}
        for config, running in self.running.items():
            room[running.place.address] -= running.place.share(config)
        ready = [config for config in self.waiting if self.put_off.get(config, 0.0) <= time.time()]
        for config, address in assign(ready, {address: left for address, left in room.items() if left > 1e-9},
                                      lambda config, address: self.places[address].share(config)):
            with contextlib.ExitStack() as held:
                try:
                    begun = None if self.places[address].shared else self.hold(config, address, held)
                    if config in self.waiting:
                        self.submit(config, self.places[address], begun, held.pop_all())
                except store.Busy:
                    self.put_off[config] = time.time() + BUSY_SECONDS
                except InputError as error:
                    self.fail(config, str(error))

    def hold(self, config: Config, address: str, held: contextlib.ExitStack):
        """Locks a run that its worker cannot lock, and sends its checkpoint; keeps its record if it is there.

        Raises Busy where another process trains it, or where the worker has just gone.
        """
        held.enter_context(store.lock(config, self.results, wait=False))
        if found := store.find(config, self.results):
            self.keep(config, found)
            return None
        begun = checkpoint.newest(store.checkpoint_file(config, self.results))
        try:
            return begun and self.client.scatter(begun, workers=[address], hash=False)
        except (KeyError, OSError):                  # KeyError: the scheduler knows no such worker
            raise store.Busy(config.id) from None

    def submit(self, config: Config, place: Place, begun, held: contextlib.ExitStack) -> None:
        name = config.dataset
        neighbours = sum(other.slots for other in self.places.values() if other.machine == place.machine)
        job = {
            "config": config.to_dict(), "fingerprint": self.fingerprint(name), "topic": self.topic,
            "results": self.results_on(place), "shared": place.shared, "threads": max(1, place.cores // neighbours),
            "environment": {"BNLIB_DATA": self.folder_of(name, place)} if name in place.shipped else {},
            "options": self.options | {"deadline": self.deadline},
        }
        key = f"{config.id}-{uuid.uuid4().hex}"       # of this attempt alone: Dask knows others
        future = self.client.submit(worker.train_job, job, begun, key=key, pure=False, workers=[place.address],
                                    resources={"GPU": place.share(config)} if place.gpus else None)
        self.waiting.remove(config)
        self.running[config] = Running(future, place, held)
        future.add_done_callback(self.inbox.put)

    def results_on(self, place: Place) -> str:
        return str(self.results) if place.shared else str(Path(place.folder) / "results")

    def hear(self, until: float) -> None:
        """Deals with what comes in, until then or until a run has ended."""
        while (left := until - time.time()) > 0:
            try:
                item = self.inbox.get(timeout=left)
            except queue.Empty:
                return
            if not isinstance(item, dict):
                return self.ended(item)
            self.told(item)

    def told(self, event: dict) -> None:
        """A run has done an epoch. Where its checkpoint is out of sight, a copy of it is fetched now and then."""
        config = self.configs[event["id"]]
        running = self.running.get(config)
        if running is None:
            return
        running.done, running.text = event["done"], event["text"]
        if running.done > self.furthest[config]:     # workers that were pre-empted or out of time were not its doing
            self.furthest[config] = running.done
            self.deaths[config] = 0
        if not running.place.shared and time.time() - running.fetched > FETCH_SECONDS:
            running.fetched = time.time()
            self.fetch(config, running.place)

    def fetch(self, config: Config, place: Place) -> None:
        """Copies a run's checkpoint from a worker, should that not be there the next time."""
        with contextlib.suppress(OSError, InputError):         # a full disk here, say: the worker still has it
            if content := self.ask(place.address, worker.read_checkpoint, self.results_on(place), config.to_dict()):
                checkpoint.put_further(content, store.checkpoint_file(config, self.results))

    def ended(self, future) -> None:
        """A task has ended: with a record, at a checkpoint, or with an error."""
        config = next((c for c, running in self.running.items() if running.future is future), None)
        if config is None:
            return
        place = self.running[config].place
        with self.running.pop(config).held:
            try:
                if future.status == "finished" and place.shared:
                    return self.keep(config, self.in_sight(config))
                if future.status == "finished":
                    return self.receive(config, place.address, future.result(timeout=600))
                raise future.exception(timeout=60)
            except store.Busy:
                self.put_off[config] = time.time() + BUSY_SECONDS
                self.put_back(config)
            except Paused:                     # the time is up, or the worker is being closed
                if not place.shared:
                    self.fetch(config, place)
                self.put_back(config)
            except (InputError, AssertionError) as error:
                self.fail(config, f"on {place.address}: {error}")
            except Exception as error:
                self.died(config, f"{place.address}: {type(error).__name__}: {error}")

    def in_sight(self, config: Config) -> store.Run:
        """The record that a worker has written; a shared folder may show it some seconds later."""
        for _ in range(120):
            if found := store.find(config, self.results):
                return found
            time.sleep(0.5)
        raise InputError(f"its record is not in {self.results}, where it was written")

    def receive(self, config: Config, address: str, files: dict[str, bytes] | None) -> None:
        """Writes the record that came from a machine without the results folder, which then forgets it."""
        if files is None:
            return
        weights = files.pop("weights", None)
        if weights is not None:
            store.keep_weights(config, self.results, weights)
        self.keep(config, store.receive(self.results, config.id, files))
        checkpoint.remove(store.checkpoint_file(config, self.results))
        self.ask(address, worker.forget, self.results_on(self.places[address]), config.to_dict())

    def keep(self, config: Config, found: store.Run) -> None:
        self.found[config] = found
        if config in self.waiting:
            self.waiting.remove(config)

    def put_back(self, config: Config) -> None:
        self.waiting = longest_first([config, *self.waiting])          # before others as long: it has begun

    def died(self, config: Config, reason: str) -> None:
        """Its worker died with it: it waits for another, unless it was the third since the run got further."""
        running = self.running.pop(config, None)
        if running is not None:
            running.held.close()
            running.future.cancel()
        reached = checkpoint.reached(store.checkpoint_file(config, self.results))
        if reached > self.reached.get(config, (0, 0)):           # within an epoch, of which nobody has told
            self.reached[config], self.deaths[config] = reached, 0
        self.deaths[config] += 1
        if (found := store.find_sound(config, self.results)) is not None:       # it died after its work was done
            self.keep(config, found)
        elif self.deaths[config] < DEATHS and "KilledWorker" not in reason:
            self.put_back(config)
        else:
            self.fail(config, f"died {self.deaths[config]} times without getting further, at last {reason}")

    def fail(self, config: Config, reason: str) -> None:
        self.failed[config] = reason
        if config in self.waiting:
            self.waiting.remove(config)
        warnings.warn(f"{config.id} failed: {reason}", stacklevel=2)

    # ---------------------------------------------------------------------------------- what is shown

    def show(self, bar, lines: list) -> None:
        bar.n = sum(map(work, self.found)) + sum(running.done for running in self.running.values())
        said = self.said()
        bar.set_description_str(said[0])
        for line, text in zip(lines, said[1:] + [""] * len(lines), strict=False):
            line.set_description_str(text)
        now, silent = time.time(), os.environ.get("BNLIB_PROGRESS") == "0"
        if self.places:
            self.seen_at, self.lonely = now, False
        elif not self.lonely and now - self.seen_at > LONELY_SECONDS:
            self.lonely = True
            print(f"{self.scheduler}: no workers; waiting", file=sys.stderr, flush=True)
        if bar.disable and not silent and now - self.told_at > TELL_SECONDS:          # into a log, without a terminal
            self.told_at = now
            print("; ".join(said), file=sys.stderr, flush=True)

    def said(self) -> list[str]:
        """The counts, and a line for each of some running runs: what, where, epoch, images/s."""
        counts = (f"{len(self.found)}/{len(self.configs)} done, {len(self.running)} running, {len(self.waiting)} "
                  f"waiting, {len(self.failed)} failed, {len(self.places)} workers")
        return [counts, *(f"{config.id} on {running.place.address}: {running.text}"
                          for config, running in list(self.running.items())[:SHOWN])]


def _in_words(versions: dict[str, str]) -> str:
    return " and ".join(f"{package} {version}" for package, version in versions.items())
