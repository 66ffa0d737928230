"""The forward pass of training, compiled where that pays."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

_WORTH_IT = 3000  # steps of a run that make up for a minute or two of compiling


def compiles(setting: bool | str, device: torch.device, steps: int) -> bool:
    """Whether a run compiles its model.

    Args:
        setting: `training.compile`; `auto` compiles long runs on a GPU. On a CPU it gained nothing.
        device: the device of the run.
        steps: how many the whole run takes.
    """
    return device.type == "cuda" and steps >= _WORTH_IT if setting == "auto" else bool(setting)


class CompiledModel:
    """Calls a model compiled for the shape of the first batch, and as it is for batches of other shapes.

    The model itself stays as it is, with its names in `state_dict`. Where the compiler fails, a warning says
    so, and the model is called as it is from then on.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._compiled: Callable[..., Any] | None = torch.compile(model, dynamic=False)
        self._shape: torch.Size | None = None

    def __call__(self, inputs: torch.Tensor) -> Any:
        """What the model gives for a batch."""
        if self._compiled is None or (self._shape is not None and inputs.shape != self._shape):
            return self.model(inputs)
        if self._shape is not None:
            return self._compiled(inputs)
        try:
            outputs = self._compiled(inputs)
            self._shape = inputs.shape
        except Exception as error:  # what torch's compiler and those below it raise is not bounded
            outputs = self.model(inputs)  # which raises the same, where the model itself is at fault
            self._compiled = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("The model cannot be compiled, and is trained as it is: %s", reason)
        return outputs
