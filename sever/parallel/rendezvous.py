"""Rendezvous: joining torch's process group, and leaving it."""

import gc
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

# Imported before there is a group: its functions keep the group of that time as a default. A group that lives
# as Python ends can abort the process ("terminate called without an active exception"): a thread of the group
# then asks for Python's lock.
import torch.distributed.nn.functional
from torch import distributed

from sever.parallel import collectives
from sever.parallel.collectives import INIT_METHOD
from sever.utils.errors import DeviceError
from sever.utils.launcher_env import World

_PATIENCE = timedelta(hours=2)  # for a process that writes, or has more to read than the others
_SILENCE = 30.0  # seconds after which a process says that it waits


@contextmanager
def process_group(world: World) -> Iterator[None]:
    """Join the process group, and leave it at the end.

    Raises:
        DeviceError: the environment variables of the rendezvous are missing.
        PeerError: another process did not come, or ended.
    """
    if world.size == 1:
        yield
        return
    if not world.is_main:
        warnings.simplefilter("ignore")  # the main process warns of the same
        logging.disable(logging.CRITICAL)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # see gpu_numbers; CUDA reads it only once, now
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    init_method = _init_method()
    is_one_machine = world.local_size == world.size
    if is_one_machine and sys.platform == "linux":  # nothing leaves it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    waiting = threading.Timer(_SILENCE, _report_waiting, [world])
    waiting.daemon = True
    collectives.set_world(world)
    is_over = False
    try:
        with collectives.peer_errors():
            waiting.start()
            on_loopback = is_one_machine and init_method == "env://"
            store = _store_on_loopback(world) if on_loopback else None
            method = None if store else init_method
            distributed.init_process_group(backend, method, _PATIENCE, world.size, world.rank, store)
            # A process that ends at once must not look dead to those that still connect.
            collectives.barrier()
            waiting.cancel()
        yield
        is_over = True
    finally:
        waiting.cancel()
        collectives.set_world(World())
        # After an error NCCL would wait for processes that are gone.
        if distributed.is_initialized() and (is_over or not torch.cuda.is_available()):
            distributed.destroy_process_group()
            gc.collect()  # a model that is wrapped for the group keeps it while it is part of a cycle


def _init_method() -> str:
    """The init_method of torch: the address of the rendezvous."""
    if INIT_METHOD in os.environ:
        if sys.platform == "linux":  # stop as by SIGTERM when the launcher is killed
            torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGTERM)  # type: ignore[attr-defined]
        return os.environ[INIT_METHOD]
    port = os.environ.get("MASTER_PORT", "")
    if not os.environ.get("MASTER_ADDR") or not (port.isdecimal() and 0 < int(port) < 2**16):
        raise DeviceError(
            "The environment variables MASTER_ADDR and MASTER_PORT (1 to 65535) must say where the processes "
            "meet: start with torchrun; or, for srun, add to the job's script: export MASTER_ADDR=$(scontrol "
            'show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=$((15000 + SLURM_JOB_ID % 20000));'
            " or unset RANK and WORLD_SIZE"
        )
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # After a restart torchrun's store still holds the addresses of the processes that are gone. A store
        # of the main process, at the next port, ends with it.
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    return "env://"


def _store_on_loopback(world: World) -> distributed.TCPStore:
    """A store of processes of one machine, where nobody else can reach it; torch's listens on all interfaces.

    Raises:
        DeviceError: another program listens at MASTER_PORT.
    """
    address, port = "127.0.0.1", int(os.environ["MASTER_PORT"])
    listening = None
    if world.is_main:
        try:
            listening = socket.create_server((address, port)).detach()
        except OSError as error:
            raise DeviceError(
                f"The processes cannot meet at {address}:{port}: {error.strerror}; choose another MASTER_PORT"
            ) from error
    return distributed.TCPStore(
        address, port, world.size, world.is_main, _PATIENCE, master_listen_fd=listening
    )


def _report_waiting(world: World) -> None:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    where = f" at {host}:{port}" if host else ""
    os.write(2, f"sever: process {world.rank} of {world.size} waits{where} for the others\n".encode())
