"""What a class or function takes: names, defaults, and whether a value from YAML fits its type."""

import functools
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from typing_extensions import is_typeddict

from sever.utils.errors import did_you_mean


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
    ready: set[str],
    nested: Mapping[str, Any],
) -> list[str]:
    """What is wrong with the arguments for a class or function, without calling it.

    Args:
        thing: the class or function.
        name: what messages call it.
        args: its arguments by name.
        where: file and key, for the messages.
        ready: names of arguments that the program itself will pass.
        nested: names of arguments that hold sections; their values are not looked at.
    """
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
        elif arg not in nested:
            faults += _type_faults(_annotations(thing).get(arg), value, f"{where}.{arg}")
    for parameter in free:
        # What only a base class asks for, the class itself may supply.
        required = parameter in own and accepted[parameter].default is inspect.Parameter.empty
        if required and parameter not in args and not _is_first_positional(thing, parameter):
            faults.append(f"{where}: {name} needs '{parameter}'")
    return faults


def _signature(thing: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(thing)
    except ValueError:  # written in C, without one
        return inspect.Signature()


def _is_first_positional(thing: Callable[..., Any], parameter: str) -> bool:
    """Functions used as losses and metrics take (output, target); those are not config."""
    return inspect.isfunction(thing) and parameter in list(inspect.signature(thing).parameters)[:2]


def _annotations(thing: Callable[..., Any]) -> dict[str, Any]:
    thing = thing.func if isinstance(thing, functools.partial) else thing
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


def _type_faults(annotation: Any, value: Any, where: str) -> list[str]:
    """What is wrong with the type of a value from YAML, if its annotation can tell."""
    try:
        adapter = _adapter(annotation)
        text = json.dumps(value)
    except TypeError:  # an annotation that cannot be hashed, a value that is not plain
        return []
    if annotation is None or adapter is None:
        return []
    try:
        adapter.validate_json(text, strict=True)
    except ValidationError as error:
        return _explained(error, annotation, value, where)
    except (PydanticUserError, NotImplementedError):
        return []
    return []


def _explained(error: ValidationError, annotation: Any, value: Any, where: str) -> list[str]:
    details = error.errors()
    messages = {d["msg"] for d in details if not d["msg"].startswith(_NOT_OF_YAML)}
    expected = {
        message.replace("Input should be ", "").replace("an object", "a mapping") for message in messages
    }
    if any(message.startswith("an instance of") for message in expected):
        return []  # takes objects that YAML cannot write; let the constructor judge
    known = _keys_of(annotation)
    inner = [d for d in details if set(d["loc"]) & {*known, *(value if isinstance(value, dict) else ())}]
    if not inner:
        return [f"{where}: expected {' or '.join(sorted(expected))}, received {value!r}"]
    return [_explained_key(detail, known, where) for detail in inner]


def _explained_key(detail: Any, known: list[str], where: str) -> str:
    """What is wrong with one key of a mapping whose keys are known."""
    key = str(next((part for part in detail["loc"] if part in known), detail["loc"][-1]))
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key '{key}'.{did_you_mean(key, known)} Known: {', '.join(known)}."
    if detail["type"] == "missing":
        return f"{where}: needs '{key}'"
    expected = detail["msg"].replace("Input should be ", "")
    return f"{where}.{key}: expected {expected}, received {detail['input']!r}"


# What pydantic says of forms of an argument that no YAML value could have.
_NOT_OF_YAML = "Cannot check `isinstance`"


def _keys_of(annotation: Any) -> list[str]:
    """The keys of a `TypedDict` or pydantic model, also where it is one form of several."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [key for form in typing.get_args(annotation) for key in _keys_of(form)]
    if is_typeddict(annotation) or hasattr(annotation, "model_fields"):
        return list(typing.get_type_hints(annotation))
    return []
