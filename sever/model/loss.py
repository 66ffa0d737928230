"""Losses: (logits, masks) -> a dict with "loss" and its named parts, or the loss alone.

A loss of your own goes here under `@LOSSES.register`, or anywhere under its import path.
"""

import torch
from torch import nn
from torch.nn import functional as F

from sever.utils.registry import Registry

LOSSES = Registry("loss", functions=True)


@LOSSES.register
def nll_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of log-probabilities (N, C) float under the classes (N,) int64."""
    return F.nll_loss(output, target)


nll_loss.part_names = ()  # type: ignore[attr-defined]  # it has no parts apart from "loss" itself


@LOSSES.register
class BCEDiceLoss(nn.Module):
    """bce_weight * BCE + dice_weight * (1 - Dice), the loss of the seed.

    Dice is the soft one, of all pixels of all classes of the batch taken together, as in
    https://github.com/khornlund/severstal-steel-defect-detection: a class that is absent from the
    batch then neither counts as perfect nor as missed.

    Args:
        bce_weight: of the binary cross-entropy, averaged over pixels and classes.
        dice_weight: of 1 - Dice.
        label_smoothing: s, which makes labels s and 1 - s out of 0 and 1.
    """

    part_names = ("bce_loss", "dice_loss")

    def __init__(
        self, bce_weight: float = 0.6, dice_weight: float = 0.4, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if bce_weight < 0 or dice_weight < 0 or bce_weight + dice_weight == 0:
            raise ValueError(
                f"bce_weight and dice_weight must be at least 0 and not both 0, received {bce_weight} "
                f"and {dice_weight}"
            )
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), received {label_smoothing}")
        self.bce_weight = bce_weight
        self.dice_weight = dice_weight
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss of a batch.

        Args:
            logits: (N, C, H, W) float.
            masks: (N, C, H, W) in {0, 1}, any dtype.

        Returns:
            `loss`, `bce_loss` and `dice_loss`, the last two without their weights.
        """
        smooth = self.label_smoothing
        labels = masks.to(logits.dtype) * (1 - 2 * smooth) + smooth
        bce = F.binary_cross_entropy_with_logits(logits, labels)
        dice = 1 - soft_dice(logits.sigmoid(), labels)
        loss = self.bce_weight * bce + self.dice_weight * dice
        return {"loss": loss, "bce_loss": bce, "dice_loss": dice}


def soft_dice(probs: torch.Tensor, labels: torch.Tensor, epsilon: float = 1e-7) -> torch.Tensor:
    """2 sum(p·y) / (sum(p) + sum(y)) over all elements; `epsilon` keeps the divisor from 0."""
    return 2 * (probs * labels).sum() / (probs.sum() + labels.sum() + epsilon)
