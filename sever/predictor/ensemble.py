"""Several predictions of the same sheets -> one: rules of averaging, and flips at test time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sever.base import BaseModel, MasksAndLabels
from sever.parallel.device import autocast

# Test-time augmentation by name: the axes of (…, H, W) that are flipped before each prediction of a model
# and back after it; () is the sheet as it is. `hflip` swaps left and right, `vflip` top and bottom.
FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "hflip": ((), (-1,)),
    "vflip": ((), (-2,)),
    "both": ((), (-1,), (-2,), (-2, -1)),
}


class RunningAverage:
    """The average of predictions that come one after another, with one of them in memory.

    With weights w and probabilities p of the models, pixel by pixel:

    - `mean`: sum(w p) / sum(w)
    - `rms`: sqrt(sum(w p²) / sum(w)), which leans to the surer models
    - `geometric`: exp(sum(w log p) / sum(w)); one model that says 0 makes it 0
    - `max`: the highest p; only whether a weight is 0 matters
    - `vote`: the share of the weight that the models with p > 0.5 have. A threshold of 0.5 on it is the
      majority; a tie is exactly 0.5, hence not above the threshold: no defect.

    A prediction of weight 0 is left out. A single prediction is its own average, except in a vote.

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
        self._first: tuple[torch.Tensor, float] | None = None  # alone, it needs no arithmetic
        self._total: torch.Tensor | None = None

    def add(self, probs: torch.Tensor, weight: float = 1.0) -> None:
        """Take in one model's prediction.

        Args:
            probs: in [0, 1], of the shape and on the device of those before it; it must not be changed later.
            weight: at least 0.
        """
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
        """The average of what was added, float32.

        Raises:
            ValueError: nothing of a weight above 0 was added.
        """
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
            self._total = probs.clone() if self._total is None else self._total.clamp_(min=probs)
            return
        term = {
            "mean": lambda: probs,
            "rms": lambda: probs.square(),
            "geometric": lambda: probs.log(),
            "vote": lambda: (probs > 0.5).float(),
        }[self.how]()
        self._total = term * weight if self._total is None else self._total.add_(term, alpha=weight)


def check_weights(weights: Sequence[float] | None, models: int) -> tuple[float, ...]:
    """The weights of models, alike where none are given.

    Raises:
        ValueError: they are not one for each model, one is below 0 or not finite, or all are 0.
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
        model: with its weights; of masks, of labels, or both.
        normalize: grey levels (N, 1, H, W) -> what this model takes, float.
    """

    model: BaseModel
    normalize: Callable[[torch.Tensor], torch.Tensor]

    def probabilities(
        self, images: torch.Tensor, flips: Sequence[tuple[int, ...]], precision: str
    ) -> dict[str, torch.Tensor]:
        """The mean over flips of what the model predicts, turned back.

        Args:
            images: (N, 1, H, W) grey levels in [0, 255], on the model's device.
            flips: the axes that are flipped for each prediction; see `FLIPS`.
            precision: of the forward pass: `fp32`, `bf16` or `fp16`.

        Returns:
            Float32 in [0, 1] by kind of output: `masks` (N, C, H, W), `labels` (N, C), or both.
        """
        averages = {kind: RunningAverage() for kind in self.model.output_kinds}
        for axes in flips:
            inputs = self.normalize(images.flip(axes) if axes else images)
            with autocast(images.device, precision):
                outputs: Any = self.model(inputs)
            if isinstance(outputs, MasksAndLabels):
                outputs = MasksAndLabels(outputs.masks.float(), outputs.labels.float())
                found = self.model.probabilities(outputs)._asdict()
            else:
                found = {self.model.output_kinds[0]: self.model.probabilities(outputs.float())}
            for kind, probs in found.items():
                averages[kind].add(probs.flip(axes) if axes and kind == "masks" else probs)
        return {kind: average.result() for kind, average in averages.items()}


class AveragedModel(BaseModel):
    """The models of an ensemble as one, on grey levels that are not normalised yet.

    It gives probabilities, not logits.

    Args:
        members: the models.
        weights: of the members; None weighs them alike.
        average: see `RunningAverage`.
        tta: see `FLIPS`.
        precision: of each model's forward pass; the averages are float32.
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
        """What `forward` returned, as it is."""
        return outputs

    @staticmethod
    def logits(outputs: torch.Tensor | MasksAndLabels) -> torch.Tensor | MasksAndLabels:
        """For a loss: the logits of what `forward` returned; those of 0 and 1 are finite."""
        if isinstance(outputs, MasksAndLabels):
            return MasksAndLabels(*(part.logit(eps=1e-7) for part in outputs))
        return outputs.logit(eps=1e-7)
