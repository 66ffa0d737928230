"""YAML with the numbers and truth values of YAML 1.2, on top of PyYAML."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from sever.utils.errors import ConfigError


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write plain values as YAML that reads back to the same values."""
    return yaml.dump(dict(values), Dumper=_Yaml12Dumper, sort_keys=False, allow_unicode=True)


def parse_yaml(text: str, source: str) -> Any:
    """Read YAML with the numbers and truth values of YAML 1.2; a key given twice is an error.

    Example:
        >>> parse_yaml("{lr: 7e-5, on: off}", "example")
        {'lr': 7e-05, 'on': 'off'}
    """
    try:
        return yaml.load(text, Loader=_Yaml12Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{source}{line}: not valid YAML: {problem}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where `7e-5` is a string, `off` is False and `1:30` is 90."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain name", key_node.start_mark
                )
            if key_node.tag != "tag:yaml.org,2002:merge" and key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key_node.value}' is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


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
    re.compile(r"^(?:[-+]?[0-9]{1,400}|0o[0-7]+|0x[0-9a-fA-F]+)$"),
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
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: _integer(node.value))


class _Yaml12Dumper(yaml.SafeDumper):
    """Puts quotes round a text that YAML 1.2 or YAML 1.1 would read as something else."""


_Yaml12Dumper.yaml_implicit_resolvers = {
    letter: yaml.SafeDumper.yaml_implicit_resolvers.get(letter, [])
    + _Yaml12Loader.yaml_implicit_resolvers.get(letter, [])
    for letter in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Yaml12Loader.yaml_implicit_resolvers}
}


def _integer(text: str) -> int:
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
