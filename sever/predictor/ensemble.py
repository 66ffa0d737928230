"""Averages over models and over flips at test time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sever.base import BaseModel, MasksAndLabels
from sever.base.base_model import finite_images, forward

# Test-time augmentation by name: the axes of (…, H, W) to flip before each prediction and back after it.
FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "hflip": ((), (-1,)),
    "vflip": ((), (-2,)),
    "both": ((), (-1,), (-2,), (-2, -1)),
}


class RunningAverage:
    """The average of predictions that come one after another, in the memory of one.

    With weights w and probabilities p of the models, pixel by pixel:

    - `mean`: sum(w p) / sum(w)
    - `rms`: sqrt(sum(w p²) / sum(w)), which leans to the surer models
    - `geometric`: exp(sum(w log p) / sum(w)); one model that says 0 makes it 0
    - `max`: the highest p, whatever its weight above 0
    - `vote`: the share of the weight that the models with p > 0.5 have. A threshold of 0.5 on it is the
      majority; a tie is exactly 0.5, not above the threshold: no defect.

    A prediction of weight 0 is left out. A single prediction is its own average, except in a vote. NaN stays.

    Example:
        >>> running = RunningAverage("rms")
        >>> for p in (0.2, 0.3, 0.7):
        ...     running.add(torch.tensor([p]))
        >>> round(running.result().item(), 3)
        0.455

    Args:
        how: the rule: `mean`, `rms`, `geometric`, `max` or `vote`.
    """

    def __init__(self, how: str = "mean") -> None:
        self.how = how
        self.weight = 0.0
        self._first: tuple[torch.Tensor, float] | None = None  # a single prediction needs no arithmetic
        self._total: torch.Tensor | None = None

    def add(self, probs: torch.Tensor, weight: float = 1.0) -> None:
        """Take in a prediction in [0, 1], all of one shape, of a weight >= 0; do not change it later."""
        if weight == 0:
            return
        probs = probs.float()
        self.weight += weight
        if self._first is None and self._total is None and self.how != "vote":
            self._first = probs, weight
            return
        if self._first is not None:
            self._accumulate(*self._first)
            self._first = None
        self._accumulate(probs, weight)

    def result(self) -> torch.Tensor:
        """The average, float32; raises a ValueError if nothing of a weight above 0 was added."""
        if self._first is not None:
            return self._first[0]
        if self._total is None:
            raise ValueError("expected a prediction with a weight above 0, received none")
        if self.how == "max":
            return self._total
        share = self._total / self.weight
        if self.how == "geometric":
            return share.exp_()
        share.clamp_(max=1)  # 0.1 + 0.2 is a little more than 0.3
        if self.how == "rms":
            return share.sqrt_()
        # Rounded, since 0.1 + 0.2 against 0.3 is a tie that float32 sums would break.
        return share.round_(decimals=6) if self.how == "vote" else share

    def _accumulate(self, probs: torch.Tensor, weight: float) -> None:
        if self.how == "max":
            self._total = probs.clone() if self._total is None else self._total.maximum(probs)
            return
        term = {
            "mean": lambda: probs,
            "rms": lambda: probs.square(),
            "geometric": lambda: probs.log(),
            "vote": lambda: (probs > 0.5).float().where(~probs.isnan(), torch.nan),
        }[self.how]()
        self._total = term * weight if self._total is None else self._total.add_(term, alpha=weight)


def check_weights(weights: Sequence[float] | None, models: int) -> tuple[float, ...]:
    """The weights of models, by default all 1.

    Raises:
        ValueError: there is not one for each model, one is below 0 or not finite, or all are 0.
    """
    if weights is None:
        return (1.0,) * models
    if len(weights) != models:
        raise ValueError(f"--weights: expected {models}, one for each model, received {len(weights)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ValueError(
            f"--weights: expected numbers of at least 0, not all of them 0, received "
            f"{', '.join(f'{weight:g}' for weight in weights)}"
        )
    return tuple(float(weight) for weight in weights)


@dataclass(frozen=True)
class Member:
    """A model of an ensemble.

    Attributes:
        model: the model with its weights; it gives masks, labels or both.
        normalize: grey levels (N, 1, H, W) -> this model's input, float.
        checkpoint: name of the model's file, for messages.
    """

    model: BaseModel
    normalize: Callable[[torch.Tensor], torch.Tensor]
    checkpoint: str = "the model"

    def probabilities(
        self, images: torch.Tensor, flips: Sequence[tuple[int, ...]], precision: str
    ) -> dict[str, torch.Tensor]:
        """The mean of the model's predictions over flips, each flipped back; see `FLIPS`.

        Args:
            images: (N, 1, H, W) grey levels in [0, 255], on the model's device.
            flips: axes to flip for each prediction.
            precision: `fp32`, `bf16` or `fp16` of the forward pass.

        Returns:
            `masks` (N, C, H, W), `labels` (N, C), or both: float32 in [0, 1]; all NaN for an image for which
            an output is not finite.
        """
        averages = {kind: RunningAverage() for kind in self.model.output_kinds}
        for axes in flips:
            inputs = self.normalize(images.flip(axes) if axes else images)
            outputs = forward(self.model, inputs, precision)
            bad = ~finite_images(outputs)
            found = self.model.probabilities(outputs)
            parts = found if isinstance(found, MasksAndLabels) else (found,)
            for kind, probs in zip(self.model.output_kinds, parts, strict=True):
                probs.masked_fill_(bad.view(-1, *[1] * (probs.ndim - 1)), torch.nan)
                averages[kind].add(probs.flip(axes) if axes and kind == "masks" else probs)
        return {kind: average.result() for kind, average in averages.items()}


class AveragedModel(BaseModel):
    """The models of an ensemble as one, from raw grey levels to probabilities instead of logits.

    Args:
        members: the models.
        weights: weights of the members; None weighs them alike.
        average: see `RunningAverage`.
        tta: see `FLIPS`.
        precision: precision of each model's forward pass; the averages are float32.
    """

    def __init__(
        self,
        members: Sequence[Member],
        weights: Sequence[float] | None = None,
        average: str = "mean",
        tta: str = "none",
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.members = list(members)
        self.models = torch.nn.ModuleList([member.model for member in self.members])  # to move them
        self.weights = check_weights(weights, len(self.members))
        self.flips = FLIPS[tta]
        self.average = average
        self.precision = precision
        kinds = {kind for member in self.members for kind in member.model.output_kinds}
        self.output_kinds = tuple(kind for kind in ("masks", "labels") if kind in kinds)

    def forward(self, images: torch.Tensor) -> torch.Tensor | MasksAndLabels:
        """Grey levels (N, 1, H, W) float in [0, 255] -> probabilities, averaged."""
        totals = {kind: RunningAverage(self.average) for kind in self.output_kinds}
        for member, weight in zip(self.members, self.weights, strict=True):
            for kind, probs in member.probabilities(images, self.flips, self.precision).items():
                totals[kind].add(probs, weight)
        averages = [totals[kind].result() for kind in self.output_kinds]
        return averages[0] if len(averages) == 1 else MasksAndLabels(*averages)

    def probabilities(self, outputs: torch.Tensor | MasksAndLabels) -> torch.Tensor | MasksAndLabels:
        """Return the outputs of `forward`, which are probabilities already."""
        return outputs

    @staticmethod
    def logits(outputs: torch.Tensor | MasksAndLabels) -> torch.Tensor | MasksAndLabels:
        """The logits of the outputs of `forward`, for a loss; those of 0 and 1 are finite."""
        if isinstance(outputs, MasksAndLabels):
            return MasksAndLabels(*(part.logit(eps=1e-7) for part in outputs))
        return outputs.logit(eps=1e-7)
