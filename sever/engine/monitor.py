"""The monitored value: which epoch is the best so far, and when to stop early."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import ConfigError

logger = logging.getLogger(__name__)


class Monitor:
    """Watches one key of the log, in the epochs that have it.

    What is not finite is never an improvement, nor is an epoch whose loss in validation is not finite: a
    model that gives NaN finds nothing, which scores well where most images have no defect.

    Args:
        monitor: `min KEY`, `max KEY` or `off`.
        early_stop: epochs without improvement before `exhausted`; 0 is never.
        remember: how many of the best epochs `best_epochs` holds.
    """

    def __init__(self, monitor: str, early_stop: int, remember: int) -> None:
        self.mode, _, self.key = monitor.partition(" ")
        self.early_stop = early_stop
        self.remember = remember
        self._ranking: list[tuple[float, int]] = []  # (value, epoch), the best first
        self.best = math.inf if self.mode == "min" else -math.inf
        self.without_improvement = 0
        self._warned = False

    def check_key(self, known: Iterable[str]) -> None:
        """Raise a `ConfigError` where the monitored key is not among those that will be logged."""
        if self.mode != "off" and self.key not in known:
            raise ConfigError(
                f"training.monitor: '{self.key}' will not be logged.{did_you_mean(self.key, known)} Known: "
                f"{', '.join(sorted(known))}."
            )

    @property
    def exhausted(self) -> bool:
        """Whether early stopping is due."""
        return 0 < self.early_stop <= self.without_improvement

    @property
    def best_epochs(self) -> list[int]:
        """The epochs of the best values so far, the best first."""
        return [epoch for _, epoch in self._ranking]

    def update(self, log: Mapping[str, Any], epoch: int) -> bool:
        """Take in the log of an epoch; returns whether it is the best so far."""
        if self.mode == "off":
            return False
        if self.key not in log:
            if not self._warned:
                logger.warning("training.monitor: '%s' is not logged. Logged: %s.", self.key, ", ".join(log))
            self._warned = True
            return False
        value = float(log[self.key])
        is_finite = math.isfinite(value) and math.isfinite(log.get("val_loss", 0))
        if is_finite:
            self._ranking.append((value, epoch))
            self._ranking.sort(key=lambda entry: entry[0] if self.mode == "min" else -entry[0])
            del self._ranking[self.remember :]
        improved = is_finite and (value < self.best if self.mode == "min" else value > self.best)
        if improved:
            self.best = value
        self.without_improvement = 0 if improved else self.without_improvement + 1
        return improved

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "watched": f"{self.mode} {self.key}",
            "best": self.best,
            "without_improvement": self.without_improvement,
            "ranking": [list(entry) for entry in self._ranking],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of a monitor of the same key; the state of any other is ignored."""
        if state["watched"] == f"{self.mode} {self.key}":
            self.best = state["best"]
            self.without_improvement = state["without_improvement"]
            self._ranking = [(value, epoch) for value, epoch in state.get("ranking", ())]
