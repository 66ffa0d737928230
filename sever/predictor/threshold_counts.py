"""What an image's score depends on, counted once for all pixel thresholds together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from sever.predictor.per_class_values import PerClass, per_class
from sever.utils.dice import dice_of


@dataclass(frozen=True)
class Values:
    """The settings of `postprocess` that are chosen from labelled images, one of each per class.

    Attributes:
        threshold: probability above which a pixel belongs to the class.
        label_threshold: what the class's highest probability on an image must exceed; 0 is no threshold.
        min_area: minimum area in pixels.
    """

    threshold: tuple[float, ...]
    label_threshold: tuple[float, ...]
    min_area: tuple[int, ...]

    @classmethod
    def of(
        cls,
        classes: int,
        threshold: PerClass = 0.5,
        label_threshold: PerClass = 0.0,
        min_area: PerClass = 0,
    ) -> "Values":
        """Values of all classes, from one value or one per class of each setting.

        Example:
            >>> Values.of(2, min_area=[600, 1000])
            Values(threshold=(0.5, 0.5), label_threshold=(0.0, 0.0), min_area=(600, 1000))

        Raises:
            ValueError: a setting has neither one value nor one per class.
        """
        return cls(
            tuple(per_class(threshold, classes, "threshold", np.float64).tolist()),
            tuple(per_class(label_threshold, classes, "label_threshold", np.float64).tolist()),
            tuple(per_class(min_area, classes, "min_area", np.int64).tolist()),
        )

    def as_dict(self) -> dict[str, list[float] | list[int]]:
        """The settings by their names in `predict:`."""
        return {name: list(values) for name, values in vars(self).items()}


class Counts:
    """Areas and intersections of predicted masks at every pixel threshold, image by image.

    Masks are those of `postprocess` with `overlap="highest"`: a pixel can only belong to its most probable
    class, so that counts depend on no other class's threshold. 2,500 images of 4 classes take 5 MB.

    Example:
        >>> counts = Counts([0.3, 0.5])
        >>> probs = np.array([[[0.9, 0.4, 0.1]]], dtype=np.float32)  # one class on 1 x 3 pixels
        >>> counts.add("a.jpg", probs, np.array([[[1, 0, 0]]], dtype=np.uint8))
        >>> counts.areas[0].tolist(), counts.both[0].tolist()
        ([[2, 1]], [[1, 1]])
        >>> counts.dice(Values.of(1, threshold=0.5)).tolist()
        [[1.0]]

    Args:
        thresholds: T pixel thresholds, ascending.

    Attributes:
        names: names of the N images in the order of counting.
    """

    def __init__(self, thresholds: Iterable[float]) -> None:
        self.thresholds: tuple[float, ...] = tuple(thresholds)
        self.limits = np.array(self.thresholds, dtype=np.float32)  # as `postprocess` compares them
        self.names: list[str] = []
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return len(self.names)

    @property
    def areas(self) -> np.ndarray:
        """Predicted pixels (N, C, T) int32."""
        return np.stack([row[0] for row in self._rows])

    @property
    def both(self) -> np.ndarray:
        """Predicted pixels that are true (N, C, T) int32."""
        return np.stack([row[1] for row in self._rows])

    @property
    def truth(self) -> np.ndarray:
        """True pixels (N, C) int32."""
        return np.stack([row[2] for row in self._rows])

    @property
    def peaks(self) -> np.ndarray:
        """Highest probability of each class on each image (N, C) float32."""
        return np.stack([row[3] for row in self._rows])

    def add(self, name: str, probs: np.ndarray, masks: np.ndarray) -> None:
        """Count an image: `probs` (C, H, W) float32 in [0, 1], and true `masks` (C, H, W), not 0 inside."""
        classes = len(probs)
        flat = np.ascontiguousarray(probs, dtype=np.float32).reshape(classes, -1)
        true = (np.ascontiguousarray(masks).reshape(classes, -1) != 0).view(np.uint8)
        highest = flat.max(axis=0)
        above = np.flatnonzero(highest > self.limits[0])
        holder = flat[:, above].argmax(axis=0)
        exceeded = np.searchsorted(self.limits, highest[above], side="left")  # so many thresholds
        bins = (classes, len(self.limits) + 1, 2)
        cells = (holder * bins[1] + exceeded) * 2 + true[holder, above]
        histogram = np.bincount(cells, minlength=np.prod(bins)).reshape(bins)
        # Predicted at a threshold is what exceeds it or a higher one.
        predicted = histogram[:, ::-1].cumsum(axis=1)[:, -2::-1].astype(np.int32)
        self._rows.append(
            (
                predicted.sum(axis=2, dtype=np.int32),
                predicted[:, :, 1].copy(),
                np.array([cv2.countNonZero(mask) for mask in true], dtype=np.int32),
                flat.max(axis=1),
            )
        )
        self.names.append(name)

    def merge(self, other: "Counts") -> None:
        """Add the images of other counts at the same thresholds."""
        self.names += other.names
        self._rows += other._rows

    def state_dict(self) -> dict[str, Any]:
        """The images' names and counts."""
        return {"names": self.names, "rows": self._rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore counts at the same thresholds."""
        self.names, self._rows = list(state["names"]), list(state["rows"])

    def dice(self, values: Values) -> np.ndarray:
        """The competition's Dice (N, C) float64, 1 where truth and prediction are both empty.

        Raises:
            ValueError: a threshold was not counted, or the number of classes differs.
        """
        truth = self.truth
        classes = range(truth.shape[1])
        if len(values.threshold) != len(classes):
            raise ValueError(f"expected values for {len(classes)} classes, received {len(values.threshold)}")
        at = [self._index(threshold) for threshold in values.threshold]
        areas, both = (counted[:, classes, at] for counted in (self.areas, self.both))
        kept = (self.peaks > np.array(values.label_threshold, dtype=np.float32)) & (areas >= values.min_area)
        return dice_of(np.where(kept, both, 0), np.where(kept, areas, 0), truth)

    def _index(self, threshold: float) -> int:
        index = int(np.searchsorted(self.limits, np.float32(threshold)))
        if index == len(self.limits) or self.limits[index] != np.float32(threshold):
            raise ValueError(f"expected one of the thresholds {self.thresholds}, received {threshold}")
        return index
