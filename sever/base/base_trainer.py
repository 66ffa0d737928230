"""The epoch loop: when to validate, report, save and stop."""

import re
import time
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sever.base.base_data_loader import BaseDataLoader
from sever.base.base_model import BaseModel
from sever.config.schema import Training
from sever.engine.checkpoint import load_weights, random_states, restore_random_states
from sever.engine.checkpoint_keeper import CheckpointKeeper
from sever.engine.monitor import Monitor
from sever.engine.position import EpochPosition, numbers_of
from sever.engine.run_folder import RunFolder
from sever.engine.schedules import step_schedule
from sever.engine.signals import StopSignals
from sever.parallel import collectives
from sever.parallel.device import memory_fault
from sever.parallel.gradients import average_before_steps
from sever.utils.errors import ConfigError, DataError, PeerError, Stopped, did_you_mean
from sever.utils.logger import set_verbosity
from sever.utils.seed import seed_process
from sever.utils.visualization import TensorboardWriter

_LESS_MEMORY = (
    "Lower data_loader.args.batch_size (training.accumulate makes up for it) or the augmentation's crop, or "
    "take training.precision bf16; where validation fails, lower data_loader.args.validation_batch_size"
)
_OF_ONE_CLASS = re.compile(r"_\d+$")  # dice_1, val_iou_4, …


