"""The composition root: the only file where a config becomes objects."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sever.base import BaseDataLoader, BaseModel, BaseTrainer, Metric
from sever.base.base_metric import FunctionMetric
from sever.config import registry
from sever.config.check import class_ids_of, group_settings, testing_args
from sever.config.load import LoadedConfig, read_section
from sever.config.registries import (
    AUGMENTATIONS,
    LOADERS,
    LOSSES,
    METRICS,
    MODELS,
    OPTIMIZERS,
    SCHEDULERS,
    TRAINERS,
)
from sever.config.registry import bound_args, build
from sever.config.schema import Predict, Section
from sever.data_loader.augmentation.pipelines import Augmentation
from sever.data_loader.data_loaders import PredictionDataLoader
from sever.data_loader.faults import FaultyDataError
from sever.engine.checkpoint import load_weights
from sever.engine.run_folder import RunFolder
from sever.engine.signals import StopSignals
from sever.model.compatibility import check_monitored_loss, check_outputs
from sever.model.optimizer import parameter_groups, with_lookahead
from sever.model.scheduler import with_warmup
from sever.parallel import collectives
from sever.parallel.device import check_precision
from sever.predictor.postprocess import postprocess
from sever.trainer.step import steps_in
from sever.utils.errors import ConfigError, DataError
from sever.utils.visualization import TensorboardWriter

logger = logging.getLogger(__name__)

# Below so many images BatchNorm's statistics are poor: https://arxiv.org/abs/1803.08494, figure 1.
_SMALL_SHARD = 8


@dataclass
class Parts:
    """The objects of a training run."""

    config: LoadedConfig
    device: torch.device
    data_loader: BaseDataLoader
    valid_data_loader: BaseDataLoader | None
    model: BaseModel
    loss: nn.Module | Callable
    metrics: list[Metric]
    optimizer: Optimizer
    lr_scheduler: LRScheduler | None


def training_parts(
    config: LoadedConfig, device: torch.device, state: dict[str, Any] | None = None, new_run: bool = True
) -> Parts:
    """Everything that a trainer needs but its folder.

    Args:
        config: checked by `check_sections`.
        device: to train on.
        state: the checkpoint to go on from.
        new_run: keep the checkpoint's split only where it is one of the same images, not in any case.
    """
    check_precision(device, config.checked.training.precision, config.at("training.precision"))
    data_loader = training_loader(config, device)
    valid_data_loader = data_loader.split_validation(_split_of(config, state, new_run, data_loader))
    _share_batches(config, data_loader)
    if not len(data_loader):
        raise ConfigError(
            f"{config.at('data_loader.args')}: {len(data_loader.indices)} images make no full batch; lower "
            f"batch_size, or leave out drop_last"
        )
    with collectives.main_first():  # it may download
        model = _model_of(config, download=not state)
    if synchronises(config, data_loader.batch_size, collectives.world_size(), device):
        model = convert_sync_batchnorm(model)
    model = model.to(device)
    optimizer = _optimizer_of(config, model)
    loss, metrics = loss_of(config), metrics_of(config)
    check_outputs(config, model, loss, metrics)
    check_monitored_loss(config, loss)
    return Parts(
        config,
        device,
        data_loader,
        valid_data_loader,
        model,
        loss.to(device) if isinstance(loss, nn.Module) else loss,
        metrics,
        optimizer,
        lr_scheduler_of(config, optimizer, steps_per_epoch(config, data_loader)),
    )


def _share_batches(config: LoadedConfig, data_loader: BaseDataLoader) -> None:
    """Divide each batch over the processes, where there are several."""
    check_batch_size(config, data_loader, collectives.world_size())
    if collectives.world_size() > 1:
        data_loader.shard_batches(collectives.world())
        data_loader.lockstep = True


def check_batch_size(config: LoadedConfig, data_loader: BaseDataLoader, processes: int) -> None:
    """Refuse batches that are too small for so many processes.

    Raises:
        ConfigError: some processes would never have an image.
    """
    if data_loader.batch_size < processes and max(map(len, data_loader.whole_batches)) < processes:
        raise ConfigError(
            f"{config.at('data_loader.args.batch_size')}: expected at least {processes}, an image for each "
            f"of {processes} processes, received {data_loader.batch_size}; raise it, or take fewer devices"
        )


def synchronises(config: LoadedConfig, batch_size: int, processes: int, device: torch.device) -> bool:
    """Whether BatchNorm takes its statistics over several processes; torch's does so on GPUs alone."""
    chosen = config.checked.training.sync_bn
    small = batch_size < _SMALL_SHARD * processes
    return processes > 1 and device.type == "cuda" and (small if chosen is None else chosen)


