"""Resuming a run: which checkpoint, what cannot change, the position in its epoch, how to tell the user."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sever.config.load import LoadedConfig
from sever.config.loader_args import DRAWN_BY, SPLIT_BY
from sever.config.schema import Training
from sever.config.trust import Trust, imported_code
from sever.engine.checkpoint import identity_of, load_checkpoint
from sever.engine.run_folder import RunFolder
from sever.parallel import collectives
from sever.utils.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PeerError,
    SeverError,
    Stopped,
    StorageError,
    first_few,
)

logger = logging.getLogger(__name__)

# What a run cannot change when it is resumed; `differing_keys` names keys like these.
_FIXED = (
    *("arch", "optimizer", "lr_scheduler", "loss", "seed", "name", "save_dir"),
    *("augmentation", "data_loader.type", *(f"data_loader.args.{key}" for key in (*SPLIT_BY, *DRAWN_BY))),
    *(f"training.{key}" for key in Training.of_step() if key not in Training.CHANGEABLE),
)


@dataclass
class EpochPosition:
    """How far an epoch has come.

    Attributes:
        batches: number of batches that were trained.
        log: what `_train_epoch` returned; None before that.
        random_states: states after the training of the epoch, since validation may draw numbers.
    """

    batches: int = 0
    log: dict[str, Any] | None = None
    random_states: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """What is the same in all processes."""
        return {"batches": self.batches, "log": None if self.log is None else numbers_in(self.log)}


def numbers_in(log: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a log, which checkpoints hold."""
    return {key: float(value) for key, value in log.items() if isinstance(value, int | float)}


def config_to_resume(checkpoint: Path, overrides: Sequence[str], trust: bool) -> LoadedConfig:
    """The config to resume a checkpoint's run with, after the overrides.

    Raises:
        CheckpointError: the checkpoint is an average, or not in the folder of its run.
        ConfigError: an override changes what a run cannot change, or the config names untrusted code.
    """
    state = load_checkpoint(checkpoint)
    run = RunFolder(checkpoint.resolve().parent)
    if state.get("averaged"):
        raise CheckpointError(
            f"{checkpoint}: is the mean of {len(state['averaged'])} checkpoints, which no run can go on "
            f"from. To start a new run with its weights: -c FILE -r {checkpoint}"
        )
    if not (run.config.is_file() and run.split.is_file()):
        raise CheckpointError(
            f"{checkpoint}: is not in the folder of its run (there is no config.yml and split.csv beside "
            f"it). Put it back, or start a new run from it with -c FILE -r {checkpoint}"
        )
    stored = Trust.given(trust, overrides).config_of(state, checkpoint)
    config = stored.override(overrides)
    if config.values.get("data_loader", {}).get("args", {}).get("cache_dir") and not any(
        assignment.startswith("data_loader.args.cache_dir=") for assignment in overrides
    ):  # nothing that a checkpoint names is written to
        config = config.replace({"data_loader.args.cache_dir": None})
        logger.info("Decoded images go to the run's own folder; -s data_loader.args.cache_dir names another")
    fixed = _fixed_changes(stored.values, config.values)
    if fixed:
        raise ConfigError(
            f"-s: a resumed run keeps what it began with, and cannot change {'; '.join(fixed)}. To start a "
            f"new run from the checkpoint: -c {run.config} -r {checkpoint}"
        )
    return config


def latest_run(config: LoadedConfig) -> RunFolder | None:
    """The run of a config's name that was saved last; None where no run has a checkpoint; a collective.

    Raises:
        ConfigError: the folder of a run cannot be looked into.
    """
    if not collectives.is_main():
        return collectives.broadcast(None)
    runs = RunFolder.started(config.checked.save_dir, config.checked.name)
    return collectives.broadcast(max(runs, key=_saved_at, default=None))


def _saved_at(run: RunFolder) -> float:
    """When the newest readable checkpoint was written; where there is none, when its folder changed."""
    for checkpoint in run.newest_first:
        with suppress(CheckpointError):
            state = load_checkpoint(checkpoint, lazily=True, checked=identity_of(checkpoint))  # not its sums
            return state.get("saved_at", 0.0)
    return run.path.stat().st_mtime


