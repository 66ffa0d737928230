"""The composition root: the only file where a config becomes objects."""

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sever.base import BaseDataLoader, BaseModel, BaseTrainer, Metric
from sever.data_loader.augmentation import AUGMENTATIONS, Augmentation
from sever.data_loader.data_loaders import LOADERS
from sever.model.loss import LOSSES
from sever.model.metric import METRICS, FunctionMetric
from sever.model.model import MODELS
from sever.model.optimizer import OPTIMIZERS, group_faults, parameter_groups
from sever.model.scheduler import SCHEDULERS
from sever.predictor.postprocess import postprocess
from sever.trainer.trainer import TRAINERS
from sever.utils import registry
from sever.utils.checkpoint import load_weights
from sever.utils.config import Config, LoadedConfig, Predict, Section, read_section
from sever.utils.errors import ConfigError
from sever.utils.registry import bound_args, build
from sever.utils.saving import RunFolder
from sever.utils.visualization import TensorboardWriter

logger = logging.getLogger("sever.main")

_REGISTRIES = {
    "arch": MODELS,
    "augmentation": AUGMENTATIONS,
    "data_loader": LOADERS,
    "loss": LOSSES,
    "metrics": METRICS,
    "optimizer": OPTIMIZERS,
    "lr_scheduler": SCHEDULERS,
    "trainer": TRAINERS,
}
# What the program itself passes, by section; see `registry.build`.
_READY = {
    "data_loader": ("classes", "augmentation", "seed", "training", "pin_memory"),
    "metrics": ("class_ids",),
    "optimizer": ("params",),
    "lr_scheduler": ("optimizer",),
    "trainer": (
        *("model", "optimizer", "data_loader", "run_folder", "device", "config", "epochs"),
        *("valid_data_loader", "lr_scheduler", "writer", "monitor", "early_stop"),
        *("save_period", "verbose", "loss", "metrics"),
    ),
}
# Arguments of the training loader that do not carry over to the one of `testing:`.
_TRAINING_ONLY = ("csv", "images", "shuffle", "validation_split", "validation_batch_size", "drop_last")


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


def check_sections(config: LoadedConfig, keys: Collection[str] | None = None) -> None:
    """Check sections' names and arguments, and build nothing.

    Args:
        config: what to check.
        keys: the sections that will be used; None is all of them. What trained a model need not be
            there where the model is used.

    Raises:
        ConfigError: with all mistakes of the config.
    """
    used = {key: node for key, node in config.values.items() if keys is None or key in keys}
    faults = section_faults(used, config.source)
    if not faults:
        faults = _faults_between_sections(config, with_training=keys is None)
    if faults:
        raise ConfigError("\n".join(faults))


def section_faults(values: Mapping[str, Any], source: str) -> list[str]:
    """What is wrong with each section by itself; those that are no sections at all are left out.

    Args:
        values: of a config, not necessarily a right one.
        source: what messages call its file.
    """
    faults = []
    for key, known in _REGISTRIES.items():
        nodes = values.get(key)
        for node in nodes if isinstance(nodes, list) else [nodes]:
            with suppress(ValidationError):
                section = read_section(node)
                faults += registry.check(known, section, f"{source}: {key}", _READY.get(key, ()))
    return faults


def _faults_between_sections(config: LoadedConfig, with_training: bool) -> list[str]:
    checked, source = config.checked, config.source
    faults = []
    if with_training:
        optimizer = OPTIMIZERS.find(checked.optimizer.type, f"{source}: optimizer")
        faults += group_faults(optimizer, _group_settings(checked), f"{source}: optimizer")
        scheduler = checked.lr_scheduler and SCHEDULERS.find(checked.lr_scheduler.type, source)
        if scheduler is ReduceLROnPlateau and checked.training.monitor == "off":
            faults.append(f"{source}: lr_scheduler: ReduceLROnPlateau follows training.monitor, which is off")
    if checked.testing:
        faults += registry.check(
            LOADERS,
            checked.data_loader,
            f"{source}: testing",
            _READY["data_loader"],
            testing_args(config),
        )
        faults += [
            f"{source}: testing: '{key}' is for training alone; remove it"
            for key in checked.testing.loader_args
            if key in _TRAINING_ONLY and key not in ("csv", "images")
        ]
    classes = len(class_ids_of(config))
    for key in ("threshold", "min_area"):
        value = getattr(checked.predict, key)
        if isinstance(value, list) and len(value) != classes:
            faults.append(
                f"{source}: predict.{key}: expected one value, or one for each of {classes} classes, "
                f"received {len(value)}"
            )
    return faults


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
    checked = config.checked
    data_loader = _training_loader(config, device)
    split = state.get("split") if state else None
    if split is not None and new_run and not _is_split_of(split, data_loader):
        split = None
    valid_data_loader = data_loader.split_validation(split)
    if not len(data_loader):
        raise ConfigError(
            f"{_at(config, 'data_loader.args')}: {len(data_loader.indices)} images make no full batch; lower "
            f"batch_size, or leave out drop_last"
        )
    model = build(MODELS, _without_download(checked.arch) if state else checked.arch, _at(config, "arch"))
    model = model.to(device)
    optimizer_class = OPTIMIZERS.find(checked.optimizer.type, _at(config, "optimizer"))
    optimizer = registry.call(
        optimizer_class,
        _at(config, "optimizer"),
        checked.optimizer.type,
        registry.call(parameter_groups, _at(config, "optimizer"), "", model, _group_settings(checked)),
        **checked.optimizer.args,
    )
    loss = loss_of(config)
    return Parts(
        config,
        device,
        data_loader,
        valid_data_loader,
        model,
        loss.to(device) if isinstance(loss, nn.Module) else loss,
        metrics_of(config),
        optimizer,
        lr_scheduler_of(config, optimizer),
    )