def _split_of(
    config: LoadedConfig, state: dict[str, Any] | None, new_run: bool, data_loader: BaseDataLoader
) -> dict[str, list[str]] | None:
    """The split of the checkpoint, if the run goes on with it."""
    split = state.get("split") if state else None
    if split is None or not state or not new_run or _goes_on_with_split(config, state, data_loader):
        return split
    logger.warning(
        "The validation images are chosen anew, since the images or the way to choose them differ from "
        "the checkpoint's run: its model may have been trained on some of them."
    )
    return None


def _model_of(config: LoadedConfig, download: bool) -> BaseModel:
    arch = config.checked.arch
    model = build(MODELS, arch if download else _without_download(arch), config.at("arch"))
    if config.checked.training.unfreeze_encoder > 1 and "encoder" not in model.parameter_groups():
        raise ConfigError(
            f"{config.at('training.unfreeze_encoder')}: {arch.type} has no encoder that could be frozen; "
            f"leave the key out"
        )
    return model


def _optimizer_of(config: LoadedConfig, model: BaseModel) -> Optimizer:
    section, where = config.checked.optimizer, config.at("optimizer")
    settings = group_settings(config.checked)
    groups = registry.call(parameter_groups, where, "", model, settings, section.decay_biases_and_norms)
    optimizer_class = OPTIMIZERS.find(section.type, where)
    optimizer = registry.call(optimizer_class, where, section.type, groups, **section.args)
    if section.lookahead is None:
        return optimizer
    lookahead = section.lookahead.model_dump()
    return registry.call(with_lookahead, f"{where}.lookahead", "it", optimizer, **lookahead)


def trainer_of(
    parts: Parts, run: RunFolder, first_step: int = 0, started: float | None = None
) -> BaseTrainer:
    """The trainer of a run; nothing is written yet.

    Args:
        parts: from `training_parts`.
        run: where its files will go.
        first_step: TensorBoard's events from here on are dropped.
        started: when `training.max_time` began, by `time.monotonic`; None is now.
    """
    checked = parts.config.checked
    training = checked.training
    written = training.tensorboard and collectives.is_main()
    writer = TensorboardWriter(lambda: run.tensorboard, written, first_step)
    ready = {
        **training.model_dump(),  # for trainers of the user's own that take one by its name
        "model": parts.model,
        "optimizer": parts.optimizer,
        "data_loader": parts.data_loader,
        "valid_data_loader": parts.valid_data_loader,
        "lr_scheduler": parts.lr_scheduler,
        "loss": parts.loss,
        "metrics": parts.metrics,
        "run_folder": run,
        "device": parts.device,
        "config": parts.config.values,
        "writer": writer,
        "training": training,
        "signals": StopSignals(training.max_time, training.save_every, started),
        "lr_interval": checked.lr_scheduler.interval if checked.lr_scheduler else "epoch",
    }
    return build(TRAINERS, checked.trainer, parts.config.at("trainer"), **ready)


def trained_model(config: LoadedConfig, state: dict[str, Any], checkpoint: Path) -> BaseModel:
    """The model with a checkpoint's weights, on the CPU: the averaged ones, where it has them."""
    model = build(MODELS, _without_download(config.checked.arch), config.at("arch"))
    load_weights(model, state.get("ema") or state["state_dict"], str(checkpoint))
    return model


def training_loader(config: LoadedConfig, device: torch.device) -> BaseDataLoader:
    """The loader of the training images, before validation images are split off.

    Raises:
        DataError: with the first faults of each sort in its data.
    """
    ready = _loader_ready(config, device)
    where = config.at("data_loader")
    try:
        return build(LOADERS, config.checked.data_loader, where, **ready, training=True)
    except FaultyDataError as error:
        file = config.source if Path(config.source).is_file() else "FILE"
        raise DataError(f"{error}\nFor all faults, run sever verify -c {file} with the same -s") from error


def testing_loader(config: LoadedConfig, state: dict[str, Any], device: torch.device) -> BaseDataLoader:
    """The images of `testing:`; without that section the validation images of the checkpoint's run."""
    if config.checked.testing is None:
        if state.get("averaged") and state.get("split") is None:
            raise ConfigError(
                f"{config.source}: has no 'testing:' section, and the averaged runs validated different "
                f"images, on which others of them were trained; name labelled images with -s testing.csv=…"
            )
        loader = training_loader(config, device).split_validation(state.get("split"))
        if loader is None:
            raise ConfigError(
                f"{config.source}: has no 'testing:' section, and the run has no validation images"
            )
        logger.info("No 'testing:' section: scoring the run's validation images.")
        return loader
    section = config.checked.data_loader.model_copy(update={"args": testing_args(config)})
    ready = _loader_ready(config, device)
    return build(LOADERS, section, config.at("testing"), **ready, training=False)


