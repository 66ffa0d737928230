"""What ends a run before its end, or asks for a checkpoint in the middle of an epoch."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from typing_extensions import Self

from sever.utils.errors import Stopped

_SIGNALS = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143}
_STATUS = {getattr(signal, name): status for name, status in _SIGNALS.items() if hasattr(signal, name)}


class Interruptions:
    """Listens for SIGINT, SIGTERM and SIGHUP, and watches the time, while a run is under its `with`.

    The first signal is only noted, so that the step can be finished and saved; a second one ends the
    program at once. One that the program was started to ignore, as by nohup, stays ignored. Outside the main
    thread, where Python takes no signals, the time alone is watched.

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

    @property
    def stop(self) -> Stopped | None:
        """What the run has to be stopped with, if it has to."""
        if self._signal is not None:
            name = signal.Signals(self._signal).name
            return Stopped(f"by {name}", _STATUS[signal.Signals(self._signal)])
        if self._max_time is not None and self._clock() - self._started >= self._max_time:
            return Stopped("by training.max_time", 0)
        return None

    @property
    def save_is_due(self) -> bool:
        """Whether `save_every` is over since the last checkpoint."""
        return self._save_every is not None and self._clock() - self._saved >= self._save_every

    def saved(self) -> None:
        """Tell that a checkpoint was written."""
        self._saved = self._clock()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = number
            return
        before = self._handlers[number]
        if callable(before):
            before(number, frame)
        raise SystemExit(_STATUS[signal.Signals(number)])
