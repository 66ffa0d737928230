"""Which GPUs can be used, by the numbers that nvidia-smi gives them."""

import os

import torch

from sever.utils.device_option import GPU


def gpu_numbers() -> list[int]:
    """The numbers of the visible GPUs in nvidia-smi, in torch's order.

    Where CUDA_VISIBLE_DEVICES names GPUs by anything else than numbers, they are counted from 0.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # that of nvidia-smi
    count = torch.cuda.device_count()
    named = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if all(map(GPU.fullmatch, named)) and len(named) >= count:
        return [int(entry) for entry in named[:count]]
    return list(range(count))
