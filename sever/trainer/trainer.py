"""The training step and the validation of a run, and what is logged of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from sever.base import BaseTrainer, Metric
from sever.engine.outputs import Outputs, named_losses, part_of
from sever.parallel import collectives
from sever.parallel.batch import Shard, all_reduce_losses, nan_unless_all_finite, sharded_batch
from sever.trainer.evaluate import MeanLosses, Tally, evaluate, forward, fresh_copy, update_metrics
from sever.trainer.step import Stepper, steps_in
from sever.utils.errors import ConfigError, TrainingError
from sever.utils.progress import progress
from sever.utils.visualization import overlay

_STEPS_PER_SCALAR = 10  # steps between two values of the loss in the log file and TensorBoard
_NAMED = 18  # images of a batch that a message names
_PICTURES = 4  # sheets drawn after each validation


class Trainer(BaseTrainer):
    """Trains with a loss, and scores with metrics on both halves of the data.

    Args:
        *args: those of `BaseTrainer`.
        loss: (logits, targets) -> the loss, or a dict of its parts.
        metrics: whose values are logged, with `val_` in front for the validation half.
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
        self._losses = MeanLosses(finite_only=True)  # of the training half of an epoch
        self._counted: list[dict[str, Any] | None] = []  # by it and the metrics, before a resume
        self._last_good_batch = 0  # batches of the epoch up to the last step that was not skipped
        super().__init__(*args, **kwargs)
        self.stepper = Stepper(
            self.model,
            self.optimizer,
            self.device,
            self.training,
            self.lr_scheduler if self.lr_interval == "step" else None,
        )
        self._steps_before = 0

    def _begin_epoch(self, epoch: int) -> None:
        super()._begin_epoch(epoch)
        self._steps_before = self.stepper.steps
        if hasattr(self.loss, "set_epoch"):
            self.loss.set_epoch(epoch)
        if self.training.unfreeze_encoder > 1:
            self.model.freeze_encoder(epoch < self.training.unfreeze_encoder)

    def _check_epoch(self) -> None:
        nothing_left = self.position.batches >= len(self.data_loader)
        if self.stepper.is_needed and self.stepper.steps == self._steps_before and not nothing_left:
            raise ConfigError(
                f"trainer: {type(self).__name__}._train_epoch steps the optimizer by itself, so that "
                f"training.accumulate, clip_grad_norm, ema_decay, precision: fp16, lr_scheduler.interval: "
                f"step and several devices have no effect. Call self.stepper.backward(loss, number, batches) "
                f"instead of loss.backward() and optimizer.step(), or leave these out."
            )

    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        self.model.train()
        self.optimizer.zero_grad()
        self._restore_counts()
        done, batches = self.position.batches, len(self.data_loader)
        for number, batch in enumerate(
            progress(self.data_loader, self._label("epoch", epoch), done), start=done
        ):
            inputs, masks = self.data_loader.to_device(batch, self.device)
            targets = self.model.targets(masks)
            shard = self.data_loader.shard or Shard(0, len(inputs), len(inputs))
            with sharded_batch(shard):
                outputs = forward(self.stepper.model_for(number, batches), inputs, self.training.precision)
                losses = named_losses(self.loss, outputs, targets)
            step_is_over = self.stepper.backward(losses["loss"], number, batches, shard.weight)

            self._losses.update(nan_unless_all_finite(losses), len(inputs))
            self._update_metrics(outputs, targets)
            if number == 0:
                self._write_batch(epoch, inputs, targets)
            if number % _STEPS_PER_SCALAR == 0:
                self._write_step(epoch, number, all_reduce_losses(losses, shard)["loss"].item())
            if step_is_over:
                self._look_for_skipped(epoch, number, losses, shard)
                self._end_step(number + 1)
        log = Tally(self._losses, self.metrics).over_processes().compute_together()
        self._write_epoch(epoch, log)
        return log

    def _restore_counts(self) -> None:
        """Forget what was counted, or in the middle of an epoch go on from it."""
        self._losses = MeanLosses(finite_only=True)
        self._last_good_batch = self.position.batches
        for metric in self.metrics:
            metric.reset()
        if self.position.batches:
            for counted in filter(None, self._counted):
                earlier = Tally(MeanLosses(finite_only=True), [fresh_copy(metric) for metric in self.metrics])
                earlier.load_state_dict(counted, self.device)
                Tally(self._losses, self.metrics).merge(earlier)
        self._counted = []

    def _look_for_skipped(
        self, epoch: int, number: int, losses: dict[str, torch.Tensor], shard: Shard
    ) -> None:
        """Warn of a step that was skipped, and end a run that does nothing else any more."""
        in_a_row = self.stepper.skipped_in_a_row
        if not in_a_row:
            self._last_good_batch = number + 1
            return
        losses = all_reduce_losses(losses, shard)
        first = number - number % self.stepper.accumulate
        images = ", ".join(self.data_loader.names_in_epoch(first, number + 1)[:_NAMED])
        bad = [f"{name} {value.item()}" for name, value in losses.items() if not value.isfinite().all()]
        what = ", ".join(bad) or f"gradients (loss {losses['loss'].item():.4g})"
        groups = enumerate(self.optimizer.param_groups)
        rates = ", ".join(f"{group.get('name', place)} {group['lr']:.3g}" for place, group in groups)
        place = f"epoch {epoch}, batch {number + 1}: not finite: {what}"
        self.logger.warning("%s. Step skipped. Images: %s", place, images)
        if in_a_row < self.training.skip_limit:
            return
        self.position.batches = self._last_good_batch
        self._save_within_epoch()
        raise TrainingError(
            f"{place}, as in {in_a_row} steps in a row. Images of the last one: {images}. Rates: {rates}. "
            f"{self.run_folder.last} holds the weights from before these steps; the largest is "
            f"{self._largest_weight():.3g}, and where they are spoilt already, start from an earlier "
            f"checkpoint or anew. Lower the rates, cut gradients with training.clip_grad_norm, or leave "
            f"fp16; sever verify looks at the images"
        )

    def _largest_weight(self) -> float:
        return max((p.detach().abs().max().item() for p in self.model.parameters() if p.numel()), default=0.0)

    def _valid_epoch(self, epoch: int) -> dict[str, Any]:
        assert self.valid_data_loader is not None
        first: list[tuple[torch.Tensor, Outputs, Outputs]] = []
        self.stepper.share_statistics()
        tally = evaluate(
            self.stepper.averaged_model,
            self.valid_data_loader,
            self.loss,
            lambda _: [fresh_copy(metric) for metric in self.metrics],
            self.device,
            label=self._label("validation", epoch),
            on_first_batch=lambda *batch: first.append(batch),
            precision=self.training.precision,
            before_batch=self._raise_if_stopped,
        )
        log = tally.compute_together()
        # Not before all is over: a validation that was stopped is done again, and would write them twice.
        self.writer.set_step(epoch * len(self.data_loader), "valid")
        for batch in first:
            self._write_pictures(*batch)
        self._write_scalars(log)
        return log

    @property
    def _is_whole(self) -> bool:
        return not self.stepper.is_stepping

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next batch depends on; `ema` are the averaged weights, if there are any."""
        return super().state_dict() | self.stepper.state_dict()

    def _state_of_process(self) -> dict[str, Any]:
        counted = None
        if self.position.batches and self.position.log is None:
            counted = Tally(self._losses, self.metrics).state_dict()
        return super()._state_of_process() | {"counted": counted}

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Go on exactly where another trainer of the same config was; see `BaseTrainer`."""
        super().load_state_dict(state, source)
        self.stepper.load_state_dict(state)
        counted = [of_process.get("counted") for of_process in (state, *state.get("other_processes", ()))]
        world = collectives.world()
        if len(counted) == world.size:
            self._counted = [counted[world.rank]]
        else:
            self._counted = counted if world.is_main else []

    def steps_per_epoch(self) -> int:
        """How often the optimizer is stepped in an epoch."""
        return steps_in(len(self.data_loader), self.stepper.accumulate)

    def _known_log_keys(self) -> set[str] | None:
        own = [getattr(type(self), name) for name in ("_train_epoch", "_valid_epoch")]
        parts = getattr(getattr(self.loss, "func", self.loss), "part_names", None)
        if own != [Trainer._train_epoch, Trainer._valid_epoch] or parts is None:
            return None  # there may be keys of the user's own
        parts = {"loss", *parts}
        keys = parts | {name for metric in self.metrics for name in metric.compute()}
        return keys | {f"val_{key}" for key in keys if self.valid_data_loader is not None}

    @torch.no_grad()
    def _update_metrics(self, outputs: Outputs, targets: Outputs) -> None:
        if self.metrics:
            update_metrics(self.metrics, self.model.probabilities(outputs), targets)

    def _label(self, what: str, epoch: int) -> str:
        return f"{what} {epoch}/{self.epochs}" if self.verbose > 1 else ""

    def _write_scalars(self, log: dict[str, Any]) -> None:
        for name, value in log.items():
            self.writer.add_scalar(name, value)

    def _write_step(self, epoch: int, number: int, loss: float) -> None:
        steps = len(self.data_loader)
        self.logger.debug("epoch %d/%d  step %d/%d  loss %.4f", epoch, self.epochs, number, steps, loss)
        self.writer.set_step((epoch - 1) * steps + number + 1, "step")
        self.writer.add_scalar("loss", loss)

    def _write_epoch(self, epoch: int, log: dict[str, Any]) -> None:
        self.writer.set_step(epoch * len(self.data_loader), "train")
        self.writer.add_scalar("epoch", epoch)
        self._write_scalars(log)
        for number, group in enumerate(self.optimizer.param_groups):
            self.writer.add_scalar(f"lr_{group.get('name', number)}", group["lr"])
        self.writer.set_step(self.writer.step, "")
        if self.writer.enabled:
            for name, parameter in self.model.named_parameters():
                if parameter.isfinite().all():  # a histogram of NaN is an error
                    self.writer.add_histogram(name, parameter.detach().cpu())

    def _write_batch(self, epoch: int, inputs: torch.Tensor, targets: Outputs) -> None:
        """Draw the first samples of an epoch as they were augmented, with their masks below."""
        masks = part_of(targets, "masks")
        if not self.writer.enabled or inputs.ndim != 4 or masks.ndim != 4:
            return
        self.writer.set_step((epoch - 1) * len(self.data_loader) + 1, "train")
        for number in range(min(_PICTURES, len(inputs))):
            grey, of_sample = _as_grey(inputs[number]), masks[number].cpu().numpy()
            picture = np.concatenate([overlay(grey, shown) for shown in (of_sample[:0], of_sample)])
            self.writer.add_image(f"sample_{number}", picture, dataformats="HWC")

    def _write_pictures(self, inputs: torch.Tensor, targets: Outputs, probs: Outputs) -> None:
        if not self.writer.enabled or inputs.ndim != 4:
            return
        of_masks, truths = part_of(probs, "masks"), part_of(targets, "masks")
        for number in range(min(_PICTURES, len(inputs))):
            grey = _as_grey(inputs[number])
            if of_masks.ndim != 4:
                self.writer.add_image(f"input_{number}", grey[None])
                continue
            predicted = (of_masks[number] > 0.5).cpu().numpy()
            truth = truths[number].cpu().numpy()
            nothing = predicted[:0]
            rows = [overlay(grey, masks) for masks in (nothing, truth, predicted)]
            picture = np.concatenate(rows)
            self.writer.add_image(f"input_truth_prediction_{number}", picture, dataformats="HWC")


def _as_grey(image: torch.Tensor) -> np.ndarray:
    """A normalised image (C, H, W) -> (H, W) uint8, its darkest pixel black, its lightest white."""
    plane = image[0].float()
    low, high = plane.min(), plane.max()
    return ((plane - low) / (high - low).clamp(min=1e-6) * 255).byte().cpu().numpy()
