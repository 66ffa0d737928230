"""Signals and times that stop a run, or ask for a checkpoint within an epoch."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from typing_extensions import Self

from sever.engine.loader_workers import kill_workers
from sever.parallel.collectives import STOPPING, all_reduce_max, is_main, is_started_by_sever, world_size
from sever.utils.errors import Stopped

_TWICE = 1.0  # seconds within which a second signal to several processes is the first, come another way
# Why a run is stopped: an exit status of 128 + signal, this, or 0. The processes take the highest.
_TIME_IS_OVER = 1


class StopSignals:
    """Listens for SIGINT, SIGTERM and SIGHUP, and watches the time, while a run is under its `with`.

    The first signal is only noted, and reported on standard error, so that the step can be finished and
    saved; a second one ends the program at once. One that the program was started to ignore, as by nohup,
    stays ignored. Outside the main thread, where Python takes no signals, only the time is watched.

    A signal to one of several processes, or the end of its time, counts for all of them.

    Args:
        max_time: seconds from `started` after which the run has to stop; None never does.
        save_every: seconds between two checkpoints; None asks for none.
        started: when the time began, by `clock`; None is now.
        clock: returns seconds.
    """

    def __init__(
        self,
        max_time: float | None = None,
        save_every: float | None = None,
        started: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._max_time = max_time
        self._save_every = save_every
        self._started = clock() if started is None else started
        self._saved = clock()
        self._signal: int | None = None
        self._received = 0.0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._saved = self._clock()
        if threading.current_thread() is threading.main_thread():
            names = [name for name in ("SIGHUP", "SIGINT", "SIGTERM") if hasattr(signal, name)]
            for number in (getattr(signal, name) for name in names):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            # One that comes again by way of the launcher must not kill a process that is about to end.
            again = self._signal is not None and world_size() > 1
            signal.signal(number, signal.SIG_IGN if again else handler)
        self._handlers = {}

    def poll(self) -> tuple[Stopped | None, bool]:
        """The exception to stop the run with, if any, and whether a checkpoint is due; a collective."""
        now = self._clock()
        is_over = self._max_time is not None and now - self._started >= self._max_time
        own = 128 + self._signal if self._signal else _TIME_IS_OVER * is_over
        reason, due = all_reduce_max(
            own, self._save_every is not None and now - self._saved >= self._save_every
        )
        if reason <= _TIME_IS_OVER:
            return (Stopped("by training.max_time", 0) if reason else None), bool(due)
        return Stopped(f"by {signal.Signals(reason - 128).name}", reason), bool(due)

    def saved(self) -> None:
        """Note that a checkpoint was written now."""
        self._saved = self._clock()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal, self._received = number, self._clock()
            # sever's launcher says it itself, since it sends SIGTERM also after a process was killed. And not
            # by print, which must not be called in the middle of another print.
            if is_main() and not is_started_by_sever():
                with suppress(OSError):  # of a terminal that is closed
                    os.write(2, STOPPING)
            return
        if world_size() > 1 and self._clock() - self._received < _TWICE:
            return  # SLURM, systemd and others send it to the launcher and to all of its processes
        kill_workers()
        before = self._handlers[number]
        if callable(before):
            before(number, frame)
        raise SystemExit(128 + number)
