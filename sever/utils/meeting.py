"""Where the processes of torchrun meet, anew after each restart.

torch lets them meet in a store of torchrun's agent, which outlives them (seen in torch 2.15): after a restart
they would find there the addresses of those that are gone.
"""

import os
import time
from collections.abc import Mapping
from datetime import timedelta

from torch import distributed

from sever.utils.processes import LAUNCHER, Place

_PORT = "sever/port"  # of the store of the newest main process
_TRY = timedelta(seconds=5)


def may_be_restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a program started this process that starts it again, when one of the processes ends."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and LAUNCHER not in environment


def fresh_store(place: Place, host: str, port: int, patience: timedelta) -> distributed.Store:
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
    if place.is_main:
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
