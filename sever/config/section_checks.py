"""The mistakes of a config that can be found before anything is built."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sever.config.build import bound_args, check
from sever.config.load import LoadedConfig
from sever.config.registry import LOADERS, MODELS, OPTIMIZERS, REGISTRIES, SCHEDULERS, TRAINERS
from sever.config.schema import MOST_CLASSES, Config, Section, Training, read_section
from sever.config.signatures import parameters, type_faults
from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import ConfigError

# Arguments of the loader that say how validation images are chosen, and how batches are drawn.
SPLIT_BY = ("validation_split", "folds", "fold", "groups")
DRAWN_BY = ("batch_size", "shuffle", "drop_last", "balance", "pseudo")
# Those that do not carry over to the one of `testing:`.
TRAINING_ONLY = (
    *("csv", "images", "shuffle", "drop_last", "balance", "pseudo"),
    *("validation_batch_size", *SPLIT_BY),
)


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


def testing_args(config: LoadedConfig) -> dict[str, Any]:
    """The arguments of the loader of `testing:`: its own over those of the training loader."""
    inherited = {
        name: value for name, value in config.checked.data_loader.args.items() if name not in TRAINING_ONLY
    }
    return inherited | (config.checked.testing.loader_args if config.checked.testing else {})


def input_paths(config: LoadedConfig) -> list[Path]:
    """The files and folders that a config stands in or names for its data, which no output may replace."""
    paths = [*config.files, images_folder(config)]
    for subset, args in (("train", config.checked.data_loader.args), ("test", testing_args(config))):
        pseudo = args.get("pseudo")
        names = [args.get("csv") or f"{subset}.csv", args.get("images") or f"{subset}_images"]
        names += ["test_images"] if isinstance(pseudo, Mapping) else []
        texts = list(_texts_in(args))  # a loader of one's own has others, under data_dir or not
        data_dir = Path(str(args.get("data_dir", "")))
        paths += [data_dir / name for name in (*names, *texts) if isinstance(name, str)] + list(
            map(Path, texts)
        )
    return paths


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(part)


def images_folder(config: LoadedConfig) -> Path:
    """The folder of the images that `predict:` names."""
    return Path(str(testing_args(config).get("data_dir", "data"))) / config.checked.predict.images


def cache_folder(config: LoadedConfig) -> Path:
    """The folder of the decoded images that runs of a config share."""
    chosen = config.checked.data_loader.args.get("cache_dir")
    return Path(str(chosen)) if chosen else Path(config.checked.save_dir, "cache")


def class_ids_of(config: LoadedConfig) -> list[str]:
    """The names of the classes, `"1"` first; none for a model without masks.

    Raises:
        ConfigError: there are more than `MOST_CLASSES`.
    """
    classes = bound_args(MODELS, config.checked.arch, config.at("arch")).get("classes")
    if isinstance(classes, int) and classes > MOST_CLASSES:
        raise ConfigError(
            f"{config.at('arch.args.classes')}: expected at most {MOST_CLASSES}, received {classes}"
        )
    return [str(c + 1) for c in range(classes)] if isinstance(classes, int) else []


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
