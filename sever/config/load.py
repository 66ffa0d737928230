"""YAML -> a checked `Config`: `extends`, `-s` overrides, unknown keys, wrong types."""

import copy
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sever.config.schema import BESIDE_ARGS, Config, Section, fields_at, section_from_name
from sever.utils.errors import ConfigError, did_you_mean
from sever.utils.files import neighbours
from sever.utils.yaml12 import parse_yaml

_OWN_SECTION_CUTOFF = 0.75  # a section of the user's own must be less like a known key than this
_ABOUT_THE_WHOLE = ("missing", "extra_forbidden")  # what `_explain` says without a key in front
_SectionType = TypeVar("_SectionType", bound=Section)
_NO_MAPPING = ("model_type", "model_attributes_type")  # pydantic's words for it
_NODE = "expected a name, or 'type' and 'args'"
_KEYS_OF = {"testing": ["data_dir", "csv", "images"]}  # keys of the data loader rather than of the section
_SECTIONS = frozenset(("arch", "augmentation", "data_loader", "loss", "optimizer", "lr_scheduler", "trainer"))
_MEANT = dict.fromkeys(_SECTIONS, f": {_NODE}") | {"training": ": expected keys such as epochs"}


class LoadedConfig:
    """A checked config together with what it was made from.

    Attributes:
        source: what messages call it: the file's path, or the checkpoint's.
        values: the merged plain values, as `config.yml` and the checkpoints hold them.
        checked: the typed view of `values`.
        retyped: sections that an override gave another type, with the args of the type before it.
    """

    def __init__(self, values: Mapping[str, Any], source: str, retyped: Iterable[str] = ()) -> None:
        self.source = source
        self.values = copy.deepcopy(dict(values))
        self.retyped = frozenset(retyped)
        self.checked = _check(self.values, source)

    def at(self, key: str) -> str:
        """A key's place, for messages: the source and the dotted key."""
        return f"{self.source}: {key}"

    def override(self, assignments: Iterable[str]) -> "LoadedConfig":
        """The same config with `KEY=VALUE` assignments applied."""
        assignments = tuple(assignments)
        values = _overridden(self.values, assignments)
        return LoadedConfig(values, self.source, self.retyped | _retyped(self.values, assignments, values))

    def replace(self, changes: Mapping[str, Any]) -> "LoadedConfig":
        """The same config with other plain values under dotted keys whose parents are there."""
        values = copy.deepcopy(self.values)
        for key, value in changes.items():
            node = values
            *parents, last = key.split(".")
            for parent in parents:
                node = node[parent]
            node[last] = value
        return LoadedConfig(values, self.source, self.retyped)


# (plain values, what messages call the file) -> what is wrong with the sections that can be read
SectionFaults = Callable[[Mapping[str, Any], str], list[str]]


def load_config(
    path: str | Path, overrides: Iterable[str] = (), section_faults: SectionFaults | None = None
) -> LoadedConfig:
    """Read an experiment file.

    Args:
        path: the YAML file; files that it `extends` are merged under it.
        overrides: `KEY=VALUE` with a dotted key and a value in YAML.
        section_faults: what else to report where the file has mistakes.

    Raises:
        ConfigError: with every mistake of the file in one message.
    """
    path, overrides = Path(path), tuple(overrides)
    of_file = _read_with_bases(path, None, ())
    values = {"name": path.stem, **_overridden(of_file, overrides)}
    try:
        return LoadedConfig(values, str(path), _retyped(of_file, overrides, values))
    except ConfigError as error:
        more = section_faults(values, str(path)) if section_faults else []
        raise ConfigError("\n".join([str(error), *more])) from error


def read_section(node: object) -> Section:
    """A section of any kind from its plain value; what stands beside `type` and `args` is left aside.

    Raises:
        pydantic.ValidationError: it is neither a name nor `type` and `args`.
    """
    if isinstance(node, dict):
        node = {key: value for key, value in node.items() if key not in BESIDE_ARGS}
    return Section.model_validate(section_from_name(node))


