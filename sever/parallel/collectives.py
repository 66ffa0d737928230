"""Collective operations over the processes of a run; a single process waits for nobody.

Functions called *a collective* must be called by all processes, in the same order: each waits for the
others.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from sever.utils.errors import PeerError
from sever.utils.launcher_env import World

INIT_METHOD = "SEVER_INIT_METHOD"  # environment variable with the file of `launch`'s rendezvous
RUN_FOLDER = "run"  # name of a file beside it, with the path of the run's folder

STOPPING = b"sever: stopping after this step; a second signal ends at once\n"

_T = TypeVar("_T")

_PEER_GONE = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|tcpstore|process ?group|ncclremoteerror",
    re.IGNORECASE,
)
_world = World()


def set_world(world: World) -> None:
    """Say which process this is, once it has met the others."""
    global _world
    _world = world


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turn an error of the connection to other processes into a `PeerError`."""
    try:
        yield
    except (RuntimeError, distributed.DistError) as error:
        if not isinstance(error, distributed.DistError) and not _PEER_GONE.search(str(error)):
            raise
        raise PeerError(
            f"process {_world.rank} of {_world.size}: another process is gone, or the exchange failed: "
            f"{_in_short(error)}"
        ) from error


def _in_short(error: Exception) -> str:
    """The first line of torch's error, without the place in its source and its advice."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = lines[lines.index("Last error:") + 1 :] if "Last error:" in lines else lines  # NCCL's reason
    text = re.sub(r"\[[^\]]*\.(cpp|cc|h):\d+\]\s*", "", (told or lines)[0])
    return re.split(r"\. This (may indicate|is typically)", text)[0]


def world() -> World:
    """The rank of this process in the process group, and the world size."""
    return _world


def world_size() -> int:
    """The number of processes that work together."""
    return _world.size


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return _world.is_main


def is_first_to_fail() -> bool:
    """Whether no other process reported an error before this one."""
    if world_size() == 1:
        return True
    store = distributed.distributed_c10d._get_default_store()
    own = str(_world.rank)
    try:
        return store.compare_set("sever/failed", "", own) == own.encode()
    except (RuntimeError, distributed.DistError):
        return True  # the processes that could have reported it are gone


def is_started_by_sever() -> bool:
    """Whether `sever.parallel.launch` started this process, and will tell the user how it ended."""
    return world_size() > 1 and INIT_METHOD in os.environ


def publish_run_folder(path: Path) -> None:
    """Tell `sever.parallel.launch` the folder of the run, so that it can say how to resume."""
    if is_started_by_sever():
        store = Path(os.environ[INIT_METHOD].removeprefix("file://"))
        store.with_name(RUN_FOLDER).write_bytes(os.fsencode(path))


def broadcast(value: _T) -> _T:
    """The main process's value, of whatever kind; a collective."""
    if world_size() == 1:
        return value
    values = [value]
    with peer_errors():
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def all_gather(value: _T) -> list[_T]:
    """The values of all processes in the order of their ranks; a collective."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with peer_errors():
        distributed.all_gather_object(values, value)
    return values


def gather(value: _T) -> list[_T]:
    """In the main process the values of all, in the order of ranks; else an empty list; a collective."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    with peer_errors():
        distributed.gather_object(value, values, dst=0)
    return values or []


def all_reduce_max(*numbers: int) -> list[int]:
    """The highest of each number among all processes; a collective."""
    if world_size() == 1:
        return list(numbers)
    highest = torch.tensor(numbers, dtype=torch.int64)
    with peer_errors():
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
    return highest.tolist()


def on_any_rank(fact: bool) -> bool:
    """Whether a fact is true in any process; a collective."""
    return bool(all_reduce_max(int(fact))[0])


def all_reduce_and(fact: torch.Tensor) -> torch.Tensor:
    """Whether a bool () tensor is true in all processes, on its device; a collective."""
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
    """A context that the first process of each machine enters alone, e.g. to download; a collective."""
    if _world.local_rank:
        barrier()
    try:
        yield
    finally:
        if not _world.local_rank:
            barrier()


def broadcast_tensors(tensors: list[torch.Tensor]) -> None:
    """Broadcast the main process's tensors to all, in place; a collective."""
    if world_size() > 1:
        with peer_errors(), torch.no_grad():
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


def all_reduce_mean(tensors: list[torch.Tensor]) -> None:
    """Average tensors of one dtype over all processes, in place; a collective."""
    if world_size() == 1 or not tensors:
        return
    with peer_errors(), torch.no_grad():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= world_size()
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def gather_in_order(groups: Iterator[list[_T]], count: int) -> Iterator[list[_T]]:
    """Gather results of which each process computes every world size-th; a collective, also to its end.

    Args:
        groups: this process's results: those of number rank, rank + world size, ….
        count: number of results of all processes.

    Yields:
        In the main process all results in their order; in the others nothing.
    """
    for first in range(0, count, world_size()):
        own = next(groups, None) if first + _world.rank < count else None
        for group in gather(own):
            if group is not None:
                yield group
