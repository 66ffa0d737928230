"""Name or import path + args -> object; one registry for each kind of thing that a config names."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sever.config.load import read_node
from sever.config.schema import Section
from sever.config.signatures import argument_faults, parameters
from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import ConfigError, SeverError

# What constructors raise for an argument that they do not like.
_CONSTRUCTION_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, OSError),
    *(RuntimeError, TypeError, ValueError),
)
_SHOWN = 40  # known names in a message


@dataclass(frozen=True)
class Nested:
    """An argument that holds sections of its own: a list of them, a mapping of names to them, or one.

    Attributes:
        registry: the kind of their things.
        section: their schema: `type`, `args` and further keys.
        make: (built thing, **further keys) -> what the constructor gets; None passes the thing itself.
    """

    registry: "Registry"
    section: type[Section] = Section
    make: Callable[..., Any] | None = None


class Registry:
    """The known things of one kind, by the name that a config uses.

    Known is what was registered, and every public class or function of the kind that its home module
    defines. Nothing is imported before a name is looked up.

    Example:
        >>> losses = Registry("loss", base="torch.nn.Module", home="sever.model.loss")
        >>> losses.find("BCEDiceLoss", "a.yml: loss").__module__
        'sever.model.loss'

    Args:
        kind: what messages call one of them, e.g. "loss".
        base: import path of the class that all classes of the kind derive from; None takes any callable.
        home: import path of the module to which one adds another.
        also: further modules that register things when they are imported.
        functions: whether functions of (output, target) are of the kind too; `build` binds the section's
            arguments to them.
        ready: names of the arguments that the program passes to `build` and a config cannot set, or a
            function that gives them.
    """

    def __init__(
        self,
        kind: str,
        base: str | None = None,
        home: str | None = None,
        also: Sequence[str] = (),
        functions: bool = False,
        ready: Collection[str] | Callable[[], Collection[str]] = (),
    ) -> None:
        self.kind = kind
        self.functions = functions
        self._base = base
        self._home = home
        self._also = also
        self._ready = ready
        self._registered: dict[str, Callable[..., Any]] = {}
        self._nested: dict[str, Mapping[str, Nested]] = {}
        self._refused: dict[str, str] = {}

    def register(
        self, thing: Any = None, name: str | None = None, nested: Mapping[str, Nested] | None = None
    ) -> Any:
        """Make a class or function known; also a decorator, with or without arguments.

        `name` is what configs call it, by default its own name; `nested` its arguments that hold sections.
        """
        if thing is None:
            return partial(self.register, name=name, nested=nested)
        self._registered[name or thing.__name__] = thing
        self._nested[name or thing.__name__] = nested or {}
        return thing

    def refuse(self, name: str, reason: str) -> None:
        """Say why a name that a user may expect cannot be used."""
        self._refused[name] = reason

    @property
    def base(self) -> type | None:
        """The class that all classes of the kind derive from."""
        return pkgutil.resolve_name(self._base) if self._base else None

    @property
    def ready(self) -> Collection[str]:
        """Names of the arguments that the program itself passes."""
        return self._ready() if callable(self._ready) else self._ready

    @property
    def known(self) -> dict[str, Callable[..., Any]]:
        """All things by name."""
        for module in self._also:
            importlib.import_module(module)
        home = vars(importlib.import_module(self._home)) if self._home else {}
        defined = {name: thing for name, thing in home.items() if name[0] != "_" and self._is_own(thing)}
        return {**defined, **self._registered}

    def _is_own(self, thing: Any) -> bool:
        """Whether the home module defines a thing, and it is of the kind."""
        if getattr(thing, "__module__", None) != self._home:
            return False
        if isinstance(thing, type):
            return self.base is not None and issubclass(thing, self.base) and thing is not self.base
        if not (self.functions and inspect.isfunction(thing)):
            return False
        return sum(p.default is p.empty for p in inspect.signature(thing).parameters.values()) >= 2

    def nested(self, name: str) -> Mapping[str, Nested]:
        """The arguments of a known thing that hold sections."""
        return self._nested.get(name, {})

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self.known)

    def find(self, name: str, where: str) -> Callable[..., Any]:
        """The thing of a registered name or an import path.

        Raises:
            ConfigError: the name is unknown, or what is imported is of another kind.
        """
        known = self.known
        if name in known:
            return known[name]
        if name in self._refused:
            raise ConfigError(
                f"{where}: '{name}' cannot be used: it {self._refused[name]}.{did_you_mean(name, known)}"
            )
        if "." not in name:
            names = sorted(known)
            more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
            raise ConfigError(
                f"{where}: '{name}' is not a known {self.kind}.{did_you_mean(name, known)}\n"
                f"  Known: {', '.join(names[:_SHOWN])}{more}. For one of your own write its import path, "
                f"e.g. my_pkg.my_module.{name[:1].upper() + name[1:]}."
            )
        thing = _import(name, where)
        base = None if self.functions else self.base
        if base and not (isinstance(thing, type) and issubclass(thing, base)):
            raise ConfigError(
                f"{where}: '{name}' is no {self.kind}: expected a class derived from "
                f"{base.__module__}.{base.__qualname__}, received {thing!r}"
            )
        if not callable(thing):
            raise ConfigError(f"{where}: '{name}' is not a class or function but {thing!r}")
        return thing


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
        return [str(error)]
    nested = registry.nested(section.type)
    faults = argument_faults(thing, section.type, section.args, f"{where}.args", ready, nested)
    for argument, kind in nested.items():
        at = f"{where}.args.{argument}"
        try:
            for inner, node in nodes_of(section.args.get(argument), at):
                faults += _faults_of_node(kind, node, inner, ready)
        except ConfigError as error:
            faults.append(str(error))
    return faults


def _faults_of_node(kind: Nested, node: Any, where: str, ready: Collection[str]) -> list[str]:
    try:
        return check(kind.registry, read_node(kind.section, node, where), where, ready=ready)
    except ConfigError as error:
        return str(error).splitlines()


def build(registry: Registry, section: Section, where: str, **ready: Any) -> Any:
    """Make the object that a section describes, with the `ready` objects that it has parameters for.

    Raises:
        ConfigError: with all mistakes of the section, or what its constructor complained of.
    """
    faults = check(registry, section, where, ready=ready)
    if faults:
        raise ConfigError("\n".join(faults))
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
        raise ConfigError(str(error) if str(error).startswith(file) else f"{file}: {error}") from error
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
