"""`--settings`: the file of thresholds and areas that `sever tune` writes."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sever.utils.errors import ConfigError
from sever.utils.files import neighbours
from sever.utils.input_files import read_config_text
from sever.utils.yaml_parser import parse_yaml

logger = logging.getLogger(__name__)


def read_settings(path: Path) -> dict[str, Any]:
    """The sections of a file that `sever tune` wrote: `predict`, and maybe `tuned_for`.

    Raises:
        ConfigError: it cannot be read, or holds other sections.
    """
    if not path.exists():
        raise ConfigError(f"--settings {path}: no such file{neighbours(path)} sever tune writes one")
    values = parse_yaml(read_config_text(path, f"--settings {path}"), str(path))
    sections = set(values) - {"tuned_for"} if isinstance(values, dict) else set()
    if sections != {"predict"} or not isinstance(values["predict"], dict):
        found = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise ConfigError(
            f"--settings {path}: expected a section 'predict:' with keys in it and nothing else, as sever "
            f"tune writes it, received {found}"
        )
    return values


def check_tuned_for(tuned_for: Mapping[str, Any], provenance: Mapping[str, Any], path: Path) -> None:
    """Warn if the settings in a file were tuned for another ensemble than the one of `provenance`."""
    differing = [key for key in ("average", "weights", "tta") if tuned_for.get(key) != provenance[key]]
    digests = tuned_for.get("checkpoints")
    if not isinstance(digests, dict) or [*digests.values()] != [*provenance["checkpoints"].values()]:
        differing.append("checkpoints")
    if differing:
        logger.warning(
            "--settings %s: was tuned for other %s; its values may not hold here.",
            path,
            ", ".join(differing),
        )
