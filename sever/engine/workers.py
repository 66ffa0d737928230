"""The processes that read samples: how they end, and what they were reading when they did."""

import atexit
import multiprocessing
import os
import re
import signal
from collections.abc import Sequence
from typing import Any

import cv2
import torch
from torch.utils.data import get_worker_info

from sever.utils.errors import ReaderError

_GRACE = 300  # seconds that a worker lives on after SIGTERM

# Set when the main process ends, so that no worker lives on.
_main_ends: Any = multiprocessing.Value("b", 0, lock=False)


def _end() -> None:
    _main_ends.value = 1


atexit.register(_end)


class WorkerStatus:
    """What the workers of a loader are doing, in memory that they share with the main process.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self.processes = torch.zeros(workers, dtype=torch.int64).share_memory_()
        self.samples = torch.full((workers,), -1, dtype=torch.int64).share_memory_()
        self._main_ends = _main_ends
        self._main = os.getpid()
        self._seconds_left = _GRACE

    def start(self, worker: int) -> None:
        """Set a worker up, in its process."""
        cv2.setNumThreads(0)  # the workers are the threads
        self.processes[worker] = os.getpid()
        # Ctrl-C, and in some places SIGTERM, reach the whole group. They are for the main process, which
        # finishes its step, needs batches for that, and ends its workers by itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.signal(signal.SIGTERM, self._end_soon)
            signal.signal(signal.SIGALRM, self._end_if_alone)

    def note(self, index: int) -> None:
        """Write down that this process begins to read a sample."""
        worker = get_worker_info()
        if worker is not None:
            self.samples[worker.id] = index

    def fault(self, error: RuntimeError, names: Sequence[str]) -> ReaderError | None:
        """What a worker that died was reading; None where the error tells of no dead worker of this loader.

        Args:
            error: that torch raised.
            names: of the samples, by index.
        """
        found = re.search(
            r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: (\w+))?", str(error)
        )
        if not found:
            return None
        pids = [int(pid) for pid in found[1].split(",")]
        places = [place for place, pid in enumerate(self.processes.tolist()) if pid in pids]
        if not places:
            return None
        read = [names[index] for index in self.samples[places].tolist() if 0 <= index < len(names)]
        how = f" by the signal {found[2]}" if found[2] else ""
        what = f" while it read {', '.join(read)}" if read else ""
        return ReaderError(
            f"A process that reads images was ended{how}{what}. Where memory ran out, lower "
            f"data_loader.args.num_workers or batch_size; else look at the image, or read in the main "
            f"process (num_workers 0)"
        )

    def _end_soon(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 1)

    def _end_if_alone(self, *_: object) -> None:
        self._seconds_left -= 1
        if self._main_ends.value or os.getppid() != self._main:
            os._exit(0)
        if not self._seconds_left:
            os._exit(1)
