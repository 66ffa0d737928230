"""Which process of several this one is, by what its launcher says; known without torch.

Launchers are torch's (`torchrun`, and `sever.parallel.launch`, which uses it) and SLURM's `srun`.
"""

import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sever.utils.errors import DeviceError

# What `sever.parallel.launch` tells the processes that it starts.
NOTES = "SEVER_NOTES"  # the folder for `note`
STARTED = "SEVER_STARTED"  # when the user's command began, by time.monotonic
LAUNCHER = "SEVER_LAUNCHER"  # its process
TWICE = 1.0  # seconds within which a signal is the same one, which came by two ways
GPU = re.compile("[0-9]{1,4}")  # the number of one
_FIRST_PORT, _PORTS = 15000, 20000


@dataclass(frozen=True)
class World:
    """The rank of a process, and how many there are.

    Attributes:
        rank: from 0; the process of rank 0, the main one, is the one that writes.
        size: how many there are.
        local_rank: among those of this machine, from 0.
        local_size: how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether it is the process that writes."""
        return self.rank == 0


def world_of(environment: Mapping[str, str]) -> World:
    """The place that a launcher gave to a process; alone without one.

    Args:
        environment: its environment variables.

    Raises:
        DeviceError: they contradict each other.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    else:
        return World()
    rank, processes, local_rank = (_number(environment, name) for name in names[:3])
    local = _local_processes(environment, names[3])
    if not 0 <= rank < processes or not 0 <= local_rank < local <= processes:
        found = ", ".join(f"{name}={environment.get(name)}" for name in names)
        raise DeviceError(f"The environment variables of the launcher contradict each other: {found}")
    return World(rank, processes, local_rank, local)


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError) as error:
        raise DeviceError(
            f"The environment variable {name} of the launcher: expected a number, received "
            f"'{environment.get(name, '')}'. Start with torchrun or srun, or unset RANK and WORLD_SIZE"
        ) from error


def _local_processes(environment: Mapping[str, str], name: str) -> int:
    """How many processes this machine has; SLURM lists it as `4(x2),3` for all machines."""
    if name == "LOCAL_WORLD_SIZE":
        return _number(environment, name)
    counts = tasks_per_node(environment.get(name, ""))
    node = _number(environment, "SLURM_NODEID")
    if node >= len(counts):
        raise DeviceError(f"The environment variable {name} of srun names no machine {node}")
    return counts[node]


def tasks_per_node(text: str) -> list[int]:
    """How many processes each machine has, from SLURM's short form.

    Example:
        >>> tasks_per_node("4(x2),3")
        [4, 4, 3]
    """
    counts: list[int] = []
    for found in re.finditer(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first machine of SLURM's short form of their names.

    Example:
        >>> first_host("gpu[03-05,9],login"), first_host("a1,a2"), first_host("rack2-n[7]")
        ('gpu03', 'a1', 'rack2-n7')
    """
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def meeting_point(environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port where the processes find each other: as told, or under SLURM the first machine's.

    Raises:
        DeviceError: nothing tells.
    """
    host = environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", ""))
    if not host:
        raise DeviceError(
            "The environment variable MASTER_ADDR, which the launcher sets, is missing: start with torchrun "
            "or srun, or unset RANK and WORLD_SIZE"
        )
    if "MASTER_PORT" in environment:
        return host, _number(environment, "MASTER_PORT")
    # The same on all machines, and another one for jobs that run beside each other.
    job = _number(environment, "SLURM_JOB_ID") * 100 + _number(environment, "SLURM_STEP_ID")
    return host, _FIRST_PORT + job % _PORTS


def device_entries(text: str) -> list[str]:
    """The devices that `--device` lists, as far as it can be told without looking for them.

    Example:
        >>> device_entries("2, 3"), device_entries("auto")
        (['2', '3'], ['auto'])

    Raises:
        DeviceError: the text names no devices, or some that do not go together.
    """
    entries = [entry.strip() for entry in text.split(",")]
    for entry in entries:
        if not (entry == "cpu" or GPU.fullmatch(entry) or entries == ["auto"]):
            raise DeviceError(
                f"--device {text[:40]}: expected auto, cpu, the number of a GPU, or a list such as 2,3 or "
                f"cpu,cpu; received '{entry[:40]}'. The first GPU is -d 0"
            )
    twice = [entry for entry in entries if entry != "cpu" and entries.count(entry) > 1]
    if twice:
        raise DeviceError(f"--device {text}: names GPU {twice[0]} twice; each process needs one of its own")
    if "cpu" in entries and set(entries) != {"cpu"}:
        raise DeviceError(f"--device {text}: expected GPUs alone or the CPU alone")
    return entries


def note(name: str, text: str) -> None:
    """Tell the launcher of this program something, where it is the one that started this process."""
    folder = os.environ.get(NOTES)
    if not folder:
        return
    try:
        path = os.path.join(folder, name)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{path}.new", path)
    except OSError:  # the launcher is gone
        return


def remove_notes() -> None:
    """Remove what the launcher would have removed, had it not been killed."""
    shutil.rmtree(os.environ[NOTES], ignore_errors=True)


def launcher_is_gone() -> bool:
    """Whether the launcher of this program started this process, and has ended."""
    return os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid())


def started() -> float:
    """When the user's command began, by `time.monotonic`."""
    return float(os.environ.get(STARTED, time.monotonic()))
