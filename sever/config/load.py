"""YAML -> a checked `Config`: `extends`, `-s` overrides, unknown keys, wrong types."""

import copy
import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sever.config.schema import Config, Section, fields_at
from sever.config.schema_messages import NODE, explained
from sever.utils.errors import ConfigError
from sever.utils.input_files import read_config_text
from sever.utils.yaml_parser import parse_yaml

_OWN_SECTION_CUTOFF = 0.75  # a section of the user's own must be less like a known key than this
_SectionType = TypeVar("_SectionType", bound=Section)
_SECTIONS = frozenset(("arch", "augmentation", "data_loader", "loss", "optimizer", "lr_scheduler", "trainer"))


class LoadedConfig:
    """A checked config together with what it was made from.

    Attributes:
        source: what messages call it: the file's path, or the checkpoint's.
        values: the merged plain values, as `config.yml` and the checkpoints hold them.
        checked: the typed view of `values`.
        overridden: whether `-s` assignments were applied to what the source holds.
        files: the YAML files that it was read from; none for a checkpoint's.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        source: str,
        overridden: bool = False,
        files: Sequence[Path] = (),
    ) -> None:
        self.source = source
        self.overridden = overridden
        self.files = files
        self.values = copy.deepcopy(dict(values))
        self.checked = _checked(self.values, source)

    def at(self, key: str) -> str:
        """A key's place, for messages: the source and the dotted key."""
        return f"{self.source}: {key}"

    def override(self, assignments: Collection[str]) -> "LoadedConfig":
        """The same config with `KEY=VALUE` assignments applied."""
        values = _overridden(self.values, assignments)
        return LoadedConfig(values, self.source, self.overridden or bool(assignments), self.files)

    def replace(self, changes: Mapping[str, Any]) -> "LoadedConfig":
        """The same config with other plain values under dotted keys, whose parent sections must exist."""
        values = copy.deepcopy(self.values)
        for key, value in changes.items():
            node = values
            *parents, last = key.split(".")
            for parent in parents:
                node = node[parent]
            node[last] = value
        return LoadedConfig(values, self.source, self.overridden, self.files)


def load_config(
    path: str | Path,
    overrides: Collection[str] = (),
    section_faults: Callable[[Mapping[str, Any], str], list[str]] | None = None,
) -> LoadedConfig:
    """Read an experiment file.

    Args:
        path: the YAML file; files that it `extends` are merged under it.
        overrides: `KEY=VALUE` with a dotted key and a value in YAML.
        section_faults: (plain values, file) -> further mistakes, reported along with those of the file.

    Raises:
        ConfigError: with every mistake of the file in one message.
    """
    values, files = read_values(path, overrides)
    try:
        return LoadedConfig(values, str(path), bool(overrides), files)
    except ConfigError as error:
        more = section_faults(values, str(path)) if section_faults else []
        raise ConfigError(*error.args, *more) from error


def read_values(path: str | Path, overrides: Collection[str] = ()) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The plain values of an experiment file, over those that it extends, and all these files.

    Raises:
        ConfigError: a file cannot be read, is no YAML, or an override has no place.
    """
    path = Path(path)
    own, files = _read_with_bases(path, None, ())
    return {"name": path.stem, **_overridden(own, overrides)}, files


def read_node(model: type[_SectionType], node: object, where: str) -> _SectionType:
    """A section inside another section's args, from its plain value.

    Raises:
        ConfigError: with all its mistakes, each after file and key (`where`).
    """
    try:
        return model.model_validate(node)
    except ValidationError as error:
        known = list(model.model_fields)
        faults = [explained(detail, f"{where}.", lambda _: known) for detail in error.errors()]
        raise ConfigError(*faults) from error


def _read_with_bases(
    path: Path, by: Path | None, extending: tuple[Path, ...]
) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The values of a file over those that it extends, and all files that they stand in."""
    where = f"{by}: extends: {path}" if by else f"{path}"
    if path.resolve() in extending:
        chain = " -> ".join(str(p) for p in (*extending, path.resolve()))
        raise ConfigError(f"{path}: extends itself: {chain}; take one of these extends out")
    values = parse_yaml(read_config_text(path, where), str(path))
    if not isinstance(values, dict):
        found = "an empty file" if values is None else f"a {type(values).__name__}"
        raise ConfigError(f"{path}: expected sections such as 'arch:', received {found}")
    base = values.pop("extends", None)
    if "short_name" in values:
        short_name = values.pop("short_name")
        values.setdefault("name", short_name)
    if base is None:
        return values, (*extending, path.resolve())
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends: expected the path of a YAML file, received {base!r}")
    below, files = _read_with_bases(path.parent / base, path, (*extending, path.resolve()))
    return _merged(below, values), files


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` over `base`, key by key; a section of another `type` takes no args of the base's."""
    result = dict(base)
    for key, value in values.items():
        below = result.get(key)
        if key in _SECTIONS:
            below, value = ({"type": node} if isinstance(node, str) else node for node in (below, value))
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
        for depth, parent in enumerate(parents):
            place = _place(node, parent, assignment)
            below = node.get(place) if isinstance(node, dict) else node[place]
            if isinstance(below, str) and (depth == 0 or isinstance(node, list)):
                below = {"type": below}  # a bare name: `loss: nll_loss`
            below = {} if below is None else below
            if not isinstance(below, dict | list):
                where = ".".join(parents[: depth + 1])
                raise ConfigError(f"-s {assignment}: '{where}' is {below!r} and has no keys in it")
            node[place] = below
            node = below
        node[_place(node, last, assignment)] = parse_yaml(text, f"-s {assignment}")
    return result


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


def _checked(values: dict[str, Any], source: str) -> Config:
    known = [*Config.model_fields, "short_name", "extends"]
    faults, meant = [], set()
    for own in [key for key in values if key not in Config.model_fields]:
        for near in difflib.get_close_matches(str(own), known, n=1, cutoff=_OWN_SECTION_CUTOFF):
            meant.add(near)
            faults.append(f"{source}: unknown key '{own}'. Did you mean '{near}'?")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        details = error.errors()
        there = [d for d in details if d["type"] == "missing" and d["loc"][0] in meant]  # but misspelt
        faults += [_explained(detail, source) for detail in details if detail not in there]
    if faults:
        raise ConfigError(*faults)
    return config


def _explained(detail: Any, source: str) -> str:
    key = ".".join(map(str, detail["loc"]))
    text = explained(detail, f"{source}: ", fields_at)
    if detail["type"] == "missing" and key in (*_SECTIONS, "training"):
        return f"{text}: {NODE if key in _SECTIONS else 'expected keys such as epochs'}"
    return text
