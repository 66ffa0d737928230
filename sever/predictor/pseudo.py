"""Pseudo-labels: which predictions are confident enough to be trained on."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sever.base import BaseDataLoader
from sever.predictor.predictor import Prediction, Predictor
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


class ConfidentSheets:
    """The sheets, with their masks, that may become pseudo-labels; gone through once.

    Args:
        predictor: of the models, with `keep_each`: each model of masks is compared with all together. What
            is said of labels, by whatever models, gates the masks of all.
        data_loader: of the sheets.
        to_masks: (probs (C, H, W), label_probs (C,) or None) -> masks (C, H, W) uint8 in {0, 1}; called in
            several threads at the same time.
        rules: that a sheet must fulfil.
        classes: C, how many there are.

    Attributes:
        names: of the sheets that were given so far.
        left_out: how many were not, by the reason.
        masks_per_class: (C,) int64: how many of the masks that were given have a pixel.
    """

    def __init__(
        self,
        predictor: Predictor,
        data_loader: BaseDataLoader,
        to_masks: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
        rules: Rules,
        classes: int,
    ) -> None:
        self.predictor = predictor
        self.data_loader = data_loader
        self.to_masks = to_masks
        self.rules = rules
        self.names: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.masks_per_class: np.ndarray = np.zeros(classes, dtype=np.int64)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the name and the masks (C, H, W) uint8 in {0, 1} of each sure sheet."""
        names = self.data_loader.sample_names
        for number, masks, reason in self.predictor.map(self._judged, self.data_loader, "pseudo"):
            if reason is not None:
                self.left_out[reason] += 1
                continue
            self.names.append(names[number])
            self.masks_per_class += masks.any(axis=(1, 2))
            yield names[number], masks

    def _judged(self, prediction: Prediction) -> tuple[int, np.ndarray, str | None]:
        """The number of a sheet, its masks, and what speaks against them."""
        assert prediction.probs is not None
        labels = prediction.label_probs
        masks = self.to_masks(prediction.probs, labels)
        alone = [self.to_masks(one["masks"], labels) for one in prediction.of_models if "masks" in one]
        return prediction.number, masks, doubt(prediction.probs, masks, alone, self.rules)
