"""A progress bar with rate and time left, quiet where standard error is not a terminal."""

from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any], label: str, unit: str = "batch") -> Iterator[Any]:
    """Go through `items` under a progress bar; an empty label shows none."""
    hidden = True if not label else None  # None: hidden unless a terminal
    return iter(tqdm(items, desc=label, unit=unit, leave=False, disable=hidden, dynamic_ncols=True))
