"""The composition root: the only file where a config becomes objects."""

import logging
from collections.abc import Callable
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
from sever.config.build import bound_args, build, call, class_ids_of
from sever.config.load import LoadedConfig
from sever.config.loader_args import cache_folder, testing_args
from sever.config.registry import (
    AUGMENTATIONS,
    LOADERS,
    LOSSES,
    METRICS,
    MODELS,
    OPTIMIZERS,
    SCHEDULERS,
    TRAINERS,
)
from sever.config.schema import Predict, Section
from sever.data_loader.augmentation.pipelines import Augmentation
from sever.data_loader.data_faults import FaultyDataError
from sever.data_loader.data_loaders import PredictionDataLoader
from sever.data_loader.torch_loader import TorchDataLoader
from sever.engine.checkpoint import load_weights
from sever.engine.run_folder import RunFolder
from sever.engine.signals import StopSignals
from sever.engine.stored_split import split_to_use
from sever.model.loss_and_metric_check import check_monitored_loss, check_outputs
from sever.model.metric import FunctionMetric
from sever.model.optimizer import parameter_groups, with_lookahead
from sever.model.scheduler import with_warmup
from sever.parallel import collectives
from sever.parallel.device import check_precision
from sever.predictor.postprocess import postprocess
from sever.utils.errors import ConfigError, DataError
from sever.utils.tensorboard_writer import TensorboardWriter

logger = logging.getLogger(__name__)

# Below so many images BatchNorm's statistics are poor: https://arxiv.org/abs/1803.08494, figure 1.
_SMALL_SHARD = 8


@dataclass
class TrainingObjects:
    """The objects that a trainer takes."""

    config: LoadedConfig
    device: torch.device
    data_loader: BaseDataLoader
    valid_data_loader: BaseDataLoader | None
    model: BaseModel
    loss: nn.Module | Callable
    metrics: list[Metric]
    optimizer: Optimizer
    lr_scheduler: LRScheduler | None


def training_objects(
    config: LoadedConfig,
    device: torch.device,
    state: dict[str, Any] | None = None,
    resume: bool = False,
    cache_dir: Path | None = None,
) -> TrainingObjects:
    """Build what a trainer takes besides its folder.

    Args:
        config: checked by `check_sections`.
        device: the device to train on.
        state: the checkpoint to resume, or to start from.
        resume: take the checkpoint's split in any case, not only where it is one of the same images.
        cache_dir: the folder of decoded images; default that of the config, which a resumed run takes from
            a checkpoint.
    """
    check_precision(device, config.checked.training.precision, config.at("training.precision"))
    data_loader = training_loader(config, device, cache_dir or cache_folder(config))
    valid_data_loader = data_loader.split_validation(
        split_to_use(config, state, resume, data_loader.sample_names, bool(data_loader.validation_split))
    )
    check_batch_size(config, data_loader, collectives.world_size())
    if collectives.world_size() > 1:
        data_loader.shard_batches(collectives.world())
        data_loader.lockstep = True
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
    if is_channels_last(config, device):
        model = model.to(memory_format=torch.channels_last)
    optimizer = _optimizer_of(config, model)
    loss, metrics = loss_of(config), metrics_of(config)
    named = [(section.type, metric) for section, metric in zip(config.checked.metrics, metrics, strict=True)]
    check_outputs(model, loss, named, len(class_ids_of(config)), config.source)
    check_monitored_loss(loss, config.checked.training.monitor, config.source)
    if isinstance(loss, nn.Module):
        loss = loss.to(device)
    lr_scheduler = lr_scheduler_of(config, optimizer, steps_per_epoch(config, data_loader))
    return TrainingObjects(
        config, device, data_loader, valid_data_loader, model, loss, metrics, optimizer, lr_scheduler
    )


def check_batch_size(config: LoadedConfig, data_loader: BaseDataLoader, processes: int) -> None:
    """Raise a `ConfigError` where some of the processes would never have an image."""
    if processes == 1 or max(map(len, data_loader.whole_batches), default=0) >= processes:
        return
    if data_loader.batch_size < processes:
        raise ConfigError(
            f"{config.at('data_loader.args.batch_size')}: expected at least {processes}, an image for each "
            f"of {processes} processes, received {data_loader.batch_size}; raise it, or take fewer devices"
        )
    raise ConfigError(
        f"{config.at('data_loader.args')}: {len(data_loader.indices)} training images make no batch with an "
        f"image for each of {processes} processes; take fewer devices"
    )


