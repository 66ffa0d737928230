"""Which import paths of a checkpoint's config may be imported: the module behind one is code, and runs."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sever.config.build import import_paths, nodes_of
from sever.config.load import LoadedConfig
from sever.config.registry import REGISTRIES
from sever.config.schema import read_section
from sever.utils.errors import ConfigError
from sever.utils.yaml_parser import parse_yaml


@dataclass(frozen=True)
class Trust:
    """The code that the user vouches for.

    Attributes:
        everything: `--trust` was given.
        texts: all texts of the configs and overrides that the user gave.
    """

    everything: bool = False
    texts: frozenset[str] = frozenset()

    @classmethod
    def given(
        cls, everything: bool, overrides: Iterable[str] = (), config: LoadedConfig | None = None
    ) -> "Trust":
        """What a command line vouches for: by `--trust`, by `-s` overrides, by the config of `-c FILE`."""
        own = [parse_yaml(text.partition("=")[2], f"-s {text}") for text in overrides]
        return cls(everything, frozenset(_texts([own, config.values if config else None])))

    def config_of(
        self, state: Mapping[str, Any], checkpoint: Path, used: Collection[str] | None = None
    ) -> LoadedConfig:
        """The config that a checkpoint holds, if nothing in it would run code that nobody vouches for.

        Args:
            state: the checkpoint's content, from `load_checkpoint`.
            checkpoint: the path of the checkpoint.
            used: the sections that will be built; None is all of them.

        Raises:
            ConfigError: the config has mistakes, or names such code; the message lists all of it.
        """
        config = LoadedConfig(state["config"], f"{checkpoint} (its config)")
        foreign = [
            f"  {at}: '{path}' would run code of {path.rpartition('.')[0]}"
            for at, path in imported_code(config.values, used)
            if path not in self.texts
        ]
        if foreign and not self.everything:
            raise ConfigError(
                f"{config.source}: names code that is not the program's own:",
                *foreign,
                "If you know that code and where the checkpoint comes from, add --trust; or name the same "
                "import path in a -c FILE or -s of your own.",
            )
        return config


def imported_code(
    values: Mapping[str, Any], used: Collection[str] | None = None
) -> Iterator[tuple[str, str]]:
    """(key, import path) of the user's own code that a checked config names, in all sections or in `used`."""
    for key, registry in REGISTRIES.items():
        if used is None or key in used:
            for at, node in nodes_of(values.get(key), key):
                yield from import_paths(registry, read_section(node), at)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
