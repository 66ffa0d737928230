"""Losses made of losses: their weighted sum, and one after another by epoch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from sever.base.base_model import part_of
from sever.config.registry import LOSSES, Nested
from sever.config.schema import Count, Section
from sever.parallel.sharded_batch import named_losses

SECOND_HEAD = " Give it a second head with arch.args.aux_params."  # the cure where labels are missing
LossFunction = Callable[..., torch.Tensor | Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class LossPart:
    """A part of a `WeightedSum`: a loss of the model's masks or labels; with weight 0 it is only logged."""

    loss: LossFunction
    weight: float = 1.0
    on: Literal["masks", "labels"] = "masks"


@dataclass(frozen=True)
class Stage:
    """A stage of a `SwitchedLoss`: a loss and the first epoch, from 1, that uses it."""

    loss: LossFunction
    from_epoch: int = 1


class PartSection(Section):
    """The section of a `LossPart`."""

    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    on: Literal["masks", "labels"] = "masks"


class StageSection(Section):
    """The section of a `Stage`."""

    from_epoch: Count = 1


@LOSSES.register(nested={"parts": Nested(LOSSES, section=PartSection, make=LossPart)})
class WeightedSum(nn.Module):
    """The sum of weighted losses, each logged without its weight as `<name>_loss`.

    Values that a part logs itself get its name in front: a BCEDiceLoss named `seg` gives `seg_loss`,
    `seg_bce_loss` and `seg_dice_loss`. Weights are not normalised to the sum 1.

    Example:
        >>> from sever.model.loss import BCELoss, DiceLoss
        >>> loss = WeightedSum({"bce": LossPart(BCELoss(), 0.6), "dice": LossPart(DiceLoss(), 0.4)})
        >>> sorted(loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)))
        ['bce_loss', 'dice_loss', 'loss']

    Args:
        parts: the losses by their names in the log.

    Raises:
        ValueError: all weights are 0, or the log would have a name twice.
    """

    takes_parts = True  # each of its parts is asked

    def __init__(self, parts: Mapping[str, LossPart]) -> None:
        super().__init__()
        if not isinstance(parts, Mapping) or not all(isinstance(part, LossPart) for part in parts.values()):
            raise ValueError("parts: expected a mapping of names to losses, received another form")
        weights = {name: part.weight for name, part in parts.items()}
        if not any(weights.values()):
            raise ValueError(f"parts: expected at least one weight above 0, received {weights}")
        self.parts = {str(name): part for name, part in parts.items()}
        self.losses = _modules(parts.values())
        for name, part in self.parts.items():
            _check_part(name, part)
        names = self.part_names or [f"{name}_loss" for name in self.parts]
        if twice := {name for name in names if list(names).count(name) > 1}:
            raise ValueError(f"parts: the log would have {', '.join(sorted(twice))} twice; rename a part")

    @property
    def part_names(self) -> tuple[str, ...] | None:
        """The names in the log beside "loss"; None where a part's are unknown."""
        names: list[str] = []
        for name, part in self.parts.items():
            own = _part_names(part.loss)
            if own is None:
                return None
            names += [f"{name}_loss", *(f"{name}_{inner}" for inner in own)]
        return tuple(names)

    @property
    def comparable_between_epochs(self) -> bool:
        """Whether a value means the same in every epoch."""
        return all(getattr(part.loss, "comparable_between_epochs", True) for part in self.parts.values())

    def set_epoch(self, epoch: int) -> None:
        """Tell the parts which epoch, from 1, the next batches belong to."""
        for part in self.parts.values():
            _set_epoch(part.loss, epoch)

    def forward(self, outputs: Any, targets: Any) -> dict[str, torch.Tensor]:
        """The loss of a batch, with its parts.

        Args:
            outputs: logits of masks (N, C, H, W), of labels (N, C), or `MasksAndLabels` of both.
            targets: masks, labels or both of the same shapes, in {0, 1}.
        """
        logged: dict[str, torch.Tensor] = {}
        weighted = []
        for name, part in self.parts.items():
            losses = named_losses(part.loss, part_of(outputs, part.on), part_of(targets, part.on))
            total = losses.pop("loss")
            logged |= {f"{name}_loss": total, **{f"{name}_{inner}": losses[inner] for inner in losses}}
            if part.weight:  # 0 times infinity would be NaN
                weighted.append(part.weight * total)
        return {"loss": torch.stack(weighted).sum(), **logged}