def synchronises(config: LoadedConfig, batch_size: int, processes: int, device: torch.device) -> bool:
    """Whether BatchNorm takes its statistics over all processes, which torch does on GPUs only."""
    chosen = config.checked.training.sync_bn
    small = batch_size < _SMALL_SHARD * processes
    return processes > 1 and device.type == "cuda" and (small if chosen is None else chosen)


def is_channels_last(config: LoadedConfig, device: torch.device) -> bool:
    """Whether the model's weights lie with their channels last, as `training.memory_format` says.

    On GPUs that is the faster way to train in 16 bits: 1.2 to 1.5 times by timm's tables.
    """
    training = config.checked.training
    if training.memory_format == "auto":
        return device.type == "cuda" and training.precision != "fp32"
    return training.memory_format == "channels_last"


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
    groups = call(parameter_groups, where, "", model, section.groups, section.decay_biases_and_norms)
    optimizer_class = OPTIMIZERS.find(section.type, where)
    optimizer = call(optimizer_class, where, section.type, groups, **section.args)
    return with_lookahead(optimizer, **section.lookahead.model_dump()) if section.lookahead else optimizer


def build_trainer(
    objects: TrainingObjects, run: RunFolder, first_step: int = 0, started: float | None = None
) -> BaseTrainer:
    """Build the trainer of a run; nothing is written yet.

    Args:
        objects: from `training_objects`.
        run: the folder for its files.
        first_step: TensorBoard's events from this step on are dropped.
        started: when `training.max_time` began, by `time.monotonic`; None is now.
    """
    checked = objects.config.checked
    training = checked.training
    is_written = training.tensorboard and collectives.is_main()
    ready = {
        **training.model_dump(),  # for trainers of the user's own that take one by its name
        **vars(objects),
        "run_folder": run,
        "config": objects.config.values,
        "writer": TensorboardWriter(lambda: run.tensorboard, is_written, first_step),
        "training": training,
        "signals": StopSignals(training.max_time, training.save_every, started),
        "lr_interval": checked.lr_scheduler.interval if checked.lr_scheduler else "epoch",
    }
    return build(TRAINERS, checked.trainer, objects.config.at("trainer"), **ready)


def trained_model(config: LoadedConfig, state: dict[str, Any], checkpoint: Path) -> BaseModel:
    """The model with a checkpoint's weights (the averaged ones, if it has them), on the CPU."""
    model = build(MODELS, _without_download(config.checked.arch), config.at("arch"))
    load_weights(model, state.get("ema") or state["state_dict"], str(checkpoint))
    return model


def training_loader(
    config: LoadedConfig, device: torch.device, cache_dir: Path | None = None
) -> BaseDataLoader:
    """The loader of the training images, before validation images are split off.

    Args:
        config: gives its section.
        device: the device that batches go to.
        cache_dir: the folder of decoded images; None keeps none, whatever the config says.

    Raises:
        DataError: lists the first faults of each kind in the data.
    """
    section = config.checked.data_loader
    without = {"cache": "off"} if cache_dir is None and "cache" in section.args else {}
    section = section.model_copy(update={"args": {**section.args, **without}})
    try:
        return _loader_of(config, section, "data_loader", device, training=True, cache_dir=cache_dir)
    except FaultyDataError as error:
        raise DataError(*error.args, f"For all faults, run {_verify_command(config)}") from error


def _verify_command(config: LoadedConfig) -> str:
    """The command that lists all faults of a config's data."""
    path = Path(config.source.partition(" (its config)")[0])
    if path.suffix == ".pth":
        path = path.with_name("config.yml")
    file = path if path.is_file() else "FILE"
    return f"sever verify -c {file}{' with the same -s' if config.overridden else ''}"


def testing_loader(config: LoadedConfig, state: dict[str, Any], device: torch.device) -> BaseDataLoader:
    """The loader of `testing:`; without that section, of the validation images of the checkpoint's run."""
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
    return _loader_of(config, section, "testing", device, training=False)