def trainer_of(parts: Parts, run: RunFolder, first_step: int = 0) -> BaseTrainer:
    """The trainer of a run; nothing is written yet.

    Args:
        parts: from `training_parts`.
        run: where its files will go.
        first_step: TensorBoard's events from here on are dropped.
    """
    checked = parts.config.checked
    training = checked.training
    writer = TensorboardWriter(lambda: run.tensorboard, training.tensorboard, first_step)
    ready = {
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
        "epochs": training.epochs,
        "monitor": training.monitor,
        "early_stop": training.early_stop,
        "save_period": training.save_period,
        "verbose": training.verbose,
    }
    return build(TRAINERS, checked.trainer, _at(parts.config, "trainer"), **ready)


def trained_model(config: LoadedConfig, state: dict[str, Any], checkpoint: Path) -> BaseModel:
    """The model with a checkpoint's weights, on the CPU."""
    model = build(MODELS, _without_download(config.checked.arch), _at(config, "arch"))
    load_weights(model, state["state_dict"], str(checkpoint))
    return model


def _training_loader(config: LoadedConfig, device: torch.device) -> BaseDataLoader:
    ready = _loader_ready(config, device)
    where = _at(config, "data_loader")
    return build(LOADERS, config.checked.data_loader, where, **ready, training=True)


def testing_loader(config: LoadedConfig, state: dict[str, Any], device: torch.device) -> BaseDataLoader:
    """The images of `testing:`; without that section the validation images of the checkpoint's run."""
    if config.checked.testing is None:
        loader = _training_loader(config, device).split_validation(state.get("split"))
        if loader is None:
            raise ConfigError(
                f"{config.source}: has no 'testing:' section, and the run has no validation images"
            )
        logger.info("No 'testing:' section: scoring the run's validation images.")
        return loader
    section = config.checked.data_loader.model_copy(update={"args": testing_args(config)})
    ready = _loader_ready(config, device)
    return build(LOADERS, section, _at(config, "testing"), **ready, training=False)


def testing_args(config: LoadedConfig) -> dict[str, Any]:
    """The arguments of the loader of `testing:`: its own over those of the training loader."""
    inherited = {
        name: value for name, value in config.checked.data_loader.args.items() if name not in _TRAINING_ONLY
    }
    return inherited | (config.checked.testing.loader_args if config.checked.testing else {})


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
    return build(AUGMENTATIONS, section, _at(config, "augmentation"))


def loss_of(config: LoadedConfig) -> nn.Module | Callable:
    """The loss: an object of a class, or a function with its args."""
    return build(LOSSES, config.checked.loss, _at(config, "loss"))


def metrics_of(config: LoadedConfig) -> list[Metric]:
    """The metrics; plain functions are wrapped."""
    metrics: list[Metric] = []
    for section in config.checked.metrics:
        where = _at(config, "metrics")
        thing = METRICS.find(section.type, where)
        if isinstance(thing, type):
            if not issubclass(thing, Metric):
                raise ConfigError(f"{where}: '{section.type}' is not derived from sever.base.Metric")
            metrics.append(build(METRICS, section, where, class_ids=class_ids_of(config)))
        else:
            name = section.type.rpartition(".")[2]
            metrics.append(FunctionMetric(partial(thing, **section.args), name))
    return metrics


def lr_scheduler_of(config: LoadedConfig, optimizer: Optimizer) -> LRScheduler | None:
    """The schedule of an optimizer's rates, if the config has one."""
    section = config.checked.lr_scheduler
    if section is None:
        return None
    return build(SCHEDULERS, section, _at(config, "lr_scheduler"), optimizer=optimizer)


def postprocess_of(settings: Predict) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities (C, H, W) -> masks (C, H, W), as `predict:` says."""
    return partial(postprocess, threshold=settings.threshold, min_area=settings.min_area)


def class_ids_of(config: LoadedConfig) -> list[str]:
    """The names of the classes, `"1"` first; none for a model without masks."""
    classes = bound_args(MODELS, config.checked.arch, _at(config, "arch")).get("classes")
    if isinstance(classes, int) and classes < 1:
        raise ConfigError(f"{config.source}: arch.args.classes: expected at least 1, received {classes}")
    return [str(c + 1) for c in range(classes)] if isinstance(classes, int) else []


def _group_settings(checked: Config) -> dict[str, dict[str, Any]]:
    """The options of the optimizer's groups; none where all parameters share one."""
    if checked.optimizer.encoder is None or checked.optimizer.decoder is None:
        return {}
    return {"encoder": checked.optimizer.encoder, "decoder": checked.optimizer.decoder}


def _without_download(arch: Section) -> Section:
    """The same model for a checkpoint's weights: no pretrained ones are fetched first."""
    if "encoder_weights" not in bound_args(MODELS, arch, "arch"):
        return arch
    return arch.model_copy(update={"args": {**arch.args, "encoder_weights": None}})


def _is_split_of(split: dict[str, list[str]], data_loader: BaseDataLoader) -> bool:
    named = {name for half in split.values() for name in half}
    return bool(data_loader.validation_split) and named == set(data_loader.sample_names)


def _at(config: LoadedConfig, key: str) -> str:
    return f"{config.source}: {key}"
