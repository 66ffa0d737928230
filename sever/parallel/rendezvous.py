"""Where processes meet, those of torchrun anew after each restart.

torch lets them meet in a store of torchrun's agent, which outlives them (seen in torch 2.15): after a restart
they would find there the addresses of those that are gone.
"""

import os
import time
from datetime import timedelta
from pathlib import Path

from torch import distributed

from sever.utils.rank import NOTES, World, meeting_point

_PORT = "sever/port"  # of the store of the newest main process
_TRY = timedelta(seconds=5)


def own_store(world: World, patience: timedelta) -> distributed.Store | None:
    """Where the processes of a launcher meet; None leaves it to torch.

    Those of this program's own launcher meet in a file: nobody else can talk to them. Where MASTER_ADDR is
    not told, it is set.

    Args:
        place: of this process.
        patience: with the other processes.
    """
    if NOTES in os.environ:
        return distributed.FileStore(str(Path(os.environ[NOTES]) / "store"), world.size)
    host, port = meeting_point(os.environ)
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return fresh_store(world, host, port, patience)
    return None


def fresh_store(world: World, host: str, port: int, patience: timedelta) -> distributed.Store:
    """A store of the main process, which ends with it.

    Args:
        place: of this process.
        host: of the agent's store, where the main process is too.
        port: of the agent's store.
        patience: with the other processes.

    Raises:
        RuntimeError: the main process did not come.
    """
    of_agent = distributed.TCPStore(host, port, is_master=False, timeout=patience)
    if world.is_main:
        store = distributed.TCPStore(host, 0, is_master=True, timeout=patience, wait_for_workers=False)
        of_agent.set(_PORT, str(store.port))
        return store
    end = time.monotonic() + patience.total_seconds()
    while True:
        try:
            store = distributed.TCPStore(host, int(of_agent.get(_PORT)), is_master=False, timeout=_TRY)
        except (RuntimeError, distributed.DistError):  # it is that of a process that is gone
            if time.monotonic() > end:
                raise
        else:
            store.set_timeout(patience)
            return store
