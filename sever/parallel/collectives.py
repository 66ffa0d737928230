"""What the processes of a run tell each other. Alone, each function here does nothing and waits for nobody.

Functions called *together* must be called by all processes, in the same order: each waits for the others.
"""

import logging
import os
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from sever.parallel.rendezvous import own_store
from sever.utils.errors import PeerError
from sever.utils.rank import NOTES, World, note

_T = TypeVar("_T")

_PATIENCE = timedelta(hours=2)  # with a process that writes, or has more to read than the others
_SILENCE = 30.0  # seconds after which a process tells that it waits
_PEER_GONE = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|tcpstore|process ?group|ncclremoteerror",
    re.IGNORECASE,
)
_world = World()


@contextmanager
def process_group(world: World) -> Iterator[None]:
    """Meet the other processes, and leave them at the end.

    Raises:
        PeerError: another process did not come, or ended.
    """
    global _world
    if world.size == 1:
        yield
        return
    if not world.is_main:
        warnings.simplefilter("ignore")  # the main process gives the same
        logging.disable(logging.CRITICAL)
    if "OMP_NUM_THREADS" not in os.environ and not _has_own_cores():
        torch.set_num_threads(max(1, torch.get_num_threads() // world.local_size))
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # see gpu_numbers; CUDA reads it but once, now
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _world = world
    is_over = False
    try:
        with peer_errors(), _meeting():
            store = own_store(world, _PATIENCE)
            distributed.init_process_group(
                backend, store=store, rank=world.rank, world_size=world.size, timeout=_PATIENCE
            )
            barrier()  # who leaves at once must not look like one that is gone to those who still connect
        yield
        is_over = True
    finally:
        _world = World()
        # NCCL would wait for those that are gone.
        if distributed.is_initialized() and (is_over or not torch.cuda.is_available()):
            distributed.destroy_process_group()


@contextmanager
def _meeting() -> Iterator[None]:
    """Wait for the others: signals end it at once, since nothing is lost, and after a while it is told."""
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # Python's handlers would wait for torch
        heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
        handlers = {number: signal.signal(number, signal.SIG_DFL) for number in heard}
    told = threading.Timer(_SILENCE, _tell_that_it_waits)
    told.daemon = True
    told.start()
    try:
        yield
    finally:
        told.cancel()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _tell_that_it_waits() -> None:
    where = (
        f" at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}" if "MASTER_ADDR" in os.environ else ""
    )
    text = f"sever: process {_world.rank} of {_world.size} waits{where} for the others\n"
    os.write(2, text.encode())


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turn an error of the connection to other processes into a message.

    Raises:
        PeerError: another process ended.
    """
    try:
        yield
    except (RuntimeError, distributed.DistError) as error:
        if not isinstance(error, distributed.DistError) and not _PEER_GONE.search(str(error)):
            raise
        raise PeerError(
            f"process {_world.rank} of {_world.size}: another process is gone, or the exchange failed: "
            f"{_in_short(error)}"
        ) from error


def _has_own_cores() -> bool:
    """Whether this process may use some cores of the machine alone, as under srun."""
    return hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < (os.cpu_count() or 1)


def _in_short(error: Exception) -> str:
    """What torch says of an error, without where in its source that was."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = lines[lines.index("Last error:") + 1 :] if "Last error:" in lines else lines  # NCCL's reason
    return re.sub(r"\[[^\]]*\.cpp:\d+\]\s*", "", (told or lines)[0]).partition(". This may indicate")[0]


def world() -> World:
    """The place of this process among those that it has joined."""
    return _world


def world_size() -> int:
    """How many processes work together."""
    return _world.size


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return _world.is_main


def is_first_to_fail(status: int) -> bool:
    """Whether no other process told of an error before this one.

    Args:
        status: the exit status of this one.
    """
    if world_size() == 1:
        return True
    store = distributed.distributed_c10d._get_default_store()
    try:
        if store.compare_set("sever/failed", "", str(_world.rank)) != str(_world.rank).encode():
            return False
    except (RuntimeError, distributed.DistError):
        return True  # those who could have told are gone
    note("status", str(status))
    return True


def is_started_by_sever() -> bool:
    """Whether `sever.parallel.launch` started this process, and tells the user how it ended."""
    return world_size() > 1 and NOTES in os.environ


def broadcast(value: _T) -> _T:
    """The main process's value, of whatever kind; called together."""
    if world_size() == 1:
        return value
    values = [value]
    with peer_errors():
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def all_gather(value: _T) -> list[_T]:
    """The values of all processes in the order of their ranks; called together."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with peer_errors():
        distributed.all_gather_object(values, value)
    return values


def gather(value: _T) -> list[_T]:
    """The values of all processes in the order of their ranks, and none in those that do not write.

    Called together.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    with peer_errors():
        distributed.gather_object(value, values, dst=0)
    return values or []


def all_reduce_max(*numbers: int) -> list[int]:
    """The highest of each number among all processes; called together."""
    if world_size() == 1:
        return list(numbers)
    highest = torch.tensor(numbers, dtype=torch.int64)
    with peer_errors():
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
    return highest.tolist()


def on_any_rank(fact: bool) -> bool:
    """Whether something is so in any process; called together."""
    return bool(all_reduce_max(int(fact))[0])


def all_reduce_and(fact: torch.Tensor) -> torch.Tensor:
    """Whether a bool () tensor is true in all processes, on its device; called together."""
    if world_size() == 1:
        return fact
    everywhere = fact.to(torch.uint8)
    with peer_errors():
        distributed.all_reduce(everywhere, distributed.ReduceOp.MIN)
    return everywhere.bool()


def barrier() -> None:
    """Wait until all processes are here."""
    on_any_rank(False)


@contextmanager
def main_first() -> Iterator[None]:
    """A context in which the main process of each machine goes first, e.g. to download; called together."""
    if _world.local_rank:
        barrier()
    yield
    if not _world.local_rank:
        barrier()


def broadcast_tensors(tensors: list[torch.Tensor]) -> None:
    """Give the main process's tensors to all, in place; called together."""
    if world_size() > 1:
        with peer_errors(), torch.no_grad():
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


def all_reduce_mean(tensors: list[torch.Tensor]) -> None:
    """Put the means over all processes in the place of tensors of one dtype; called together."""
    if world_size() == 1 or not tensors:
        return
    with peer_errors(), torch.no_grad():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= world_size()
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def gather_in_order(groups: Iterator[list[_T]], count: int) -> Iterator[list[_T]]:
    """What all processes make of groups that were dealt out to them in turn.

    Called together, and gone through to its end by all.

    Args:
        groups: what this process makes of its own: those of number rank, rank + processes, ….
        count: of all groups.

    Yields:
        in the main process all groups in their order; in the others nothing.
    """
    for first in range(0, count, world_size()):
        own = next(groups, None) if first + _world.rank < count else None
        for group in gather(own):
            if group is not None:
                yield group
