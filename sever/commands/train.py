"""What `sever train` does."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sever.base import BaseTrainer
from sever.commands.plan import plan_of
from sever.config.load import LoadedConfig, load_config
from sever.config.section_checks import check_sections, section_faults
from sever.engine.checkpoint import load_checkpoint
from sever.engine.data_record import check_data, record_csv
from sever.engine.profiling import profiled
from sever.engine.resume import config_to_resume, differing_keys, latest_run, newest_checkpoint
from sever.engine.run_folder import RunFolder
from sever.engine.stored_split import split_csv
from sever.engine.warm_start import warm_start
from sever.factory import TrainingObjects, build_trainer, check_batch_size, training_objects
from sever.parallel import collectives
from sever.parallel.device import choose_device, list_devices, use_device
from sever.trainer.trial_step import TriedStep, try_step
from sever.utils.errors import ConfigError, DataError
from sever.utils.files import remove_abandoned, write_file
from sever.utils.logger import check_logging_file, log_to_console, log_to_run, print_lines
from sever.utils.printing import printable
from sever.utils.seed import seed_everything, seed_process
from sever.utils.yaml_parser import dump_yaml

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Start:
    """How a run starts: from scratch, resumed from a checkpoint, or warm from one.

    Attributes:
        config: the run's config.
        checkpoint: the checkpoint to start from.
        resumed: the folder of the run to resume; None starts a new run.
        latest: whether to resume the latest run of the config's name, where there is one.
        strict_data: whether to refuse other data than those that a resumed run began with.
    """

    config: LoadedConfig
    checkpoint: Path | None = None
    resumed: RunFolder | None = None
    latest: bool = False
    strict_data: bool = False


def train(
    config_paths: Sequence[Path],
    checkpoint: Path | None,
    device: str,
    overrides: Sequence[str],
    dry_run: bool,
    all_folds: bool = False,
    latest: bool = False,
    started: float | None = None,
    trust: bool = False,
    strict_data: bool = False,
    profile_steps: int = 0,
) -> None:
    """Train each config in turn, or resume the run of a checkpoint, as `sever train` is asked to.

    Args:
        latest: resume the latest run of each config, where it has one.
        started: when the command began, by `time.monotonic`.
        strict_data: refuse to resume a run on other data than it began with.
        profile_steps: how many steps of each run are profiled.

    Raises:
        Stopped: a run was stopped; its state is saved.
    """
    log_to_console()
    check_logging_file()
    if checkpoint and not config_paths:
        config = config_to_resume(checkpoint, overrides, trust)
        run = RunFolder(checkpoint.resolve().parent)
        check_sections(config)
        starts = [_Start(config, checkpoint, run, strict_data=strict_data)]
    else:
        configs = [load_config(path, overrides, section_faults) for path in config_paths]
        for config in configs:
            check_sections(config)
        if all_folds:
            configs = [fold for config in configs for fold in _folds_of(config)]
        if latest:
            _check_names(configs)
        starts = [_Start(config, checkpoint, latest=latest, strict_data=strict_data) for config in configs]
    chosen = None if dry_run else _device_of([start.config for start in starts], device)
    if chosen is None:
        _print_plans(starts, device)
        return
    if len(starts) > 1:  # so that the mistakes of all show before the first one trains
        for start in starts:
            _build(_found(start), chosen, started)
    for start in starts:
        with ExitStack() as locks:
            _train(*_ready(start, chosen, started, locks), profile_steps)


def _check_names(configs: Sequence[LoadedConfig]) -> None:
    """Raise a `ConfigError` where the latest run of a config could be that of another."""
    source_of: dict[Path, str] = {}
    for config in configs:
        folder = Path(config.checked.save_dir) / config.checked.name
        if folder in source_of:
            raise ConfigError(
                f"-r auto: {source_of[folder]} and {config.source}: expected another name in each, by which "
                f"runs are found, received '{config.checked.name}' in both"
            )
        source_of[folder] = config.source


def _found(start: _Start, locks: ExitStack | None = None) -> _Start:
    """A start with the run that it resumes, if any, which `locks` hold from before it is read."""
    run = latest_run(start.config) if start.latest else start.resumed
    if run is None:
        return start
    if locks is not None:
        _hold(run.held, locks)
    checkpoint = newest_checkpoint(run, start.config) if start.latest else start.checkpoint
    return replace(start, checkpoint=checkpoint, resumed=run)


def _hold(lock: Callable[[], AbstractContextManager[None]], locks: ExitStack) -> None:
    """Keep other commands out until `locks` are closed; a collective."""
    if collectives.is_main():
        locks.enter_context(lock())
    collectives.barrier()


def _ready(
    start: _Start, device: torch.device, started: float | None, locks: ExitStack
) -> tuple[TrainingObjects, BaseTrainer, list[str]]:
    """Everything for a run, and its plan; its folder is made where it is new, and held."""
    objects, trainer, tried = _build(_found(start, locks), device, started)
    plan = plan_of(objects, trainer.run_folder, collectives.world_size(), tried)
    run = trainer.run_folder
    if run.is_new:
        if start.latest:  # of several commands that find no run one begins it, and the others resume it
            _hold(run.name_held, locks)
            if latest_run(start.config):
                return _ready(start, device, started, locks)
        if collectives.is_main():
            run.make()
        run.path = collectives.broadcast(run.path)
        _hold(run.held, locks)
    return objects, trainer, plan


def _print_plans(starts: Sequence[_Start], device: str) -> None:
    for start in map(_found, starts):
        devices = list_devices(device, start.config.checked.n_gpu)
        processes = max(len(devices), collectives.world_size())
        objects, trainer, tried = _build(start, use_device(devices[0]), None, processes)
        print_lines(plan_of(objects, trainer.run_folder, processes, tried))


def _device_of(configs: Sequence[LoadedConfig], device: str) -> torch.device:
    """The device of this process, for all configs."""
    counts = {len(list_devices(device, c.checked.n_gpu)): c.source for c in configs}
    if len(counts) > 1:
        received = ", ".join(f"{count} for {source}" for count, source in counts.items())
        raise ConfigError(
            f"n_gpu: expected the same number of devices for all configs, received {received}; name them "
            f"with -d, or train the configs one by one"
        )
    return choose_device(device, configs[0].checked.n_gpu)


def _folds_of(config: LoadedConfig) -> list[LoadedConfig]:
    """A config for each fold, with a name of its own."""
    folds = config.checked.data_loader.args.get("folds")
    if not isinstance(folds, int) or folds < 2:
        raise ConfigError(
            f"--all-folds: {config.source}: data_loader.args.folds: expected a number of at least 2, received"
            f" {'nothing' if folds is None else repr(folds)}; give it there, or with -s "
            f"data_loader.args.folds=5"
        )
    where, name = "data_loader.args", config.checked.name
    return [
        config.replace(
            {f"{where}.fold": fold, f"{where}.validation_split": None, "name": f"{name}-fold{fold}"}
        )
        for fold in range(1, folds + 1)
    ]


def _build(
    start: _Start, device: torch.device, started: float | None, processes: int | None = None
) -> tuple[TrainingObjects, BaseTrainer, TriedStep | None]:
    """Build everything for a run, load its checkpoint and try a step; nothing is written yet."""
    objects, trainer = _built(start, device, started)
    processes = processes or collectives.world_size()
    check_batch_size(start.config, objects.data_loader, processes)
    source = str(start.checkpoint) if start.checkpoint else None
    return objects, trainer, try_step(trainer, start.config, processes, source)


def _built(start: _Start, device: torch.device, started: float | None) -> tuple[TrainingObjects, BaseTrainer]:
    config, checkpoint, checked = start.config, start.checkpoint, start.config.checked
    run = start.resumed or RunFolder.planned(checked.save_dir, checked.name)
    if collectives.is_main():
        run.check_can_be_made() if run.is_new else run.check_can_be_written()
    seed_everything(checked.seed)
    state = load_checkpoint(checkpoint) if checkpoint else None
    cache_dir = None if run.is_new else run.path.parents[1] / "cache"  # and not where a checkpoint says
    objects = training_objects(config, device, state, not run.is_new, cache_dir)
    rank = collectives.world().rank
    if rank:  # the main process draws as if it were alone
        seed_process(checked.seed, rank)
    _check_same_files(objects, state)
    record = objects.data_loader.data_record
    if not run.is_new and collectives.is_main():
        check_data(record, run.data, start.strict_data)
    if state and not run.is_new:
        steps = state["epoch"] * len(objects.data_loader) + state.get("position", {}).get("batches", 0)
        trainer = build_trainer(objects, run, first_step=steps + 1, started=started)
        trainer.load_state_dict(state, str(checkpoint))
        _warn_of_later_checkpoints(trainer)
        return objects, trainer
    trainer = build_trainer(objects, run, started=started)
    if state:
        warm_start(trainer, state, str(checkpoint))
        if trainer.last_epoch >= trainer.epochs:
            raise ConfigError(
                f"{config.source}: training.epochs: is {trainer.epochs}, but {checkpoint} is at epoch "
                f"{trainer.last_epoch} already; raise it"
            )
        for line in differing_keys(state["config"], config.values):
            logger.info("Differs from %s: %s", checkpoint, printable(line))
    return objects, trainer


def _check_same_files(objects: TrainingObjects, state: dict[str, Any] | None) -> None:
    """Raise a `DataError` where processes on several machines read different files; a collective."""
    read = {
        "the config": objects.config.values,
        "the images, or their split": objects.data_loader.split,
        "the checkpoint": state and (state["epoch"], state.get("position"), state.get("saved_at")),
    }
    digests = {what: hashlib.sha256(repr(values).encode()).hexdigest() for what, values in read.items()}
    main, *others = collectives.all_gather(digests)
    for rank, other in enumerate(others, start=1):
        if other != main:
            differing = " and ".join(what for what in read if main[what] != other[what])
            raise DataError(
                f"process {rank} read another state of {differing} than the main process. All machines need "
                f"the same files: put data and runs on a disk that they share"
            )


def _warn_of_later_checkpoints(trainer: BaseTrainer) -> None:
    run = trainer.run_folder
    later = [epoch for epoch in run.epochs if epoch > trainer.last_epoch]
    if later:
        logger.warning(
            "%s holds %d checkpoints of later epochs. They are replaced as the run goes on from epoch %d; "
            "until then they are those of the earlier course.",
            *(run.path, len(later), trainer.last_epoch),
        )


def _train(
    objects: TrainingObjects, trainer: BaseTrainer, plan: Sequence[str], profile_steps: int = 0
) -> None:
    run = trainer.run_folder
    if not collectives.is_main():
        trainer.train()
        return
    collectives.publish_run_folder(run.path)
    remove_abandoned(run.path)
    log_to_run(run.logs)
    write_file(run.config, dump_yaml(objects.config.values))
    write_file(run.split, split_csv(objects.data_loader.split))
    if objects.data_loader.data_record and not run.data.is_file():
        write_file(run.data, record_csv(objects.data_loader.data_record))
    for line in [*plan, f"{'run folder':14s} {run.path}"]:
        logger.info("%s", line)
    was_finished = trainer.is_finished
    with profiled(trainer.optimizer, profile_steps, run.tensorboard):
        trainer.train()
    if not was_finished:
        kept = [path for path in (run.best, run.epoch(trainer.last_epoch)) if path.is_file()]
        logger.info("Trained. Checkpoints: %s", ", ".join(map(str, kept)))
