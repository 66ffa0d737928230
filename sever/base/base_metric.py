"""What every metric has."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import Self


class Metric(ABC):
    """Counts what it needs of each batch in tensors that can be added.

    Attributes:
        on: which outputs of a model with masks and labels the metric takes; `all` gets both.
    """

    on: Literal["masks", "labels", "all"] = "masks"

    @abstractmethod
    def update(self, probs: torch.Tensor, targets: torch.Tensor) -> None:
        """Count a batch.

        Args:
            probs: (N, C, H, W) in [0, 1], or whatever shape the model gives.
            targets: (N, C, H, W) masks in {0, 1}, or the data set's targets.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The values over all that was counted, by the names that are logged."""

    @abstractmethod
    def reset(self) -> None:
        """Forget all that was counted."""

    def state_dict(self) -> dict[str, Any]:
        """What was counted: all attributes that are tensors, NumPy arrays of numbers or plain values.

        Override it, and `load_state_dict`, where `update` changes something else.
        """
        state = {}
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":  # which torch has too
                value = torch.from_numpy(value.copy())
            if _is_plain(value):
                state[name] = value
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on from what another metric of the same kind counted."""
        for name, value in state.items():
            is_array = isinstance(vars(self).get(name), np.ndarray)
            setattr(self, name, value.numpy().copy() if is_array else value)

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what another metric of the same kind counted."""


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint may hold a value."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor)
