"""Where the memory of a GPU or of the machine runs out: one message, with the settings that take less."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sever.utils.errors import DeviceError

IN_TRAINING = (
    "Lower data_loader.args.batch_size (training.accumulate makes up for it) or the augmentation's crop, or "
    "take training.precision bf16; where validation fails, lower data_loader.args.validation_batch_size"
)
IN_SCORING = (
    "Lower testing.batch_size (or, where validation images are used, "
    "data_loader.args.validation_batch_size), or take --precision bf16"
)
FOR_A_MODEL = "Take -d cpu for this model"


def in_prediction(sheets: int) -> str:
    """The cure where some sheets are predicted at a time."""
    return (
        f"{sheets} sheets are predicted at a time: lower predict.batch_size, or hold one model at a time "
        f"(--one-at-a-time)"
    )


@contextmanager
def memory_fault(cure: str) -> Iterator[None]:
    """Turn a lack of memory, of a GPU or of the machine, into a `DeviceError` that names the cure."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        is_on_cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error)  # torch's words
        if not is_on_cpu and not isinstance(error, torch.OutOfMemoryError):
            raise
        raise DeviceError(f"There is too little memory. {cure}") from error
