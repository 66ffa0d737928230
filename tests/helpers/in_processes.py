"""Functions that several processes of a test run together, as a launcher would start them."""

import gc
import multiprocessing
import os
import pickle
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch

from sever.parallel.rendezvous import process_group
from sever.utils.launcher_env import world_of

_PATIENCE = 60  # seconds for all of them
_LAST_WORDS = 2  # for what is left to do or to say at the end, and for the others after a fault in one
# Forked, they begin with all that the test has: no imports, and functions and data of any kind.
_FORK = multiprocessing.get_context("fork")


def in_processes(count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call a function in several processes that have joined each other.

    Args:
        count: how many; they are forked from this one.
        function: that each calls. What it returns is pickled.
        *args: of the function.

    Returns:
        What it returned, in the order of the ranks.

    Raises:
        AssertionError: it raised something in one of them, or took too long; the others are ended.
    """
    if torch.cuda.is_available():
        pytest.skip("a forked process cannot compute gradients where torch has threads for GPUs")
    port = _free_port()
    receivers, started = [], []
    try:
        for rank in range(count):
            receiver, sender = _FORK.Pipe(duplex=False)
            process = _FORK.Process(target=_work, args=(sender, rank, count, port, function, args))
            with warnings.catch_warnings():  # of a fork beside threads, from Python 3.12 on
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            sender.close()  # before the next one inherits it, so that the end of this process shows
            receivers.append(receiver)
            started.append(process)
        results = _results(receivers)
        for process in started:  # so that it can end what it started itself
            process.join(_LAST_WORDS)
        return results
    finally:
        for process in started:
            process.kill()
            process.join()


def _results(receivers: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    faults: dict[int, str] = {}
    ends_at = time.monotonic() + _PATIENCE
    while len(results) + len(faults) < len(receivers):
        left = [rank for rank in range(len(receivers)) if rank not in results and rank not in faults]
        ready = wait([receivers[rank] for rank in left], max(0, ends_at - time.monotonic()))
        if not ready:
            faults |= dict.fromkeys(left, "still at work")
        for rank in left:
            if receivers[rank] in ready:
                _receive(receivers[rank], rank, results, faults)
        if faults:  # the others may tell why, if soon
            ends_at = min(ends_at, time.monotonic() + _LAST_WORDS)
    assert not faults, "\n".join(f"process {rank}: {fault}" for rank, fault in sorted(faults.items()))
    return [results[rank] for rank in range(len(receivers))]


def _receive(receiver: Connection, rank: int, results: dict[int, Any], faults: dict[int, str]) -> None:
    try:
        result, fault = pickle.loads(receiver.recv_bytes())
    except EOFError:
        result, fault = None, "ended without a result"
    if fault is None:
        results[rank] = result
    else:
        faults[rank] = fault


def _work(
    sender: Connection, rank: int, count: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    gc.freeze()  # what the test has stays; looking through it, and copying it, would take most of the time
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with process_group(world_of(os.environ)):
            result = function(*args)
    except BaseException:
        _send(sender, None, traceback.format_exc())
    else:
        _send(sender, result, None)


def _send(sender: Connection, result: Any, fault: str | None) -> None:
    # Not by `send`, which would lend the memory of a tensor for as long as this process lives.
    sender.send_bytes(pickle.dumps((result, fault)))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
