"""A section of a config, `type` and `args`, -> the object that it describes."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from sever.config.load import LoadedConfig, read_node
from sever.config.registry import MODELS, Nested, Registry
from sever.config.schema import MOST_CLASSES, Section
from sever.config.signatures import argument_faults, parameters
from sever.utils.errors import ConfigError, SeverError

# What constructors raise for an argument that they do not like.
_CONSTRUCTION_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, OSError),
    *(RuntimeError, TypeError, ValueError),
)


def check(
    registry: Registry, section: Section, where: str, ready: Collection[str] | None = None
) -> list[str]:
    """All mistakes of a section, each after file and key (`where`); builds nothing.

    `ready` are the names of the arguments that the program passes, by default those of the registry.
    """
    ready = registry.ready if ready is None else ready
    try:
        thing = registry.find(section.type, where)
    except ConfigError as error:
        return list(error.args)
    nested = registry.nested(section.type)
    faults = argument_faults(thing, section.type, section.args, f"{where}.args", ready, nested)
    for argument, kind in nested.items():
        at = f"{where}.args.{argument}"
        try:
            for inner, node in nodes_of(section.args.get(argument), at):
                faults += _faults_of_node(kind, node, inner, ready)
        except ConfigError as error:
            faults += error.args
    return faults


def _faults_of_node(kind: Nested, node: Any, where: str, ready: Collection[str]) -> list[str]:
    try:
        return check(kind.registry, read_node(kind.section, node, where), where, ready=ready)
    except ConfigError as error:
        return list(error.args)


def build(registry: Registry, section: Section, where: str, **ready: Any) -> Any:
    """Make the object that a section describes, with the `ready` objects that it has parameters for.

    Raises:
        ConfigError: with all mistakes of the section, or what its constructor complained of.
    """
    faults = check(registry, section, where, ready=ready)
    if faults:
        raise ConfigError(*faults)
    thing = registry.find(section.type, where)
    args = dict(section.args)
    for argument, kind in registry.nested(section.type).items():
        if argument in args:
            args[argument] = _built(kind, args[argument], f"{where}.args.{argument}", ready)
    if registry.functions and not isinstance(thing, type):
        return partial(thing, **args)
    accepted = parameters(thing)
    passed = {name: value for name, value in ready.items() if name in accepted}
    return call(thing, where, section.type, **args, **passed)


def call(thing: Callable[..., Any], where: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a constructor; what it complains of becomes a `ConfigError` that names the section."""
    try:
        return thing(*args, **kwargs)
    except ConfigError as error:
        file = where.partition(": ")[0]
        first, *others = error.args
        raise ConfigError(first if first.startswith(file) else f"{file}: {first}", *others) from error
    except SeverError:
        raise
    except _CONSTRUCTION_ERRORS as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ConfigError(f"{where}: {name} refuses its arguments: {reason}") from error


def import_paths(registry: Registry, section: Section, where: str) -> Iterator[tuple[str, str]]:
    """(key, import path) of all that `check` and `build` would import; none is imported here."""
    if "." in section.type and section.type not in registry.known:
        yield f"{where}.type", section.type
    for argument, kind in registry.nested(section.type).items():
        with suppress(ConfigError):  # where there is no section, nothing is imported
            for at, node in nodes_of(section.args.get(argument), f"{where}.args.{argument}"):
                with suppress(ConfigError):
                    yield from import_paths(kind.registry, read_node(kind.section, node, at), at)


def bound_args(registry: Registry, section: Section, where: str) -> dict[str, Any]:
    """The args of a section with the defaults of its parameters filled in."""
    accepted = parameters(registry.find(section.type, where))
    defaults = {n: p.default for n, p in accepted.items() if p.default is not p.empty}
    return {**defaults, **section.args}


def nodes_of(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The sections in an argument with the key path of each."""
    if _is_section(value):
        yield where, value
    elif isinstance(value, Mapping):
        yield from ((f"{where}.{name}", node) for name, node in value.items())
    elif isinstance(value, list):
        yield from ((f"{where}.{number}", node) for number, node in enumerate(value))
    elif value is not None:
        raise ConfigError(f"{where}: expected names, or sections with 'type' and 'args', received {value!r}")


def _is_section(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and isinstance(value.get("type"), str))


def _built(kind: Nested, value: Any, where: str, ready: Mapping[str, Any]) -> Any:
    """What a constructor gets for an argument that holds sections, in the form that these have."""
    things = []
    for at, node in nodes_of(value, where):
        section = read_node(kind.section, node, at)
        thing = build(kind.registry, section, at, **ready)
        further = section.model_dump(exclude={"type", "args"})
        things.append(kind.make(thing, **further) if kind.make else thing)
    if _is_section(value):
        return things[0]
    return dict(zip(value, things, strict=True)) if isinstance(value, Mapping) else things


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
