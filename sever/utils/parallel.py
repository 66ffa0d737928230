"""Work on many things in threads, for what waits for files or computes outside Python."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sever.utils.progress import progress

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(
    work: Callable[[_Item], _Result], items: Sequence[_Item], label: str = ""
) -> Iterator[_Result]:
    """What `work` makes of each item, in their order.

    An iteration that ends early, at an error or Ctrl-C, leaves out the items that are not begun.

    Args:
        work: to do in a thread.
        items: to do it on.
        label: in front of a progress bar; an empty one shows none.
    """
    pool = ThreadPoolExecutor()
    try:
        yield from (
            result
            for _, result in zip(progress(items, label, unit="image"), pool.map(work, items), strict=True)
        )
    finally:
        pool.shutdown(cancel_futures=True)
