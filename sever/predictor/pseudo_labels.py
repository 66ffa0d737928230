"""Pseudo-labels: which predictions are confident enough to be trained on."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sever.base import BaseDataLoader
from sever.predictor.predictor import Prediction, Predictor
from sever.predictor.submission.write import Layout, write_submission
from sever.utils.dice import dice_of
from sever.utils.files import FileInProgress

# Why an image is rejected.
DISAGREE, UNSURE, MISSED = "the models disagree", "a mask is unsure", "a defect may be missed"


@dataclass(frozen=True)
class Rules:
    """When the predictions of an image become pseudo-labels; each rule holds for each class.

    Attributes:
        agreement: least Dice of each model's mask with the mask of all together; 1 where both are empty.
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
    probs: np.ndarray, masks: np.ndarray, masks_of_models: Sequence[np.ndarray], rules: Rules
) -> str | None:
    """Why an image gets no pseudo-labels: `DISAGREE`, `UNSURE` or `MISSED`, or None if it gets them.

    Example:
        >>> probs = np.full((1, 1, 4), 0.9)
        >>> masks = np.ones((1, 1, 4), np.uint8)
        >>> rejection(probs, masks, [masks, 0 * masks], Rules())
        'the models disagree'
        >>> rejection(probs, masks, [masks, masks], Rules()) is None
        True

    Args:
        probs: (C, H, W) in [0, 1], averaged over the models.
        masks: (C, H, W) uint8 in {0, 1}, made from `probs`.
        masks_of_models: (C, H, W) uint8 in {0, 1} of each model alone.
        rules: thresholds of the decision.
    """
    for of_model in masks_of_models:
        pixels = (np.count_nonzero(m, axis=(1, 2)) for m in ((of_model & masks), of_model, masks))
        if (dice_of(*pixels) < rules.agreement).any():
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


def _without_edge(mask: np.ndarray, edge: int) -> np.ndarray:
    """A mask (H, W) as bool without its edge; with it where nothing else would be left."""
    if not edge:
        return mask != 0
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * edge + 1, 2 * edge + 1))
    inside = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1) != 0
    return np.asarray(inside) if inside.any() else mask != 0


@dataclass
class PseudoLabels:
    """The outcome of `write_pseudo_labels`.

    Attributes:
        names: names of the confident sheets.
        rejected: number of rejected sheets for each reason.
        masks_per_class: (C,) int64, the number of confident sheets on which each class was found.
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
    file: FileInProgress,
) -> PseudoLabels:
    """Predict all sheets of a loader and write the masks of the confident ones as a submission.

    Args:
        predictor: predictor with `keep_each`: each model's masks, gated by the averaged labels, are compared
            with those of all together.
        rules: rules for a confident sheet.
        file: the CSV. For the other arguments see `predict_to_files`.
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

    write_submission(file, layout, confident())
    return labels
