"""The composition root: the only file where a config becomes objects."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sever.base import BaseDataLoader, BaseModel, BaseTrainer, MasksAndLabels, Metric
from sever.checking import OF_TRAINER, class_ids_of, group_settings, testing_args
from sever.data_loader.augmentation import AUGMENTATIONS, Augmentation
from sever.data_loader.data_loaders import LOADERS
from sever.model.encoder_model import EncoderModel
from sever.model.loss import LOSSES, output_faults
from sever.model.metric import METRICS, FunctionMetric
from sever.model.model import MODELS
from sever.model.optimizer import OPTIMIZERS, parameter_groups, with_lookahead
from sever.model.scheduler import SCHEDULERS, with_warmup
from sever.predictor.postprocess import postprocess
from sever.trainer.trainer import TRAINERS
from sever.utils import registry
from sever.utils.checkpoint import load_weights
from sever.utils.config import LoadedConfig, read_section
from sever.utils.device import check_precision
from sever.utils.errors import ConfigError
from sever.utils.registry import bound_args, build
from sever.utils.saving import RunFolder
from sever.utils.schema import Predict, Section
from sever.utils.visualization import TensorboardWriter

logger = logging.getLogger("sever.main")

_TRIED = 64  # height and width of the outputs that a loss is tried on, in pixels


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
    checked = config.checked
    check_precision(device, checked.training.precision)
    data_loader = training_loader(config, device)
    split = state.get("split") if state else None
    if split is not None and state and new_run and not _goes_on_with_split(config, state, data_loader):
        logger.warning(
            "The validation images are chosen anew, since the images or the way to choose them differ from "
            "the checkpoint's run: its model may have been trained on some of them."
        )
        split = None
    valid_data_loader = data_loader.split_validation(split)
    if not len(data_loader):
        raise ConfigError(
            f"{_at(config, 'data_loader.args')}: {len(data_loader.indices)} images make no full batch; lower "
            f"batch_size, or leave out drop_last"
        )
    model = build(MODELS, _without_download(checked.arch) if state else checked.arch, _at(config, "arch"))
    if checked.training.unfreeze_encoder > 1 and "encoder" not in model.parameter_groups():
        raise ConfigError(
            f"{_at(config, 'training.unfreeze_encoder')}: {checked.arch.type} has no encoder that could be "
            f"frozen; leave the key out"
        )
    model = model.to(device)
    optimizer_class = OPTIMIZERS.find(checked.optimizer.type, _at(config, "optimizer"))
    optimizer = registry.call(
        optimizer_class,
        _at(config, "optimizer"),
        checked.optimizer.type,
        registry.call(
            parameter_groups,
            _at(config, "optimizer"),
            "",
            model,
            group_settings(checked),
            checked.optimizer.decay_biases_and_norms,
        ),
        **checked.optimizer.args,
    )
    if checked.optimizer.lookahead:
        settings = checked.optimizer.lookahead.model_dump()
        optimizer = registry.call(
            with_lookahead, _at(config, "optimizer.lookahead"), "it", optimizer, **settings
        )
    loss = loss_of(config)
    metrics = metrics_of(config)
    _check_outputs(config, model, loss, metrics)
    _check_monitored_loss(config, loss)
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


def _check_outputs(config: LoadedConfig, model: BaseModel, loss: Callable, metrics: Sequence[Metric]) -> None:
    """Try loss and metrics on outputs of the kinds that the model gives, before the first batch does.

    Raises:
        ConfigError: a metric or the loss is of another kind, or the loss leaves a head untrained.
    """
    name, kinds = config.checked.arch.type, model.output_kinds
    for metric, section in zip(metrics, config.checked.metrics, strict=True):
        if metric.on not in kinds:
            cure = " Give it a second head with arch.args.aux_params." if metric.on == "labels" else ""
            raise ConfigError(
                f"{_at(config, 'metrics')}: {section.type} is a metric of {metric.on}, but {name} gives "
                f"{' and '.join(kinds)}.{cure}"
            )
    if not isinstance(model, EncoderModel):  # one of the user's own may give outputs of any shape
        return
    faults = output_faults(loss, kinds, _at(config, "loss"))
    if faults:
        raise ConfigError("\n".join(faults))
    for epoch in [stage.from_epoch for stage in getattr(loss, "stages", ())] or [1]:
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(epoch)
        untrained = registry.call(
            _untrained_heads, _at(config, "loss"), config.checked.loss.type, model, loss, class_ids_of(config)
        )
        if untrained:
            raise ConfigError(
                f"{_at(config, 'loss')}: the head of {untrained[0]} would not be trained in epoch {epoch}. "
                f"Add a part to a WeightedSum, e.g. {untrained[0]}: {{type: BCELoss, weight: 0.2, on: "
                f"{untrained[0]}}}"
            )
    if hasattr(loss, "set_epoch"):
        loss.set_epoch(1)


def _untrained_heads(model: BaseModel, loss: Callable, class_ids: Sequence[str]) -> list[str]:
    """The kinds of a model's outputs that get no gradient from a loss."""
    shapes = {"masks": (1, len(class_ids), _TRIED, _TRIED), "labels": (1, len(class_ids))}
    heads = [torch.zeros(shapes[kind], requires_grad=True) for kind in model.output_kinds]
    outputs = heads[0] if len(heads) == 1 else MasksAndLabels(*heads)
    value = loss(outputs, model.targets(torch.zeros(shapes["masks"])))
    (value["loss"] if isinstance(value, Mapping) else value).backward()
    return [kind for kind, head in zip(model.output_kinds, heads, strict=True) if head.grad is None]


