"""The competition's metric of the masks that would be submitted, and where its score is lost."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Self

from sever.base import MasksAndLabels, Metric
from sever.utils.bootstrap import bootstrap
from sever.utils.dice import dice_of


@dataclass(frozen=True)
class ScoredPair:
    """The score of a pair of an image and a class: the Dice of its masks, 1 where both are empty."""

    image: str
    class_id: str
    dice: float
    true_pixels: int
    predicted_pixels: int

    @property
    def kind(self) -> str:
        """`missed`, `false alarm`, `inexact` or `right`."""
        if self.true_pixels and not self.predicted_pixels:
            return "missed"
        if self.predicted_pixels and not self.true_pixels:
            return "false alarm"
        return "inexact" if self.dice < 1 else "right"


class PairScores:
    """Counts the pixels of each pair of an image and a class.

    `competition_dice` is Severstal's metric: the mean over all pairs of 2|X∩Y| / (|X| + |Y|), 1 where
    both are empty (https://www.kaggle.com/c/severstal-steel-defect-detection/overview/evaluation).
    One false pixel on an empty pair costs as much as a defect that was not found at all.

    Args:
        class_ids: the names of the classes, in the order of the masks.
    """

    def __init__(self, class_ids: Sequence[str]) -> None:
        self.class_ids = list(class_ids)
        self.reset()

    def reset(self) -> None:
        """Set all counts to 0."""
        self.names: list[str] = []
        self._counts: list[list[list[int]]] = []  # of each image: (3, C) true, predicted and common pixels
        size = len(self.class_ids) + 1
        self._confusion = np.zeros((size, size), dtype=np.int64)  # [truth, predicted]

    def add(self, name: str, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Count an image; its masks (C, H, W) are not 0 where a defect is predicted, and where one is."""
        # Class by class and, for up to 15 classes, in bytes: all at once in int64 takes ten times as long.
        size = len(self._confusion)
        pairs = list(zip(range(1, size), truth, predicted, strict=True))
        counts = np.zeros((3, len(pairs)), dtype=np.int64)
        cells = np.zeros(truth.shape[1:], dtype=np.min_scalar_type(size**2 - 1))  # true label * size + found
        found_labels = np.zeros_like(cells)
        for label, of_truth, of_predicted in reversed(pairs):  # a pixel of several classes is the first one's
            there, found = of_truth != 0, of_predicted != 0
            counts[:, label - 1] = [np.count_nonzero(mask) for mask in (there, found, there & found)]
            np.copyto(cells, label * size, where=there)
            np.copyto(found_labels, label, where=found)
        cells += found_labels
        self.names.append(name)
        self._counts.append(counts.tolist())
        self._confusion += np.bincount(cells.ravel(), minlength=size**2).reshape(size, size)

    def merge(self, other: Self) -> None:
        """Add the images that `other` counted."""
        self.names += other.names
        self._counts += other._counts
        self._confusion += other._confusion

    @property
    def counts(self) -> np.ndarray:
        """(3, N, C) int64: the true, predicted and common pixels of each image and class."""
        return np.array(self._counts, dtype=np.int64).reshape(-1, 3, len(self.class_ids)).transpose(1, 0, 2)

    @property
    def dice(self) -> np.ndarray:
        """(N, C) float64, the score of each pair."""
        true, predicted, both = self.counts
        return dice_of(both, predicted, true)

    def scores(self) -> dict[str, float]:
        """All scores by name.

        `competition_dice`, also by class (`_<ClassId>`) and of pairs with a defect and without one;
        `competition_dice_of_nothing`, the score of an empty submission. The three `lost_to_…_mean` add up to
        1 - competition_dice. `pixel_dice_…` and `pixel_iou_…` are by class over the pixels of all images;
        `miou` is the mean IoU over background and classes, one class per pixel. A class that is nowhere is
        NaN and left out of a mean.
        """
        true, predicted, both = self.counts
        dice, there, found = self.dice, true > 0, predicted > 0
        all_pairs = np.ones_like(there)
        scores = {"competition_dice": _mean(dice)}
        scores |= {f"competition_dice_{i}": _mean(dice[:, c]) for c, i in enumerate(self.class_ids)}
        scores |= self._means("competition_dice_with_defect", dice, there)
        scores |= self._means("competition_dice_without_defect", dice, ~there)
        scores["competition_dice_of_nothing"] = _mean(~there)
        scores |= self._means("lost_to_false_alarms", (1 - dice) * (~there & found), all_pairs)
        scores |= self._means("lost_to_missed_defects", (1 - dice) * (there & ~found), all_pairs)
        scores |= self._means("lost_to_inexact_shape", (1 - dice) * (there & found), all_pairs)
        sums = [pixels.sum(axis=0) for pixels in (true, predicted, both)]
        scores |= self._ratios("pixel_dice", 2 * sums[2], sums[0] + sums[1])
        scores |= self._ratios("pixel_iou", sums[2], sums[0] + sums[1] - sums[2])
        confusion = self._confusion
        either = confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal()
        return scores | {"miou": _mean(confusion.diagonal()[either > 0] / either[either > 0])}

    def _means(self, name: str, values: np.ndarray, pairs: np.ndarray) -> dict[str, float]:
        """Means of values (N, C) over chosen pairs (N, C), of each class and of all."""
        named = {f"{name}_{i}": _mean(values[pairs[:, c], c]) for c, i in enumerate(self.class_ids)}
        return named | {f"{name}_mean": _mean(values[pairs])}

    def _ratios(self, name: str, parts: np.ndarray, wholes: np.ndarray) -> dict[str, float]:
        """Ratios (C,) of each class, and their mean over the classes that have one."""
        ratios = np.where(wholes > 0, parts / np.maximum(wholes, 1), np.nan)
        named = {f"{name}_{i}": float(ratio) for i, ratio in zip(self.class_ids, ratios, strict=True)}
        return named | {f"{name}_mean": _mean(ratios[~np.isnan(ratios)])}

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """The ends of the 95 % bootstrap interval of `competition_dice` over images."""
        interval = bootstrap(self.dice.mean(axis=1), seed=seed)
        return interval.low, interval.high

    def worst(self, most: int = 20) -> list[ScoredPair]:
        """The `most` pairs of the lowest Dice, those of equal Dice by the number of wrong pixels."""
        true, predicted, both = self.counts
        dice, wrong = self.dice, true + predicted - 2 * both
        order = np.lexsort((-wrong.ravel(), dice.ravel()))[:most]
        indices = [divmod(int(index), len(self.class_ids)) for index in order]
        pairs = [
            ScoredPair(
                self.names[n], self.class_ids[c], float(dice[n, c]), int(true[n, c]), int(predicted[n, c])
            )
            for n, c in indices
        ]
        return [pair for pair in pairs if pair.dice < 1]


class SubmissionScore(PairScores, Metric):
    """The scores of what would be submitted: thresholds, one class per pixel, minimum areas, the gate.

    Args:
        class_ids: the names of the classes, in the order of the masks.
        to_masks: (probabilities (C, H, W) float32, label probabilities (C,) or None) -> masks (C, H, W)
            uint8 in {0, 1}.
        expected: names of the images in the order of the batches; None numbers them.
    """

    on = "all"

    def __init__(
        self,
        class_ids: Sequence[str],
        to_masks: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
        expected: Iterable[str] | None = None,
    ) -> None:
        super().__init__(class_ids)
        self.to_masks = to_masks
        self.expected = None if expected is None else list(expected)

    def update(self, probs: Any, targets: Any) -> None:
        """Count a batch: probs (N, C, H, W) in [0, 1] and targets (N, C, H, W) in {0, 1}, or with labels."""
        labels = None
        if isinstance(probs, MasksAndLabels):
            probs, labels = probs.masks, probs.labels.float().cpu().numpy()
        masks = targets.masks if isinstance(targets, MasksAndLabels) else targets
        of_images = zip(probs.float().cpu().numpy(), masks.cpu().numpy(), strict=True)
        for number, (of_image, truth) in enumerate(of_images):
            index = len(self.names)
            name = str(index) if self.expected is None else self.expected[index]
            self.add(name, self.to_masks(of_image, None if labels is None else labels[number]), truth)

    def compute(self) -> dict[str, float]:
        """The scores of `PairScores`."""
        return self.scores()


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
