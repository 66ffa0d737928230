"""Scoring a model on labelled images."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from sever.base import BaseDataLoader, BaseModel, MasksAndLabels, Metric
from sever.engine.outputs import Outputs, named_losses, part_of
from sever.parallel import collectives
from sever.parallel.device import autocast
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
) -> "Tally":
    """Score a model; it is left in evaluation mode.

    Several processes share the batches, which are counted one by one in the order that one process has.
    Called together.

    Args:
        model: already on `device`.
        data_loader: of the labelled images.
        loss: (outputs, targets) -> the loss, or a dict of its parts; None leaves it out.
        metrics_of: names of images -> new metrics for them.
        device: to compute on.
        label: of the progress bar; an empty one shows none.
        on_first_batch: called with inputs, targets and probabilities.
        precision: of the forward pass.
        before_batch: called before each batch; what it raises ends the evaluation. With it the processes
            wait for each other before each batch, and a fault in the data of one ends it in all.

    Returns:
        What was counted: of all images in the main process, in others of some.
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
        tally = Tally(MeanLosses(), metrics_of(data_loader.batch_names))
        if loss is not None:
            tally.losses.update(named_losses(loss, outputs, targets), len(inputs))
        update_metrics(tally.metrics, probs, targets)
        tallies.append(tally)
        if number == 0 and on_first_batch:
            on_first_batch(inputs, targets, probs)
    others_have_one_more = 0 < data_loader.batch_count % world.size <= world.rank
    if before_batch and others_have_one_more:
        before_batch()
    return _in_order(tallies, Tally(MeanLosses(), metrics_of(())))


def forward(model: nn.Module, inputs: torch.Tensor, precision: str) -> Outputs:
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

    def merge(self, other: "MeanLosses") -> None:
        """Add what another one counted."""
        for name, counted in other.sums.items():
            self.sums[name] = self.sums[name] + counted if name in self.sums else counted

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What was counted, on the CPU."""
        return {name: sums.cpu() for name, sums in self.sums.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Go on from what was counted before."""
        self.sums = {name: sums.to(device) for name, sums in state.items()}


@dataclass
class Tally:
    """What was counted of some images: losses, and what metrics need."""

    losses: MeanLosses
    metrics: Sequence[Metric]

    def merge(self, other: "Tally") -> None:
        """Add what was counted of other images."""
        self.losses.merge(other.losses)
        for metric, more in zip(self.metrics, other.metrics, strict=True):
            metric.merge(more)

    def compute(self) -> dict[str, float]:
        """The losses, averaged over images, and the values of all metrics."""
        return self.losses.compute() | values(self.metrics)

    def compute_together(self) -> dict[str, float]:
        """The values of the main process, in all of them."""
        return collectives.broadcast(self.compute() if collectives.is_main() else {})

    def state_dict(self) -> dict[str, Any]:
        """What was counted, as plain values and tensors on the CPU."""
        metrics = [_on_cpu(metric.state_dict()) for metric in self.metrics]
        return {"losses": self.losses.state_dict(), "metrics": metrics}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what was counted before."""
        self.losses.load_state_dict(state["losses"], device)
        for metric, counted in zip(self.metrics, state["metrics"], strict=True):
            metric.load_state_dict(counted)

    def over_processes(self) -> "Tally":
        """What all processes counted together, in the main one; called together."""
        if collectives.world_size() == 1:
            return self
        whole = Tally(MeanLosses(), [fresh_copy(metric) for metric in self.metrics])
        for state in collectives.gather(self.state_dict()):
            whole.merge(_restored(state, whole))
        return whole


def fresh_copy(metric: Metric) -> Metric:
    """A metric of the same kind that has counted nothing."""
    other = copy.deepcopy(metric)
    other.reset()
    return other


def _in_order(tallies: Sequence[Tally], whole: Tally) -> Tally:
    """Merge the tallies of single batches that were dealt out to the processes into an empty one."""
    if collectives.world_size() == 1:
        for tally in tallies:
            whole.merge(tally)
        return whole
    of_processes = collectives.gather([tally.state_dict() for tally in tallies])
    for in_round in zip_longest(*of_processes):
        for state in in_round:
            if state is not None:
                whole.merge(_restored(state, whole))
    return whole


def _restored(state: Mapping[str, Any], like: Tally) -> Tally:
    tally = Tally(MeanLosses(), [fresh_copy(metric) for metric in like.metrics])
    tally.load_state_dict(state, torch.device("cpu"))
    return tally


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    return type(value)(map(_on_cpu, value)) if isinstance(value, list | tuple) else value


def values(metrics: Sequence[Metric]) -> dict[str, float]:
    """The values of all metrics in one dict."""
    return {name: value for metric in metrics for name, value in metric.compute().items()}
