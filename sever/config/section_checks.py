"""The mistakes of a config that can be found before anything is built."""

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from sever.config.build import check, class_ids_of
from sever.config.load import LoadedConfig
from sever.config.loader_args import TRAINING_ONLY, testing_args
from sever.config.registry import LOADERS, OPTIMIZERS, REGISTRIES, SCHEDULERS, TRAINERS
from sever.config.schema import Config, Section, Training, read_section
from sever.config.signatures import parameters, type_faults
from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import ConfigError


def check_sections(config: LoadedConfig, keys: Collection[str] | None = None) -> None:
    """Check sections' names and arguments, and build nothing.

    Args:
        config: the config to check.
        keys: the sections that will be used; None is all of them. Code that trained a model need not be
            installed where the model is used.

    Raises:
        ConfigError: with all mistakes of the config.
    """
    used = {key: node for key, node in config.values.items() if keys is None or key in keys}
    faults = section_faults(used, config.source)
    if not faults:
        faults = _faults_between_sections(config, with_training=keys is None)
    if faults:
        raise ConfigError(*faults)


def section_faults(values: Mapping[str, Any], source: str) -> list[str]:
    """The mistakes of each section by itself, in plain values that may not make a config as a whole."""
    faults = []
    for key, known in REGISTRIES.items():
        nodes = values.get(key)
        for node in nodes if isinstance(nodes, list) else [nodes]:
            with suppress(ValidationError):
                faults += check(known, read_section(node), f"{source}: {key}")
            faults += _not_finite(node, f"{source}: {key}")
    return faults


def _not_finite(value: Any, where: str) -> list[str]:
    """The infinite numbers and NaNs in a section."""
    if isinstance(value, Mapping):
        return [fault for name, part in value.items() for fault in _not_finite(part, f"{where}.{name}")]
    if isinstance(value, list):
        return [fault for index, part in enumerate(value) for fault in _not_finite(part, f"{where}.{index}")]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where}: expected a finite number, received {value}"]
    return []


def _faults_between_sections(config: LoadedConfig, with_training: bool) -> list[str]:
    checked, source = config.checked, config.source
    faults = _training_faults(checked, source) if with_training else []
    if checked.testing:
        where = f"{source}: testing"
        section = Section(type=checked.data_loader.type, args=testing_args(config))
        of_loader = check(LOADERS, section, where)
        faults += [fault.replace(f"{where}.args", where, 1) for fault in of_loader]
        faults += [
            f"{where}: '{key}' is for training alone; remove it"
            for key in checked.testing.loader_args
            if key in TRAINING_ONLY and key not in ("csv", "images")
        ]
    try:
        classes = len(class_ids_of(config))
    except ConfigError as error:
        return [*faults, *error.args]
    names = checked.predict.class_names
    if names is not None and len(names) != classes:
        faults.append(
            f"{source}: predict.class_names: expected {classes}, one for each class, received {len(names)}"
        )
    return faults + [
        f"{source}: predict.{key}: expected one value, or one for each of {classes} classes, "
        f"received {len(value)}"
        for key, value in checked.predict.postprocessing.items()
        if isinstance(value, list) and len(value) != classes
    ]


def _training_faults(checked: Config, source: str) -> list[str]:
    where = f"{source}: optimizer"
    optimizer, scheduler = checked.optimizer, checked.lr_scheduler
    thing = OPTIMIZERS.find(optimizer.type, where)
    decays = optimizer.decay_biases_and_norms
    faults = group_faults(thing, optimizer.groups, where, optimizer.args, decays)
    if scheduler and SCHEDULERS.find(scheduler.type, source).__name__ == "ReduceLROnPlateau":
        at = f"{source}: lr_scheduler"
        if checked.training.monitor == "off":
            faults.append(f"{at}: ReduceLROnPlateau follows training.monitor, which is off")
        if scheduler.interval == "step":
            faults.append(f"{at}.interval: ReduceLROnPlateau follows validations; leave interval out")
    faults += _faults_of_own_trainer(checked, source)
    if checked.training.keep_best and checked.training.monitor == "off":
        faults.append(f"{source}: training.keep_best: needs training.monitor, which is off")
    return faults


def _faults_of_own_trainer(checked: Config, source: str) -> list[str]:
    """Settings that a trainer of the user's own would silently ignore."""
    name = checked.trainer.type
    trainer = TRAINERS.find(name, f"{source}: trainer")
    cure = "derive it from sever.trainer.trainer.Trainer, or"
    faults = []
    by_step = checked.lr_scheduler and checked.lr_scheduler.interval == "step"
    if by_step and not getattr(trainer, "steps_schedules", False):
        faults.append(
            f"{source}: lr_scheduler.interval: {name} does not say that it steps schedules "
            f"(steps_schedules = True); {cure} take interval: epoch"
        )
    if issubclass(trainer, TRAINERS.find("Trainer", source)):  # type: ignore[arg-type]
        return faults
    taken = parameters(trainer)
    return faults + [
        f"{source}: training.{key}: {name} does not take it; {cure} leave the key out"
        for key in Training.of_step()
        if key not in taken and getattr(checked.training, key) != Training.model_fields[key].default
    ]


def group_faults(
    optimizer: Callable[..., Any],
    settings: Mapping[str, Mapping[str, Any]],
    where: str,
    args: Mapping[str, Any],
    decay_biases_and_norms: bool = True,
) -> list[str]:
    """The mistakes in an optimizer's options: `settings` by parameter group, and `args` of all groups."""
    taken = {name: p.default for name, p in parameters(optimizer).items() if name != "params"}
    faults = []
    for group, options in {**settings, "args": args}.items():
        for option, value in options.items():
            if option in taken and not _is_valid(option, value, taken[option]):
                at = f"{where}.{group}.{option}"
                faults.append(f"{at}: expected a number of at least 0, received {value!r}")
            elif option in taken and group in settings:
                faults += type_faults(optimizer, option, value, f"{where}.{group}.{option}")
            elif group in settings:  # those of all groups are checked as args
                known = f"{did_you_mean(option, taken)} Known: {', '.join(taken)}."
                faults.append(f"{where}.{group}: unknown key '{option}'.{known}")
    if not decay_biases_and_norms and "weight_decay" not in taken:
        faults.append(f"{where}.decay_biases_and_norms: this optimizer has no weight_decay; remove it")
    if not faults and args.get("lr", taken.get("lr")) is None:
        # The optimizer would choose a rate itself, at odds with any schedule.
        faults += [
            f"{where}.{group}: needs 'lr', a number: this optimizer has no rate of its own"
            for group, options in (settings or {"args": args}).items()
            if options.get("lr") is None
        ]
    return faults


def _is_valid(option: str, value: object, default: object) -> bool:
    if option not in ("lr", "weight_decay", "momentum", "eps") or (value is None and default is None):
        return True
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < float("inf")  # type: ignore[operator]
