"""Name or import path + args -> object; one registry for each kind of thing that a config names."""

import functools
import importlib
import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from sever.utils.config import Section
from sever.utils.errors import ConfigError, SeverError, did_you_mean

# What constructors raise for an argument that they do not like.
_CONSTRUCTION_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Registry:
    """The known things of one kind, by the name that a config uses.

    Args:
        kind: what messages call one of them, e.g. "loss".
        base: the class that an imported class must derive from; None takes any callable.
    """

    def __init__(self, kind: str, base: type | None = None) -> None:
        self.kind = kind
        self.base = base
        self._known: dict[str, Callable[..., Any]] = {}

    def register(self, thing: Callable[..., Any], name: str | None = None) -> Callable[..., Any]:
        """Make a class or function known under its own name or another; usable as a decorator."""
        self._known[name or thing.__name__] = thing
        return thing

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self._known)

    def find(self, name: str, where: str) -> Callable[..., Any]:
        """The thing of a registered name or an import path.

        Raises:
            ConfigError: the name is unknown, or what is imported is of another kind.
        """
        if name in self._known:
            return self._known[name]
        if "." not in name:
            raise ConfigError(
                f"{where}: '{name}' is not a known {self.kind}.{did_you_mean(name, self._known)}\n"
                f"  Known: {', '.join(self.names())}. For one of your own write its import path, "
                f"e.g. my_pkg.my_module.{name[:1].upper() + name[1:]}."
            )
        thing = _import(name, where)
        if self.base and not (isinstance(thing, type) and issubclass(thing, self.base)):
            raise ConfigError(
                f"{where}: '{name}' is no {self.kind}: expected a class derived from "
                f"{self.base.__module__}.{self.base.__qualname__}, received {thing!r}"
            )
        if not callable(thing):
            raise ConfigError(f"{where}: '{name}' is not a class or function but {thing!r}")
        return thing


def check(
    registry: Registry,
    section: Section,
    where: str,
    ready: Iterable[str] = (),
    known_args: Mapping[str, Any] | None = None,
) -> list[str]:
    """All that is wrong with a section, without building anything.

    Args:
        registry: where its name is looked up.
        section: the checked `type` + `args`.
        where: file and key, for the messages.
        ready: names of the ready objects that the program itself will pass.
        known_args: arguments to check in the place of the section's.
    """
    try:
        thing = registry.find(section.type, where)
    except ConfigError as error:
        return [str(error)]
    args = section.args if known_args is None else known_args
    return _argument_faults(thing, section.type, args, f"{where}.args", set(ready))


def build(registry: Registry, section: Section, where: str, **ready: Any) -> Any:
    """Make the object that a section describes.

    Args:
        registry: where its name is looked up.
        section: the checked `type` + `args`.
        where: file and key, for the messages.
        ready: objects that the program passes to whatever has a parameter of that name.

    Raises:
        ConfigError: with all that is wrong with the section, or what its constructor complained of.
    """
    faults = check(registry, section, where, ready)
    if faults:
        raise ConfigError("\n".join(faults))
    thing = registry.find(section.type, where)
    accepted = parameters(thing)
    passed = {name: value for name, value in ready.items() if name in accepted}
    return call(thing, where, section.type, **section.args, **passed)


