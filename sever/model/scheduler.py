"""Learning-rate schedules: torch's by the names of their classes, `FlatCosineLR`, and a warm-up before any.

All count in intervals: epochs, or steps of the optimizer.
"""

import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LRScheduler,
    MultiplicativeLR,
    OneCycleLR,
    ReduceLROnPlateau,
)

from sever.config.registry import SCHEDULERS, Nested
from sever.config.schema import Count, CountFrom0

_TORCHS = [
    thing
    for name, thing in vars(torch.optim.lr_scheduler).items()
    if isinstance(thing, type)
    and issubclass(thing, LRScheduler)
    and name[0] != "_"
    and thing is not LRScheduler
]
_NEED_FUNCTIONS = (LambdaLR, MultiplicativeLR)
# They set the first rates themselves, and change momentum too.
_SET_RATES_THEMSELVES = (CyclicLR, OneCycleLR, ReduceLROnPlateau)
_HOLD_SCHEDULES = (torch.optim.lr_scheduler.SequentialLR, torch.optim.lr_scheduler.ChainedScheduler)
# Their rates depend on the number of moves alone.
_WITH_FORMULA = (
    *(thing for thing in _TORCHS if hasattr(thing, "_get_closed_form_lr")),
    *(CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR),
)
_MOST_STEPS = 100_000  # of a schedule without a formula, for a plan: about a second

for _thing in _TORCHS:
    if _thing in _NEED_FUNCTIONS:
        SCHEDULERS.refuse(
            _thing.__name__,
            "needs a function, which YAML cannot write: derive a class of your own from it, and write that "
            "one's import path, e.g. my_pkg.schedules.MySchedule",
        )
    else:
        SCHEDULERS.register(_thing)


@SCHEDULERS.register(nested={"schedulers": Nested(SCHEDULERS)})
class SequentialLR(torch.optim.lr_scheduler.SequentialLR):
    """torch's schedules one after another; refuses those that go wrong at a milestone.

    Args:
        optimizer: the optimizer of all schedules.
        schedulers: the schedules in order. Those that set rates by themselves or hold schedules too are
            refused: torch's own class gives wrong rates, or an error at the milestone.
        milestones: the interval, from 0, at which each schedule but the first begins.
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: list[LRScheduler], milestones: list[int], last_epoch: int = -1
    ) -> None:
        _check_schedules(schedulers, (), "one after another")
        if milestones != sorted({step for step in milestones if step > 0}):
            raise ValueError(f"milestones: expected to start above 0 and to rise, received {milestones}")
        super().__init__(optimizer, schedulers, milestones, last_epoch)


@SCHEDULERS.register(nested={"schedulers": Nested(SCHEDULERS)})
class ChainedScheduler(torch.optim.lr_scheduler.ChainedScheduler):
    """torch's schedules with their factors multiplied; refuses those that overwrite other factors.

    Args:
        schedulers: schedules that change a rate by a factor: ConstantLR, CosineAnnealingLR, ExponentialLR,
            LinearLR, MultiStepLR, PolynomialLR, StepLR, or one of your own.
        optimizer: the optimizer of all schedules.
    """

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None) -> None:
        _check_schedules(schedulers, (LambdaLR, CosineAnnealingWarmRestarts), "multiplied")
        super().__init__(schedulers, optimizer)


class FlatCosineLR(LambdaLR):
    """The full rate, then half a cosine down to 0.

    Args:
        optimizer: the optimizer whose rates are set.
        flat_epochs: epochs at the full rate.
        anneal_epochs: epochs from there to 0; the rate stays 0 after them.
        steps_per_epoch: steps of the schedule in an epoch; 1 keeps the rate within an epoch.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        flat_epochs: CountFrom0 = 30,
        anneal_epochs: Count = 220,
        steps_per_epoch: int = 1,
    ) -> None:
        super().__init__(
            optimizer, lambda step: flat_cosine_factor(step / steps_per_epoch, flat_epochs, anneal_epochs)
        )


def flat_cosine_factor(epoch: float, flat_epochs: int, anneal_epochs: int) -> float:
    """The factor of the full rate at some point of a training, in [0, 1].

    Example:
        >>> [round(flat_cosine_factor(epoch, 2, 4), 3) for epoch in range(8)]
        [1.0, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    Args:
        epoch: from 0; 1.5 is the middle of the second epoch.
        flat_epochs: epochs at the full rate.
        anneal_epochs: epochs of the half cosine, from 1 to 0.
    """
    progress = min(max(epoch - flat_epochs, 0) / anneal_epochs, 1.0)
    return 0.5 * (1 + math.cos(math.pi * progress))


