"""Lengths of time as people write them."""

import re

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_FORM = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")


def seconds_of(text: object) -> float:
    """A length of time in seconds.

    Example:
        >>> seconds_of("8h50m"), seconds_of("90s"), seconds_of("1.5h")
        (31800.0, 90.0, 5400.0)

    Args:
        text: numbers with the units d, h, m and s, without spaces.

    Raises:
        ValueError: it has another form, or is 0.
    """
    if isinstance(text, str) and _FORM.fullmatch(text):
        parts = re.findall(r"([\d.]+)([dhms])", text)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        if seconds > 0:
            return float(seconds)
    raise ValueError("expected a length of time above 0 such as 8h50m, 45m or 90s")
