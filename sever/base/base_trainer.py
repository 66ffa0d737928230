"""The epoch loop: when to validate, report, save and stop."""

import logging
import re
import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sever.base.base_data_loader import BaseDataLoader
from sever.base.base_model import BaseModel
from sever.config.schema import Training
from sever.engine.checkpoint import load_weights, loading, not_finite
from sever.engine.checkpoint_keeper import CheckpointKeeper
from sever.engine.monitor import Monitor
from sever.engine.optimizer_state import load_optimizer
from sever.engine.resume import EpochPosition, how_to_resume, numbers_in
from sever.engine.run_folder import RunFolder
from sever.engine.signals import StopSignals
from sever.parallel import collectives
from sever.parallel.gradients import average_before_steps
from sever.parallel.out_of_memory import IN_TRAINING, memory_fault
from sever.utils.logger import set_verbosity
from sever.utils.seed import random_states, restore_random_states, seed_process
from sever.utils.tensorboard_writer import TensorboardWriter

_OF_ONE_CLASS = re.compile(r"_\d+$")  # dice_1, val_iou_4, …


class BaseTrainer(ABC):
    """Trains a model epoch by epoch: implement `_train_epoch`.

    A `_train_epoch` that calls `_end_step` after each step, and skips the first
    `self.position.batches` of the epoch's batches, can be stopped and resumed within an epoch. One that
    does not is stopped after its epoch.

    Args:
        model: already on `device`.
        optimizer: of the model's parameters.
        data_loader: the training batches.
        run_folder: the folder of the run.
        device: the device to train on.
        config: the plain values of the run's config, stored in its checkpoints; sections of your own are
            found there.
        training: the settings of `training:`.
        valid_data_loader: the validation batches; None trains without validation.
        lr_scheduler: the schedule of the optimizer's rates.
        lr_interval: `epoch` steps the schedule after each epoch; `step` leaves that to `_train_epoch`.
        writer: writes for TensorBoard; None writes nothing.
        signals: listens for what stops the run; None makes it from `training`.

    Attributes:
        steps_schedules: whether `_train_epoch` steps a schedule whose `lr_interval` is `step`.
        exchanges_gradients: whether `_train_epoch` averages gradients over several processes; else each
            step of the optimizer does that first.
    """

    steps_schedules = False
    exchanges_gradients = False

    def __init__(
        self,
        model: BaseModel,
        optimizer: Optimizer,
        data_loader: BaseDataLoader,
        *,
        run_folder: RunFolder,
        device: torch.device,
        config: dict[str, Any],
        training: Training,
        valid_data_loader: BaseDataLoader | None = None,
        lr_scheduler: LRScheduler | None = None,
        lr_interval: str = "epoch",
        writer: TensorboardWriter | None = None,
        signals: StopSignals | None = None,
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
        self.training = training
        self.epochs = training.epochs
        self.verbose = training.verbose
        self.writer = writer or TensorboardWriter(lambda: run_folder.tensorboard, enabled=False)
        self.monitor = Monitor(training.monitor, training.early_stop, training.keep_best)
        self.checkpoints = CheckpointKeeper(
            run_folder,
            self.monitor,
            training.epochs,
            training.save_period,
            training.keep_last,
            not_finite(model.state_dict()),
        )
        self.signals = signals or StopSignals(training.max_time, training.save_every)
        self.last_epoch = 0
        self.position = EpochPosition()  # in the epoch after `last_epoch`
        self.logger = logging.getLogger(__name__)
        self._log: dict[str, Any] = {}  # of the last epoch
        if collectives.world_size() > 1 and not self.exchanges_gradients:
            average_before_steps(optimizer)
        known = self._known_log_keys()
        if known is not None:
            self.monitor.check_key(known)
        # torch warns where the optimizer made no step yet: the first may be skipped, or was before a resume.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)

    @abstractmethod
    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        """Train one epoch.

        Args:
            epoch: from 1.

        Returns:
            The log of the epoch, `{"loss": …}` and more; keys of your own can be merged into it.
        """

    def _valid_epoch(self, epoch: int) -> dict[str, Any]:
        """Validate after an epoch; returns the log, whose keys get `val_` in front."""
        return {}

    def _begin_epoch(self, epoch: int) -> None:
        """Prepare everything that depends on the epoch; extend it for your own."""
        self.data_loader.set_epoch(epoch, self.position.batches)

    def _check_epoch(self) -> None:
        """Check what `_train_epoch` did, before its log is used."""
        return

    def _end_step(self, batches: int) -> None:
        """Save after a step where that is due, with the number of the epoch's batches that were trained.

        Raises:
            Stopped: the run was asked to stop; its state is saved.
        """
        self.position.batches = batches
        self.checkpoints.check()
        if self._raise_if_stopped():
            self.checkpoints.within_epoch(self.state_dict)
            self.signals.saved()

    def _raise_if_stopped(self) -> bool:
        """Raise `Stopped` where the run was asked to stop; else return whether a checkpoint is due."""
        stop, save_is_due = self.signals.poll()
        if stop is not None:
            self.save_within_epoch()
            raise stop
        return save_is_due

    def save_within_epoch(self) -> None:
        """Write the current state as `checkpoint_last.pth`; a collective, which ends when it is written."""
        self.checkpoints.within_epoch(self.state_dict)
        self.checkpoints.wait()

    def _known_log_keys(self) -> set[str] | None:
        """The keys that can be monitored; None where they are not known before the first epoch."""
        return None

    @property
    def is_finished(self) -> bool:
        """Whether the last epoch is over, or early stopping ended the run."""
        return self.last_epoch >= self.epochs or self.monitor.exhausted

    def train(self) -> None:
        """Train until the last epoch, or until early stopping."""
        self.logger = set_verbosity(__name__, self.verbose)
        if self.is_finished:
            self.logger.warning(
                "Nothing left to train: the run is at epoch %d, training.epochs is %d. To go on, raise it or "
                "training.early_stop with -s.",
                self.last_epoch,
                self.epochs,
            )
        try:
            with self.signals, how_to_resume(self), self.checkpoints, memory_fault(IN_TRAINING):
                while not self.is_finished:
                    self._run_epoch(self.last_epoch + 1)
        finally:
            self.writer.close()
        if self.monitor.exhausted:
            self.logger.info(
                "Stopped early: %d validations without an improvement of %s.",
                self.monitor.without_improvement,
                self.monitor.key,
            )

    def _run_epoch(self, epoch: int) -> None:
        """Train and validate an epoch, or the rest of it."""
        self._begin_epoch(epoch)
        if self.position.log is None:
            log = collectives.broadcast(self._train_epoch(epoch))
            self._check_epoch()
            self.position = EpochPosition(len(self.data_loader), log, random_states(self.device))
        log = dict(self.position.log or {})
        if self.valid_data_loader is not None:
            log |= {f"val_{key}": value for key, value in self._valid_epoch(epoch).items()}
            log = collectives.broadcast(log)
        improved = self.monitor.update(log, epoch)
        self._step_lr_scheduler(log)
        self.last_epoch, self.position = epoch, EpochPosition()
        self._log = log
        self._report(log, improved)
        if self.checkpoints.after_epoch(self.state_dict, epoch, improved):
            self.signals.saved()
        self._raise_if_stopped()  # after the last epoch too: other runs may come after this one

    def _step_lr_scheduler(self, log: dict[str, Any]) -> None:
        if isinstance(self.lr_scheduler, ReduceLROnPlateau):
            if self.monitor.key in log:
                self.lr_scheduler.step(log[self.monitor.key])
        elif self.lr_scheduler is not None and self.lr_interval == "epoch":
            self.lr_scheduler.step()

    def _report(self, log: dict[str, Any], improved: bool) -> None:
        """Log one line for the console, without the values of single classes, and one with all values."""
        shown = {key: f"{v:.4f}" if isinstance(v, float) else str(v) for key, v in log.items()}
        short = "  ".join(f"{key} {text}" for key, text in shown.items() if not _OF_ONE_CLASS.search(key))
        best = "  (best so far)" if improved else ""
        self.logger.info("epoch %d/%d  %s%s", self.last_epoch, self.epochs, short, best)
        self.logger.debug("epoch %d/%d  %s", self.last_epoch, self.epochs, shown)

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint: everything that the next batch depends on; a collective.

        The state of the main process alone is at the top, that of the others under `other_processes`.
        """
        main, *others = collectives.all_gather(self._state_of_process())
        return {
            "arch": type(self.model).__name__,
            "epoch": self.last_epoch,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitor_best": self.monitor.best,
            "config": self.config,
            "monitor": self.monitor.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict() if self.lr_scheduler else None,
            "position": self.position.state_dict(),
            **main,
            "other_processes": others,
            "optimizer_type": type(self.optimizer).__name__,
            "split": self.data_loader.split,
            "output_kinds": list(self.model.output_kinds),
            "kept_as_best": sorted(self.checkpoints.kept_as_best),
            "log": numbers_in(self._log),
        }

    def _state_of_process(self) -> dict[str, Any]:
        """The state that differs between processes, as tensors on the CPU and plain values."""
        return {"random_states": self.position.random_states or random_states(self.device)}

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Resume from a checkpoint of the same config.

        With another number of processes, random choices within a batch, such as dropout's, differ.

        Args:
            state: the checkpoint.
            source: the checkpoint's name, for messages.

        Raises:
            CheckpointError: the architecture is another one, weights are not finite, or a state does not fit.
        """
        load_weights(self.model, state["state_dict"], source)
        load_optimizer(self.optimizer, state.get("optimizer") or {}, source)
        with loading("monitor", source):
            self.monitor.load_state_dict(state["monitor"])
        if self.lr_scheduler is not None and state.get("lr_scheduler") is not None:
            with loading("lr_scheduler", source):
                self.lr_scheduler.load_state_dict(state["lr_scheduler"])
                self.lr_scheduler.state_dict()  # fails if an entry took the place of a method
        self.checkpoints.kept_as_best = set(state.get("kept_as_best", ()))
        self.last_epoch = state["epoch"]
        with loading("position", source):
            self.position = EpochPosition(**state.get("position", {}))
            if self.position.batches > len(self.data_loader) + 1:  # several processes may leave one out
                raise ValueError(f"{self.position.batches} batches of {len(self.data_loader)} are done")
        of_processes = [state, *state.get("other_processes", ())]
        rank = collectives.world().rank
        if rank >= len(of_processes):
            seed_process(self.config.get("seed", 0), rank, 1 + self.last_epoch)
        elif of_processes[rank].get("random_states") is not None:
            with loading("random_states", source):
                restore_random_states(of_processes[rank]["random_states"], self.device)
            if self.position.log is not None:
                self.position.random_states = of_processes[rank]["random_states"]
