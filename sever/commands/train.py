"""What `sever train` does."""

import csv
import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sever.base import BaseTrainer
from sever.commands.plan import plan_of
from sever.config.check import check_sections, section_faults
from sever.config.load import LoadedConfig, load_config
from sever.engine.checkpoint import load_checkpoint
from sever.engine.resume import config_to_continue, differing_keys, latest_checkpoint
from sever.engine.run_folder import RunFolder
from sever.engine.warm_start import warm_start
from sever.factory import (
    Parts,
    check_batch_size,
    trainer_of,
    training_parts,
)
from sever.parallel import collectives
from sever.parallel.device import choose_device, list_devices, use_device
from sever.utils.errors import ConfigError, DataError
from sever.utils.files import atomic_write
from sever.utils.logger import log_to_console, log_to_run, print_lines
from sever.utils.seed import seed_everything, seed_process
from sever.utils.yaml12 import dump_yaml

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        config: of the run.
        checkpoint: to go on from.
        new_run: in a new folder; else in that of the checkpoint, exactly where it was.
    """

    config: LoadedConfig
    checkpoint: Path | None = None
    new_run: bool = True


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
    """Train each config in turn, or continue the run of a checkpoint.

    Args:
        config_paths: experiment files.
        checkpoint: alone it is continued in its own run folder; with a config it starts a new one.
        device: see `choose_device`.
        overrides: `KEY=VALUE`.
        dry_run: print the plan only.
        all_folds: train each config once for each of its folds.
        latest: continue the latest run of each config, where there is one.
        started: when the command began, by `time.monotonic`.
        trust: import what the checkpoint's config names, whatever it is.

    Raises:
        Stopped: a run was stopped; its state is saved.
    """
    log_to_console()
    goes_on = checkpoint is not None and not config_paths
    if checkpoint and goes_on:
        configs = [config_to_continue(checkpoint, overrides, trust)]
    else:
        configs = [load_config(path, overrides, section_faults) for path in config_paths]
    if all_folds:
        configs = [fold for config in configs for fold in _folds_of(config)]
    for config in configs:
        check_sections(config)
    if not dry_run:
        chosen = _device_of(configs, device)
    starts = [Start(config, checkpoint, new_run=not goes_on) for config in configs]
    if latest:
        found = map(latest_checkpoint, configs)
        starts = [
            Start(config, newest, newest is None) for config, newest in zip(configs, found, strict=True)
        ]
    if dry_run:
        _print_plans(starts, device)
        return
    runs = [partial(_prepared, start, chosen, started) for start in starts]
    if len(runs) > 1:  # all of them before the first one starts, and one at a time in memory
        for prepare in runs:
            prepare()
    for prepare in runs:
        _train(*prepare())


def _print_plans(starts: Sequence[Start], device: str) -> None:
    for start in starts:
        devices = list_devices(device, start.config.checked.n_gpu)
        parts, _ = _prepared(start, use_device(devices[0]), None)
        processes = max(len(devices), collectives.world_size())
        check_batch_size(start.config, parts.data_loader, processes)
        print_lines(plan_of(parts, processes))


def _device_of(configs: Sequence[LoadedConfig], device: str) -> torch.device:
    """The device of this process, for all configs.

    Raises:
        SeveralDevices: there are several, and this process is alone.
        ConfigError: the configs want different devices.
    """
    first, *others = configs
    for other in others:
        devices, of_other = (list_devices(device, c.checked.n_gpu) for c in (first, other))
        if of_other != devices:
            raise ConfigError(
                f"{other.source}: n_gpu: expected the same devices as for {first.source}, {len(devices)}, "
                f"received {len(of_other)}; name them with -d, or train the configs one by one"
            )
    return choose_device(device, configs[0].checked.n_gpu)


def _folds_of(config: LoadedConfig) -> list[LoadedConfig]:
    """The config with each of its folds held out, under a name of its own."""
    folds = config.checked.data_loader.args.get("folds")
    if not isinstance(folds, int) or folds < 2:
        raise ConfigError(
            f"--all-folds: {config.source}: data_loader.args.folds: expected a number of at least 2, received"
            f" {'nothing' if folds is None else repr(folds)}; give it there, or with -s "
            f"data_loader.args.folds=5"
        )
    return [
        config.replace(
            {
                "data_loader.args.fold": fold,
                "data_loader.args.validation_split": None,
                "name": f"{config.checked.name}-fold{fold}",
            }
        )
        for fold in range(1, folds + 1)
    ]


def _prepared(start: Start, device: torch.device, started: float | None) -> tuple[Parts, BaseTrainer]:
    """All that a run needs, its trainer at the checkpoint's state; nothing is written yet."""
    config, checkpoint, checked = start.config, start.checkpoint, start.config.checked
    seed_everything(checked.seed)
    state = load_checkpoint(checkpoint) if checkpoint else None
    parts = training_parts(config, device, state, start.new_run)
    rank = collectives.world().rank
    if rank:  # the main process draws on as if it were alone
        seed_process(checked.seed, rank)
    _check_alike(parts, state)
    planned = RunFolder.planned(checked.save_dir, checked.name)
    if state is None or checkpoint is None:
        return parts, trainer_of(parts, planned, started=started)
    if not start.new_run:
        steps = state["epoch"] * len(parts.data_loader) + state.get("position", {}).get("batches", 0)
        run = RunFolder(checkpoint.resolve().parent)
        trainer = trainer_of(parts, run, first_step=steps + 1, started=started)
        trainer.load_state_dict(state, str(checkpoint))
        _warn_of_later_checkpoints(trainer)
        return parts, trainer
    trainer = trainer_of(parts, planned, started=started)
    warm_start(trainer, state, str(checkpoint))
    if trainer.last_epoch >= trainer.epochs:
        raise ConfigError(
            f"{config.source}: training.epochs: is {trainer.epochs}, but {checkpoint} is at epoch "
            f"{trainer.last_epoch} already; raise it"
        )
    for line in differing_keys(state["config"], config.values):
        logger.info("Differs from %s: %s", checkpoint, line)
    return parts, trainer


