"""Threads around the models: batches read ahead, work spread over a pool, results in order."""

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
        self._ahead = ahead
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
            while len(waiting) < self._ahead:
                waiting.append(self._pool.submit(next, self._batches, _END))
            yield batch
            batch = waiting.popleft().result()


@contextmanager
def pool_of(threads: int, each: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that leave the cores to each other; left early, it drops what it has not begun.

    Meanwhile OpenCV keeps to one thread.

    Args:
        threads: of the pool.
        each: threads that torch may use within an operation of one of them.
    """
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
