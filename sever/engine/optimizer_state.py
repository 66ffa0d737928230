"""Loads the state of an optimizer from a checkpoint: torch itself takes nearly any."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sever.engine.checkpoint import loading


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any], source: str) -> None:
    """Load an optimizer's state; only a step can tell moments of another shape.

    Args:
        optimizer: a new optimizer with the groups of the one whose state it is.
        state: what that one's `state_dict` returned.
        source: the checkpoint's name, for messages.

    Raises:
        CheckpointError: groups or options are other ones, or a moment is NaN.
    """
    with loading("optimizer", source):
        own_groups = optimizer.state_dict()["param_groups"]
        for number, (own, group) in enumerate(zip(own_groups, state["param_groups"], strict=True)):
            for option in (own.keys() & group.keys()) - {"params"}:
                if not _is_alike(own[option], group[option]) or not _is_in_range(option, group[option]):
                    raise ValueError(
                        f"param_groups.{number}.{option}: expected a value such as {own[option]!r}"
                    )
        optimizer.load_state_dict(dict(state))
        values = [value for entries in optimizer.state.values() for value in entries.values()]
        moments = [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point() and v.numel()]
        if moments and get_total_norm(moments, torch.inf).isnan():
            raise ValueError("a moment is NaN")


def _is_in_range(option: str, value: Any) -> bool:
    """Whether a decay is between 0 and 1: with others, a later step would compute complex numbers."""
    return option != "betas" or all(0 <= beta <= 1 for beta in value if beta is not None)


def _is_alike(own: Any, other: Any) -> bool:
    """Whether an option could stand in the place of another one; any could in that of None."""
    if isinstance(own, bool | str):
        return type(other) is type(own)
    if isinstance(own, int | float):
        return type(other) in (int, float) and (math.isfinite(other) or not math.isfinite(own))
    if isinstance(own, list | tuple):
        return isinstance(other, list | tuple) and len(own) == len(other) and all(map(_is_alike, own, other))
    return True
