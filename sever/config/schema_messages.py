"""What pydantic finds, in the words of this program: place, what was expected and received, nearest name."""

import math
import re
from collections.abc import Callable
from typing import Any

from sever.config.schema import EACH, ONE
from sever.utils.did_you_mean import did_you_mean

NODE = "expected a name, or 'type' and 'args'"
_NO_MAPPING = ("model_type", "model_attributes_type")


def explained(detail: Any, prefix: str, fields_at: Callable[[list[str]], list[str]]) -> str:
    """One of `ValidationError.errors()` as a line that starts with `prefix`: `FILE: `, or `FILE: key.`.

    `fields_at` gives the known keys under a path of keys.
    """
    path = [str(part) for part in detail["loc"] if part not in (ONE, EACH)]
    kind, received = detail["type"], shown(detail["input"])
    whole = prefix.rstrip(":. ")

    def place(parts: list[str]) -> str:
        return f"{prefix}{'.'.join(parts)}" if parts else whole

    if kind == "missing":
        return f"{whole}: '{'.'.join(path)}' is missing"
    if kind == "extra_forbidden":
        known = fields_at(path[:-1])
        near = did_you_mean(path[-1], known)
        return f"{place(path[:-1])}: unknown key '{path[-1]}'.{near} Known: {', '.join(known)}."
    if kind == "invalid_key" or path[-1:] == ["[key]"]:
        at = place([part for part in path if part != "[key]"])
        return f"{at}: expected a text as the key, received {received}; put quotes around it"
    if kind == "value_error":
        text = str(detail["ctx"]["error"])
        return f"{place(path)}: {text}" + ("" if "received" in text else f"; received {received}")
    if kind in _NO_MAPPING and detail["ctx"]["class_name"].endswith("Section"):
        return f"{place(path)}: {NODE}, received {received}"
    expected = expected_by(detail)
    if kind in _NO_MAPPING:
        expected += f" with keys such as {', '.join(fields_at(path)[:3])}"
    return f"{place(path)}: expected {expected}, received {received}"


def expected_by(detail: Any) -> str:
    """What pydantic expected, in words for users."""
    text = re.sub(r" or instance of \w+", "", detail["msg"].replace("Input should be ", ""))
    return text.replace("dictionary", "mapping").replace("an object", "a mapping")


def shown(value: object) -> str:
    """A value for a message, at most 60 characters of it."""
    text = str(value) if isinstance(value, float) and not math.isfinite(value) else repr(value)
    return f"{text[:60]} …" if len(text) > 60 else text
