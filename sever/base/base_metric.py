"""What every metric has."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from typing_extensions import Self


class Metric(ABC):
    """Counts what it needs of each batch in tensors that can be added.

    Attributes:
        on: what it is a metric of, where a model gives masks and labels; `all` gets what there is.
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

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what another metric of the same kind counted."""
