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

from sever.utils.errors import PeerError
from sever.utils.meeting import own_store
from sever.utils.processes import NOTES, Place, note

_T = TypeVar("_T")

_PATIENCE = timedelta(hours=2)  # with a process that writes, or has more to read than the others
_SILENCE = 30.0  # seconds after which a process tells that it waits
_PEER_GONE = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|tcpstore|process ?group|ncclremoteerror",
    re.IGNORECASE,
)
_place = Place()


@contextmanager
def joined(place: Place) -> Iterator[None]:
    """Meet the other processes, and leave them at the end.

    Raises:
        PeerError: another process did not come, or ended.
    """
    global _place
    if place.processes == 1:
        yield
        return
    if not place.is_main:
        warnings.simplefilter("ignore")  # the main process gives the same
        logging.disable(logging.CRITICAL)
    if "OMP_NUM_THREADS" not in os.environ and not _has_own_cores():
        torch.set_num_threads(max(1, torch.get_num_threads() // place.local_processes))
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # see gpu_numbers; CUDA reads it but once, now
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _place = place
    is_over = False
    try:
        with lost_peers(), _meeting():
            store = own_store(place, _PATIENCE)
            distributed.init_process_group(
                backend, store=store, rank=place.rank, world_size=place.processes, timeout=_PATIENCE
            )
            barrier()  # who leaves at once must not look like one that is gone to those who still connect
        yield
        is_over = True
    finally:
        _place = Place()
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
    text = f"sever: process {_place.rank} of {_place.processes} waits{where} for the others\n"
    os.write(2, text.encode())


@contextmanager
def lost_peers() -> Iterator[None]:
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
            f"process {_place.rank} of {_place.processes}: another process is gone, or the exchange failed: "
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


def place() -> Place:
    """The place of this process among those that it has joined."""
    return _place


def processes() -> int:
    """How many processes work together."""
    return _place.processes


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return _place.is_main


def is_first_to_fail(status: int) -> bool:
    """Whether no other process told of an error before this one.

    Args:
        status: the exit status of this one.
    """
    if processes() == 1:
        return True
    store = distributed.distributed_c10d._get_default_store()
    try:
        if store.compare_set("sever/failed", "", str(_place.rank)) != str(_place.rank).encode():
            return False
    except (RuntimeError, distributed.DistError):
        return True  # those who could have told are gone
    note("status", str(status))
    return True


def is_started_by_sever() -> bool:
    """Whether `sever.utils.launch` started this process, and tells the user how it ended."""
    return processes() > 1 and NOTES in os.environ


def broadcast(value: _T) -> _T:
    """The main process's value, of whatever kind; called together."""
    if processes() == 1:
        return value
    values = [value]
    with lost_peers():
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def gather(value: _T) -> list[_T]:
    """The values of all processes in the order of their ranks; called together."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    with lost_peers():
        distributed.all_gather_object(values, value)
    return values


def gather_on_main(value: _T) -> list[_T]:
    """The values of all processes in the order of their ranks, and none in those that do not write.

    Called together.
    """
    if processes() == 1:
        return [value]
    values: list[Any] | None = [None] * processes() if is_main() else None
    with lost_peers():
        distributed.gather_object(value, values, dst=0)
    return values or []


def most(*numbers: int) -> list[int]:
    """The highest of each number among all processes; called together."""
    if processes() == 1:
        return list(numbers)
    highest = torch.tensor(numbers, dtype=torch.int64)
    with lost_peers():
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
    return highest.tolist()


def any_of(fact: bool) -> bool:
    """Whether something is so in any process; called together."""
    return bool(most(int(fact))[0])


def all_true(fact: torch.Tensor) -> torch.Tensor:
    """Whether a bool () tensor is true in all processes, on its device; called together."""
    if processes() == 1:
        return fact
    everywhere = fact.to(torch.uint8)
    with lost_peers():
        distributed.all_reduce(everywhere, distributed.ReduceOp.MIN)
    return everywhere.bool()


def barrier() -> None:
    """Wait until all processes are here."""
    any_of(False)


@contextmanager
def main_first() -> Iterator[None]:
    """A context in which the main process of each machine goes first, e.g. to download; called together."""
    if _place.local_rank:
        barrier()
    yield
    if not _place.local_rank:
        barrier()


def spread(tensors: list[torch.Tensor]) -> None:
    """Give the main process's tensors to all, in place; called together."""
    if processes() > 1:
        with lost_peers(), torch.no_grad():
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


def average(tensors: list[torch.Tensor]) -> None:
    """Put the means over all processes in the place of tensors of one dtype; called together."""
    if processes() == 1 or not tensors:
        return
    with lost_peers(), torch.no_grad():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= processes()
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def gathered_in_turn(groups: Iterator[list[_T]], count: int) -> Iterator[list[_T]]:
    """What all processes make of groups that were dealt out to them in turn.

    Called together, and gone through to its end by all.

    Args:
        groups: what this process makes of its own: those of number rank, rank + processes, ….
        count: of all groups.

    Yields:
        in the main process all groups in their order; in the others nothing.
    """
    for first in range(0, count, processes()):
        own = next(groups, None) if first + _place.rank < count else None
        for group in gather_on_main(own):
            if group is not None:
                yield group
