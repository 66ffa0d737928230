"""Whether a built model, its loss and its metrics go together."""

from collections.abc import Callable, Sequence

import torch

from sever.base import BaseModel, MasksAndLabels, Metric
from sever.config import registry
from sever.config.check import class_ids_of
from sever.config.load import LoadedConfig
from sever.model.combined_loss import output_faults
from sever.model.encoder_model import EncoderModel
from sever.parallel.batch import named_losses
from sever.utils.errors import ConfigError

_TRIED = 64  # height and width of the outputs that a loss is tried on, in pixels


def check_outputs(config: LoadedConfig, model: BaseModel, loss: Callable, metrics: Sequence[Metric]) -> None:
    """Try loss and metrics on outputs of the kinds that the model gives, before the first batch does.

    Raises:
        ConfigError: a metric or the loss is of another kind, or the loss leaves a head untrained.
    """
    name, kinds = config.checked.arch.type, model.output_kinds
    for metric, section in zip(metrics, config.checked.metrics, strict=True):
        if metric.on not in kinds:
            cure = " Give it a second head with arch.args.aux_params." if metric.on == "labels" else ""
            raise ConfigError(
                f"{config.at('metrics')}: {section.type} is a metric of {metric.on}, but {name} gives "
                f"{' and '.join(kinds)}.{cure}"
            )
    if not isinstance(model, EncoderModel):  # one of the user's own may give outputs of any shape
        return
    faults = output_faults(loss, kinds, config.at("loss"))
    if faults:
        raise ConfigError("\n".join(faults))
    for epoch in [stage.from_epoch for stage in getattr(loss, "stages", ())] or [1]:
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(epoch)
        untrained = registry.call(
            _untrained_heads, config.at("loss"), config.checked.loss.type, model, loss, class_ids_of(config)
        )
        if untrained:
            raise ConfigError(
                f"{config.at('loss')}: the head of {untrained[0]} would not be trained in epoch {epoch}. "
                f"Add a part to a WeightedSum, e.g. {untrained[0]}: {{type: BCELoss, weight: 0.2, on: "
                f"{untrained[0]}}}"
            )
    if hasattr(loss, "set_epoch"):
        loss.set_epoch(1)


def _untrained_heads(model: BaseModel, loss: Callable, class_ids: Sequence[str]) -> list[str]:
    """The kinds of a model's outputs that get no gradient from a loss."""
    shapes = {"masks": (1, len(class_ids), _TRIED, _TRIED), "labels": (1, len(class_ids))}
    heads = [torch.zeros(shapes[kind], requires_grad=True) for kind in model.output_kinds]
    outputs = heads[0] if len(heads) == 1 else MasksAndLabels(*heads)
    named_losses(loss, outputs, model.targets(torch.zeros(shapes["masks"])))["loss"].backward()
    return [kind for kind, head in zip(model.output_kinds, heads, strict=True) if head.grad is None]


def check_monitored_loss(config: LoadedConfig, loss: Callable) -> None:
    """Refuse to look for the best epoch by a loss that does not mean the same in all of them."""
    key = config.checked.training.monitor.rpartition(" ")[2].removeprefix("val_")
    of_loss = {"loss", *(getattr(loss, "part_names", None) or ())}
    if not getattr(loss, "comparable_between_epochs", True) and key in of_loss:
        raise ConfigError(
            f"{config.at('training.monitor')}: '{key}' is of another loss in later epochs, so its values "
            f"cannot be compared; monitor a metric, e.g. max val_dice_mean"
        )