def call(thing: Callable[..., Any], where: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a constructor; what it complains of becomes a `ConfigError` that names the section."""
    try:
        return thing(*args, **kwargs)
    except ConfigError as error:
        file = where.partition(": ")[0]
        raise ConfigError(str(error) if str(error).startswith(file) else f"{file}: {error}") from error
    except SeverError:
        raise
    except _CONSTRUCTION_ERRORS as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ConfigError(f"{where}: {name} refuses its arguments: {reason}") from error


def bound_args(registry: Registry, section: Section, where: str) -> dict[str, Any]:
    """The args of a section with the defaults of its parameters filled in."""
    accepted = parameters(registry.find(section.type, where))
    defaults = {n: p.default for n, p in accepted.items() if p.default is not p.empty}
    return {**defaults, **section.args}


def parameters(thing: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that can be given by name.

    An open `**kwargs` does not count as accepting anything. Where a class has one, the parameters
    of its base classes count instead, since that is where it passes them on to.
    """
    accepted: dict[str, inspect.Parameter] = {}
    signatures = [_signature(thing)]
    if isinstance(thing, type) and "__signature__" not in vars(thing):
        signatures += [inspect.signature(base) for base in thing.__mro__[1:] if "__init__" in vars(base)]
    for signature in signatures:
        for name, parameter in signature.parameters.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                accepted.setdefault(name, parameter)
        if all(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return accepted


def _signature(thing: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(thing)
    except ValueError:  # written in C, without one
        return inspect.Signature()


def _argument_faults(
    thing: Callable[..., Any], name: str, args: Mapping[str, Any], where: str, ready: set[str]
) -> list[str]:
    accepted = parameters(thing)
    free = [parameter for parameter in accepted if parameter not in ready]
    own = _signature(thing).parameters
    faults = []
    for arg, value in args.items():
        if arg in ready and arg in accepted:
            faults.append(f"{where}: '{arg}' of {name} is set by the program; remove it")
        elif arg not in accepted:
            takes = f" It takes: {', '.join(free)}." if free else " It takes no arguments."
            faults.append(f"{where}: {name} does not take '{arg}'.{did_you_mean(arg, free)}{takes}")
        else:
            fault = _type_fault(_annotations(thing).get(arg), value)
            if fault:
                faults.append(f"{where}.{arg}: {fault}")
    for parameter in free:
        # What only a base class asks for, the class itself may supply.
        required = parameter in own and accepted[parameter].default is inspect.Parameter.empty
        if required and parameter not in args and not _is_first_positional(thing, parameter):
            faults.append(f"{where}: {name} needs '{parameter}'")
    return faults


def _is_first_positional(thing: Callable[..., Any], parameter: str) -> bool:
    """Functions used as losses and metrics take (output, target); those are not config."""
    return inspect.isfunction(thing) and parameter in list(inspect.signature(thing).parameters)[:2]


def _annotations(thing: Callable[..., Any]) -> dict[str, Any]:
    classes = thing.__mro__ if isinstance(thing, type) else ()
    functions = [vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls)] or [thing]
    hints: dict[str, Any] = {}
    for function in reversed(functions):
        try:
            hints.update(typing.get_type_hints(inspect.unwrap(function)))
        except (NameError, TypeError, AttributeError):
            continue
    return hints


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter | None:
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except PydanticUserError:
        try:
            return TypeAdapter(annotation)
        except (PydanticUserError, PydanticSchemaGenerationError):
            return None
    except PydanticSchemaGenerationError:
        return None


def _type_fault(annotation: Any, value: Any) -> str | None:
    """What is wrong with the type of a value from YAML, if its annotation can tell."""
    try:
        adapter = _adapter(annotation)
        text = json.dumps(value)
    except TypeError:  # an annotation that cannot be hashed, a value that is not plain
        return None
    if annotation is None or adapter is None:
        return None
    try:
        adapter.validate_json(text, strict=True)
    except ValidationError as error:
        expected = {d["msg"].replace("Input should be ", "") for d in error.errors()}
        if any(message.startswith("an instance of") for message in expected):
            return None  # takes objects that YAML cannot write; let the constructor judge
        return f"expected {' or '.join(sorted(expected))}, received {value!r}"
    except (PydanticUserError, NotImplementedError):
        return None
    return None


def _import(path: str, where: str) -> Any:
    module_name, _, name = path.rpartition(".")
    if str(Path.cwd()) not in sys.path:  # a console script does not see the user's own folder
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own code runs here
        raise ConfigError(f"{where}: '{path}' cannot be imported: {error}") from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"{where}: {module_name} has no '{name}'.{did_you_mean(name, public)}")
    return getattr(module, name)
