"""Runs a command in several processes on this machine, one for each device; torch starts and watches them."""

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing import (
    DefaultLogsSpecs,
    PContext,
    start_processes,
)
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from sever.parallel.collectives import INIT_METHOD, RUN_FOLDER, STOPPING

_GRACE = 5  # seconds between a second signal and SIGKILL
_POLL = 0.1  # seconds
_SAME = 1.0  # seconds within which a second signal has the same reason as the first


def launch(
    args: Sequence[str], devices: Sequence[str], how_to_resume: Callable[[Path], str]
) -> tuple[int, str | None]:
    """Run a command in one process for each device, and wait for its end.

    A signal is forwarded to all processes, each of which ends as if it were alone. After a second one they
    are killed soon: they may hang in a collective.

    Args:
        args: arguments of `sever`.
        devices: names of the devices, for messages.
        how_to_resume: folder of a run -> the sentence for the user.

    Returns:
        The exit status, and the message for a process that was killed before it could print one.
    """
    logging.disable(logging.CRITICAL)  # torch reports a failed process in many lines
    received: list[int] = []
    with tempfile.TemporaryDirectory(prefix="sever-") as folder:
        run = Path(folder) / RUN_FOLDER  # written when a training begins
        processes = _start(args, len(devices), folder, received)
        failures: dict[int, ProcessFailure] | None = None
        stops_at: float | None = None
        while failures is None:
            if received and stops_at is None:
                if run.is_file():
                    with suppress(OSError):  # of a terminal that is closed
                        os.write(2, STOPPING)
                for process in processes.pids().values():
                    with suppress(ProcessLookupError):
                        os.kill(process, received[0])
                # Some programs send two signals at once, for the same reason.
                del received[1:]
                stops_at = time.monotonic() + _SAME
            elif len(received) > 1 and stops_at is not None:
                if time.monotonic() > stops_at:
                    processes.close(signal.Signals(received[1]), _GRACE)
                del received[1:]
            result = processes.wait(timeout=_POLL, period=_POLL / 2)
            failures = result.failures if result else None
        going_on = (
            how_to_resume(Path(os.fsdecode(run.read_bytes()))) if run.is_file() else "Nothing was written"
        )
    if received:
        status = 128 + received[0]
        return status, f"stopped. {going_on}" if failures else None
    if not failures:
        return 0, None
    # The ones after the first lost the connection to it, or were ended by SIGTERM.
    first = min(
        failures.values(),
        key=lambda f: (f.timestamp, f.exitcode in (-signal.SIGTERM, 1), f.local_rank),
    )
    if first.exitcode > 0:
        return first.exitcode, None
    killed = ", which the system does where memory runs out" if first.exitcode == -signal.SIGKILL else ""
    return 1, (
        f"process {first.local_rank} of {len(devices)} ({devices[first.local_rank]}) was ended by "
        f"{signal.Signals(-first.exitcode).name}{killed}. The others were stopped. {going_on}"
    )


def _start(args: Sequence[str], count: int, folder: str, received: list[int]) -> PContext:
    """Start the processes, each in a session of its own, where Ctrl-C in a terminal does not reach it.

    Signals are put into `received`, which torch would raise wherever this process is.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        INIT_METHOD: f"file://{folder}/store",
        "OMP_NUM_THREADS": str(max(1, cores // count)),
    }
    if sys.path[0] not in ("", os.getcwd()):  # -m would look there first, unlike the sever command
        shared["PYTHONSAFEPATH"] = "1"
    shared = {name: os.environ.get(name, value) for name, value in shared.items()}
    signals = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
    ignored = [number for number in signals if signal.getsignal(number) == signal.SIG_IGN]
    processes = start_processes(
        name="sever",
        entrypoint=sys.executable,
        args=dict.fromkeys(range(count), ("-m", "sever", *args)),
        envs={rank: shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)},
        logs_specs=DefaultLogsSpecs(folder),
    )
    for number in signals:
        listens = number not in ignored  # as by nohup; torch listens to all
        signal.signal(number, (lambda n, _: received.append(n)) if listens else signal.SIG_IGN)
    return processes