@LOSSES.register(nested={"stages": Nested(LOSSES, section=StageSection, make=Stage)})
class SwitchedLoss(nn.Module):
    """One loss after another, each from an epoch of its own on.

    The epoch alone says which loss it is, so a resumed run uses the same one. Values before and after a
    switch cannot be compared.

    Args:
        stages: the losses in order; the first starts with epoch 1.

    Raises:
        ValueError: the first stage does not start with epoch 1, or the epochs do not rise.
    """

    comparable_between_epochs = False
    takes_parts = True  # each of its stages is asked

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        if isinstance(stages, Mapping | Stage):
            raise ValueError("stages: expected a list of losses, received another form")
        starts = [stage.from_epoch for stage in stages]
        if starts[:1] != [1] or starts != sorted(set(starts)):
            raise ValueError(f"stages: expected from_epoch to start with 1 and to rise, received {starts}")
        self.stages = list(stages)
        self.losses = _modules(stages)
        self.current = self.stages[0]

    @property
    def part_names(self) -> tuple[str, ...] | None:
        """The names in the log beside "loss", of all stages; None where a stage's are unknown."""
        of_stages = [_part_names(stage.loss) for stage in self.stages]
        if None in of_stages:
            return None
        return tuple(dict.fromkeys(name for names in of_stages for name in names or ()))

    def set_epoch(self, epoch: int) -> None:
        """Take the loss of an epoch, from 1."""
        self.current = [stage for stage in self.stages if stage.from_epoch <= epoch][-1]
        _set_epoch(self.current.loss, epoch)

    def forward(self, outputs: Any, targets: Any) -> dict[str, torch.Tensor]:
        """The loss of a batch and its parts, by the stage of the epoch."""
        return named_losses(self.current.loss, outputs, targets)


def output_faults(loss: Any, kinds: Sequence[str], where: str) -> list[str]:
    """The outputs that a loss needs and a model of these `output_kinds` does not give.

    Each comes after file and key (`where`). Losses of the user's own are not checked.
    """
    if isinstance(loss, WeightedSum):
        faults = []
        given = " and ".join(kinds)
        for name, part in loss.parts.items():
            at = f"{where}.args.parts.{name}"
            if part.on in kinds:
                faults += output_faults(part.loss, (part.on,), at)
            else:
                cure = SECOND_HEAD if part.on == "labels" else ""
                said = f"expected '{given}', received '{part.on}'.{cure}"
                faults.append(f"{at}.on: the model gives {given}: {said}")
        return faults
    if isinstance(loss, SwitchedLoss):
        stages = enumerate(loss.stages)
        faults_of = (output_faults(s.loss, kinds, f"{where}.args.stages.{number}") for number, s in stages)
        return [fault for faults in faults_of for fault in faults]
    takes_labels = getattr(loss, "takes_labels", None)
    if takes_labels is None:
        return []
    name = type(loss).__name__
    if len(kinds) > 1:
        return [
            f"{where}: the model gives {' and '.join(kinds)}, and {name} takes one of them: write a "
            f"WeightedSum with a part 'on: masks' and one 'on: labels'"
        ]
    if "labels" in kinds and not takes_labels:
        return [f"{where}: {name} is a loss of masks, but the model gives labels"]
    return []


def _check_part(name: str, part: LossPart) -> None:
    if not name or name == "val" or name.startswith("val_"):  # those are the names of the validation
        raise ValueError(f"parts: expected a name that does not start with 'val_', received {name!r}")
    if part.on == "labels" and not getattr(part.loss, "takes_labels", True):
        raise ValueError(
            f"parts.{name}.on: {type(part.loss).__name__} is a loss of masks: expected 'masks', received "
            f"'labels'"
        )


def _part_names(loss: Any) -> tuple[str, ...] | None:
    function = getattr(loss, "func", loss)  # of a `functools.partial`
    return getattr(function, "part_names", None)


def _set_epoch(loss: Any, epoch: int) -> None:
    if hasattr(loss, "set_epoch"):
        loss.set_epoch(epoch)


def _modules(holders: Iterable[LossPart | Stage]) -> nn.ModuleList:
    """The losses that are modules, whose buffers move to a device."""
    return nn.ModuleList(holder.loss for holder in holders if isinstance(holder.loss, nn.Module))
