"""A progress bar with rate and time left, quiet where standard error is not a terminal."""

from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm


def progress(batches: Iterable[Any], label: str) -> Iterator[Any]:
    """Go through batches under a progress bar; an empty label shows none."""
    disable = None if label else True  # None: hidden unless a terminal
    return iter(tqdm(batches, desc=label, unit="batch", leave=False, disable=disable, dynamic_ncols=True))
