"""Parses the list of `--device` without torch."""

import re

from sever.utils.errors import DeviceError

GPU = re.compile("[0-9]{1,4}")


def device_entries(text: str) -> list[str]:
    """Split the list of `--device` and check it, without looking whether the devices exist.

    Example:
        >>> device_entries("2, 3"), device_entries("auto")
        (['2', '3'], ['auto'])

    Raises:
        DeviceError: the text names no devices, one GPU twice, or GPUs and the CPU.
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
