"""Whether a built model, its loss and its metrics go together."""

from collections.abc import Callable, Sequence

import torch

from sever.base import BaseModel, MasksAndLabels, Metric
from sever.config.build import call
from sever.model.combined_loss import SECOND_HEAD, output_faults
from sever.model.encoder_model import EncoderModel
from sever.parallel.sharded_batch import named_losses
from sever.utils.errors import ConfigError

_TRIED = 64  # height and width of the outputs that a loss is tried on, in pixels


def check_outputs(
    model: BaseModel, loss: Callable, metrics: Sequence[tuple[str, Metric]], classes: int, source: str
) -> None:
    """Try the loss and the metrics (each after its name in the config) on outputs like the model's.

    Raises:
        ConfigError: a metric or the loss needs other outputs, or the loss leaves a head untrained.
    """
    kinds = model.output_kinds
    for name, metric in metrics:
        if metric.on not in kinds:
            raise ConfigError(
                f"{source}: metrics: {name} is a metric of {metric.on}, but {type(model).__name__} gives "
                f"{' and '.join(kinds)}.{SECOND_HEAD if metric.on == 'labels' else ''}"
            )
    if not isinstance(model, EncoderModel):  # one of the user's own may give outputs of any shape
        return
    where = f"{source}: loss"
    faults = output_faults(loss, kinds, where)
    if faults:
        raise ConfigError(*faults)
    starts = [stage.from_epoch for stage in getattr(loss, "stages", ())] or [1]
    for epoch in reversed(starts):  # the first one last, with which the training begins
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(epoch)
        name = type(loss).__name__
        untrained = call(_untrained_heads, where, name, model, loss, classes)
        if untrained:
            head = untrained[0]
            raise ConfigError(
                f"{where}: the head of {head} would not be trained in epoch {epoch}. Add a part to a "
                f"WeightedSum, e.g. {head}: {{type: BCELoss, weight: 0.2, on: {head}}}"
            )


def _untrained_heads(model: BaseModel, loss: Callable, classes: int) -> list[str]:
    """The kinds of the model's outputs that get no gradient from the loss."""
    shapes = {"masks": (1, classes, _TRIED, _TRIED), "labels": (1, classes)}
    heads = [torch.zeros(shapes[kind], requires_grad=True) for kind in model.output_kinds]
    outputs = heads[0] if len(heads) == 1 else MasksAndLabels(*heads)
    named_losses(loss, outputs, model.targets(torch.zeros(shapes["masks"])))["loss"].backward()
    return [kind for kind, head in zip(model.output_kinds, heads, strict=True) if head.grad is None]


def check_monitored_loss(loss: Callable, monitor: str, source: str) -> None:
    """Refuse to choose the best epoch by a loss that changes between epochs.

    Raises:
        ConfigError: `training.monitor` names such a loss.
    """
    key = monitor.rpartition(" ")[2].removeprefix("val_")
    of_loss = {"loss", *(getattr(loss, "part_names", None) or ())}
    if not getattr(loss, "comparable_between_epochs", True) and key in of_loss:
        raise ConfigError(
            f"{source}: training.monitor: '{key}' is of another loss in later epochs, so its values "
            f"cannot be compared; monitor a metric, e.g. max val_dice_mean"
        )