def _loader_ready(config: LoadedConfig, device: torch.device) -> dict[str, Any]:
    return {
        "classes": len(class_ids_of(config)),
        "augmentation": augmentation_of(config),
        "seed": config.checked.seed,
        "pin_memory": device.type == "cuda",
    }


def augmentation_of(config: LoadedConfig) -> Augmentation:
    """The augmentation; without a section, one that only normalises."""
    section = config.checked.augmentation
    if section is None:
        return Augmentation([])
    return build(AUGMENTATIONS, section, config.at("augmentation"))


def loss_of(config: LoadedConfig) -> nn.Module | Callable:
    """The loss: an object of a class, or a function with its args."""
    return build(LOSSES, config.checked.loss, config.at("loss"), classes=len(class_ids_of(config)))


def metrics_of(config: LoadedConfig) -> list[Metric]:
    """The metrics; plain functions are wrapped."""
    metrics: list[Metric] = []
    for section in config.checked.metrics:
        where = config.at("metrics")
        thing = METRICS.find(section.type, where)
        if isinstance(thing, type):
            if not issubclass(thing, Metric):
                raise ConfigError(f"{where}: '{section.type}' is not derived from sever.base.Metric")
            metrics.append(build(METRICS, section, where, class_ids=class_ids_of(config)))
        else:
            name = section.type.rpartition(".")[2]
            metrics.append(FunctionMetric(partial(thing, **section.args), name))
    return metrics


def steps_per_epoch(config: LoadedConfig, data_loader: BaseDataLoader) -> int:
    """How often the optimizer is stepped in an epoch."""
    return steps_in(len(data_loader), config.checked.training.accumulate)


def lr_scheduler_of(config: LoadedConfig, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler | None:
    """The schedule of an optimizer's rates, if the config has one.

    Args:
        config: whose `lr_scheduler:` is built.
        optimizer: whose rates it sets.
        steps_per_epoch: of the optimizer; a schedule by epoch is not told.
    """
    section = config.checked.lr_scheduler
    if section is None:
        return None
    where = config.at("lr_scheduler")
    ready = {"steps_per_epoch": steps_per_epoch if section.interval == "step" else 1}
    make = partial(build, SCHEDULERS, section, where, **ready)
    if section.warmup is None:
        return make(optimizer=optimizer)
    settings = section.warmup.model_dump()
    return registry.call(
        with_warmup,
        f"{where}.warmup",
        "it",
        lambda optimizer: make(optimizer=optimizer),
        optimizer,
        **settings,
    )


def postprocess_of(settings: Predict) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
    """(probabilities (C, H, W), label probabilities (C,) or None) -> masks (C, H, W), as `predict:` says."""
    numbers = settings.postprocessing
    return lambda probs, label_probs: postprocess(probs, label_probs=label_probs, **numbers)


def _without_download(arch: Section) -> Section:
    """The same model for a checkpoint's weights: no pretrained ones are fetched first."""
    if "encoder_weights" not in bound_args(MODELS, arch, "arch"):
        return arch
    return arch.model_copy(update={"args": {**arch.args, "encoder_weights": None}})


def _goes_on_with_split(config: LoadedConfig, state: dict[str, Any], data_loader: BaseDataLoader) -> bool:
    """Whether a new run from a checkpoint keeps that one's split: of the same images, chosen alike."""
    before = _held_out_by(read_section(state["config"]["data_loader"]).args)
    now = _held_out_by(config.checked.data_loader.args)
    named = {name for half in state["split"].values() for name in half}
    return bool(data_loader.validation_split) and named == set(data_loader.sample_names) and before == now


def _held_out_by(args: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a loader that say which images are validated, with their defaults."""
    folds, share = args.get("folds"), args.get("validation_split")
    if share is None and folds is None:
        share = 0.2
    return share, folds, args.get("fold") or (folds and 1), args.get("groups")


def prediction_loader(
    config: LoadedConfig, folder: Path, names: list[str] | None, pin_memory: bool, named_by: str
) -> PredictionDataLoader:
    """The sheets of a folder, in batches as `predict:` says or, where it does not, as `testing:` does."""
    settings, loader_args = config.checked.predict, testing_args(config)
    # On a CPU a thread reads ahead, and worker processes would take cores from the models.
    default = loader_args.get("num_workers", 0) if pin_memory else 0
    workers = default if settings.num_workers is None else settings.num_workers
    return registry.call(
        PredictionDataLoader,
        config.at("predict"),
        "its data loader",
        folder,
        names,
        settings.batch_size or loader_args.get("batch_size", 8),
        workers,
        pin_memory=pin_memory,
        named_by=named_by,
    )
