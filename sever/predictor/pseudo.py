"""Pseudo-labels: which predictions are confident enough to be trained on."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sever.base import BaseDataLoader
from sever.predictor.predictor import Prediction, Predictor
from sever.predictor.submission.write import Layout, write_submission
from sever.utils.dice import dice_of

# Why an image is rejected.
DISAGREE, UNSURE, MISSED = "the models disagree", "a mask is unsure", "a defect may be missed"


@dataclass(frozen=True)
class Rules:
    """What the predictions of an image must fulfil, class by class, to become pseudo-labels.

    Attributes:
        agreement: Dice that the mask of each model has at least with the mask of all together; 1 where
            both are empty.
        sure: probability from which a pixel of a mask is confident.
        sure_share: share of a mask's pixels, its edge left out, that must be confident.
        edge: width in pixels of the edge of a mask, where no model is confident.
        absent: probability that no pixel of a class without a mask may reach.
    """

    agreement: float = 0.8
    sure: float = 0.8
    sure_share: float = 0.9
    edge: int = 3
    absent: float = 0.5


def rejection(
    probs: np.ndarray,
    masks: np.ndarray,
    masks_of_models: Sequence[np.ndarray],
    rules: Rules,
) -> str | None:
    """Why the masks of an image are not confident enough to be pseudo-labels.

    Example:
        >>> probs = np.full((1, 1, 4), 0.9)
        >>> masks = np.ones((1, 1, 4), np.uint8)
        >>> rejection(probs, masks, [masks, 0 * masks], Rules())
        'the models disagree'
        >>> rejection(probs, masks, [masks, masks], Rules()) is None
        True

    Args:
        probs: (C, H, W) in [0, 1], of all models together.
        masks: (C, H, W) uint8 in {0, 1}, made of them.
        masks_of_models: of each model alone, likewise.
        rules: that they must fulfil.

    Returns:
        `the models disagree`, `a mask is unsure`, `a defect may be missed`, or None where they are.
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


@dataclass
class PseudoLabels:
    """What became of the sheets.

    Attributes:
        names: of the confident sheets.
        rejected: how many others there are, by the reason.
        masks_per_class: (C,) int64: on how many of the confident sheets each class was found.
    """

    names: list[str]
    rejected: Counter[str]
    masks_per_class: np.ndarray


def write_pseudo_labels(
    predictor: Predictor,
    data_loader: BaseDataLoader,
    to_masks: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
    rules: Rules,
    class_ids: Sequence[str],
    path: Path,
) -> PseudoLabels:
    """Predict all sheets of a loader and write the masks of the confident ones as a submission.

    Args:
        predictor: of the models, with `keep_each`: each model of masks is compared with all together. The
            labels, averaged over all models that give them, gate the masks of each.
        rules: that a sheet must fulfil. For the other arguments see `predict_to_submission`.
    """
    layout, sheet_names = Layout(), data_loader.sample_names
    labels = PseudoLabels([], Counter(), np.zeros(len(class_ids), dtype=np.int64))

    def judged(prediction: Prediction) -> tuple[str, list[list[str]], np.ndarray, str | None]:
        assert prediction.probs is not None
        name, label_probs = sheet_names[prediction.number], prediction.label_probs
        masks = to_masks(prediction.probs, label_probs)
        alone = [to_masks(each["masks"], label_probs) for each in prediction.of_models if "masks" in each]
        reason = rejection(prediction.probs, masks, alone, rules)
        rows = [] if reason else layout.rows(name, class_ids, masks)
        return name, rows, np.asarray(masks.any(axis=(1, 2))), reason

    def confident() -> Iterator[list[list[str]]]:
        for name, rows, present, reason in predictor.map(judged, data_loader, "pseudo"):
            if reason:
                labels.rejected[reason] += 1
                continue
            labels.names.append(name)
            labels.masks_per_class += present
            yield rows

    write_submission(path, layout, confident())
    return labels
