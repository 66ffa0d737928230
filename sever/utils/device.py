"""`auto`, `cpu`, `2`, `2,3`, `cpu,cpu` -> checked devices."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sever.utils.errors import DeviceError

_GPU = re.compile("[0-9]{1,4}")

logger = logging.getLogger(__name__)


def choose_device(text: str, n_gpu: int = 1) -> torch.device:
    """The device to run on.

    Args:
        text: `auto`, `cpu` or the number of a GPU. A list `2,3` is one process per entry.
        n_gpu: the config's wish, which `auto` follows: 0 is the CPU.

    Raises:
        DeviceError: the text is no device, or the GPU is not there.
    """
    entries = [entry.strip() for entry in text.split(",")]
    for entry in entries:
        if entry not in ("auto", "cpu") and not _GPU.fullmatch(entry):
            raise DeviceError(
                f"--device {text[:40]}: expected auto, cpu or the number of a GPU, received '{entry[:40]}'. "
                f"The first GPU is -d 0"
            )
    if len(entries) > 1:
        raise DeviceError(f"--device {text}: one process on one device is all there is yet; name one")
    (entry,) = entries
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if entry == "auto" and gpus and n_gpu:
        if min(gpus, n_gpu) > 1:
            logger.warning("n_gpu: %d, but one GPU is all that can be used yet", n_gpu)
        return _current(0)
    if entry == "auto":
        return torch.device("cpu")
    if entry == "cpu":
        return torch.device("cpu")
    if int(entry) >= gpus:
        there = ", ".join(map(str, range(gpus))) or "none. Use --device cpu"
        raise DeviceError(f"--device {text}: there is no GPU {entry}. GPUs that are there: {there}")
    return _current(int(entry))


def _current(gpu: int) -> torch.device:
    """Also for what torch does without naming a device, such as pinning memory."""
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which torch computes in 16 bits what is safe in them.

    Args:
        device: that computes.
        precision: `fp32`, which changes nothing, `bf16` or `fp16`.
    """
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


def check_precision(device: torch.device, precision: str, option: str = "--precision") -> None:
    """Refuse a precision that the device does not have.

    Args:
        device: that will compute.
        precision: `fp32`, `bf16` or `fp16`.
        option: what the user chose it with, for the message.

    Raises:
        DeviceError: it is a GPU without bfloat16.
    """
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise DeviceError(f"{option}: bf16 is not there on {describe(device)}; take fp16 or fp32")


@contextmanager
def memory_fault(cure: str) -> Iterator[None]:
    """Turn a lack of memory, of a GPU or of the machine, into a message.

    Args:
        cure: what helps.

    Raises:
        DeviceError: there is too little.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceError(f"There is too little memory. {cure}") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # what torch's allocator on the CPU says
            raise
        raise DeviceError(f"There is too little memory. {cure}") from error


def describe(device: torch.device) -> str:
    """What a person calls the device."""
    if device.type == "cuda":
        return f"GPU {device.index}, {torch.cuda.get_device_name(device)}"
    return f"CPU, {torch.get_num_threads()} threads"
