"""Threads around the models: batches read ahead, work spread over a pool, results in order."""

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Full, Queue
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

from sever.base import BaseDataLoader

T = TypeVar("T")

_CHECK = 0.1  # seconds between two looks at whether reading shall stop
_END = object()


class ReadAhead:
    """The batches of a loader, the next of them read by a thread while one is worked on.

    What reading raises comes out of the iteration as it is. To be used as a context, which ends the thread.

    Args:
        data_loader: whose own worker processes, if it has any, do the reading.
        ahead: batches that wait at most.
    """

    def __init__(self, data_loader: BaseDataLoader, ahead: int = 2) -> None:
        self._loader = data_loader
        self._queue: Queue[Any] = Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        batch = next(batches, _END)  # worker processes are forked here, before there is a thread
        if batch is _END:
            return
        self._thread = threading.Thread(target=self._read, args=(batches,), name="reading", daemon=True)
        self._thread.start()
        while batch is not _END:
            yield batch
            batch = self._queue.get()
            if isinstance(batch, _Raised):
                raise batch.error

    def _read(self, batches: Iterator[Any]) -> None:
        try:
            while not self._stopped.is_set() and (batch := next(batches, _END)) is not _END:
                self._put(batch)
            self._put(_END)
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            self._put(_Raised(error))
        finally:
            if isinstance(batches, Generator):
                batches.close()  # ends worker processes, also while an exception keeps the frames alive

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            try:
                return self._queue.put(item, timeout=_CHECK)
            except Full:
                continue


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


@contextmanager
def pool_of(threads: int, each: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that leave the cores to each other; left early, it drops what it has not begun.

    Args:
        threads: of the pool.
        each: threads that torch may use within an operation of one of them.
    """
    _restraint.enter()
    pool = ThreadPoolExecutor(threads, "sheet", initializer=torch.set_num_threads, initargs=(each,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        _restraint.leave()


class _Restraint:
    """Keeps OpenCV to one thread while any pool is there, and then gives libraries their threads back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools = 0
        self._of_torch = self._of_opencv = 0

    def enter(self) -> None:
        with self._lock:
            if not self._pools:
                self._of_torch, self._of_opencv = torch.get_num_threads(), cv2.getNumThreads()
                cv2.setNumThreads(0)
            self._pools += 1

    def leave(self) -> None:
        with self._lock:
            self._pools -= 1
            if not self._pools:
                torch.set_num_threads(self._of_torch)  # set in any thread, it counts for all that start later
                cv2.setNumThreads(self._of_opencv)


_restraint = _Restraint()


def in_order(groups: Iterable[list[Future[T]]], most: int) -> Iterator[T]:
    """The results of work that was submitted in groups, in their order.

    Args:
        groups: submitted one by one as they are asked for.
        most: groups that are under way at the same time.
    """
    waiting: deque[list[Future[T]]] = deque()
    for group in groups:
        waiting.append(group)
        if len(waiting) >= most:
            for future in waiting.popleft():
                yield future.result()
    for group in waiting:
        for future in group:
            yield future.result()


def to_host(probs: torch.Tensor, copies: list[torch.cuda.Event]) -> np.ndarray:
    """Probabilities in main memory, each class in one piece; from a GPU they are there after a new event.

    Nothing waits for a GPU here: it gets the next batch while the copy of this one is under way.

    Args:
        probs: (N, …) float32.
        copies: to which the event of a copy from a GPU is added.
    """
    if probs.device.type != "cuda":
        return probs.contiguous().cpu().numpy()
    on_host = torch.empty(probs.shape, dtype=probs.dtype, pin_memory=True)
    on_host.copy_(probs.contiguous(), non_blocking=True)
    copies.append(torch.cuda.Event(blocking=True))
    copies[-1].record()
    return on_host.numpy()
