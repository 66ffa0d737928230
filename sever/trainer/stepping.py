"""From a loss to changed weights: precision, accumulation, clipping, rates by step, averaged weights."""

import warnings
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sever.base import BaseModel


def steps_in(batches: int, accumulate: int) -> int:
    """How many steps an epoch of so many batches has; the last one may be of fewer than `accumulate`."""
    return -(-batches // accumulate)


class Stepper:
    """Steps an optimizer after every `accumulate` batches.

    Args:
        model: whose weights are changed.
        optimizer: of its parameters.
        device: that it trains on.
        precision: `fp16` scales the loss, so that small gradients are not lost
            (https://arxiv.org/abs/1710.03740); a step whose gradients overflow is then left out.
        accumulate: batches whose gradients are averaged for one step.
        clip_grad_norm: norm to which longer gradients of all parameters together are cut; None cuts
            none.
        ema_decay: of a moving average of all weights and statistics; it begins lower, so that the
            first weights are forgotten soon. None keeps no average.
        lr_scheduler: moved on after each step; None where the rates do not change within an epoch.
    """

    def __init__(
        self,
        model: BaseModel,
        optimizer: Optimizer,
        device: torch.device,
        precision: str = "fp32",
        accumulate: int = 1,
        clip_grad_norm: float | None = None,
        ema_decay: float | None = None,
        lr_scheduler: LRScheduler | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.accumulate = accumulate
        self.clip_grad_norm = clip_grad_norm
        self.lr_scheduler = lr_scheduler
        self.steps = 0
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._ema = ModelEmaV3(model, ema_decay, use_warmup=True) if ema_decay else None

    @property
    def averaged_model(self) -> BaseModel:
        """The model that is validated: the one of averaged weights, or the trained one."""
        return self._ema.module if self._ema else self.model

    @property
    def is_needed(self) -> bool:
        """Whether it does more than step the optimizer after each batch."""
        return bool(
            self.accumulate > 1
            or self.clip_grad_norm
            or self._ema
            or self.lr_scheduler
            or self._scaler.is_enabled()
        )

    def backward(self, loss: torch.Tensor, number: int, batches: int) -> None:
        """Take the gradients of a batch, and step where enough batches are together.

        Args:
            loss: of the batch, a mean over its images.
            number: of the batch in the epoch, from 0.
            batches: in the epoch.
        """
        first = number - number % self.accumulate
        together = min(self.accumulate, batches - first)
        self._scaler.scale(loss / together if together > 1 else loss).backward()
        if number + 1 == first + together:
            self._step()

    def _step(self) -> None:
        if self.clip_grad_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        self.steps += 1
        if self._ema:
            self._ema.update(self.model, self.steps)
        if self.lr_scheduler is not None:
            with warnings.catch_warnings():
                if self.steps == 1:
                    # It is left out where it overflowed, which the schedule takes for a mistake.
                    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                self.lr_scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as tensors and plain values; `ema` are the averaged weights."""
        return {
            "steps": self.steps,
            "scaler": self._scaler.state_dict(),
            "ema": self._ema.module.state_dict() if self._ema else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from another stepper's state; where it has no averaged weights, from the model's."""
        self.steps = state.get("steps", 0)
        if state.get("scaler") and self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        if self._ema:
            self._ema.module.load_state_dict(state.get("ema") or self.model.state_dict())
