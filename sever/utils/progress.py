"""A progress bar of the main process, hidden where standard error is no terminal."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from sever.utils.launcher_env import world_of
from sever.utils.printing import printable


def progress(batches: Iterable[Any], label: str, done: int = 0, unit: str = "batch") -> Iterator[Any]:
    """Iterate over batches under a progress bar.

    Args:
        batches: the batches; their length includes those that are done.
        label: text in front of the bar; "" hides the bar.
        done: batches done before a resume.
        unit: what the bar calls one of them.
    """
    label = printable(label)
    disable = None if label and world_of(os.environ).is_main else True  # None: hidden unless a terminal
    return iter(
        tqdm(batches, label, initial=done, unit=unit, leave=False, disable=disable, dynamic_ncols=True)
    )
