"""YAML with the numbers and truth values of YAML 1.2, on top of PyYAML."""

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from sever.utils.errors import ConfigError

_MOST_VALUES = 100_000  # of a document, each alias counted as all that it stands for
_MOST_DIGITS = 400
_NO_TEXT = re.compile("[\\0\\ud800-\\udfff]")
_DEEPEST = 50  # what is nested deeper may overflow the stack of whoever reads it


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write plain values as YAML that reads back to the same values."""
    return yaml.dump(dict(values), Dumper=_Yaml12Dumper, sort_keys=False, allow_unicode=True)


def parse_yaml(text: str, source: str) -> Any:
    """Read YAML with the numbers and truth values of YAML 1.2, and nothing but plain values.

    Example:
        >>> parse_yaml("{lr: 7e-5, on: off}", "example")
        {'lr': 7e-05, 'on': 'off'}

    Args:
        text: one document.
        source: what messages call it.

    Returns:
        Mappings with names as keys, lists, texts, numbers, truth values and None.

    Raises:
        ConfigError: it is no YAML, a key is given twice, a value has a tag of its own, or aliases blow it up.
    """
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
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{source}{line}: not valid YAML: {problem}{_cure(problem)}") from error
    except ValueError as error:  # of an escape that is no character
        raise ConfigError(f"{source}: not valid YAML: an escape is no character ({error})") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: not valid YAML: nested deeper than {_DEEPEST} levels") from error


def _cure(problem: str) -> str:
    """What to do about the mistakes that PyYAML tells in words of its own."""
    cures = {
        "found character '\\t'": "; indent with spaces",
        "could not determine a constructor": "; write the plain value, without a tag",
        "found undefined alias": "; define it with & before its first *, or put quotes around the text",
    }
    return next((cure for start, cure in cures.items() if problem.startswith(start)), "")


def _fault(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _check_extent(node: yaml.Node, sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """Refuse aliases that go round in circles or stand for very much, before any of it is made.

    Args:
        node: with all below it.
        sizes: of the nodes seen so far, by their identity; a node under several aliases is one.
        above: the nodes that it is in.

    Returns:
        The number of values in it.

    Raises:
        yaml.constructor.ConstructorError: it holds itself, too many values or too many levels.
    """
    if id(node) in above:
        raise _fault(node, "an alias leads to what it is in; write the value out")
    if len(above) > _DEEPEST:
        raise _fault(node, f"nested deeper than {_DEEPEST} levels")
    if isinstance(node, yaml.ScalarNode) and _NO_TEXT.search(node.value):
        raise _fault(node, "a text holds half a character or a NUL, which no file can hold; take it out")
    if id(node) not in sizes:
        parts = [part for entry in node.value for part in entry] if isinstance(node, yaml.MappingNode) else []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
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

    def integer(self, node: yaml.ScalarNode) -> int:
        """A whole number, decimal or with 0x or 0o in front."""
        text = self.construct_scalar(node)
        try:
            value = int(text, 0) if text.startswith(("0o", "0x")) else int(text)
        except ValueError as error:
            raise _fault(node, f"expected a whole number, received '{text[:40]}'") from error
        if abs(value) >= 10**_MOST_DIGITS:
            raise _fault(
                node, f"expected a number of at most {_MOST_DIGITS} digits, received '{text[:40]} …'"
            )
        return value

    def number(self, node: yaml.ScalarNode) -> float:
        """A number with a decimal point or an exponent, or `.inf` or `.nan`."""
        text = self.construct_scalar(node)
        try:
            value = float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
        except ValueError as error:
            raise _fault(node, f"expected a number, received '{text[:40]}'") from error
        if math.isinf(value) and not text.lower().endswith(".inf"):
            raise _fault(node, f"the number {text[:40]} is too large; the largest is about 1.8e308")
        return value

    def truth(self, node: yaml.ScalarNode) -> bool:
        """`true` or `false`."""
        text = self.construct_scalar(node)
        if text.lower() not in ("true", "false"):
            raise _fault(node, f"expected true or false, received '{text[:40]}'")
        return text.lower() == "true"


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
    re.compile(rf"^(?:[-+]?[0-9]{{1,{_MOST_DIGITS}}}|0o[0-7]+|0x[0-9a-fA-F]+)$"),
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
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _Yaml12Loader.integer)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:float", _Yaml12Loader.number)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:bool", _Yaml12Loader.truth)


class _Yaml12Dumper(yaml.SafeDumper):
    """Puts quotes round a text that YAML 1.2 or YAML 1.1 would read as something else."""


_Yaml12Dumper.yaml_implicit_resolvers = {
    letter: yaml.SafeDumper.yaml_implicit_resolvers.get(letter, [])
    + _Yaml12Loader.yaml_implicit_resolvers.get(letter, [])
    for letter in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Yaml12Loader.yaml_implicit_resolvers}
}