def _loader_of(
    config: LoadedConfig,
    section: Section,
    key: str,
    device: torch.device,
    training: bool,
    cache_dir: Path | None = None,
) -> BaseDataLoader:
    """The data loader of a section."""
    ready = {
        "classes": len(class_ids_of(config)),
        "augmentation": augmentation_of(config),
        "seed": config.checked.seed,
        "training": training,
        "pin_memory": device.type == "cuda",
        "default_cache_dir": str(cache_dir),
    }
    loader = build(LOADERS, section, config.at(key), **ready)
    if isinstance(loader, BaseDataLoader):
        return loader
    return call(TorchDataLoader, config.at(key), section.type, loader, config.checked.seed)


def augmentation_of(config: LoadedConfig) -> Augmentation:
    """The augmentation; without a section, one that only normalises."""
    section = config.checked.augmentation
    if section is None:
        return Augmentation([])
    return build(AUGMENTATIONS, section, config.at("augmentation"))


def loss_of(config: LoadedConfig) -> nn.Module | Callable:
    """The loss: a module, or a function with its args."""
    return build(LOSSES, config.checked.loss, config.at("loss"), classes=len(class_ids_of(config)))


def metrics_of(config: LoadedConfig) -> list[Metric]:
    """The metrics; plain functions are wrapped."""
    metrics: list[Metric] = []
    where = config.at("metrics")
    for section in config.checked.metrics:
        metric = build(METRICS, section, where, class_ids=class_ids_of(config))
        if isinstance(metric, partial):
            metric = FunctionMetric(metric, section.type.rpartition(".")[2])
        elif not isinstance(metric, Metric):
            raise ConfigError(f"{where}: '{section.type}' is not derived from sever.base.Metric")
        metrics.append(metric)
    return metrics


def steps_per_epoch(config: LoadedConfig, data_loader: BaseDataLoader) -> int:
    """The number of optimizer steps in an epoch."""
    return -(-len(data_loader) // config.checked.training.accumulate)


def lr_scheduler_of(config: LoadedConfig, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler | None:
    """The schedule of an optimizer that takes so many steps in an epoch; None without `lr_scheduler:`."""
    section = config.checked.lr_scheduler
    if section is None:
        return None
    where = config.at("lr_scheduler")
    ready = {"optimizer": optimizer, "steps_per_epoch": steps_per_epoch if section.interval == "step" else 1}
    scheduler = build(SCHEDULERS, section, where, **ready)
    if section.warmup is None:
        return scheduler
    warmup = section.warmup.model_dump()
    return call(with_warmup, f"{where}.warmup", "it", scheduler, **warmup)


def postprocess_of(settings: Predict) -> Callable[[np.ndarray, np.ndarray | None], np.ndarray]:
    """The function (probabilities (C, H, W), label probabilities (C,) or None) -> masks (C, H, W)."""
    numbers = settings.postprocessing
    return lambda probs, label_probs: postprocess(probs, label_probs=label_probs, **numbers)


def _without_download(arch: Section) -> Section:
    """The section without pretrained weights, for a model that loads a checkpoint's."""
    if "encoder_weights" not in bound_args(MODELS, arch, "arch"):
        return arch
    return arch.model_copy(update={"args": {**arch.args, "encoder_weights": None}})


def prediction_loader(
    config: LoadedConfig, folder: Path, names: list[str] | None, pin_memory: bool, named_by: str
) -> PredictionDataLoader:
    """The loader of a folder's sheets, with the settings of `predict:` or, by default, of `testing:`."""
    settings, loader_args = config.checked.predict, testing_args(config)
    # On a CPU a thread reads ahead, and worker processes would take cores from the models.
    default = loader_args.get("num_workers", 0) if pin_memory else 0
    workers = default if settings.num_workers is None else settings.num_workers
    return call(
        PredictionDataLoader,
        config.at("predict"),
        "its data loader",
        folder,
        names,
        settings.batch_size or loader_args.get("batch_size", 8),
        workers,
        pin_memory=pin_memory,
        named_by=named_by,
        damaged=loader_args.get("damaged", "error"),
    )