def _check_monitored_loss(config: LoadedConfig, loss: Callable) -> None:
    """Refuse to look for the best epoch by a loss that does not mean the same in all of them."""
    key = config.checked.training.monitor.rpartition(" ")[2].removeprefix("val_")
    of_loss = {"loss", *(getattr(loss, "part_names", None) or ())}
    if not getattr(loss, "comparable_between_epochs", True) and key in of_loss:
        raise ConfigError(
            f"{_at(config, 'training.monitor')}: '{key}' is of another loss in later epochs, so its values "
            f"cannot be compared; monitor a metric, e.g. max val_dice_mean"
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
        "keep_best": training.keep_best,
        "verbose": training.verbose,
        "lr_interval": checked.lr_scheduler.interval if checked.lr_scheduler else "epoch",
        **{key: getattr(training, key) for key in OF_TRAINER},
    }
    return build(TRAINERS, checked.trainer, _at(parts.config, "trainer"), **ready)


def trained_model(config: LoadedConfig, state: dict[str, Any], checkpoint: Path) -> BaseModel:
    """The model with a checkpoint's weights, on the CPU: the averaged ones, where it has them."""
    model = build(MODELS, _without_download(config.checked.arch), _at(config, "arch"))
    load_weights(model, state.get("ema") or state["state_dict"], str(checkpoint))
    return model


def training_loader(config: LoadedConfig, device: torch.device) -> BaseDataLoader:
    """The loader of the training images, before validation images are split off."""
    ready = _loader_ready(config, device)
    where = _at(config, "data_loader")
    return build(LOADERS, config.checked.data_loader, where, **ready, training=True)


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
    return build(LOADERS, section, _at(config, "testing"), **ready, training=False)


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
    return build(LOSSES, config.checked.loss, _at(config, "loss"), classes=len(class_ids_of(config)))


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


def steps_per_epoch(config: LoadedConfig, data_loader: BaseDataLoader) -> int:
    """How often the optimizer is stepped in an epoch."""
    return -(-len(data_loader) // config.checked.training.accumulate)


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
    where = _at(config, "lr_scheduler")
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


# Arguments of the loader that say how validation images are chosen, and how batches are drawn.
SPLIT_BY = ("validation_split", "folds", "fold", "groups")
DRAWN_BY = ("batch_size", "shuffle", "drop_last", "balance", "pseudo")


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


def _at(config: LoadedConfig, key: str) -> str:
    return f"{config.source}: {key}"
