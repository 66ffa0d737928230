"""From a loss to an optimizer step: precision, accumulation, clipping, schedule, averaged weights."""

import warnings
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sever.base import BaseModel
from sever.config.schema import Training
from sever.engine.checkpoint import load_weights, loading
from sever.parallel import collectives
from sever.parallel.gradients import average_gradients
from sever.trainer.compiled import CompiledModel


class Stepper:
    """Steps an optimizer after every `accumulate` batches.

    A step whose loss, gradients or statistics of BatchNorm are not finite is skipped: weights, moments and
    averages stay, and the statistics are put back to those before it. The schedule moves on.

    With several processes gradients are averaged over them, and all take a step or none does. Gradients
    are exchanged during the backward pass where the forward pass calls `model_for`, else before the step.

    Args:
        model: already on `device`.
        optimizer: of the model's parameters.
        device: the device to train on.
        training: gives `precision`, `accumulate`, `clip_grad_norm` and `ema_decay`. With `fp16` the loss is
            scaled, so that small gradients are not lost (https://arxiv.org/abs/1710.03740).
        lr_scheduler: stepped after each step; None where the rates do not change within an epoch.
        compiles: whether `model_for` gives the model compiled.

    Attributes:
        steps: number of steps so far, skipped ones included.
        steps_in_epoch: number of steps since the epoch began or was resumed.
        skipped: number of skipped steps so far.
        skipped_in_a_row: number of skipped steps since the last one that was taken.
        gradient_norm: norm of the last step's gradients, before they were clipped.
    """

    def __init__(
        self,
        model: BaseModel,
        optimizer: Optimizer,
        device: torch.device,
        training: Training,
        lr_scheduler: LRScheduler | None = None,
        compiles: bool = False,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.accumulate = training.accumulate
        self.clip_grad_norm = training.clip_grad_norm
        self.lr_scheduler = lr_scheduler
        self.steps = self.steps_in_epoch = self.skipped = self.skipped_in_a_row = 0
        self._statistics = [b for b in model.buffers() if b.is_floating_point()]
        self._statistics_before = [b.detach().clone() for b in self._statistics]
        # A buffer of the user's own may be infinite from the start, such as a mask of attention.
        self._must_stay_finite = [b for b in self._statistics if b.numel() and b.isfinite().all()]
        self._loss_is_finite = torch.ones((), dtype=torch.bool, device=device)  # and statistics are
        self.gradient_norm = torch.zeros(())
        self._scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        self._ema = ModelEmaV3(model, training.ema_decay, use_warmup=True) if training.ema_decay else None
        self._parallel: DistributedDataParallel | None = None
        self._compiles = compiles
        self._compiled: CompiledModel | None = None  # of the model, or of `_parallel`
        self._exchanged: list[str] = []  # names of the parameters whose gradients `_parallel` exchanges
        self._is_exchanging = False

    def begin_epoch(self) -> None:
        """Note the model's statistics, which may have been loaded, to restore them after a skipped step."""
        self.steps_in_epoch = 0
        _copy(self._statistics, self._statistics_before)
        if self._ema and not self.steps:
            self._ema.module.load_state_dict(self.model.state_dict())

    @property
    def averaged_model(self) -> BaseModel:
        """The model that is validated: the one of averaged weights, or the trained one."""
        return self._ema.module if self._ema else self.model

    @property
    def is_needed(self) -> bool:
        """Whether a plain `optimizer.step()` after each batch would leave something out."""
        return bool(
            self.accumulate > 1
            or self.clip_grad_norm
            or self._ema
            or self.lr_scheduler
            or self._scaler.is_enabled()
            or collectives.world_size() > 1
        )

    def model_for(self, number: int, batches: int) -> nn.Module | CompiledModel:
        """What to call in the forward pass of batch `number` (from 0) of an epoch of so many batches.

        It is the model, or with several processes a wrapper that exchanges its gradients; or either compiled.
        """
        model = self.model if collectives.world_size() == 1 else self._exchanging(number, batches)
        if not self._compiles:
            return model
        if self._compiled is None or self._compiled.model is not model:
            self._compiled = CompiledModel(model)
        return self._compiled

    def _exchanging(self, number: int, batches: int) -> nn.Module:
        """The model in a wrapper that exchanges its gradients after the last batch of a step."""
        trained = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        if self._parallel is None or trained != self._exchanged:  # the encoder froze or thawed
            self._parallel, self._exchanged = None, trained
            # Some architectures leave the last stages of some encoders unused.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of the name that older versions know
                self._parallel = DistributedDataParallel(
                    self.model,
                    broadcast_buffers=False,
                    find_unused_parameters=True,
                    gradient_as_bucket_view=True,
                )
        first, together = self._group_of(number, batches)
        self._parallel.require_backward_grad_sync = number + 1 == first + together
        self._is_exchanging = True
        return self._parallel

    def share_statistics(self) -> None:
        """Broadcast BatchNorm's statistics of the main process, the ones in checkpoints; a collective."""
        averaged = self._ema.module.state_dict().values() if self._ema else ()
        collectives.broadcast_tensors([*self.model.buffers(), *averaged])

    def _group_of(self, number: int, batches: int) -> tuple[int, int]:
        """The first of the batches that are accumulated with a batch, and how many they are."""
        first = number - number % self.accumulate
        return first, min(self.accumulate, batches - first)

    def backward(self, loss: torch.Tensor, number: int, batches: int, weight: float = 1.0) -> bool:
        """Compute the gradients of a batch, and step after the last of `accumulate` batches.

        Args:
            loss: of the batch, a mean over its images.
            number: of the batch in the epoch, from 0.
            batches: number of batches in the epoch.
            weight: of this process's shard of the batch, 1 on average over the processes.

        Returns:
            Whether a step is over, taken or skipped.
        """
        first, together = self._group_of(number, batches)
        self._loss_is_finite &= loss.detach().isfinite()
        share = weight / together
        self._scaler.scale(loss * share if share != 1 else loss).backward()
        is_step = number + 1 == first + together
        if is_step:
            self._step()
        return is_step

    def _step(self) -> None:
        if not self._is_exchanging:
            average_gradients(self.model.parameters())
        self._is_exchanging = False
        self._scaler.unscale_(self.optimizer)
        learning = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None])
        if self.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(learning, self.clip_grad_norm, norm)
        self.gradient_norm = norm
        if self._must_stay_finite:
            self._loss_is_finite &= nn.utils.get_total_norm(self._must_stay_finite, torch.inf).isfinite()
        self._loss_is_finite = collectives.all_reduce_and(self._loss_is_finite)
        # The one place where a step waits for the device: what is not finite must not reach the weights.
        taken = bool(self._loss_is_finite & norm.isfinite())
        self.steps += 1
        self.steps_in_epoch += 1
        if taken:
            self._scaler.step(self.optimizer)
            self.skipped_in_a_row = 0
            _copy(self._statistics, self._statistics_before)
            if self._ema:
                self._ema.update(self.model, self.steps)
        else:
            _copy(self._statistics_before, self._statistics)
        self._scaler.update()  # from the gradients that `unscale_` saw, also of a skipped step
        # That fp16 overflows now and then is how its scale is found; below 1 it helps no more.
        is_search = self._scaler.is_enabled() and self._scaler.get_scale() >= 1
        if not taken and not (bool(self._loss_is_finite) and is_search):
            self.skipped += 1
            self.skipped_in_a_row += 1
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.optimizer.zero_grad()
        self._loss_is_finite.fill_(True)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; `ema` are the averaged weights, None where there are none."""
        return {
            "steps": self.steps,
            "skipped": self.skipped,
            "scaler": self._scaler.state_dict(),
            "ema": self._ema.module.state_dict() if self._ema else None,
        }

    def load_state_dict(self, state: dict[str, Any], source: str = "the state") -> None:
        """Load another stepper's state; averaged weights that it lacks begin as the model's.

        Args:
            state: what `state_dict` returned.
            source: the checkpoint's name, for messages.

        Raises:
            CheckpointError: the state does not fit.
        """
        self.steps = state.get("steps", 0)
        self.skipped = state.get("skipped", 0)
        if state.get("scaler") and self._scaler.is_enabled():
            with loading("scaler", source):
                self._scaler.load_state_dict(state["scaler"])
        if self._ema:
            load_weights(self._ema.module, state.get("ema") or self.model.state_dict(), f"{source}: ema")


def _copy(tensors: list[torch.Tensor], to: list[torch.Tensor]) -> None:
    if tensors:
        torch._foreach_copy_(to, tensors)