def with_warmup(scheduler: LRScheduler, length: int, start_factor: float = 0.01) -> LRScheduler:
    """A schedule whose first rates are multiplied by a factor that rises linearly to 1.

    The schedule is not shifted: it ends where it would without the rise.

    Args:
        scheduler: a new schedule.
        length: how many of the schedule's intervals the rise takes, at least 1.
        start_factor: the factor of the first interval, in [0, 1].

    Raises:
        ValueError: the schedule sets rates by itself.
    """
    if isinstance(scheduler, _SET_RATES_THEMSELVES):
        raise ValueError(f"a {type(scheduler).__name__} sets rates by itself; remove the warm-up")
    return _Warmup(scheduler, length, start_factor)


class _Warmup(LRScheduler):
    """The schedule of `with_warmup`.

    torch's LinearLR in a ChainedScheduler or SequentialLR is not used: it adds up rounding errors, and goes
    with few other schedules.
    """

    def __init__(self, scheduler: LRScheduler, length: int, start_factor: float) -> None:
        # Without super().__init__(), which would step: the schedule inside has done so already.
        self.optimizer = scheduler.optimizer
        self.scheduler = scheduler
        self.length = length
        self.start_factor = start_factor
        self.last_epoch = 0
        self._set_rates()

    def get_lr(self) -> list[float | torch.Tensor]:
        """The schedule's rates times the factor of the rise."""
        done = min(self.last_epoch / self.length, 1)
        factor = self.start_factor * (1 - done) + done
        return [rate * factor for rate in self.full_rates]

    def step(self, epoch: int | None = None) -> None:
        """Move on by one interval, or to an interval where the schedule has a formula."""
        for group, rate in zip(self.optimizer.param_groups, self.full_rates, strict=True):
            group["lr"] = rate  # some schedules go on from the last rate
        if epoch is None:
            self.scheduler.step()
        else:
            _jump(self.scheduler, epoch)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._set_rates()

    def _set_rates(self) -> None:
        self.full_rates = [float(rate) for rate in self.scheduler.get_last_lr()]
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """The states of the warm-up and of the schedule, as plain values."""
        return super().state_dict() | {"scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both states."""
        self.scheduler.load_state_dict(state_dict["scheduler"])
        super().load_state_dict({**state_dict, "scheduler": self.scheduler})


def moves_to_plot(scheduler: LRScheduler, moves: int) -> int:
    """How many of its moves `rates_at` can follow: all by a formula, else those that take about a second."""
    return moves if _has_formula(scheduler) else min(moves, _MOST_STEPS)


def rates_at(scheduler: LRScheduler, points: Sequence[int]) -> list[list[float]]:
    """The rates at some points of a schedule, by its formula where it has one; any other is stepped.

    torch's schedules and `FlatCosineLR` have one, alone, in a `SequentialLR` and under a warm-up.

    Args:
        scheduler: a new schedule, whose state and rates are changed.
        points: the number of moves from the start to each point, rising.

    Returns:
        For each point the rate of each of the optimizer's groups.

    Raises:
        ValueError: the schedule ends before the last point.
    """
    by_formula = _has_formula(scheduler)
    rates: list[list[float]] = []
    done = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer is not stepped, and `step(epoch)` is not liked
        for point in points:
            if by_formula:
                _jump(scheduler, point)
            else:
                for _ in range(done, point):
                    scheduler.step()
                done = point
            rates.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
    return rates


def _has_formula(scheduler: LRScheduler) -> bool:
    if isinstance(scheduler, _Warmup):
        return _has_formula(scheduler.scheduler)
    if type(scheduler) is SequentialLR:
        return all(map(_has_formula, scheduler._schedulers))
    kind = type(scheduler)
    is_lambda = issubclass(kind, LambdaLR) and (kind.get_lr, kind.step) == (LambdaLR.get_lr, LambdaLR.step)
    return kind in _WITH_FORMULA or is_lambda


def _jump(scheduler: LRScheduler, move: int) -> None:
    """Set the rates that a schedule with a formula has after so many moves."""
    if isinstance(scheduler, SequentialLR):
        number = bisect_right(scheduler._milestones, move)
        current = scheduler._schedulers[number]
        _jump(current, move - (scheduler._milestones[number - 1] if number else 0))
        scheduler._last_lr = current.get_last_lr()
    else:
        scheduler.step(move)


def _check_schedules(schedulers: object, refused: tuple[type, ...], how: str) -> None:
    if not isinstance(schedulers, list | tuple) or not schedulers:
        raise ValueError(f"schedulers: expected a list of schedules, received {schedulers!r}")
    refused += (*_SET_RATES_THEMSELVES, *_HOLD_SCHEDULES)
    wrong = [type(scheduler).__name__ for scheduler in schedulers if isinstance(scheduler, refused)]
    if wrong:
        raise ValueError(f"schedulers: {', '.join(wrong)} cannot be {how} with others")
