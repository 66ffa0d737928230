"""Scoring a model on labelled images."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from sever.base import BaseDataLoader, BaseModel, MasksAndLabels, Metric
from sever.base.outputs import Outputs, named_losses, part_of
from sever.utils.device import autocast
from sever.utils.progress import progress

# (inputs, targets, probabilities) of the first batch
OnFirstBatch = Callable[[torch.Tensor, Outputs, Outputs], None]


@torch.inference_mode()
def evaluate(
    model: BaseModel,
    data_loader: BaseDataLoader,
    loss: nn.Module | Callable | None,
    metrics: Sequence[Metric],
    device: torch.device,
    label: str = "",
    on_first_batch: OnFirstBatch | None = None,
    precision: str = "fp32",
    before_batch: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Score a model; it is left in evaluation mode.

    Args:
        model: already on `device`.
        data_loader: of the labelled images.
        loss: (outputs, targets) -> the loss, or a dict of its parts; None leaves it out.
        metrics: reset first.
        device: to compute on.
        label: of the progress bar; an empty one shows none.
        on_first_batch: called with inputs, targets and probabilities.
        precision: of the forward pass.
        before_batch: called before each batch; what it raises ends the evaluation.

    Returns:
        The loss and its parts, averaged over images, and the values of all metrics.
    """
    model.eval()
    losses = MeanLosses()
    for metric in metrics:
        metric.reset()
    for number, batch in enumerate(progress(data_loader, label)):
        if before_batch:
            before_batch()
        inputs, masks = data_loader.to_device(batch, device)
        targets = model.targets(masks)
        outputs = forward(model, inputs, precision)
        probs = model.probabilities(outputs)
        if loss is not None:
            losses.update(named_losses(loss, outputs, targets), len(inputs))
        update_metrics(metrics, probs, targets)
        if number == 0 and on_first_batch:
            on_first_batch(inputs, targets, probs)
    return losses.compute() | values(metrics)


def forward(model: BaseModel, inputs: torch.Tensor, precision: str) -> Outputs:
    """What a model gives for a batch, in float32 whatever the precision it was computed in."""
    with autocast(inputs.device, precision):
        outputs = model(inputs)
    return _as_float32(outputs)


def _as_float32(outputs: Outputs) -> Outputs:
    if isinstance(outputs, MasksAndLabels):
        return MasksAndLabels(*(part.float() for part in outputs))
    return outputs.float() if outputs.is_floating_point() else outputs


def update_metrics(metrics: Sequence[Metric], probs: Outputs, targets: Outputs) -> None:
    """Count a batch, with each metric on its part of what the model gives."""
    for metric in metrics:
        metric.update(part_of(probs, metric.on), part_of(targets, metric.on))


class MeanLosses:
    """Means over images of a loss and its parts, kept on the device until they are asked for.

    Args:
        finite_only: leave out batches whose value is not finite, since they are not trained on.
    """

    def __init__(self, finite_only: bool = False) -> None:
        self.finite_only = finite_only
        self.sums: dict[str, torch.Tensor] = {}  # (2,) float64: of values times images, of images

    def update(self, losses: dict[str, torch.Tensor], images: int) -> None:
        """Count the losses of a batch, each a mean over its `images`."""
        for name, value in losses.items():
            mean = value.detach().double()
            counted = torch.stack([mean * images, torch.full_like(mean, images)])
            if self.finite_only:
                counted = torch.where(mean.isfinite(), counted, 0.0)
            self.sums[name] = self.sums[name] + counted if name in self.sums else counted

    def compute(self) -> dict[str, float]:
        """The means by name, NaN where no batch was counted."""
        return {name: (total / images).item() for name, (total, images) in self.sums.items()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What was counted."""
        return dict(self.sums)

    def load_state_dict(self, state: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Go on from what was counted before."""
        self.sums = {name: sums.to(device) for name, sums in state.items()}


def values(metrics: Sequence[Metric]) -> dict[str, float]:
    """The values of all metrics in one dict."""
    return {name: value for metric in metrics for name, value in metric.compute().items()}
