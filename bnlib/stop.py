"""How training stops before its end: the time is up, or a signal asks for it."""

import os
import signal
import threading
import time
from collections.abc import Callable

from bnlib import parallel

LOOK_SECONDS = 1.0                                        # between two looks at whether a run is still wanted
ENDING = {signal.SIGINT, signal.SIGTERM}                  # what asks training to stop at a checkpoint


class Paused(Exception):
    """The time is up, or nobody waits for the run; training stopped at a checkpoint, from which the next call goes on.
    """


class Interrupted(KeyboardInterrupt):
    """SIGINT (Ctrl-C, a notebook's stop button) or SIGTERM; training stopped at a checkpoint. `.signal` says which."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number

    def __reduce__(self):                                 # pickled by its message alone, it would lack the number
        return type(self), (str(self), self.signal)


class Stop:
    """Whether training should stop after this step: the time is up, or a signal asks the process to end.

    Inside `with Stop(deadline) as stop`, SIGINT and SIGTERM are noted and not obeyed, until training has saved a
    checkpoint and calls `end`, or until it has written its record. A second SIGINT interrupts at once.
    deadline: as `time.time()` counts; None: no limit. unwanted: says, about once a second, whether nobody waits for
    the run any more.
    """

    def __init__(self, deadline: float | None = None, unwanted: Callable[[], bool] | None = None):
        self.deadline, self.unwanted, self.signal, self.before = deadline, unwanted, None, {}
        self.looked = time.time()

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():       # Python gives signals to no other thread
            self.before = {number: signal.signal(number, self._note) for number in ENDING
                           if signal.getsignal(number) is not signal.SIG_IGN}          # as of a background job
        return self

    def __exit__(self, error, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.signal and not (error and issubclass(error, KeyboardInterrupt)):       # noted, and nobody has obeyed it
            os.kill(os.getpid(), self.signal)

    def _note(self, number, frame) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def asked(self) -> bool:
        due = self.deadline is not None and time.time() >= self.deadline
        if self.unwanted is not None and time.time() - self.looked > LOOK_SECONDS:
            self.looked = time.time()
            due = due or self.unwanted()
        number, due = parallel.largest(self.signal or 0, due)             # all processes of a run stop together
        if number:                                   # else one may have come meanwhile: it is for the next step
            self.signal = number
        return bool(number or due)

    def end(self, config_id: str, epoch: int | None = None) -> None:
        """Raises Interrupted or Paused; epoch: of the checkpoint at which training stops, None before it began."""
        if self.signal is None:
            raise Paused
        name = signal.Signals(self.signal).name
        where = "before it began" if epoch is None else f"in epoch {epoch}, at a checkpoint"
        raise Interrupted(f"{config_id}: stopped by {name} {where}; the same command or cell goes on from there",
                          self.signal)
