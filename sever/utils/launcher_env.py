"""The rank of this process and the world size, as torchrun, srun or `sever.parallel.launch` gives them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sever.utils.errors import DeviceError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


@dataclass(frozen=True)
class World:
    """A process's rank, from 0, and the world size; the local ones are among the processes of its machine.

    The process of rank 0, the main one, is the one that writes files.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether it is the process of rank 0."""
        return self.rank == 0


def world_of(environment: Mapping[str, str]) -> World:
    """The rank that a launcher gives in the environment variables; without a launcher the world size is 1.

    Raises:
        DeviceError: a variable of the launcher is missing, or is no number.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = _TORCHRUN
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        names = _SRUN
    else:
        return World()
    numbers = []
    for name in names:
        number = re.sub(r"\(x\d+\)$", "", environment.get(name, ""))  # SLURM: 4 on each of two is `4(x2)`
        if not number.isdecimal():
            raise DeviceError(
                f"The environment variable {name} of the launcher: expected a number, received "
                f"'{environment.get(name, '')}'. Start with torchrun, or with srun and as many processes on "
                f"each machine, or unset RANK and WORLD_SIZE"
            )
        numbers.append(int(number))
    return World(*numbers)
