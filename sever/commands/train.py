"""What `sever train` does."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sever.base import BaseTrainer
from sever.commands.plan import plan_of
from sever.config.load import LoadedConfig, load_config
from sever.config.section_checks import check_sections, section_faults
from sever.engine.checkpoint import load_checkpoint
from sever.engine.resume import config_to_resume, differing_keys, latest_checkpoint
from sever.engine.run_folder import RunFolder
from sever.factory import TrainingObjects, build_trainer, check_batch_size, training_objects
from sever.parallel import collectives
from sever.parallel.device import choose_device, list_devices, use_device
from sever.utils.errors import ConfigError, DataError
from sever.utils.files import remove_abandoned, write_file
from sever.utils.logger import log_to_console, log_to_run, print_lines
from sever.utils.seed import seed_everything, seed_process
from sever.utils.yaml_parser import dump_yaml

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Start:
    """How a run starts: from scratch, resumed from a checkpoint, or warm from one."""

    config: LoadedConfig
    checkpoint: Path | None = None
    resume: bool = False


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
) -> None:
    """Train each config in turn, or resume the run of a checkpoint, as `sever train` is asked to.

    Args:
        latest: resume the latest run of each config, where it has one.
        started: when the command began, by `time.monotonic`.

    Raises:
        Stopped: a run was stopped; its state is saved.
    """
    log_to_console()
    if checkpoint and not config_paths:
        starts = [_Start(config_to_resume(checkpoint, overrides, trust), checkpoint, resume=True)]
    else:
        configs = [load_config(path, overrides, section_faults) for path in config_paths]
        if all_folds:
            configs = [fold for config in configs for fold in _folds_of(config)]
        starts = [_Start(config, checkpoint) for config in configs]
    for start in starts:
        check_sections(start.config)
    chosen = None if dry_run else _device_of([start.config for start in starts], device)
    if latest:
        newest = [latest_checkpoint(start.config) for start in starts]
        starts = [_Start(s.config, path, path is not None) for s, path in zip(starts, newest, strict=True)]
    if chosen is None:
        _print_plans(starts, device)
        return
    if len(starts) > 1:  # so that the mistakes of all show before the first one trains
        for start in starts:
            _build(start, chosen, started)
    for start in starts:
        _train(*_build(start, chosen, started))


def _print_plans(starts: Sequence[_Start], device: str) -> None:
    for start in starts:
        devices = list_devices(device, start.config.checked.n_gpu)
        objects, _ = _build(start, use_device(devices[0]), None)
        processes = max(len(devices), collectives.world_size())
        check_batch_size(start.config, objects.data_loader, processes)
        print_lines(plan_of(objects, processes))


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


def _build(start: _Start, device: torch.device, started: float | None) -> tuple[TrainingObjects, BaseTrainer]:
    """Build everything for a run, and load its checkpoint; nothing is written yet."""
    config, checkpoint, checked = start.config, start.checkpoint, start.config.checked
    seed_everything(checked.seed)
    state = load_checkpoint(checkpoint) if checkpoint else None
    objects = training_objects(config, device, state, start.resume)
    rank = collectives.world().rank
    if rank:  # the main process draws as if it were alone
        seed_process(checked.seed, rank)
    _check_same_files(objects, state)
    if checkpoint and state and start.resume:
        steps = state["epoch"] * len(objects.data_loader) + state.get("position", {}).get("batches", 0)
        run = RunFolder(checkpoint.resolve().parent)
        trainer = build_trainer(objects, run, first_step=steps + 1, started=started)
        trainer.load_state_dict(state, str(checkpoint))
        _warn_of_later_checkpoints(trainer)
        return objects, trainer
    trainer = build_trainer(objects, RunFolder.planned(checked.save_dir, checked.name), started=started)
    if state:
        trainer.warm_start(state, str(checkpoint))
        if trainer.last_epoch >= trainer.epochs:
            raise ConfigError(
                f"{config.source}: training.epochs: is {trainer.epochs}, but {checkpoint} is at epoch "
                f"{trainer.last_epoch} already; raise it"
            )
        for line in differing_keys(state["config"], config.values):
            logger.info("Differs from %s: %s", checkpoint, line)
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


def _train(objects: TrainingObjects, trainer: BaseTrainer) -> None:
    plan = plan_of(objects, collectives.world_size())
    run = trainer.run_folder
    if collectives.is_main() and not run.path.is_dir():
        run.make()
    run.path = collectives.broadcast(run.path)
    if not collectives.is_main():
        trainer.train()
        return
    collectives.publish_run_folder(run.path)
    with run.held():
        remove_abandoned(run.path)
        log_to_run(run.logs)
        write_file(run.config, dump_yaml(objects.config.values))
        write_file(run.split, split_csv(objects.data_loader.split))
        for line in [*plan, f"{'run folder':14s} {run.path}"]:
            logger.info("%s", line)
        was_finished = trainer.is_finished
        trainer.train()
        if not was_finished:
            kept = [path for path in (run.best, run.epoch(trainer.last_epoch)) if path.is_file()]
            logger.info("Trained. Checkpoints: %s", ", ".join(map(str, kept)))


def split_csv(split: Mapping[str, Sequence[str]] | None) -> str:
    """A split as CSV: which image went where.

    Example:
        >>> print(split_csv({"training": ["a.jpg"], "validation": ["b.jpg"]}))
        image,split
        a.jpg,training
        b.jpg,validation
        <BLANKLINE>
    """
    rows = [(name, part) for part, names in (split or {}).items() for name in names]
    return pd.DataFrame(rows, columns=["image", "split"]).to_csv(index=False, lineterminator="\n")
