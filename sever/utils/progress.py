"""A progress bar of the main process with rate and time left, quiet where standard error is no terminal."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from sever.utils.rank import world_of


def progress(batches: Iterable[Any], label: str, done: int = 0, unit: str = "batch") -> Iterator[Any]:
    """Go through batches under a progress bar.

    Args:
        batches: to go through.
        label: in front of the bar; an empty one shows none.
        done: how many were done before a resume; the length of `batches` counts them.
        unit: what one of them is called.
    """
    disable = None if label and world_of(os.environ).is_main else True  # None: hidden unless a terminal
    return iter(
        tqdm(batches, label, initial=done, unit=unit, leave=False, disable=disable, dynamic_ncols=True)
    )
