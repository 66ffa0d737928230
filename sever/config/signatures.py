"""What a class or function takes: names, defaults, and whether a value from YAML fits its type."""

import functools
import inspect
import itertools
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from sever.config.schema_messages import expected_by, explained
from sever.utils.did_you_mean import did_you_mean


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


def argument_faults(
    thing: Callable[..., Any],
    name: str,
    args: Mapping[str, Any],
    where: str,
    ready: Collection[str],
    nested: Collection[str],
) -> list[str]:
    """The mistakes in `args` for a class or function, each after file and key (`where`), without calling it.

    The program itself passes the arguments `ready`; those in `nested` hold sections, checked elsewhere.
    """
    accepted = parameters(thing)
    free = [parameter for parameter in accepted if parameter not in ready]
    takes = f" It takes: {', '.join(free)}." if free else " It takes no arguments."
    if args and not any(arg in accepted or did_you_mean(arg, free) for arg in args):  # another type's
        listed = ", ".join(f"'{arg}'" for arg in args)
        return [
            f"{where}: {name} does not take {listed}.{takes} For its defaults give the name alone, {name}."
        ]
    faults = []
    for arg, value in args.items():
        if arg in ready and arg in accepted:
            faults.append(f"{where}: '{arg}' of {name} is set by the program; remove it")
        elif arg not in accepted:
            faults.append(f"{where}: {name} does not take '{arg}'.{did_you_mean(arg, free)}{takes}")
        elif arg not in nested:
            faults += type_faults(thing, arg, value, f"{where}.{arg}")
    # What only a base class needs, the class itself may supply; a loss's (output, target) is no config.
    own = list(_signature(thing).parameters)[2 if inspect.isfunction(thing) else 0 :]
    needed = [p for p in free if p in own and accepted[p].default is inspect.Parameter.empty]
    return faults + [f"{where}: {name} needs '{parameter}'" for parameter in needed if parameter not in args]


def type_faults(thing: Callable[..., Any], arg: str, value: object, where: str) -> list[str]:
    """What is wrong with the type of an argument of a class or function, after file and key (`where`)."""
    return _type_faults(_annotations(thing).get(arg), value, where)


def _signature(thing: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(thing)
    except ValueError:  # written in C, without one
        return inspect.Signature()


def _annotations(thing: Callable[..., Any]) -> dict[str, Any]:
    thing = thing.func if isinstance(thing, functools.partial) else thing
    classes = thing.__mro__ if isinstance(thing, type) else ()
    functions = [vars(cls)["__init__"] for cls in classes if "__init__" in vars(cls)] or [thing]
    hints: dict[str, Any] = {}
    for function in reversed(functions):
        try:
            hints.update(typing.get_type_hints(inspect.unwrap(function), include_extras=True))
        except (NameError, TypeError, AttributeError):
            continue
    return hints


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter | None:
    for config in (ConfigDict(arbitrary_types_allowed=True, strict=True), None):  # None: what has its own
        with suppress(PydanticUserError):
            return TypeAdapter(annotation, config=config)
    return None


def _type_faults(annotation: Any, value: Any, where: str) -> list[str]:
    """The mistakes in the type of a value from YAML, as far as the annotation tells."""
    try:
        adapter = _adapter(annotation) if annotation is not None else None
        text = json.dumps(value)
    except TypeError:  # an annotation that cannot be hashed, a value that is not plain
        return []
    try:
        if adapter is not None:
            adapter.validate_json(text, strict=True)
    except ValidationError as error:
        return _explained(error, annotation, value, where)
    except (PydanticUserError, NotImplementedError):
        pass
    return []


def _explained(error: ValidationError, annotation: Any, value: Any, where: str) -> list[str]:
    details = [detail for detail in error.errors() if not detail["msg"].startswith(_NOT_OF_YAML)]
    expected = {expected_by(detail) for detail in details}
    if any(text.startswith("an instance of") for text in expected):
        return []  # takes objects that YAML cannot write; let the constructor judge
    known = _keys_of(annotation)
    keys = {*known, *(value if isinstance(value, dict) else ())}
    # The path within the mapping, without the form of it that a union has in front.
    paths = [tuple(itertools.dropwhile(lambda part: part not in keys, detail["loc"])) for detail in details]
    inner = [{**detail, "loc": path} for detail, path in zip(details, paths, strict=True) if path]
    if inner:
        return [explained(detail, f"{where}.", lambda _: known) for detail in inner]
    return [f"{where}: expected {' or '.join(sorted(expected))}, received {value!r}"]


# What pydantic says of forms of an argument that no YAML value could have.
_NOT_OF_YAML = "Cannot check `isinstance`"


def _keys_of(annotation: Any) -> list[str]:
    """The keys of a `TypedDict` or pydantic model, also where it is one form of several."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [key for form in typing.get_args(annotation) for key in _keys_of(form)]
    if is_typeddict(annotation) or hasattr(annotation, "model_fields"):
        return list(typing.get_type_hints(annotation))
    return []
