"""The epoch loop: when to validate, report, save and stop."""

import os
import re
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sever.base.base_data_loader import BaseDataLoader
from sever.base.base_model import BaseModel
from sever.base.monitor import Monitor
from sever.utils.checkpoint import (
    load_weights,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from sever.utils.errors import ConfigError, did_you_mean
from sever.utils.files import written_whole
from sever.utils.logger import set_verbosity
from sever.utils.saving import RunFolder
from sever.utils.visualization import TensorboardWriter

_OF_ONE_CLASS = re.compile(r"_\d+$")  # dice_1, val_iou_4, …


class BaseTrainer(ABC):
    """Trains a model epoch by epoch: implement `_train_epoch`.

    Args:
        model: already on `device`.
        optimizer: of the model's parameters.
        data_loader: the training batches.
        run_folder: where the files of the run go.
        device: to train on.
        config: the plain values of the run's config; stored in its checkpoints, and the place to look
            for sections of your own.
        epochs: passes over the training data.
        valid_data_loader: the validation batches; None trains without validation.
        lr_scheduler: of the optimizer's rates.
        lr_interval: `epoch` steps it after each epoch; `step` leaves that to `_train_epoch`.
        writer: for TensorBoard; None writes nothing.
        monitor: `min KEY`, `max KEY` or `off`.
        early_stop: validations without improvement before the end; 0 is off.
        save_period: epochs between two checkpoints; the last and the best are always saved.
        keep_best: how many of the best epochs keep their checkpoints whatever `save_period` says.
        verbose: 0 warnings only, 1 a line per epoch, 2 the progress bar too.

    Attributes:
        steps_schedules: whether `_train_epoch` steps a schedule whose `lr_interval` is `step`.
    """

    steps_schedules = False

    def __init__(
        self,
        model: BaseModel,
        optimizer: Optimizer,
        data_loader: BaseDataLoader,
        *,
        run_folder: RunFolder,
        device: torch.device,
        config: dict[str, Any],
        epochs: int,
        valid_data_loader: BaseDataLoader | None = None,
        lr_scheduler: LRScheduler | None = None,
        lr_interval: str = "epoch",
        writer: TensorboardWriter | None = None,
        monitor: str = "off",
        early_stop: int = 0,
        save_period: int = 1,
        keep_best: int = 0,
        verbose: int = 2,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.data_loader = data_loader
        self.valid_data_loader = valid_data_loader
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.run_folder = run_folder
        self.device = device
        self.config = config
        self.epochs = epochs
        self.save_period = save_period
        self.verbose = verbose
        self.writer = writer or TensorboardWriter(lambda: run_folder.tensorboard, enabled=False)
        self.monitor = Monitor(monitor, early_stop, keep_best)
        self.last_epoch = 0
        self._log: dict[str, Any] = {}  # of the last epoch
        self._kept_as_best: set[int] = set()  # epochs with a checkpoint for no other reason
        self._warned = False
        self.logger = set_verbosity("sever.trainer", verbose)
        self._check_monitored_key()

    @abstractmethod
    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        """Train one epoch.

        Args:
            epoch: from 1.

        Returns:
            The log of the epoch, `{"loss": …}` and more; keys of your own can be merged into it.
        """

    def _valid_epoch(self, epoch: int) -> dict[str, Any]:
        """Validate after an epoch.

        Returns:
            The log of the validation, without the `val_` that it gets in front.
        """
        return {}

    def _begin_epoch(self, epoch: int) -> None:
        """Put all that depends on the epoch to that epoch; extend it for your own."""
        self.data_loader.set_epoch(epoch)

    def _check_epoch(self) -> None:
        """Look at what `_train_epoch` did, before anything is made of it."""
        return

    def _steps_per_epoch(self) -> int:
        """How often `_train_epoch` steps a schedule whose `lr_interval` is `step`."""
        return len(self.data_loader)

    def _known_log_keys(self) -> set[str] | None:
        """The keys that can be monitored, if they are known before the first epoch."""
        return None

    def train(self) -> None:
        """Train until the last epoch, or until early stopping."""
        self.logger = set_verbosity("sever.trainer", self.verbose)  # the log files' setup forgot it
        if self.last_epoch >= self.epochs or self.monitor.exhausted:
            self.logger.warning(
                "Nothing left to train: the run ended after epoch %d of %d. To go on, raise "
                "training.epochs or training.early_stop with -s.",
                self.last_epoch,
                self.epochs,
            )
        while self.last_epoch < self.epochs and not self.monitor.exhausted:
            epoch = self.last_epoch + 1
            self._begin_epoch(epoch)
            log = self._train_epoch(epoch)
            self._check_epoch()
            if self.valid_data_loader is not None:
                log |= {f"val_{key}": value for key, value in self._valid_epoch(epoch).items()}
            improved = self.monitor.update(log, epoch)
            self._step_lr_scheduler(log)
            self.last_epoch = epoch
            self._log = log
            self._report(log, improved)
            self._warn_if_nothing_is_monitored(log)
            self._save(epoch, improved)
            self._drop_surpassed()
        if self.monitor.exhausted:
            self.logger.info(
                "Stopped early: %d validations without an improvement of %s.",
                self.monitor.without_improvement,
                self.monitor.key,
            )
        self.writer.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next batch depends on; the content of a checkpoint."""
        return {
            "arch": type(self.model).__name__,
            "epoch": self.last_epoch,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitor_best": self.monitor.best,
            "config": self.config,
            "monitor": self.monitor.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict() if self.lr_scheduler else None,
            "random_states": random_states(self.device),
            "optimizer_type": type(self.optimizer).__name__,
            "split": self.data_loader.split,
            "output_kinds": list(self.model.output_kinds),
            "kept_as_best": sorted(self._kept_as_best),
            "log": {key: float(value) for key, value in self._log.items() if isinstance(value, int | float)},
        }

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Go on exactly where another trainer of the same config was.

        Args:
            state: a checkpoint of that trainer.
            source: the checkpoint's name, for messages.

        Raises:
            CheckpointError: the architecture is another one.
        """
        load_weights(self.model, state["state_dict"], source)
        self.optimizer.load_state_dict(state["optimizer"])
        self.monitor.load_state_dict(state["monitor"])
        if self.lr_scheduler is not None and state["lr_scheduler"] is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self._kept_as_best = set(state.get("kept_as_best", ()))
        restore_random_states(state["random_states"], self.device)
        self.last_epoch = state["epoch"]

    def load_state_under_new_config(self, state: dict[str, Any], source: str) -> None:
        """Go on from another run's weights and epoch under this run's own settings.

        The weights are the averaged ones, where the checkpoint has them. Learning rates, weight decay and
        schedule are this config's; the optimizer's moments are taken over where the optimizer is of the
        same kind. What is best is found anew.

        Args:
            state: a checkpoint of a model of the same architecture.
            source: the checkpoint's name, for messages.

        Raises:
            CheckpointError: the architecture is another one.
        """
        load_weights(self.model, state.get("ema") or state["state_dict"], source)
        self._take_over_moments(state)
        self.last_epoch = state["epoch"]
        if self.lr_scheduler is not None and not isinstance(self.lr_scheduler, ReduceLROnPlateau):
            self.optimizer.step()  # without gradients: only so that the schedule may move on
            per_epoch = self._steps_per_epoch() if self.lr_interval == "step" else 1
            for _ in range(self.last_epoch * per_epoch):
                self.lr_scheduler.step()

    def _take_over_moments(self, state: dict[str, Any]) -> None:
        old, own = state["optimizer"], self.optimizer.state_dict()
        if old is None:
            self.logger.info("The checkpoint holds no optimizer: it starts afresh.")
            return
        sizes = [[len(group["params"]) for group in s["param_groups"]] for s in (old, own)]
        if state["optimizer_type"] == type(self.optimizer).__name__ and sizes[0] == sizes[1]:
            self.optimizer.load_state_dict({"state": old["state"], "param_groups": own["param_groups"]})
        else:
            self.logger.info("The optimizer is of another kind or has other groups: it starts afresh.")

    def _check_monitored_key(self) -> None:
        known = self._known_log_keys()
        if self.monitor.mode == "off" or known is None or self.monitor.key in known:
            return
        raise ConfigError(
            f"training.monitor: '{self.monitor.key}' will not be logged."
            f"{did_you_mean(self.monitor.key, known)} Known: {', '.join(sorted(known))}."
        )

    def _warn_if_nothing_is_monitored(self, log: dict[str, Any]) -> None:
        if self.monitor.mode != "off" and self.monitor.key not in log and not self._warned:
            self._warned = True
            keys = ", ".join(log)
            self.logger.warning("training.monitor: '%s' is not logged. Logged: %s.", self.monitor.key, keys)

    def _step_lr_scheduler(self, log: dict[str, Any]) -> None:
        if isinstance(self.lr_scheduler, ReduceLROnPlateau):
            if self.monitor.key in log:
                self.lr_scheduler.step(log[self.monitor.key])
        elif self.lr_scheduler is not None and self.lr_interval == "epoch":
            self.lr_scheduler.step()

    def _report(self, log: dict[str, Any], improved: bool) -> None:
        """A line for the console without the values of single classes; all of them for the log file."""
        shown = {
            key: f"{value:.4f}" if isinstance(value, float) else f"{value}" for key, value in log.items()
        }
        short = "  ".join(f"{key} {text}" for key, text in shown.items() if not _OF_ONE_CLASS.search(key))
        best = "  (best so far)" if improved else ""
        self.logger.info("epoch %d/%d  %s%s", self.last_epoch, self.epochs, short, best)
        self.logger.debug("epoch %d/%d  %s", self.last_epoch, self.epochs, shown)

    def _save(self, epoch: int, improved: bool) -> None:
        last = epoch == self.epochs or self.monitor.exhausted
        periodic = last or epoch % self.save_period == 0
        kept = periodic or epoch in self.monitor.best_epochs
        if kept and not periodic:
            self._kept_as_best.add(epoch)
        if kept:
            save_checkpoint(self.state_dict(), self.run_folder.epoch(epoch))
        if improved and kept:
            _share(self.run_folder.epoch(epoch), self.run_folder.best)
        elif improved:
            save_checkpoint(self.state_dict(), self.run_folder.best)

    def _drop_surpassed(self) -> None:
        """Remove checkpoints that were there only because they were among the best."""
        for epoch in self._kept_as_best - set(self.monitor.best_epochs):
            self.run_folder.epoch(epoch).unlink(missing_ok=True)
            self._kept_as_best.remove(epoch)


def _share(path: Path, other: Path) -> None:
    """Give a finished file a second name, without a second copy where the file system can."""
    with written_whole(other) as partial:
        try:
            os.link(path, partial)
        except OSError:
            shutil.copy2(path, partial)
