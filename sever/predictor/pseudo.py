"""Which predictions are sure enough to be trained on: pure functions on NumPy arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sever.utils.dice import dice_of

# Why an image is left out.
DISAGREE, UNSURE, MISSED = "the models disagree", "a mask is unsure", "a defect may be missed"


@dataclass(frozen=True)
class Rules:
    """What the predictions of an image must fulfil, class by class, to become pseudo-labels.

    Attributes:
        agreement: Dice that the mask of each model has at least with the mask of all together; 1 where
            both are empty.
        sure: probability from which a pixel of a mask is sure.
        sure_share: share of a mask's pixels, its edge left out, that must be sure.
        edge: width in pixels of what is left out at a mask's edge, where no model is sure.
        absent: probability that no pixel of a class without a mask may reach.
    """

    agreement: float = 0.8
    sure: float = 0.8
    sure_share: float = 0.9
    edge: int = 3
    absent: float = 0.5

    def __post_init__(self) -> None:
        for name in ("agreement", "sure", "sure_share", "absent"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], received {value}")
        if self.edge < 0:
            raise ValueError(f"edge: expected at least 0 pixels, received {self.edge}")


def doubt(
    probs: np.ndarray,
    masks: np.ndarray,
    masks_of_models: Sequence[np.ndarray],
    rules: Rules,
) -> str | None:
    """Why the masks of an image are no pseudo-labels.

    Example:
        >>> probs = np.full((1, 1, 4), 0.9)
        >>> masks = np.ones((1, 1, 4), np.uint8)
        >>> doubt(probs, masks, [masks, 0 * masks], Rules())
        'the models disagree'
        >>> doubt(probs, masks, [masks, masks], Rules()) is None
        True

    Args:
        probs: (C, H, W) in [0, 1], of all models together.
        masks: (C, H, W) uint8 in {0, 1}, made of them.
        masks_of_models: of each model alone, likewise.
        rules: that they must fulfil.

    Returns:
        `the models disagree`, `a mask is unsure`, `a defect may be missed`, or None where nothing speaks
        against them.
    """
    for of_model in masks_of_models:
        if (_dice_of_masks(of_model, masks) < rules.agreement).any():
            return DISAGREE
    for of_class, mask in zip(probs, masks, strict=True):
        if not mask.any():
            if of_class.max() >= rules.absent:
                return MISSED
            continue
        inside = _without_edge(mask, rules.edge)
        if (of_class[inside] >= rules.sure).mean() < rules.sure_share:
            return UNSURE
    return None


def _dice_of_masks(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(C,) Dice of masks (C, H, W), 1 where both are empty."""
    pixels = [np.count_nonzero(m, axis=(1, 2)) for m in ((one != 0) & (other != 0), one, other)]
    return dice_of(*pixels)


def _without_edge(mask: np.ndarray, edge: int) -> np.ndarray:
    """A mask (H, W) as bool without its edge; all of it where nothing would be left."""
    if not edge:
        return mask != 0
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * edge + 1, 2 * edge + 1))
    inside = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1) != 0
    return np.asarray(inside) if inside.any() else mask != 0
