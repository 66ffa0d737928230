"""`auto`, `cpu`, `2`, `2,3`, `cpu,cpu` -> checked devices."""

import logging
import os
from collections.abc import Sequence

import torch

from sever.parallel import collectives
from sever.parallel.gpu_numbers import gpu_numbers
from sever.utils.device_option import device_entries
from sever.utils.errors import DeviceError, SeveralDevices

logger = logging.getLogger(__name__)


def choose_device(text: str, n_gpu: int = 1) -> torch.device:
    """The device that this process runs on.

    Args:
        text: see `list_devices`.
        n_gpu: see `list_devices`.

    Raises:
        DeviceError: see `list_devices`.
        SeveralDevices: there are several devices, but only this process.
    """
    devices = list_devices(text, n_gpu)
    world = collectives.world()
    if world.size == 1 and len(devices) > 1:
        raise SeveralDevices([describe(device).partition(",")[0] for device in devices])
    return use_device(devices[world.local_rank])


def use_device(device: torch.device) -> torch.device:
    """Make a device the current one: else pinning memory would take memory of the first GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def list_devices(text: str, n_gpu: int = 1) -> list[torch.device]:
    """The devices on this machine, one for each process.

    GPUs have the numbers that nvidia-smi gives them, also where CUDA_VISIBLE_DEVICES hides some.

    Args:
        text: `auto`, `cpu`, the number of a GPU, or a list of these, such as `2,3` or `cpu,cpu`.
        n_gpu: how many GPUs `auto` takes, the first ones; 0 is the CPU. Where a launcher started several
            processes on this machine, `auto` takes a GPU for each of them.

    Raises:
        DeviceError: the text names no device, a GPU does not exist, or there are more or fewer devices than
            processes.
    """
    entries = device_entries(text)
    numbers = gpu_numbers()
    wanted = collectives.world().local_size
    if entries == ["auto"]:
        entries = _automatic(numbers, n_gpu, wanted)
    if entries == ["cpu"]:
        entries *= wanted
    if collectives.world_size() > 1 and len(entries) != wanted:
        raise DeviceError(
            f"--device {text}: expected a device for each of the {wanted} processes of this machine, "
            f"received {len(entries)}. Leave -d out, or start as many processes as devices"
        )
    return [_device(text, entry, numbers) for entry in entries]


def _automatic(numbers: Sequence[int], n_gpu: int, processes: int) -> list[str]:
    if not numbers or not n_gpu:
        if n_gpu > 1:
            logger.warning("n_gpu: %d, but this machine has no GPU: computing on the CPU", n_gpu)
        return ["cpu"]
    if processes > 1:  # a launcher decided how many
        if len(numbers) == 1 and "SLURM_PROCID" in os.environ:  # it gave each one of its own
            return [str(numbers[0])] * processes
        if len(numbers) < processes:
            raise DeviceError(
                f"There are {processes} processes on this machine and {len(numbers)} GPUs. Start as many "
                f"processes as GPUs, or compute on the CPU with -d cpu"
            )
        return [str(number) for number in numbers[:processes]]
    if len(numbers) < n_gpu:
        logger.warning("n_gpu: %d, but this machine has %d", n_gpu, len(numbers))
    return [str(number) for number in numbers[:n_gpu]]


def _device(text: str, entry: str, numbers: Sequence[int]) -> torch.device:
    if entry == "cpu":
        return torch.device("cpu")
    if int(entry) not in numbers:
        there = ", ".join(map(str, numbers)) or "none. Use --device cpu"
        hidden = " (CUDA_VISIBLE_DEVICES hides others)" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
        raise DeviceError(f"--device {text}: there is no GPU {entry}. GPUs that are there: {there}{hidden}")
    return torch.device("cuda", numbers.index(int(entry)))


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which torch computes in `bf16` or `fp16` what is safe in them; `fp32` changes nothing."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


def check_precision(device: torch.device, precision: str, option: str = "--precision") -> None:
    """Refuse a precision (`fp32`, `bf16` or `fp16`) that the device does not support.

    Raises:
        DeviceError: the message starts with `option`: bf16 on a GPU such as a T4 or V100, where torch would
            emulate it slowly.
    """
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_bf16:
        raise DeviceError(f"{option}: bf16 is not there on {describe(device)}; take fp16 or fp32")


def describe(device: torch.device) -> str:
    """The name of a device, for people."""
    if device.type == "cuda":
        return f"GPU {gpu_numbers()[device.index or 0]}, {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
