"""Metrics: functions (output, target) -> number, or classes with state, derived from `sever.base.Metric`.

The output is the model's probabilities; a function's numbers are averaged over images. A function or class
that you add to this file goes by its bare name in a config, one in a file of your own by its import path.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from typing_extensions import Self

from sever.base import Metric
from sever.utils.errors import ConfigError


class _ClassMetric(Metric):
    """A score for each class.

    Args:
        class_ids: names of the classes in the log.
        threshold: probability above which a pixel or a label counts as predicted.
    """

    name: str
    _rows = 1  # of `sums`, which has a column for each class

    def __init__(self, class_ids: Sequence[str], threshold: float = 0.5) -> None:
        if not class_ids:
            raise ValueError(f"{self.name} needs a model of {self.on}: one with an argument 'classes'")
        self.class_ids = list(class_ids)
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        """Forget all that was counted."""
        self.sums = torch.zeros(self._rows, len(self.class_ids), dtype=torch.float64)
        self.images = 0

    def compute(self) -> dict[str, float]:
        """`<name>_<ClassId>` for each class and `<name>_mean`."""
        scores = self._scores().tolist()
        named = {f"{self.name}_{i}": score for i, score in zip(self.class_ids, scores, strict=True)}
        return named | {f"{self.name}_mean": sum(scores) / len(scores)}

    def merge(self, other: Self) -> None:
        """Add the counts of `other`, which has the same classes."""
        if (other.sums.shape, other.sums.dtype) != (self.sums.shape, self.sums.dtype):
            raise ValueError(f"{self.name}: expected sums of shape {tuple(self.sums.shape)}")
        _check_count(other.images)
        self._add(other.sums, other.images)

    def _add(self, sums: torch.Tensor, images: int) -> None:
        # They stay on the device: a copy to the host would make every step wait for it.
        self.sums = self.sums.to(sums.device) + sums
        self.images += images

    def _scores(self) -> torch.Tensor:
        """The sums (rows, C) -> (C,) scores."""
        raise NotImplementedError


class _MaskMetric(_ClassMetric):
    """The mean over images of a score per image and class."""

    def update(self, probs: torch.Tensor, targets: torch.Tensor) -> None:
        """Count a batch: probs (N, C, H, W) in [0, 1], targets (N, C, H, W) in {0, 1}."""
        _check_form(self.name, probs, 4)
        predicted = (probs > self.threshold).flatten(2)
        truth = targets.flatten(2).bool()
        both = (predicted & truth).sum(2).float()
        scores = self._score(both, predicted.sum(2).float(), truth.sum(2).float())
        self._add(scores.sum(0, keepdim=True).double(), len(probs))

    def _scores(self) -> torch.Tensor:
        return self.sums[0] / max(self.images, 1)

    def _score(self, both: torch.Tensor, n_pred: torch.Tensor, n_true: torch.Tensor) -> torch.Tensor:
        """(N, C) pixel counts -> (N, C) scores."""
        raise NotImplementedError


def _dice(both: torch.Tensor, n_pred: torch.Tensor, n_true: torch.Tensor) -> torch.Tensor:
    total = n_pred + n_true
    return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)


class dice(_MaskMetric):  # noqa: N801 - the name that configs use
    """Dice of each image and class, 1 where both are empty, averaged over images.

    The mean over the classes is the competition's metric for a plain threshold.
    """

    name = "dice"
    _score = staticmethod(_dice)


class iou(_MaskMetric):  # noqa: N801
    """Intersection over union of each image and class, 1 where both are empty."""

    name = "iou"

    def _score(self, both: torch.Tensor, n_pred: torch.Tensor, n_true: torch.Tensor) -> torch.Tensor:
        either = n_pred + n_true - both
        return torch.where(either > 0, both / either.clamp(min=1), 1.0)


class _LabelMetric(_ClassMetric):
    """A score of the labels of each class, from counts over all images."""

    on: Literal["masks", "labels"] = "labels"
    _rows = 3  # labels that are both predicted and true, predicted, true

    def update(self, probs: torch.Tensor, targets: torch.Tensor) -> None:
        """Count a batch: probs (N, C) in [0, 1], targets (N, C) in {0, 1}."""
        _check_form(self.name, probs, 2)
        predicted, truth = probs > self.threshold, targets.bool()
        self._add(torch.stack([(predicted & truth).sum(0), predicted.sum(0), truth.sum(0)]), len(probs))

    def _scores(self) -> torch.Tensor:
        return self._score(*self.sums)

    def _score(self, both: torch.Tensor, n_pred: torch.Tensor, n_true: torch.Tensor) -> torch.Tensor:
        """Counts of images (C,) -> (C,) scores."""
        raise NotImplementedError


class label_accuracy(_LabelMetric):  # noqa: N801
    """Share of images whose label of a class is right."""

    name = "label_accuracy"

    def _score(self, both: torch.Tensor, n_pred: torch.Tensor, n_true: torch.Tensor) -> torch.Tensor:
        wrong = n_pred + n_true - 2 * both
        return (self.images - wrong) / max(self.images, 1)


class label_f1(_LabelMetric):  # noqa: N801
    """F1 of each class over all images, the harmonic mean of precision and recall.

    1 for a class that is neither in the truth nor predicted, as Dice is for such a mask.
    """

    name = "label_f1"
    _score = staticmethod(_dice)


class FunctionMetric(Metric):
    """A function of a batch's probabilities and targets that returns a number, averaged over images."""

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], float], name: str) -> None:
        self.function = function
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Forget all that was counted."""
        self.total = 0.0
        self.images = 0

    def update(self, probs: torch.Tensor, targets: torch.Tensor) -> None:
        """Count a batch."""
        self.total += float(self.function(probs, targets)) * len(targets)
        self.images += len(targets)

    def compute(self) -> dict[str, float]:
        """The mean under the function's name."""
        return {self.name: self.total / max(self.images, 1)}

    def merge(self, other: Self) -> None:
        """Add the counts of `other`."""
        _check_count(other.images)
        self.total += float(other.total)
        self.images += other.images


def _check_count(images: int) -> None:
    if not 0 <= images < 2**53:  # as far as a float counts
        raise ValueError(f"expected a number of images, received {images}")


def _check_form(name: str, probs: torch.Tensor, axes: int) -> None:
    if probs.ndim != axes:
        forms = {2: "labels (N, C)", 4: "masks (N, C, H, W)"}
        raise ConfigError(
            f"metrics: {name} is a metric of {forms[axes]}, but the model gives {tuple(probs.shape)}"
        )


def my_metric(output: torch.Tensor, target: torch.Tensor) -> float:
    """Share of images whose class, the highest of output (N, C), is the target (N,)."""
    return (output.argmax(dim=1) == target).float().mean().item()


def my_metric2(output: torch.Tensor, target: torch.Tensor, k: int = 3) -> float:
    """Share of images whose target (N,) is among the k highest classes of output (N, C)."""
    highest = output.topk(k, dim=1).indices
    return (highest == target[:, None]).any(dim=1).float().mean().item()