class BaseTrainer(ABC):
    """Trains a model epoch by epoch: implement `_train_epoch`.

    A `_train_epoch` that calls `_end_step` after each step can be stopped in the middle of an epoch, and
    goes on there: `self.position.batches` of the loader's batches are left out then. One that does not is
    stopped after its epoch.

    Args:
        model: already on `device`.
        optimizer: of the model's parameters.
        data_loader: the training batches.
        run_folder: where the files of the run go.
        device: to train on.
        config: the plain values of the run's config; stored in its checkpoints, and the place to look
            for sections of your own.
        training: the settings of `training:`.
        valid_data_loader: the validation batches; None trains without validation.
        lr_scheduler: of the optimizer's rates.
        lr_interval: `epoch` steps it after each epoch; `step` leaves that to `_train_epoch`.
        writer: for TensorBoard; None writes nothing.
        signals: what ends the run before its end; None makes them of `training`.

    Attributes:
        steps_schedules: whether `_train_epoch` steps a schedule whose `lr_interval` is `step`.
        exchanges_gradients: whether `_train_epoch` averages gradients over several processes. Where it does
            not, that is done before each step of the optimizer.
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
            run_folder, self.monitor, training.epochs, training.save_period, training.keep_last
        )
        self.signals = signals or StopSignals(training.max_time, training.save_every)
        self.last_epoch = 0
        self.position = EpochPosition()  # in the epoch after it
        self._log: dict[str, Any] = {}  # of the last epoch
        self._warned = False
        self.logger = set_verbosity(__name__, self.verbose)
        if collectives.world_size() > 1 and not self.exchanges_gradients:
            average_before_steps(optimizer)
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
        self.data_loader.set_epoch(epoch, self.position.batches)

    def _end_step(self, batches: int) -> None:
        """Tell that a step is over, when the run may be stopped or saved.

        Args:
            batches: of the epoch that were trained.

        Raises:
            Stopped: the run was asked to stop; its state is saved.
        """
        self.position.batches = batches
        if self._raise_if_stopped():
            self._save_within_epoch()

    def _raise_if_stopped(self) -> bool:
        """Stop where the run was asked to; returns whether a checkpoint is due."""
        stop, save_is_due = self.signals.poll()
        if stop is not None:
            self._save_within_epoch()
            raise stop
        return save_is_due

    def _save_within_epoch(self) -> None:
        self.checkpoints.within_epoch(self.state_dict)
        self.signals.saved()

    def _check_epoch(self) -> None:
        """Look at what `_train_epoch` did, before anything is made of it."""
        return

    def steps_per_epoch(self) -> int:
        """How often `_train_epoch` steps a schedule whose `lr_interval` is `step`."""
        return len(self.data_loader)

    def _known_log_keys(self) -> set[str] | None:
        """The keys that can be monitored, if they are known before the first epoch."""
        return None

    def train(self) -> None:
        """Train until the last epoch, or until early stopping."""
        self.logger = set_verbosity(__name__, self.verbose)  # the log files' setup forgot it
        if self.last_epoch >= self.epochs or self.monitor.exhausted:
            self.logger.warning(
                "Nothing left to train: the run ended after epoch %d of %d. To go on, raise "
                "training.epochs or training.early_stop with -s.",
                self.last_epoch,
                self.epochs,
            )
        alone = collectives.world_size() == 1
        try:
            with self.signals, memory_fault(_LESS_MEMORY):
                while self.last_epoch < self.epochs and not self.monitor.exhausted:
                    self._run_epoch(self.last_epoch + 1)
        except Stopped as stop:
            self._report_stop(stop)
            raise
        except DataError:
            loaders = (self.data_loader, self.valid_data_loader)
            self._save_what_there_is(alone or any(loader and loader.ended_together for loader in loaders))
            raise
        except PeerError:
            self._tell_how_to_go_on()
            raise
        except RuntimeError as error:  # torch tells of a dead worker wherever the main process is
            fault = self._reader_fault(error)
            if fault is None:
                raise
            self._save_what_there_is(alone)
            raise fault from error
        finally:
            self.writer.close()
        if self.monitor.exhausted:
            self.logger.info(
                "Stopped early: %d validations without an improvement of %s.",
                self.monitor.without_improvement,
                self.monitor.key,
            )

    def _run_epoch(self, epoch: int) -> None:
        """Train and validate an epoch, or what is left of it."""
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
        self._warn_if_nothing_is_monitored(log)
        if self.checkpoints.after_epoch(self.state_dict, epoch, improved):
            self.signals.saved()
        self._raise_if_stopped()  # after the last epoch too: other runs may come after this one

    def _reader_fault(self, error: RuntimeError) -> DataError | None:
        """What the worker was reading whose death an error tells of, whichever loader's it was."""
        loaders = [loader for loader in (self.data_loader, self.valid_data_loader) if loader is not None]
        faults = (loader.worker_status.fault(error, loader.sample_names) for loader in loaders)
        return next((fault for fault in faults if fault is not None), None)

    @property
    def _is_whole(self) -> bool:
        """Whether the weights are those after a step, not in the middle of one."""
        return True

    def _save_what_there_is(self, together: bool) -> None:
        """Save the state after the last step, for when the data are mended.

        Of a step of several batches, those that came before the fault are counted twice in the epoch's log.

        Args:
            together: all processes are here, without which there is no state to save.
        """
        if together and self._is_whole and (self.position.batches or self.last_epoch):
            self._save_within_epoch()
            self.logger.warning("To go on when that is mended: sever train -r %s", self.run_folder.last)

    def _tell_how_to_go_on(self) -> None:
        """After the loss of another process, with which no state can be put together any more."""
        newest = self.run_folder.newest_first
        if newest and not collectives.is_started_by_sever():
            self.logger.warning("To go on: sever train -r %s", newest[0])

    def _report_stop(self, stop: Stopped) -> None:
        at, batches = self.position.batches, len(self.data_loader)
        where = f"in epoch {self.last_epoch + 1} after {at} of {batches} batches" if at else ""
        self.logger.warning(
            "The run was stopped %s %s. To go on: sever train -r %s",
            stop,
            where or f"after epoch {self.last_epoch}",
            self.run_folder.last,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next batch depends on; the content of a checkpoint.

        All processes put it together. What is the main process's own in it stands under `other_processes`
        for the others.
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
            "saved_at": time.time(),
            "kept_as_best": sorted(self.checkpoints.kept_as_best),
            "log": numbers_of(self._log),
        }

    def _state_of_process(self) -> dict[str, Any]:
        """What each process has of its own, as tensors on the CPU and plain values."""
        return {"random_states": self.position.random_states or random_states(self.device)}

    def _load_state_of_process(self, state: dict[str, Any]) -> None:
        """Go on from what `_state_of_process` gave, in this process or, of a run that had fewer, in none."""
        if "random_states" in state:
            restore_random_states(state["random_states"], self.device)
            if self.position.log is not None:
                self.position.random_states = state["random_states"]

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Go on exactly where another trainer of the same config was.

        With another number of processes random choices within a batch, such as dropout's, are others.

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
        self.checkpoints.kept_as_best = set(state.get("kept_as_best", ()))
        self.last_epoch = state["epoch"]
        self.position = EpochPosition.of(state)
        of_processes = [state, *state.get("other_processes", ())]
        rank = collectives.world().rank
        if rank >= len(of_processes):
            seed_process(self.config.get("seed", 0), rank, 1 + self.last_epoch)
        self._load_state_of_process(of_processes[rank] if rank < len(of_processes) else {})

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
            step_schedule(self.lr_scheduler)

    def _report(self, log: dict[str, Any], improved: bool) -> None:
        """A line for the console without the values of single classes; all of them for the log file."""
        shown = {
            key: f"{value:.4f}" if isinstance(value, float) else f"{value}" for key, value in log.items()
        }
        short = "  ".join(f"{key} {text}" for key, text in shown.items() if not _OF_ONE_CLASS.search(key))
        best = "  (best so far)" if improved else ""
        self.logger.info("epoch %d/%d  %s%s", self.last_epoch, self.epochs, short, best)
        self.logger.debug("epoch %d/%d  %s", self.last_epoch, self.epochs, shown)
