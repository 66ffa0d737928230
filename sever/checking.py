"""What is wrong with a config, as far as it shows before anything is built."""

import math
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sever.data_loader.augmentation import AUGMENTATIONS
from sever.data_loader.data_loaders import LOADERS
from sever.model.loss import LOSSES
from sever.model.metric import METRICS
from sever.model.model import MODELS
from sever.model.optimizer import OPTIMIZERS, group_faults
from sever.model.scheduler import SCHEDULERS
from sever.trainer.trainer import TRAINERS
from sever.utils import registry
from sever.utils.config import LoadedConfig, read_section
from sever.utils.errors import ConfigError
from sever.utils.registry import bound_args
from sever.utils.schema import Config
from sever.utils.signatures import parameters

REGISTRIES = {
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
READY = {
    "data_loader": ("classes", "augmentation", "seed", "training", "pin_memory"),
    "loss": ("classes",),
    "metrics": ("class_ids",),
    "optimizer": ("params",),
    "lr_scheduler": ("optimizer", "steps_per_epoch"),
    "trainer": (
        *("model", "optimizer", "data_loader", "run_folder", "device", "config", "epochs"),
        *("valid_data_loader", "lr_scheduler", "writer", "monitor", "early_stop"),
        *("save_period", "keep_best", "keep_last", "interruptions", "verbose", "loss", "metrics"),
        *("lr_interval", "skip_limit"),
        *("precision", "accumulate", "clip_grad_norm", "ema_decay", "unfreeze_encoder"),
    ),
}
# Arguments of the training loader that do not carry over to the one of `testing:`.
TRAINING_ONLY = (
    *("csv", "images", "shuffle", "drop_last", "balance", "pseudo"),
    *("validation_split", "validation_batch_size", "folds", "fold", "groups"),
)
# Settings of `training:` that belong to `Trainer` rather than to every trainer.
OF_TRAINER = ("precision", "accumulate", "clip_grad_norm", "ema_decay", "unfreeze_encoder")


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
    faults = section_faults(used, config.source, config.retyped)
    if not faults:
        faults = _faults_between_sections(config, with_training=keys is None)
    if faults:
        raise ConfigError("\n".join(faults))


def section_faults(
    values: Mapping[str, Any], source: str, retyped: Collection[str] = frozenset()
) -> list[str]:
    """What is wrong with each section by itself; those that are no sections at all are left out.

    Args:
        values: of a config, not necessarily a right one.
        source: what messages call its file.
        retyped: see `LoadedConfig`.
    """
    faults = []
    for key, known in REGISTRIES.items():
        nodes = values.get(key)
        for node in nodes if isinstance(nodes, list) else [nodes]:
            with suppress(ValidationError):
                section = read_section(node)
                of_section = registry.check(known, section, f"{source}: {key}", READY.get(key, ()))
                if key in retyped:
                    of_section = _with_stale_args(of_section, section.type, f"{source}: {key}", key)
                faults += of_section
            faults += _not_finite(node, f"{source}: {key}")
    return faults


def _with_stale_args(faults: list[str], name: str, where: str, key: str) -> list[str]:
    """The faults of a section with the args of another type: one, where they are among them."""
    stray = [match[1] for fault in faults if (match := re.search("does not take '(.*?)'", fault))]
    if not stray:
        return faults
    listed = ", ".join(f"'{name}'" for name in stray)
    return [
        f"{where}.args: are those of the type before it: {name} does not take {listed}. "
        f"-s {key}={name} leaves them out"
    ]


def _not_finite(value: Any, where: str) -> list[str]:
    """The numbers in a section that are infinite or none at all, which nothing here has a use for."""
    if isinstance(value, Mapping):
        return [fault for name, part in value.items() for fault in _not_finite(part, f"{where}.{name}")]
    if isinstance(value, list):
        return [fault for place, part in enumerate(value) for fault in _not_finite(part, f"{where}.{place}")]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where}: expected a finite number, received {value}"]
    return []


