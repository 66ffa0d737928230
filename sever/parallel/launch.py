"""Does a command in several processes of this machine, one for each device, by torch's elastic launcher."""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sever.utils.rank import LAUNCHER, NOTES, STARTED, TWICE

_SECONDS_TO_END = "10"  # for the other processes, when one has failed
_SECONDS_TO_OBEY = 5  # a second signal
_LOOPBACK = "127.0.0.1"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def launch(
    args: Sequence[str], devices: Sequence[str], started: float, how_to_resume: Callable[[Path], str]
) -> tuple[int, str | None]:
    """Do a command in one process for each device, and wait for its end.

    Signals are handed on to all processes, each of which ends as if it were alone.

    Args:
        args: of `sever`.
        devices: what they are called, for messages.
        started: when the user's command began, by `time.monotonic`.
        how_to_resume: the folder of a run -> what to tell the user.

    Returns:
        The exit status, and what is to be said of a process that could not say it itself.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it tells in tracebacks
    with tempfile.TemporaryDirectory(prefix="sever-") as folder:
        notes = Path(folder)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=len(devices),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=str(notes / "meeting"),
            rdzv_configs={"store_type": "file"},  # a port would be open to the network
            local_addr=_LOOPBACK,
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        agent = _Agent(config, ["-m", "sever", *args])
        with _environment(notes, len(devices), started), _Signals(notes, len(devices)) as signals:
            agent.start()
            while agent.is_alive():
                agent.join(0.1)
                signals.hand_on()
        status, message = _outcome(agent, notes, devices, how_to_resume)
        if signals.received and status and not (notes / "status").is_file():
            message = "stopped" + (
                f". {_going_on(notes, how_to_resume)}" if (notes / "run").is_file() else ""
            )
            status = 128 + signals.received[0]
    return status, message


@contextmanager
def _environment(notes: Path, processes: int, started: float) -> Iterator[None]:
    """What the processes are told, which inherit it."""
    before = dict(os.environ)
    os.environ |= {
        NOTES: str(notes),
        STARTED: str(started),
        LAUNCHER: str(os.getpid()),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _SECONDS_TO_END,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else the launcher would open a port for them
    }
    threads = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads // processes)))
    if sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")  # nothing of it leaves the machine
    if sys.path[0] not in ("", os.getcwd()):  # what -m would look into first, and the sever command does not
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ |= before


class _Agent(threading.Thread):
    """torch's launcher, in a thread: in the main one it would end its processes 30 s after a signal."""

    def __init__(self, config: LaunchConfig, args: list[str]) -> None:
        super().__init__(name="launcher", daemon=True)
        self._launch = elastic_launch(config, sys.executable)
        self._args = args
        self.error: BaseException | None = None

    def run(self) -> None:
        """Wait for the end of all processes."""
        try:
            self._launch(*self._args)
        except BaseException as error:  # belongs to the main thread
            self.error = error


class _Signals:
    """Hands signals on to processes, also to those that start after them.

    After a second signal it does not wait long: a process may hang where it listens to none, such as in a
    collective operation.
    """

    def __init__(self, notes: Path, processes: int) -> None:
        self._notes = [notes / f"process-{rank}" for rank in range(processes)]
        self.received: list[int] = []
        self._first = 0.0  # when that was
        self._handed_on = [0] * processes
        self._patience_ends: float | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and now - self._first < TWICE:  # as the processes see it
            return
        self.received.append(number)
        if len(self.received) == 1:
            self._first = now
        else:
            self._patience_ends = now + _SECONDS_TO_OBEY

    def hand_on(self) -> None:
        """Send each process what it has not received yet."""
        is_late = self._patience_ends is not None and time.monotonic() > self._patience_ends
        for place, path in enumerate(self._notes):
            if is_late:
                _send(path, signal.SIGKILL)
            elif self._handed_on[place] < len(self.received):
                self._handed_on[place] += _send(path, self.received[self._handed_on[place]])


def _send(path: Path, number: int) -> bool:
    """Send a signal to the process that a file names; returns whether it has started, or ended already."""
    try:
        os.kill(int(path.read_text()), number)
    except FileNotFoundError:
        return False
    except (ProcessLookupError, ValueError):
        pass
    return True


def _outcome(
    agent: _Agent, notes: Path, devices: Sequence[str], how_to_resume: Callable[[Path], str]
) -> tuple[int, str | None]:
    told = notes / "status"
    if told.is_file():
        return int(told.read_text()), None
    if agent.error is None:
        return 0, None
    if not isinstance(agent.error, ChildFailedError):
        raise agent.error
    failures = agent.error.failures
    # The others were ended by SIGTERM, or by losing the connection to the first.
    first = min(failures, key=lambda rank: (failures[rank].exitcode in (-signal.SIGTERM, 1), rank))
    status = failures[first].exitcode
    if status >= 0:
        return status or 1, None
    return 1, (
        f"process {first} of {len(devices)} ({devices[first]}) was ended by {signal.Signals(-status).name}"
        f"{_hint(-status)}. The others were stopped. {_going_on(notes, how_to_resume)}"
    )


def _hint(number: int) -> str:
    if number == signal.SIGKILL:
        return ", which the system does where memory runs out"
    return ""


def _going_on(notes: Path, how_to_resume: Callable[[Path], str]) -> str:
    """How to go on, where the command was a training."""
    told = notes / "run"
    if not told.is_file():
        return "Nothing was written"
    return how_to_resume(Path(told.read_text()))
