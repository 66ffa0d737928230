"""What every model has."""

from abc import ABC, abstractmethod

import torch
from torch import nn


class BaseModel(nn.Module, ABC):
    """A model: implement `forward`.

    Example:
        class Threshold(BaseModel):
            def __init__(self, classes: int = 4) -> None:
                super().__init__()
                self.level = nn.Parameter(torch.zeros(1, classes, 1, 1))

            def forward(self, images):
                return images - self.level
    """

    @abstractmethod
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 1, H, W) float -> logits (N, C, H, W), or (N, C) for a classifier."""

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """What `forward` returned as probabilities in [0, 1] of the same shape."""
        return logits.sigmoid()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by the config's optimizer group: `encoder` is pretrained, `decoder` the rest.

        A model without an encoder has the one group `all`.
        """
        return {"all": list(self.parameters())}

    def parameter_count(self) -> int:
        """How many numbers the optimizer changes."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def __str__(self) -> str:
        """The layers, and below them the number of trainable parameters."""
        return f"{super().__str__()}\nTrainable parameters: {self.parameter_count():,}"
