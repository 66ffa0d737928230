"""How far an epoch has come, in a form that a checkpoint holds."""

from dataclasses import dataclass
from typing import Any


@dataclass
class EpochPosition:
    """How far an epoch has come.

    Attributes:
        batches: that were trained.
        log: of the training half, once it is over and validation is what is left.
        random_states: those when it was over; validation may move them.
    """

    batches: int = 0
    log: dict[str, Any] | None = None
    random_states: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The place, which is the same for all processes."""
        return {"batches": self.batches, "log": numbers_of(self.log)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "EpochPosition":
        """The place of a checkpoint; one without a place stands between two epochs."""
        return cls(**state.get("position", {}))


def numbers_of(log: dict[str, Any] | None) -> dict[str, float] | None:
    """The numbers of a log, as a checkpoint may hold them."""
    if log is None:
        return None
    return {key: float(value) for key, value in log.items() if isinstance(value, int | float)}
