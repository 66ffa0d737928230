"""How far an epoch has come, in a form that a checkpoint holds."""

from dataclasses import dataclass
from typing import Any

import torch

from sever.utils.checkpoint import random_states


@dataclass
class Position:
    """How far an epoch has come.

    Attributes:
        batches: that were trained.
        log: of the training half, once it is over and validation is what is left.
        random_states: those when it was over; validation may move them.
    """

    batches: int = 0
    log: dict[str, Any] | None = None
    random_states: dict[str, Any] | None = None

    def state_dict(self, device: torch.device) -> dict[str, Any]:
        """The place and the random states that go with it."""
        return {
            "position": {"batches": self.batches, "log": numbers_of(self.log)},
            "random_states": self.random_states or random_states(device),
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Position":
        """The place of a checkpoint; one without a place stands between two epochs."""
        position = cls(**state.get("position", {}))
        if position.log is not None:
            position.random_states = state["random_states"]
        return position


def numbers_of(log: dict[str, Any] | None) -> dict[str, float] | None:
    """The numbers of a log, as a checkpoint may hold them."""
    if log is None:
        return None
    return {key: float(value) for key, value in log.items() if isinstance(value, int | float)}