def read_node(model: type[_SectionType], node: object, where: str) -> _SectionType:
    """A section inside another section's args from its plain value.

    Args:
        model: what it is: `type`, `args` and perhaps further keys.
        node: its value.
        where: file and key, for the messages.

    Raises:
        ConfigError: with all that is wrong with it.
    """
    try:
        return model.model_validate(section_from_name(node))
    except ValidationError as error:
        known = list(model.model_fields)
        faults = [
            f"{where}{': ' if detail['type'] in _ABOUT_THE_WHOLE or not detail['loc'] else '.'}"
            f"{_explain(detail, lambda _: known)}"
            for detail in error.errors()
        ]
        raise ConfigError("\n".join(faults)) from error


def _read_with_bases(path: Path, by: Path | None, extending: tuple[Path, ...]) -> dict[str, Any]:
    where = f"{by}: extends: {path}" if by else f"{path}"
    if path.resolve() in extending:
        chain = " -> ".join(str(p) for p in (*extending, path.resolve()))
        raise ConfigError(f"{path}: extends itself: {chain}; take one of these extends out")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        beside = neighbours(path) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{where}: cannot be read: {error.strerror or error}{beside}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8: {error.reason}; save it as UTF-8") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        found = "an empty file" if values is None else f"a {type(values).__name__}"
        raise ConfigError(f"{path}: expected sections such as 'arch:', received {found}")
    base = values.pop("extends", None)
    if "short_name" in values:
        short_name = values.pop("short_name")
        values.setdefault("name", short_name)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends: expected the path of a YAML file, received {base!r}")
    return _merged(_read_with_bases(path.parent / base, path, (*extending, path.resolve())), values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` over `base`, key by key; a section of another `type` takes no args of the base's."""
    result = dict(base)
    for key, value in values.items():
        below = result.get(key)
        if key in _SECTIONS and isinstance(below, str | dict) and isinstance(value, str | dict):
            below, value = section_from_name(below), section_from_name(value)
        if not (isinstance(below, dict) and isinstance(value, dict)):
            result[key] = value
            continue
        if value.get("type", below.get("type")) != below.get("type"):
            below = {k: v for k, v in below.items() if k not in ("type", "args")}
        result[key] = _merged(below, value)
    return result


def _overridden(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    result = copy.deepcopy(dict(values))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"-s {assignment}: expected KEY=VALUE, e.g. optimizer.encoder.lr=7e-5")
        if key == "extends":
            raise ConfigError(f"-s {assignment}: a file says itself which one it extends")
        _check_top_key(key, result, assignment)
        *parents, last = key.split(".") if key != "short_name" else ["name"]
        node: Any = result
        for at, parent in enumerate(parents):
            place = _place(node, parent, assignment)
            below = node.get(place) if isinstance(node, dict) else node[place]
            if isinstance(below, str) and (
                at == 0 or isinstance(node, list)
            ):  # a bare name: `loss: nll_loss`
                below = {"type": below}
            if below is None:
                below = {}
            if not isinstance(below, dict | list):
                where = ".".join(parents[: at + 1])
                raise ConfigError(f"-s {assignment}: '{where}' is {below!r} and has no keys in it")
            node[place] = below
            node = below
        node[_place(node, last, assignment)] = parse_yaml(text, f"-s {assignment}")
    return result


def _retyped(
    before: Mapping[str, Any], assignments: Iterable[str], after: Mapping[str, Any]
) -> frozenset[str]:
    """The sections of which `-s SECTION.type=…` left the args of another type as they were."""
    found = set()
    for key in (assignment.partition("=")[0] for assignment in assignments):
        section = key.removesuffix(".type")
        old, new = before.get(section), after.get(section)
        if key.endswith(".type") and section in _SECTIONS and isinstance(old, dict) and isinstance(new, dict):
            same_args = new.get("args") and new.get("args") == old.get("args")
            if same_args and new.get("type") != old.get("type"):
                found.add(section)
    return frozenset(found)


def _place(node: dict[str, Any] | list[Any], part: str, assignment: str) -> Any:
    """A part of a dotted key as what it is in a mapping or, counted from 0, in a list."""
    if isinstance(node, dict):
        return part
    if not part.isdecimal() or int(part) >= len(node):
        raise ConfigError(
            f"-s {assignment}: expected a place from 0 to {len(node) - 1} in the list, received '{part}'"
        )
    return int(part)


def _check_top_key(key: str, values: Mapping[str, Any], assignment: str) -> None:
    """Refuse an override at the top of a key that has its place deeper in the config."""
    top = key.partition(".")[0]
    if top in values or top in Config.model_fields:
        return
    deeper = [
        f"{section}{within}.{top}"
        for section, node in values.items()
        if isinstance(node, dict)
        for within, keys in (("", node), (".args", node.get("args")))
        if isinstance(keys, dict) and top in keys
    ]
    if deeper:
        raise ConfigError(f"-s {assignment}: the config has no key '{top}'. Did you mean '{deeper[0]}'?")


def _check(values: dict[str, Any], source: str) -> Config:
    faults = []
    meant = set()
    for own in [key for key in values if key not in Config.model_fields]:
        near = _near_known_key(str(own))
        if near:
            meant.add(near)
            faults.append(f"{source}: unknown key '{own}'. Did you mean '{near}'?")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        faults += [f"{source}: {_explain(detail)}" for detail in _distinct(error.errors(), meant)]
    if faults:
        raise ConfigError("\n".join(faults))
    return config


def _near_known_key(key: str) -> str | None:
    close = difflib.get_close_matches(
        key, [*Config.model_fields, "short_name", "extends"], n=1, cutoff=_OWN_SECTION_CUTOFF
    )
    return close[0] if close else None


def _distinct(details: Sequence[Any], meant: set[str]) -> list[Any]:
    """Of a key that takes a value or a list, only what is wrong with the form that was given.

    Nor is a key missing that is there under a misspelt name (`meant`).
    """
    lists = {
        detail["loc"][:at]
        for detail in details
        for at, part in enumerate(detail["loc"])
        if str(part).startswith("list[")
    }  # the keys that take a list

    def of_other_form(detail: Any) -> bool:
        if detail["loc"][:-1] not in lists:
            return False
        of_number = detail["type"] in ("float_type", "int_type") and isinstance(detail["input"], list)
        return detail["type"] == "list_type" or of_number

    def misspelt(detail: Any) -> bool:
        return detail["type"] == "missing" and ".".join(map(str, detail["loc"])) in meant

    return [detail for detail in details if not of_other_form(detail) and not misspelt(detail)]


def _explain(detail: Any, fields_at: Callable[[list[str]], list[str]] = fields_at) -> str:
    """One of pydantic's findings as: key, what was expected, what was received, the nearest name.

    Args:
        detail: of `ValidationError.errors()`.
        fields_at: the known keys under a path; default those of an experiment.
    """
    path = [str(part) for part in detail["loc"] if not str(part).startswith(("list[", "constrained"))]
    path = [part for part in path if part not in ("float", "int", "Section")]
    where = ".".join(path)
    if not path:
        return f"{_NODE}, received {_shown(detail['input'])}"
    if detail["type"] == "missing":
        return f"'{where}' is missing{_MEANT.get(where, '')}"
    is_node = (path[0] in _SECTIONS and len(path) == 1) or (path[0] == "metrics" and len(path) == 2)
    if is_node and detail["type"] in _NO_MAPPING:
        return f"{where}: {_NODE}, received {_shown(detail['input'])}"
    if detail["type"] == "invalid_key" or path[-1] == "[key]":
        at = ".".join(part for part in path if part != "[key]")
        return f"{at}: expected a text as the key, received {_shown(detail['input'])}; put quotes around it"
    if detail["type"] == "extra_forbidden":
        known = (fields_at)(path[:-1])
        at = f"{'.'.join(path[:-1])}: " if path[:-1] else ""
        return f"{at}unknown key '{path[-1]}'.{did_you_mean(path[-1], known)} Known: {', '.join(known)}."
    if detail["type"] == "value_error":
        text = str(detail["ctx"]["error"])
        return f"{where}: {text}" + ("" if "received" in text else f"; received {_shown(detail['input'])}")
    expected = detail["msg"].replace("Input should be ", "").replace("dictionary", "mapping")
    expected = re.sub(r" or instance of \w+", "", expected)
    if detail["type"] in _NO_MAPPING:
        expected += f" with keys such as {', '.join(_KEYS_OF.get(where, fields_at(path))[:3])}"
    return f"{where}: expected {expected}, received {_shown(detail['input'])}"


def _shown(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return f"{text[:60]} …" if len(text) > 60 else text
