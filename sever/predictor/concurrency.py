"""Threads around the models: reading ahead, a pool of threads, results in order."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

from sever.base import BaseDataLoader

T = TypeVar("T")

_AHEAD = 2  # batches that are read ahead
_END = object()


class ReadAhead:
    """The batches of a loader, read ahead in a thread; a context, which ends the thread."""

    def __init__(self, data_loader: BaseDataLoader) -> None:
        self._loader = data_loader
        self._batches: Iterator[Any] = iter(())
        self._pool = ThreadPoolExecutor(1, "reading")

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if isinstance(self._batches, Generator):
            self._batches.close()  # ends worker processes, also while an exception keeps the frames alive

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        self._batches = iter(self._loader)
        batch = next(self._batches, _END)  # worker processes are forked here, before there is a thread
        waiting: deque[Future[Any]] = deque()
        while batch is not _END:
            while len(waiting) < _AHEAD:
                waiting.append(self._pool.submit(next, self._batches, _END))
            yield batch
            batch = waiting.popleft().result()


@contextmanager
def thread_pool(threads: int, each: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads, in each of which torch uses `each` threads; left early, it cancels waiting work."""
    of_torch, of_opencv = torch.get_num_threads(), cv2.getNumThreads()
    cv2.setNumThreads(0)
    pool = ThreadPoolExecutor(threads, "sheet", initializer=torch.set_num_threads, initargs=(each,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(of_torch)  # set in any thread, it counts for all that start later
        cv2.setNumThreads(of_opencv)


def in_order(groups: Iterable[list[Future[T]]], most: int) -> Iterator[T]:
    """The results of groups of futures in order, while at most `most` groups are submitted."""
    waiting: deque[list[Future[T]]] = deque()
    for group in groups:
        waiting.append(group)
        if len(waiting) >= most:
            for future in waiting.popleft():
                yield future.result()
    for group in waiting:
        for future in group:
            yield future.result()


def to_host(values: torch.Tensor, copies: list[torch.cuda.Event]) -> np.ndarray:
    """Copy a tensor to main memory, contiguous.

    Nothing waits for a GPU here: its copy is complete after the event that is added to `copies`.
    """
    if values.device.type != "cuda":
        return values.contiguous().cpu().numpy()
    on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    on_host.copy_(values.contiguous(), non_blocking=True)
    copies.append(torch.cuda.Event(blocking=True))
    copies[-1].record()
    return on_host.numpy()
