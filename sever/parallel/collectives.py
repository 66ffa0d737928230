"""Collective operations over the processes of a run; a single process waits for nobody.

Functions *called together* must be called by all processes, in the same order: each waits for the others.
"""

import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

# Imported before there is a group: its functions keep the group of that time as a default, and a group that
# lives as Python ends aborts the process ("terminate called without an active exception").
import torch.distributed.nn.functional
from torch import distributed

from sever.utils.errors import DeviceError, PeerError
from sever.utils.rank import World

INIT_METHOD = "SEVER_INIT_METHOD"  # environment variable with the file of `launch`'s rendezvous
RUN_FOLDER = "run"  # name of a file beside it, with the path of the run's folder

STOPPING = b"sever: stopping after this step; a second signal ends at once\n"

_T = TypeVar("_T")

_PATIENCE = timedelta(hours=2)  # for a process that writes, or has more to read than the others
_SILENCE = 30.0  # seconds after which a process says that it waits
_PEER_GONE = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|tcpstore|process ?group|ncclremoteerror",
    re.IGNORECASE,
)
_world = World()


@contextmanager
def process_group(world: World) -> Iterator[None]:
    """Join the process group, and leave it at the end.

    Raises:
        DeviceError: the environment variables of the rendezvous are missing.
        PeerError: another process did not come, or ended.
    """
    global _world
    if world.size == 1:
        yield
        return
    if not world.is_main:
        warnings.simplefilter("ignore")  # the main process warns of the same
        logging.disable(logging.CRITICAL)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # see gpu_numbers; CUDA reads it only once, now
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    init_method = _init_method()
    waiting = threading.Timer(_SILENCE, _say_that_it_waits, [world])
    waiting.daemon = True
    _world = world
    is_over = False
    try:
        with peer_errors():
            waiting.start()
            distributed.init_process_group(
                backend, init_method, _PATIENCE, world_size=world.size, rank=world.rank
            )
            barrier()  # a process that ends at once must not look dead to those that still connect
            waiting.cancel()
        yield
        is_over = True
    finally:
        waiting.cancel()
        _world = World()
        # After an error NCCL would wait for processes that are gone.
        if distributed.is_initialized() and (is_over or not torch.cuda.is_available()):
            distributed.destroy_process_group()


def _init_method() -> str:
    """The init_method of torch: the address of the rendezvous."""
    if INIT_METHOD in os.environ:
        if sys.platform == "linux":  # stop as by SIGTERM when the launcher is killed
            torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGTERM)  # type: ignore[attr-defined]
        return os.environ[INIT_METHOD]
    if not os.environ.get("MASTER_ADDR") or not os.environ.get("MASTER_PORT", "").isdecimal():
        raise DeviceError(
            "The environment variables MASTER_ADDR and MASTER_PORT must say where the processes meet: start "
            "with torchrun; or, for srun, add to the job's script: export MASTER_ADDR=$(scontrol show "
            'hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=$((15000 + SLURM_JOB_ID % 20000)); '
            "or unset RANK and WORLD_SIZE"
        )
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # After a restart torchrun's store still holds the addresses of the processes that are gone. A store
        # of the main process, at the next port, ends with it.
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    return "env://"


def _say_that_it_waits(world: World) -> None:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    where = f" at {host}:{port}" if host else ""
    os.write(2, f"sever: process {world.rank} of {world.size} waits{where} for the others\n".encode())


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
    """The first line of torch's error, without the place in its source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = lines[lines.index("Last error:") + 1 :] if "Last error:" in lines else lines  # NCCL's reason
    return re.sub(r"\[[^\]]*\.cpp:\d+\]\s*", "", (told or lines)[0]).partition(". This may indicate")[0]


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
        store.with_name(RUN_FOLDER).write_text(str(path))


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
    """In the main process the values of all, in the order of ranks; else an empty list; called together."""
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
    """Whether a fact is true in any process; called together."""
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
    """A context that the first process of each machine enters alone, e.g. to download; called together."""
    if _world.local_rank:
        barrier()
    try:
        yield
    finally:
        if not _world.local_rank:
            barrier()


def broadcast_tensors(tensors: list[torch.Tensor]) -> None:
    """Broadcast the main process's tensors to all, in place; called together."""
    if world_size() > 1:
        with peer_errors(), torch.no_grad():
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


def all_reduce_mean(tensors: list[torch.Tensor]) -> None:
    """Average tensors of one dtype over all processes, in place; called together."""
    if world_size() == 1 or not tensors:
        return
    with peer_errors(), torch.no_grad():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= world_size()
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def gather_in_order(groups: Iterator[list[_T]], count: int) -> Iterator[list[_T]]:
    """Gather results of which each process computes every world size-th; called together, to the end.

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
