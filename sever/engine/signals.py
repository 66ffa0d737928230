"""What ends a run before its end, or asks for a checkpoint in the middle of an epoch."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from typing_extensions import Self

from sever.parallel.collectives import (
    STOPPING,
    all_reduce_max,
    is_main,
    is_started_by_sever,
    world_size,
)
from sever.utils.errors import Stopped

_TWICE = 1.0  # seconds within which a signal is the same one, which came by two ways
_SIGNALS = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143}
_STATUS = {getattr(signal, name): status for name, status in _SIGNALS.items() if hasattr(signal, name)}
# Why a run is stopped, as the numbers of which the processes take the highest; 0 is not at all.
_TIME_IS_OVER = 1
_REASONS = {
    _TIME_IS_OVER: ("by training.max_time", 0),
    **{status: (f"by {name}", status) for name, status in _SIGNALS.items()},
}


class StopSignals:
    """Listens for SIGINT, SIGTERM and SIGHUP, and watches the time, while a run is under its `with`.

    The first signal is only noted, and reported on standard error, so that the step can be finished and
    saved; a second one ends the program at once. One that the program was started to ignore, as by nohup,
    stays ignored. Outside the main thread, where Python takes no signals, the time alone is watched.

    What one process of several received, or whose time is over, counts for all of them. A second signal
    within a second of the first is the same one there, which came by two ways.

    Args:
        max_time: seconds from `started` after which the run has to stop; None never does.
        save_every: seconds between two checkpoints; None asks for none.
        started: when the time began, by `clock`; None is now.
        clock: gives seconds.
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
        self._received = 0.0  # when it came
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._saved = self._clock()
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in _STATUS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def poll(self) -> tuple[Stopped | None, bool]:
        """What the run is to be stopped with, and whether a checkpoint is due; called together."""
        saving = self._save_every is not None and self._clock() - self._saved >= self._save_every
        reason, due = all_reduce_max(self._reason(), int(saving))
        return (Stopped(*_REASONS[reason]) if reason else None), bool(due)

    def _reason(self) -> int:
        if self._signal is not None:
            return _STATUS[signal.Signals(self._signal)]
        over = self._max_time is not None and self._clock() - self._started >= self._max_time
        return _TIME_IS_OVER if over else 0

    def saved(self) -> None:
        """Tell that a checkpoint was written."""
        self._saved = self._clock()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal, self._received = number, self._clock()
            # A launcher of ours says it itself: it sends SIGTERM too when a process was killed. And not by
            # print, which must not be called in the middle of another print.
            if is_main() and not is_started_by_sever():
                os.write(2, STOPPING)
            return
        if world_size() > 1 and self._clock() - self._received < _TWICE:
            return  # SLURM, systemd and others send it to the launcher and to all that it started
        before = self._handlers[number]
        if callable(before):
            before(number, frame)
        raise SystemExit(_STATUS[signal.Signals(number)])
