"""Scoring a model on labelled images."""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from sever.base import BaseDataLoader, BaseModel, Metric
from sever.base.base_model import Outputs, check_outputs_finite, finite_images, forward, part_of
from sever.parallel import collectives
from sever.parallel.sharded_batch import named_losses
from sever.utils.progress import progress

# (inputs, targets, probabilities) of the first batch
OnFirstBatch = Callable[[torch.Tensor, Outputs, Outputs], None]


@torch.inference_mode()
def evaluate(
    model: BaseModel,
    data_loader: BaseDataLoader,
    loss: nn.Module | Callable | None,
    metrics_of: Callable[[Sequence[str]], Sequence[Metric]],
    device: torch.device,
    label: str = "",
    on_first_batch: OnFirstBatch | None = None,
    precision: str = "fp32",
    before_batch: Callable[[], object] | None = None,
    checkpoint: str = "",
) -> "Tally":
    """Score a model; it is left in evaluation mode.

    Several processes share the batches, and count each by itself: the sums are added up in the order of
    one process. A collective.

    Args:
        model: already on `device`.
        data_loader: gives the labelled images.
        loss: (outputs, targets) -> the loss, or a dict of its parts; None computes none.
        metrics_of: names of images -> new metrics for them.
        device: the device to compute on.
        label: title of the progress bar; an empty one shows none.
        on_first_batch: called with inputs, targets and probabilities.
        precision: of the forward pass; see `autocast`.
        before_batch: called before each batch; what it raises ends the evaluation. With it the processes
            wait for each other before each batch, and a fault in the data of one ends it in all.
        checkpoint: name of the model's file; without one, as for a model in training, outputs that are not
            finite make the losses NaN.

    Returns:
        The tally of all images in the main process, of some of them in the others.

    Raises:
        CheckpointError: outputs are not finite, and the model has a `checkpoint`.
    """
    model.eval()
    world = collectives.world()
    data_loader.distribute_batches(world)
    data_loader.lockstep = before_batch is not None
    tallies: list[Tally] = []
    for number, batch in enumerate(progress(data_loader, label)):
        if before_batch:
            before_batch()
        inputs, masks = data_loader.to_device(batch, device)
        targets = model.targets(masks)
        outputs = forward(model, inputs, precision)
        probs = model.probabilities(outputs)
        tally = Tally(metrics_of(data_loader.batch_names))
        losses = {} if loss is None else named_losses(loss, outputs, targets)
        finite = finite_images(outputs)
        if checkpoint:
            check_outputs_finite(finite.tolist(), data_loader.batch_names, checkpoint)
        losses = {name: value.where(finite.all(), torch.nan) for name, value in losses.items()}
        tally.update(losses, probs, targets, len(inputs))
        tallies.append(tally)
        if number == 0 and on_first_batch:
            on_first_batch(inputs, targets, probs)
    others_have_one_more = 0 < data_loader.batch_count % world.size <= world.rank
    if before_batch and others_have_one_more:
        before_batch()
    return merged(tallies, Tally(metrics_of(())))


class Tally:
    """The sums of losses over some images, on the device, and metrics of the same images.

    Args:
        metrics: updated by each batch.
        finite_only: leave out losses that are not finite: their batches are not trained on.
    """

    def __init__(self, metrics: Sequence[Metric], finite_only: bool = False) -> None:
        self.metrics = metrics
        self.finite_only = finite_only
        self.losses: dict[str, torch.Tensor] = {}  # (2,) float64: sum over the images, number of images

    def reset(self) -> None:
        """Forget all that was counted."""
        self.losses = {}
        for metric in self.metrics:
            metric.reset()

    def empty_copy(self) -> "Tally":
        """A tally with metrics of the same kinds that has counted nothing."""
        empty = Tally(copy.deepcopy(self.metrics), self.finite_only)
        empty.reset()
        return empty

    @torch.no_grad()
    def update(
        self, losses: Mapping[str, torch.Tensor], probs: Outputs, targets: Outputs, images: int
    ) -> None:
        """Count a batch of so many images, with its mean losses."""
        for name, value in losses.items():
            mean = value.double()
            counted = torch.stack([mean * images, torch.full_like(mean, images)])
            if self.finite_only:
                counted = torch.where(mean.isfinite(), counted, 0.0)
            self.losses[name] = self.losses.get(name, 0) + counted
        for metric in self.metrics:
            metric.update(part_of(probs, metric.on), part_of(targets, metric.on))

    def merge(self, other: "Tally") -> None:
        """Add what was counted of other images."""
        for name, counted in other.losses.items():
            self.losses[name] = self.losses.get(name, 0) + counted
        for metric, more in zip(self.metrics, other.metrics, strict=True):
            metric.merge(more)

    def state_dict(self) -> dict[str, Any]:
        """What was counted, as plain values and tensors on the CPU."""
        return _on_cpu({"losses": self.losses, "metrics": [metric.state_dict() for metric in self.metrics]})

    def merge_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Add the counts of another tally's `state_dict`."""
        other = self.empty_copy()
        other.losses = {name: sums.to(device) for name, sums in state["losses"].items()}
        for metric, counted in zip(other.metrics, state["metrics"], strict=True):
            metric.load_state_dict(counted)
        self.merge(other)

    def compute(self) -> dict[str, float]:
        """The losses, averaged over images (NaN where none were counted), and the values of all metrics."""
        losses = {name: (total / images).item() for name, (total, images) in self.losses.items()}
        return losses | {name: value for metric in self.metrics for name, value in metric.compute().items()}

    def compute_together(self) -> dict[str, float]:
        """The values of the main process, in all of them."""
        return collectives.broadcast(self.compute() if collectives.is_main() else {})


def merged(tallies: Sequence[Tally], into: Tally) -> Tally:
    """Merge the tallies of all processes into an empty one, in the main process; a collective.

    They are taken in turn: the order of one process, where whole batches were distributed.
    """
    if collectives.world_size() == 1:
        for tally in tallies:
            into.merge(tally)
        return into
    of_processes = collectives.gather([tally.state_dict() for tally in tallies])
    for in_turn in zip_longest(*of_processes):
        for state in filter(None, in_turn):
            into.merge_state(state, torch.device("cpu"))
    return into


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    return type(value)(map(_on_cpu, value)) if isinstance(value, list | tuple) else value