def newest_checkpoint(run: RunFolder, config: LoadedConfig) -> Path:
    """The newest checkpoint of a run that can be read, to go on from under a config; a collective.

    Raises:
        CheckpointError: none can be read.
        ConfigError: the run's config differs in what a run cannot change.
    """
    found = _newest(run, config) if collectives.is_main() else None
    return collectives.broadcast(found)  # type: ignore[return-value]


def _newest(run: RunFolder, config: LoadedConfig) -> Path:
    faults = []
    for checkpoint in run.newest_first:
        try:
            state = load_checkpoint(checkpoint, lazily=True)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            logger.warning("%s. Taking the checkpoint before it.", fault)
        here = {"save_dir": config.values.get("save_dir")}  # the run was found there, however it is written
        fixed = _fixed_changes({**state["config"], **here}, {**config.values, **here})
        if fixed:
            raise ConfigError(
                f"-r auto: {config.source}: the latest run, {run.path}, began with something else: "
                f"{'; '.join(fixed)}. Start a new run without -r auto, or give it another name"
            )
        logger.info("Going on from %s", checkpoint)
        return checkpoint
    raise CheckpointError(
        f"-r auto: {config.source}: the latest run, {run.path}, has no checkpoint that can be read:",
        *first_few(faults),
        "Make one readable; or, to start a new run, move that folder away or train without -r auto",
    )


def _fixed_changes(stored: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """The differences between two configs in what a run cannot change."""
    return [
        line
        for line in differing_keys(stored, values)
        if f"{line.partition(': ')[0]}.".startswith(tuple(f"{key}." for key in _FIXED))
    ]


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which two configs differ, with both values.

    Example:
        >>> differing_keys({"training": {"epochs": 2}}, {"training": {"epochs": 4}})
        ['training.epochs: 2 -> 4']
    """
    before, after = _flat(old), _flat(new)
    missing = object()
    return [
        f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}"
        for key in {**before, **after}
        if before.get(key, missing) != after.get(key, missing)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


@contextmanager
def how_to_resume(trainer: Any) -> Iterator[None]:
    """Where the training of a `BaseTrainer` ends early, save its state if possible, and say how to resume.

    An error of the program's own gets that as its last line; else it is logged.

    Raises:
        ReaderError: a process that reads samples has died.
    """
    loaders = [loader for loader in (trainer.data_loader, trainer.valid_data_loader) if loader is not None]
    try:
        yield
    except Stopped as stop:
        at, batches = trainer.position.batches, len(trainer.data_loader)
        where = f"in epoch {trainer.last_epoch + 1} after {at} of {batches} batches"
        stopped = f"The run was stopped {stop} {where if at else f'after epoch {trainer.last_epoch}'}. "
        trainer.logger.warning("%s", stopped + _to_go_on(trainer))
        raise
    except DataError as error:
        # All processes gather the state. Batches since the last step count twice in the epoch's log.
        together = collectives.world_size() == 1 or any(loader.ended_together for loader in loaders)
        if together and (trainer.position.batches or trainer.last_epoch):
            trainer.save_within_epoch()
            _add_how(error, trainer, "The state before that is saved. ")
        raise
    except StorageError as error:  # what was written before is whole
        _add_how(error, trainer)
        raise
    except OSError:
        trainer.logger.warning("%s", _to_go_on(trainer))
        raise
    except PeerError as error:
        if not collectives.is_started_by_sever():  # the launcher tells it itself
            _add_how(error, trainer)
        raise
    except RuntimeError as error:  # torch raises for a dead worker wherever the main process is
        for loader in loaders:
            if fault := loader.worker_status.fault(error, loader.sample_names):
                loader.end_workers()
                _add_how(fault, trainer)
                raise fault from error
        raise


def _add_how(error: SeverError, trainer: Any, before: str = "") -> None:
    if how := before + _to_go_on(trainer):
        error.args = (*error.args, how)


def _to_go_on(trainer: Any) -> str:
    """The command that resumes a trainer's run; nothing where it has no checkpoint."""
    newest = trainer.run_folder.to_resume
    trust = " --trust" if any(imported_code(trainer.config)) else ""
    return f"To go on: sever train -r {newest}{trust}" if newest else ""