def _check_alike(parts: Parts, state: dict[str, Any] | None) -> None:
    """See that all processes read the same, each on its own machine; called together.

    Raises:
        DataError: they did not.
    """
    read = {
        "the config": parts.config.values,
        "the images, or their split": parts.data_loader.split,
        "the checkpoint": state and (state["epoch"], state.get("position"), state.get("saved_at")),
    }
    digests = {what: hashlib.sha256(repr(values).encode()).hexdigest() for what, values in read.items()}
    main, *others = collectives.all_gather(digests)
    for rank, of_other in enumerate(others, start=1):
        differing = [what for what in digests if main[what] != of_other[what]]
        if differing:
            raise DataError(
                f"process {rank} read another state of {' and '.join(differing)} than the main process. All "
                f"machines need the same files: put data and runs on a disk that they share"
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


def _train(parts: Parts, trainer: BaseTrainer) -> None:
    plan = plan_of(parts, collectives.world_size())
    run = trainer.run_folder
    if collectives.is_main() and not run.path.is_dir():
        run.make()
    run.path = collectives.broadcast(run.path)
    if not collectives.is_main():
        trainer.train()
        return
    collectives.publish_run_folder(run.path)
    with run.held():
        run.remove_unfinished()
        _train_in_folder(parts, trainer, plan)


def _train_in_folder(parts: Parts, trainer: BaseTrainer, plan: Sequence[str]) -> None:
    run = trainer.run_folder
    run.logs.mkdir(exist_ok=True)
    log_to_run(run.logs)
    with atomic_write(run.config) as unfinished:
        unfinished.write_text(dump_yaml(parts.config.values), encoding="utf-8")
    with atomic_write(run.split) as unfinished:
        unfinished.write_text(split_csv(parts.data_loader.split), encoding="utf-8")
    for line in plan:
        logger.info("%s", line)
    logger.info("%-14s %s", "run folder", run.path)
    if trainer.last_epoch >= trainer.epochs or trainer.monitor.exhausted:
        trainer.train()  # which says why there is nothing left
        return
    trainer.train()
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "split"])
    writer.writerows([name, half] for half, names in (split or {}).items() for name in names)
    return text.getvalue()