def _faults_between_sections(config: LoadedConfig, with_training: bool) -> list[str]:
    checked, source = config.checked, config.source
    faults = []
    if with_training:
        optimizer = OPTIMIZERS.find(checked.optimizer.type, f"{source}: optimizer")
        faults += group_faults(
            optimizer,
            group_settings(checked),
            f"{source}: optimizer",
            checked.optimizer.args,
            checked.optimizer.decay_biases_and_norms,
        )
        scheduler = checked.lr_scheduler and SCHEDULERS.find(checked.lr_scheduler.type, source)
        if scheduler is ReduceLROnPlateau:
            faults += _plateau_faults(checked, f"{source}: lr_scheduler")
        faults += _faults_of_own_trainer(checked, source)
        if checked.training.keep_best and checked.training.monitor == "off":
            faults.append(f"{source}: training.keep_best: needs training.monitor, which is off")
    if checked.testing:
        of_loader = registry.check(
            LOADERS,
            checked.data_loader,
            f"{source}: testing",
            READY["data_loader"],
            testing_args(config),
        )
        faults += [fault.replace(f"{source}: testing.args", f"{source}: testing", 1) for fault in of_loader]
        faults += [
            f"{source}: testing: '{key}' is for training alone; remove it"
            for key in checked.testing.loader_args
            if key in TRAINING_ONLY and key not in ("csv", "images")
        ]
    classes = len(class_ids_of(config))
    for key, value in checked.predict.postprocessing.items():
        if isinstance(value, list) and len(value) != classes:
            faults.append(
                f"{source}: predict.{key}: expected one value, or one for each of {classes} classes, "
                f"received {len(value)}"
            )
    return faults


def _plateau_faults(checked: Config, where: str) -> list[str]:
    faults = []
    if checked.training.monitor == "off":
        faults.append(f"{where}: ReduceLROnPlateau follows training.monitor, which is off")
    if checked.lr_scheduler and checked.lr_scheduler.interval == "step":
        faults.append(f"{where}.interval: ReduceLROnPlateau follows validations; leave interval out")
    return faults


def _faults_of_own_trainer(checked: Config, source: str) -> list[str]:
    """Settings that a trainer of the user's own would silently pass over."""
    trainer = TRAINERS.find(checked.trainer.type, f"{source}: trainer")
    accepted = parameters(trainer)
    fields = type(checked.training).model_fields
    faults = []
    by_step = checked.lr_scheduler and checked.lr_scheduler.interval == "step"
    if by_step and not getattr(trainer, "steps_schedules", False):
        faults.append(
            f"{source}: lr_scheduler.interval: {checked.trainer.type} does not say that it steps schedules "
            f"(steps_schedules = True); derive it from sever.trainer.trainer.Trainer, or take interval: epoch"
        )
    return faults + [
        f"{source}: training.{key}: {checked.trainer.type} does not take it; derive it from "
        f"sever.trainer.trainer.Trainer, or leave the key out"
        for key in (*OF_TRAINER, "keep_best", "keep_last", "skip_limit", "save_every", "max_time")
        if {"save_every": "interruptions", "max_time": "interruptions"}.get(key, key) not in accepted
        and getattr(checked.training, key) != fields[key].default
    ]


def testing_args(config: LoadedConfig) -> dict[str, Any]:
    """The arguments of the loader of `testing:`: its own over those of the training loader."""
    inherited = {
        name: value for name, value in config.checked.data_loader.args.items() if name not in TRAINING_ONLY
    }
    return inherited | (config.checked.testing.loader_args if config.checked.testing else {})


def label_files(config: LoadedConfig) -> list[Path]:
    """The CSV files with masks that people drew, which no prediction may replace."""
    args = {"train": config.checked.data_loader.args, "test": testing_args(config)}
    return [
        Path(str(of_half.get("data_dir", ""))) / (of_half.get("csv") or f"{half}.csv")
        for half, of_half in args.items()
    ]


def class_ids_of(config: LoadedConfig) -> list[str]:
    """The names of the classes, `"1"` first; none for a model without masks."""
    classes = bound_args(MODELS, config.checked.arch, config.at("arch")).get("classes")
    if isinstance(classes, int) and classes < 1:
        raise ConfigError(f"{config.source}: arch.args.classes: expected at least 1, received {classes}")
    return [str(c + 1) for c in range(classes)] if isinstance(classes, int) else []


def group_settings(checked: Config) -> dict[str, dict[str, Any]]:
    """The options of the optimizer's groups; none where all parameters share one."""
    if checked.optimizer.encoder is None or checked.optimizer.decoder is None:
        return {}
    return {"encoder": checked.optimizer.encoder, "decoder": checked.optimizer.decoder}
