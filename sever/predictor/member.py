"""A model of an ensemble, and what it predicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sever.base import BaseModel, MasksAndLabels
from sever.predictor.ensemble import RunningAverage
from sever.utils.device import autocast


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
            flips: the axes that are turned round, of each prediction; see `flips_of`.
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
