"""YAML with the numbers and truth values of YAML 1.2, on top of PyYAML."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from sever.utils.errors import ConfigError

_MOST_VALUES = 100_000  # of a document, each alias counted as all that it stands for
_NO_TEXT = re.compile("[\\0\\ud800-\\udfff]")
_DEEPEST = 50  # levels; deeper nesting may overflow the stack of a reader


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write plain values as YAML that reads back to the same values."""
    return yaml.dump(dict(values), Dumper=_Yaml12Dumper, sort_keys=False, allow_unicode=True)


def parse_yaml(text: str, source: str) -> Any:
    """Read YAML with the numbers and truth values of YAML 1.2, and nothing but plain values.

    Example:
        >>> parse_yaml("{lr: 7e-5, on: off}", "example")
        {'lr': 7e-05, 'on': 'off'}

    Args:
        text: one YAML document.
        source: what messages call the document.

    Returns:
        Mappings with names as keys, lists, texts, numbers, truth values and None.

    Raises:
        ConfigError: it is no YAML, a key is given twice, a value has a tag, or aliases stand for too much.
    """
    line, cure = "", ""
    try:
        loader = _Yaml12Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_extent(node, {}, ())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        cure = next((cure for start, cure in _CURES.items() if problem.startswith(start)), "")
        cause: Exception = error
    except ValueError as error:
        problem, cause = f"an escape is no character ({error})", error
    except RecursionError as error:
        problem, cause = f"nested deeper than {_DEEPEST} levels", error
    raise ConfigError(f"{source}{line}: not valid YAML: {problem}{cure}") from cause


# The cures of mistakes that PyYAML reports, by the start of its message.
_CURES = {
    "found character '\\t'": "; indent with spaces",
    "could not determine a constructor": "; write the plain value, without a tag",
    "found undefined alias": "; define it with & before its first *, or put quotes around the text",
}


def _fault(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _check_extent(node: yaml.Node, sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """The number of values in a node; refuses one that holds itself, too many values or too many levels.

    `sizes` are those of the nodes seen so far by id; `above` are the ids of the nodes around this one.
    """
    if id(node) in above:
        raise _fault(node, "an alias leads to what it is in; write the value out")
    if len(above) > _DEEPEST:
        raise _fault(node, f"nested deeper than {_DEEPEST} levels")
    if isinstance(node, yaml.ScalarNode) and _NO_TEXT.search(node.value):
        raise _fault(node, "a text holds half a character or a NUL, which no file can hold; take it out")
    if id(node) not in sizes:
        parts = () if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for entry in parts for part in entry]
        size = 1
        for part in parts:
            size += _check_extent(part, sizes, (*above, id(node)))
            if size > _MOST_VALUES:
                raise _fault(node, f"its aliases stand for more than {_MOST_VALUES:,} values; write fewer")
        sizes[id(node)] = size
    return sizes[id(node)]


_OF_KEYS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "merge"))


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where `7e-5` is a string, `off` is False and `1:30` is 90."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if not isinstance(node, yaml.MappingNode):
            raise _fault(node, f"expected a mapping, received a {node.id}")
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not (isinstance(key_node, yaml.ScalarNode) and key_node.tag in _OF_KEYS):
                raise _fault(key_node, "a key must be a plain name")
            if key_node.tag != "tag:yaml.org,2002:merge" and key_node.value in seen:
                raise _fault(key_node, f"the key '{key_node.value}' is given twice; keep one")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def plain(self, node: yaml.ScalarNode) -> Any:
        """The int, float or bool that the node's tag says."""
        text = self.construct_scalar(node)
        expected, read = _READ[node.tag]
        try:
            value = read(text.lower())
        except (ValueError, KeyError) as error:
            raise _fault(node, f"expected {expected}, received '{text[:40]}'") from error
        if value in (math.inf, -math.inf) and not text.lower().endswith(".inf"):
            raise _fault(node, f"the number {text[:40]} is too large; the largest is about 1.8e308")
        return value


# By tag: what it is, and how its text is read.
_READ: dict[str, tuple[str, Callable[[str], Any]]] = {
    "tag:yaml.org,2002:int": (
        "a whole number",
        lambda text: int(text, 0) if text.startswith(("0o", "0x")) else int(text),
    ),
    "tag:yaml.org,2002:float": ("a number", lambda text: float(re.sub(r"\.(inf|nan)$", r"\1", text))),
    "tag:yaml.org,2002:bool": ("true or false", lambda text: {"true": True, "false": False}[text]),
}
# https://yaml.org/spec/1.2.2/#1032-tag-resolution
_Yaml12Loader.yaml_implicit_resolvers = {
    letter: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag in ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:null")
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^(?:[-+]?[0-9]{1,400}|0o[0-7]{1,400}|0x[0-9a-fA-F]{1,300})$"),  # longer ones are texts
    list("-+0123456789"),
)
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
# YAML 1.1's dates, sets and bytes are no plain values, so their tags are unknown here.
_Yaml12Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "str", "seq", "map")
}
for _tag in _READ:
    _Yaml12Loader.add_constructor(_tag, _Yaml12Loader.plain)


class _Yaml12Dumper(yaml.SafeDumper):
    """Quotes a text that YAML 1.2 or YAML 1.1 would read as something else."""


_Yaml12Dumper.yaml_implicit_resolvers = {
    letter: yaml.SafeDumper.yaml_implicit_resolvers.get(letter, [])
    + _Yaml12Loader.yaml_implicit_resolvers.get(letter, [])
    for letter in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Yaml12Loader.yaml_implicit_resolvers}
}
