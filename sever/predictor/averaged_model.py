"""The models of an ensemble as one model, for what takes a model: scoring."""

from collections.abc import Sequence

import torch

from sever.base import BaseModel, MasksAndLabels
from sever.predictor.ensemble import Member, RunningAverage, check_weights, flips_of


class AveragedModel(BaseModel):
    """The models of an ensemble as one, on grey levels that are not normalised yet.

    It gives probabilities, not logits.

    Args:
        members: the models.
        weights: of the members; None weighs them alike.
        average: see `RunningAverage`.
        tta: see `flips_of`.
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
        self.flips = flips_of(tta)
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
