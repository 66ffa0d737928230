"""The worker processes that read samples: how they end, and what they were reading when they did."""

import atexit
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from traceback import walk_tb
from typing import Any
from weakref import WeakSet

import cv2
import torch
from torch.utils.data import get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from sever.utils.errors import ReaderError

# Set when the main process ends, so that no worker outlives it.
_main_ends: Any = multiprocessing.Value("b", 0, lock=False)
_workers: WeakSet[BaseProcess] = WeakSet()  # of all loaders


def kill_workers() -> None:
    """Kill all workers, whose end Python waits for as it ends: a stopped one heeds no other signal."""
    left = [worker for worker in _workers if worker.is_alive()]
    if left and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for each
    for worker in left:
        worker.kill()


atexit.register(kill_workers)
atexit.register(setattr, _main_ends, "value", 1)  # before that


@contextmanager
def starting_workers(count: int) -> Iterator[None]:
    """A context in which the workers of a loader are started: all of them, or none.

    Raises:
        ReaderError: the system does not start so many.
    """
    before = set(multiprocessing.active_children())
    WorkerStatus._main_thread_starts = threading.current_thread() is threading.main_thread()
    try:
        yield
    except OSError as error:
        for frame, _ in walk_tb(error.__traceback__):
            iterator = frame.f_locals.get("self")
            if isinstance(iterator, _MultiProcessingDataLoaderIter):
                iterator._shutdown = True  # it is not whole, and would wait for each worker in vain
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
            worker.join()
        raise ReaderError(
            f"num_workers: {count} processes that read images cannot be started: {error.strerror}. Lower it"
        ) from error
    _workers.update(set(multiprocessing.active_children()) - before)


class WorkerStatus:
    """What each worker of a loader is reading, in memory that it shares with the main process."""

    _main_thread_starts = False  # else Linux would end a worker with the thread that started it

    def __init__(self, workers: int, worker_init_fn: Callable[[int], None] | None = None) -> None:
        self.pids = torch.zeros(workers, dtype=torch.int64).share_memory_()
        self.samples = torch.full((workers,), -1, dtype=torch.int64).share_memory_()
        self._worker_init_fn = worker_init_fn
        self._main_ends = _main_ends
        self._main = os.getpid()

    def start(self, worker: int) -> None:
        """Set a worker up, in its process."""
        if sys.platform == "linux" and self._main_thread_starts:  # end with it, however it ends
            torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
        cv2.setNumThreads(0)  # the workers are the threads
        self.pids[worker] = os.getpid()
        # Ctrl-C, a closed terminal and in some places SIGTERM reach the whole process group. They are for the
        # main process, which needs batches to finish its step, and then ends its workers itself.
        for name in ("SIGINT", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end_with_main)
        if self._worker_init_fn:
            self._worker_init_fn(worker)

    def note(self, index: int) -> None:
        """Note that this worker begins to read a sample."""
        worker = get_worker_info()
        if worker is not None:
            self.samples[worker.id] = index

    def fault(self, error: RuntimeError, names: Sequence[str]) -> ReaderError | None:
        """What the dead worker that torch's error reports was reading; None if none of this loader died."""
        found = re.search(
            r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(?: is killed by signal: (\w+))?", str(error)
        )
        if not found:
            return None
        pids = [int(pid) for pid in found[1].split(",")]
        dead = [worker for worker, pid in enumerate(self.pids.tolist()) if pid in pids]
        if not dead:
            return None
        read = [names[index] for index in self.samples[dead].tolist() if 0 <= index < len(names)]
        how = f" by the signal {found[2]}" if found[2] else ""
        what = f" while it read {', '.join(read)}" if read else ""
        return ReaderError(
            f"A process that reads images was ended{how}{what}. Where memory ran out, lower "
            f"data_loader.args.num_workers or batch_size; else look at the image, or read in the main "
            f"process (num_workers 0)"
        )

    def _end_with_main(self, *_: object) -> None:
        if self._main_ends.value or os.getppid() != self._main:
            os._exit(0)
