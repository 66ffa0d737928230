"""What a model gives for a batch, and what a loss makes of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from sever.parallel.batch import all_gather_batch, sharded_batch


class MasksAndLabels(NamedTuple):
    """What a model with two heads gives, and what its outputs are compared with.

    Attributes:
        masks: (N, C, H, W) float: logits, probabilities or targets per pixel and class.
        labels: (N, C) float: the same per image and class.
    """

    masks: torch.Tensor
    labels: torch.Tensor


# What a model gives for a batch, or what that is compared with.
Outputs = torch.Tensor | MasksAndLabels


def part_of(outputs: Any, on: str) -> Any:
    """The masks or the labels of what has both; anything else, or `all`, as it is."""
    if isinstance(outputs, MasksAndLabels) and on != "all":
        return outputs.masks if on == "masks" else outputs.labels
    return outputs


def named_losses(
    loss: Callable[..., torch.Tensor | Mapping[str, torch.Tensor]], outputs: Any, targets: Any
) -> dict[str, torch.Tensor]:
    """Call a loss of either form; the result always has the key "loss".

    A batch that is sharded over processes is gathered first, for losses that do not say in their own class
    that they take shards (`takes_parts`); see `sever.parallel.batch`.
    """
    if _takes_parts(loss):
        value = loss(outputs, targets)
    else:
        outputs, targets = all_gather_batch(outputs), all_gather_batch(targets)
        with sharded_batch(None):  # for losses of this program that it may call
            value = loss(outputs, targets)
    return dict(value) if isinstance(value, Mapping) else {"loss": value}


def _takes_parts(loss: Any) -> bool:
    # Not by inheritance: who overrides what a loss computes may compute something else.
    return "takes_parts" in vars(type(loss)) and bool(loss.takes_parts)
