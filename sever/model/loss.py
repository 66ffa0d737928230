"""Losses: (output, target) -> the loss, or a dict with `loss` and named parts, each of which is logged.

The output is what the model's `forward` returns. A function or class that you add to this file goes by its
bare name in a config, one in a file of your own by its import path. `combined_loss.py` combines losses.

The losses below compute in float32, whatever the model computed in: sums over the pixels of a batch
overflow fp16 and lose their last digits in bf16.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from segmentation_models_pytorch import losses as smp
from torch import nn
from torch.nn import functional as F

from sever.parallel.sharded_batch import all_sum
from sever.utils.errors import ConfigError

_DIVISOR = 1e-7  # keeps sums that are divided by from 0
# Pixels that are summed: all of the batch, those of each class, or those of each class of each image.
Per = Literal["batch", "class", "image"]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]
_SUMMED = {"batch": (0, 1, 2), "class": (0, 2), "image": (2,)}  # axes of (N, C, pixels)


class _Loss(nn.Module):
    """A loss of logits and the masks or labels that they should have given.

    Attributes:
        part_names: its names in the log beside "loss".
        takes_labels: whether it takes (N, C) as well as (N, C, H, W).
        takes_parts: whether each of several processes can compute it on its shard of the batch, since it is
            a mean over images, or of sums that go through `all_sum`. Each class says so for itself.
    """

    part_names: ClassVar[tuple[str, ...]] = ()
    takes_labels: ClassVar[bool] = False
    takes_parts: bool = False

    def forward(self, logits: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss of a batch, computed in float32.

        Args:
            logits: (N, C, H, W) of any float dtype; (N, C) too where the loss takes labels.
            masks: of the same shape, in {0, 1}, any dtype.

        Returns:
            `loss`, and under the names of `part_names` its parts.

        Raises:
            ConfigError: the model's output does not have such a shape.
        """
        self._check_shapes(logits, masks)
        with torch.autocast(logits.device.type, enabled=False):
            return self._losses(logits.float(), masks.float())

    def _losses(self, logits: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self._loss(logits, masks)}

    def _loss(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _check_shapes(self, logits: object, masks: object) -> None:
        name = type(self).__name__
        if not isinstance(logits, torch.Tensor) or not isinstance(masks, torch.Tensor):
            raise ConfigError(
                f"loss: {name} expected logits and masks, received {_shown(logits)} and {_shown(masks)}. "
                f"For a model of masks and labels make it a part of a WeightedSum, with 'on: masks' or "
                f"'on: labels'."
            )
        if logits.ndim not in ((2, 4) if self.takes_labels else (4,)):
            taken = "(N, C, H, W) or (N, C)" if self.takes_labels else "(N, C, H, W)"
            raise ConfigError(f"loss: {name} expected logits {taken}, received {_shown(logits)}")
        if logits.shape != masks.shape:
            shape = tuple(logits.shape)
            raise ConfigError(
                f"loss: {name} expected masks of the logits' shape {shape}, received {_shown(masks)}"
            )


class BCEDiceLoss(_Loss):
    """bce_weight * BCE + dice_weight * (1 - Dice).

    Dice is the soft one over all pixels of all classes of the batch, as in
    https://github.com/khornlund/severstal-steel-defect-detection: a class that is absent from the
    batch then counts neither as perfect nor as missed.

    Args:
        bce_weight: weight of the binary cross-entropy, averaged over pixels and classes.
        dice_weight: weight of 1 - Dice.
        label_smoothing: s in [0, 0.5): the targets 0 and 1 become s and 1 - s.
    """

    part_names = ("bce_loss", "dice_loss")
    takes_parts = True

    def __init__(
        self, bce_weight: float = 0.6, dice_weight: float = 0.4, label_smoothing: Smoothing = 0.0
    ) -> None:
        super().__init__()
        if bce_weight < 0 or dice_weight < 0 or bce_weight + dice_weight == 0:
            received = f"received {bce_weight} and {dice_weight}"
            raise ValueError(f"bce_weight and dice_weight must be at least 0 and not both 0, {received}")
        self.bce_weight = bce_weight
        self.dice_weight = dice_weight
        self.label_smoothing = label_smoothing

    def _losses(self, logits: torch.Tensor, masks: torch.Tensor) -> dict[str, torch.Tensor]:
        labels = _smoothed(masks, self.label_smoothing)
        bce = F.binary_cross_entropy_with_logits(logits, labels)
        probs = logits.sigmoid()
        both, total = all_sum(torch.stack([(probs * labels).sum(), probs.sum() + labels.sum()]))
        dice = 1 - 2 * both / (total + _DIVISOR)
        loss = self.bce_weight * bce + self.dice_weight * dice
        return {"loss": loss, "bce_loss": bce, "dice_loss": dice}


class BCELoss(_Loss):
    """Binary cross-entropy of masks (N, C, H, W) or labels (N, C), with weights per class.

    The loss is the mean over classes, weighted by `class_weights`, of the mean over images and pixels:
    weights say how classes compare and not how high the loss is.

    Args:
        class_weights: a weight for each class, at least 0; None weighs all the same.
        pos_weights: for each class how much more a pixel (or label) of 1 counts than one of 0, above 0;
            None is 1.
        label_smoothing: s in [0, 0.5): the targets 0 and 1 become s and 1 - s.
        classes: the number of classes, if known, which the weights are checked against.
    """

    takes_labels = True
    takes_parts = True
    class_weights: torch.Tensor | None
    pos_weights: torch.Tensor | None

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        pos_weights: Sequence[float] | None = None,
        label_smoothing: Smoothing = 0.0,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        _register_weights(self, "class_weights", class_weights, classes)
        _register_weights(self, "pos_weights", pos_weights, classes)
        if pos_weights is not None and min(pos_weights) == 0:
            raise ValueError(f"pos_weights: expected numbers above 0, received {list(pos_weights)}")

    def _loss(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        labels = _smoothed(masks, self.label_smoothing)
        weights = _checked_weights(self.pos_weights, logits, "pos_weights")
        bce = F.binary_cross_entropy_with_logits(
            *(_by_class(logits), _by_class(labels)),
            pos_weight=None if weights is None else weights[:, None],
            reduction="none",
        )
        return _weighted_mean(bce.mean(1), _checked_weights(self.class_weights, logits, "class_weights"))


class FocalLoss(_Loss):
    """Cross-entropy times (1 - p)^gamma, p the probability of the truth: easy pixels count little.

    https://arxiv.org/abs/1708.02002, by SMP's `FocalLoss`, averaged over pixels (the paper divides by
    the number of objects). Focal and Dice together are a `WeightedSum` of this and `DiceLoss`.

    Args:
        gamma: 0 is plain cross-entropy; between 0 and 1 the gradient of a perfect pixel is infinite.
        alpha: in [0, 1], the weight of pixels of 1, those of 0 having 1 - alpha; None weighs neither.
            The paper's is 0.25.
        class_weights: as in `BCELoss`.
        classes: as in `BCELoss`.
    """

    takes_labels = True
    takes_parts = True
    class_weights: torch.Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: Annotated[float, Field(ge=0, le=1)] | None = None,
        class_weights: Sequence[float] | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        if not (gamma == 0 or 1 <= gamma < float("inf")):
            raise ValueError(f"gamma: expected 0 or a number of at least 1, received {gamma}")
        self.focal = smp.FocalLoss("binary", alpha=alpha, gamma=gamma)
        _register_weights(self, "class_weights", class_weights, classes)

    def _loss(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        weights = _checked_weights(self.class_weights, logits, "class_weights")
        pairs = zip(logits.unbind(1), masks.unbind(1), strict=True)
        return _weighted_mean(torch.stack([self.focal(*pair) for pair in pairs]), weights)


class TverskyLoss(_Loss):
    """1 - TP / (TP + alpha FP + beta FN), the counts being sums of probabilities.

    https://arxiv.org/abs/1706.05721, whose best setting is the default. With `per: class` or `image`
    the loss is a mean over classes, or over pairs of an image and a class, and a pixel is added above
    and below the fraction line: an empty pair is then perfect where nothing is predicted, and
    worse the more is. SMP's `TverskyLoss`, `DiceLoss` and `JaccardLoss` are not used since they count an
    absent class as perfect whatever is predicted, so false alarms would cost nothing.

    Args:
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0; not both are 0.
        per: what the counts are summed over: `batch` (all classes of all images), `class` or `image`.
    """

    takes_parts = True

    def __init__(self, alpha: float = 0.3, beta: float = 0.7, per: Per = "batch") -> None:
        super().__init__()
        if not (alpha >= 0 and beta >= 0 and 0 < alpha + beta < float("inf")):
            expected = "numbers of at least 0 that are not both 0"
            raise ValueError(f"alpha and beta: expected {expected}, received {alpha} and {beta}")
        self.alpha = alpha
        self.beta = beta
        self.per = per

    def _loss(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        probs, truth, axes = logits.sigmoid().flatten(2), masks.flatten(2), _SUMMED[self.per]
        products = (probs * truth, probs * (1 - truth), (1 - probs) * truth)
        counts = torch.stack([product.sum(axes) for product in products])
        both, false_positive, false_negative = counts if self.per == "image" else all_sum(counts)
        added = 0 if self.per == "batch" else 1  # pixels
        errors = self.alpha * false_positive + self.beta * false_negative
        return 1 - ((both + added) / (both + errors + added).clamp(min=_DIVISOR)).mean()


class DiceLoss(TverskyLoss):
    """1 - soft Dice: `TverskyLoss` with both weights 1/2.

    `per: batch` is the Dice of `BCEDiceLoss`; `per: image` is the one that the competition scores.
    """

    takes_parts = True

    def __init__(self, per: Per = "batch") -> None:
        super().__init__(0.5, 0.5, per)


class IoULoss(TverskyLoss):
    """1 - soft intersection over union, https://doi.org/10.1007/978-3-319-50835-1_22: both weights 1."""

    takes_parts = True

    def __init__(self, per: Per = "batch") -> None:
        super().__init__(1.0, 1.0, per)


class LovaszHingeLoss(_Loss):
    """The Lovász hinge: a convex surrogate of 1 - IoU of the mask at logit 0.

    https://arxiv.org/abs/1705.08790, for each class, or each pair of an image and a class, by itself, or for
    all together. SMP's `LovaszLoss` sorts one map after the other; here all are sorted at once, which on a
    GPU is one call instead of dozens. An empty mask costs as much as its highest logit exceeds -1.

    Args:
        per: which pixels are sorted together: those of a `batch`, of a `class`, or of each class of an
            `image` (the default, as in the paper).
    """

    takes_parts = False

    def __init__(self, per: Per = "image") -> None:
        super().__init__()
        self.per = per
        self.takes_parts = per == "image"  # else errors are sorted all together

    def _loss(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        logits, masks = self._taken_together(logits), self._taken_together(masks)
        errors, order = (1 - logits * (2 * masks - 1)).sort(dim=1, descending=True)
        on = masks.gather(1, order)
        total = on.sum(1, keepdim=True)
        jaccard = 1 - (total - on.cumsum(1)) / (total + (1 - on).cumsum(1))
        gradient = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
        return (errors.relu() * gradient).sum(1).mean()

    def _taken_together(self, values: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (groups, pixels)."""
        if self.per == "class":
            return _by_class(values)
        return values.flatten(0, 1).flatten(1) if self.per == "image" else values.flatten()[None]


def nll_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of log-probabilities (N, C) float under the classes (N,) int64."""
    return F.nll_loss(output, target)


nll_loss.part_names = ()  # type: ignore[attr-defined]


def _smoothed(masks: torch.Tensor, smoothing: float) -> torch.Tensor:
    return masks * (1 - 2 * smoothing) + smoothing


def _register_weights(
    loss: nn.Module, name: str, weights: Sequence[float] | None, classes: int | None
) -> None:
    """Keep weights per class as a buffer, which moves with the loss to its device."""
    if weights is None:
        loss.register_buffer(name, None)
        return
    fits = len(weights) == classes if classes else len(weights) > 0
    if not fits or not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        each = f"each of {classes} classes" if classes else "each class"
        raise ValueError(
            f"{name}: expected a number of at least 0 for {each}, not all 0, received {list(weights)}"
        )
    loss.register_buffer(name, torch.tensor(weights, dtype=torch.float32))


def _by_class(values: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) or (N, C) -> (C, values)."""
    return values.transpose(0, 1).flatten(1)


def _checked_weights(weights: torch.Tensor | None, logits: torch.Tensor, name: str) -> torch.Tensor | None:
    """The weights, after a check that there is one for each class of the logits."""
    if weights is not None and len(weights) != logits.shape[1]:
        raise ConfigError(
            f"loss: {name}: expected one for each of {logits.shape[1]} classes, received {len(weights)}"
        )
    return weights


def _weighted_mean(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()


def _shown(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
