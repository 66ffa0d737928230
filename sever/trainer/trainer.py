"""The training loop, the validation of a run, and what is logged of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from sever.base import BaseTrainer, Metric
from sever.base.base_model import Outputs, forward, part_of
from sever.engine.checkpoint import loading
from sever.parallel import collectives
from sever.parallel.sharded_batch import (
    Shard,
    all_reduce_losses,
    named_losses,
    nan_unless_all_finite,
    sharded_batch,
)
from sever.trainer.compiled import compiles
from sever.trainer.evaluate import Tally, evaluate, merged
from sever.trainer.step import Stepper
from sever.trainer.tensorboard import write_histograms, write_pictures, write_scalars
from sever.utils.errors import ConfigError, TrainingError
from sever.utils.progress import progress

_STEPS_PER_SCALAR = 10  # steps between two values of the loss in the log file and TensorBoard
_NAMED = 18  # images of a batch that a message names

Losses = dict[str, torch.Tensor]


class Trainer(BaseTrainer):
    """Trains with a loss, and scores training and validation with metrics.

    Args:
        *args: those of `BaseTrainer`.
        loss: (logits, targets) -> the loss, or a dict of its parts.
        metrics: logged for training, and with `val_` in front for validation.
        **kwargs: those of `BaseTrainer`.
    """

    steps_schedules = True
    exchanges_gradients = True

    def __init__(
        self,
        *args: Any,
        loss: nn.Module | Callable,
        metrics: Sequence[Metric] = (),
        **kwargs: Any,
    ) -> None:
        self.loss = loss
        self.metrics = list(metrics)
        super().__init__(*args, **kwargs)
        self.stepper = Stepper(
            self.model,
            self.optimizer,
            self.device,
            self.training,
            self.lr_scheduler if self.lr_interval == "step" else None,
            compiles(self.training.compile, self.device, len(self.data_loader) * self.epochs),
        )
        self._tally = Tally(self.metrics, finite_only=True)  # of the epoch's training

    def _begin_epoch(self, epoch: int) -> None:
        super()._begin_epoch(epoch)
        self.stepper.begin_epoch()
        if hasattr(self.loss, "set_epoch"):
            self.loss.set_epoch(epoch)
        if self.training.unfreeze_encoder > 1:
            self.model.freeze_encoder(epoch < self.training.unfreeze_encoder)

    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        self.model.train()
        self.optimizer.zero_grad()
        if not self.position.batches:  # else they were loaded
            self._tally.reset()
        batches = len(self.data_loader)
        for number, inputs, targets, shard in self._batches_left(epoch):
            with sharded_batch(shard):
                outputs = forward(self.stepper.model_for(number, batches), inputs, self.training.precision)
                losses = named_losses(self.loss, outputs, targets)
            is_step = self.stepper.backward(losses["loss"], number, batches, shard.weight)
            self._count(losses, outputs, targets, shard)
            self._write_batch(epoch, number, inputs, targets, losses, shard)
            if is_step:
                self._check_skipped(epoch, number, losses, shard)
                self._end_step(number + 1)
        log = merged([self._tally], self._tally.empty_copy()).compute_together()
        self._write_epoch(epoch, log)
        return log

    def _batches_left(self, epoch: int) -> Iterator[tuple[int, torch.Tensor, Outputs, Shard]]:
        """The epoch's remaining batches: number from 0, images and targets on the device, shard."""
        done = self.position.batches
        shown = progress(self.data_loader, self._label("epoch", epoch), done)
        for number, batch in enumerate(shown, start=done):
            inputs, masks = self.data_loader.to_device(batch, self.device)
            shard = self.data_loader.shard or Shard(0, len(inputs), len(inputs))
            yield number, inputs, self.model.targets(masks), shard

    @torch.no_grad()
    def _count(self, losses: Losses, outputs: Outputs, targets: Outputs, shard: Shard) -> None:
        probs = self.model.probabilities(outputs) if self.metrics else outputs
        self._tally.update(nan_unless_all_finite(losses), probs, targets, shard.images)

    def _check_epoch(self) -> None:
        had_batches = self.position.batches < len(self.data_loader)
        if self.stepper.is_needed and not self.stepper.steps_in_epoch and had_batches:
            raise ConfigError(
                f"trainer: {type(self).__name__}._train_epoch steps the optimizer by itself, so that "
                f"training.accumulate, clip_grad_norm, ema_decay, precision: fp16, lr_scheduler.interval: "
                f"step and several devices have no effect. Call self.stepper.backward(loss, number, batches) "
                f"instead of loss.backward() and optimizer.step(), or leave these out."
            )

    def _check_skipped(self, epoch: int, number: int, losses: Losses, shard: Shard) -> None:
        """Warn of a skipped step, and end the run after `training.skip_limit` of them in a row."""
        in_a_row = self.stepper.skipped_in_a_row
        if not in_a_row:
            return
        losses = all_reduce_losses(losses, shard)
        first = number - number % self.stepper.accumulate
        images = ", ".join(self.data_loader.names_in_epoch(first, number + 1)[:_NAMED])
        bad = [f"{name} {value.item()}" for name, value in losses.items() if not value.isfinite().all()]
        other = "gradients" if not self.stepper.gradient_norm.isfinite() else "statistics of BatchNorm"
        what = ", ".join(bad) or f"{other} (loss {losses['loss'].item():.4g})"
        where = f"epoch {epoch}, batch {number + 1}: not finite: {what}"
        self.logger.warning("%s. Step skipped. Images: %s", where, images)
        if in_a_row < self.training.skip_limit:
            return
        self.position.batches = max(0, first - (in_a_row - 1) * self.stepper.accumulate)
        self.save_within_epoch()
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in self._rates().items())
        largest = max(
            (p.detach().abs().max().item() for p in self.model.parameters() if p.numel()), default=0
        )
        raise TrainingError(
            f"{where}, as in {in_a_row} steps in a row. Images of the last one: {images}. Rates: {rates}. "
            f"{self.run_folder.last} holds the weights from before these steps; the largest is "
            f"{largest:.3g}, and if they are corrupted already, start from an earlier "
            f"checkpoint or anew. Lower the rates, cut gradients with training.clip_grad_norm, or leave "
            f"fp16; sever verify looks at the images"
        )

    def _rates(self) -> dict[str, float]:
        groups = enumerate(self.optimizer.param_groups)
        return {str(group.get("name", number)): group["lr"] for number, group in groups}

    def _valid_epoch(self, epoch: int) -> dict[str, Any]:
        assert self.valid_data_loader is not None
        first: list[tuple[torch.Tensor, Outputs, Outputs]] = []
        self.stepper.share_statistics()
        tally = evaluate(
            self.stepper.averaged_model,
            self.valid_data_loader,
            self.loss,
            lambda _: self._tally.empty_copy().metrics,
            self.device,
            label=self._label("validation", epoch),
            on_first_batch=lambda *batch: first.append(batch),
            precision=self.training.precision,
            before_batch=self._raise_if_stopped,
        )
        log = tally.compute_together()
        # Not before all is over: a validation that was stopped is done again, and would write them twice.
        self.writer.set_step(epoch * len(self.data_loader), "valid")
        for inputs, targets, probs in first:
            predicted = part_of(probs, "masks") > 0.5
            write_pictures(
                self.writer, "input_truth_prediction", inputs, part_of(targets, "masks"), predicted
            )
        write_scalars(self.writer, log)
        return log

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint; `ema` are the averaged weights, None without `ema_decay`."""
        return super().state_dict() | self.stepper.state_dict()

    def _state_of_process(self) -> dict[str, Any]:
        within_epoch = self.position.batches and self.position.log is None
        counted = self._tally.state_dict() if within_epoch else None
        return super()._state_of_process() | {"counted": counted}

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Resume from a checkpoint; see `BaseTrainer`."""
        super().load_state_dict(state, source)
        self.stepper.load_state_dict(state, source)
        counted = [of_process.get("counted") for of_process in (state, *state.get("other_processes", ()))]
        world = collectives.world()
        if len(counted) == world.size:
            counted = [counted[world.rank]]
        elif not world.is_main:
            counted = []
        self._tally.reset()
        with loading("counted", source):
            for of_process in filter(None, counted):
                self._tally.merge_state(of_process, self.device)

    def _known_log_keys(self) -> set[str] | None:
        own = [getattr(type(self), name) for name in ("_train_epoch", "_valid_epoch")]
        parts = getattr(getattr(self.loss, "func", self.loss), "part_names", None)
        if own != [Trainer._train_epoch, Trainer._valid_epoch] or parts is None:
            return None  # there may be keys of the user's own
        keys = {"loss", *parts, *(name for metric in self.metrics for name in metric.compute())}
        return keys | {f"val_{key}" for key in keys if self.valid_data_loader is not None}

    def _label(self, what: str, epoch: int) -> str:
        return f"{what} {epoch}/{self.epochs}" if self.verbose > 1 else ""

    def _write_batch(
        self, epoch: int, number: int, inputs: torch.Tensor, targets: Outputs, losses: Losses, shard: Shard
    ) -> None:
        """Draw the first batch of an epoch as it was augmented, and write the loss of some batches."""
        steps = len(self.data_loader)
        step = (epoch - 1) * steps + number + 1
        if number == 0:
            self.writer.set_step(step, "train")
            write_pictures(self.writer, "sample", inputs, part_of(targets, "masks"))
        if number % _STEPS_PER_SCALAR == 0:
            loss = all_reduce_losses(losses, shard)["loss"].item()
            self.logger.debug("epoch %d/%d  step %d/%d  loss %.4f", epoch, self.epochs, number, steps, loss)
            self.writer.set_step(step, "step")
            self.writer.add_scalar("loss", loss)

    def _write_epoch(self, epoch: int, log: dict[str, Any]) -> None:
        self.writer.set_step(epoch * len(self.data_loader), "train")
        rates = {f"lr_{name}": rate for name, rate in self._rates().items()}
        write_scalars(self.writer, {"epoch": epoch, **log, **rates})
        self.writer.set_step(self.writer.step, "")
        write_histograms(self.writer, self.model)
