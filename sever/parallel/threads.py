"""Work on many items in threads, which wait for files or compute outside Python."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

from sever.utils.launcher_env import World, world_of
from sever.utils.progress import progress

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_BLOCK = 64  # items that a process works on between two all_gathers


def in_threads(
    work: Callable[[_Item], _Result], items: Sequence[_Item], label: str = ""
) -> Iterator[_Result]:
    """The result of `work` for each item, in their order.

    Several processes share the items, and each gets all results, which makes it a collective. An iteration
    that ends early, at an error or Ctrl-C, leaves out the items that are not begun.

    Args:
        work: called in a thread with an item.
        items: all items, of all processes together.
        label: title of the progress bar; an empty one shows none.
    """
    world = World()
    if world_of(os.environ).size > 1:  # else torch need not be imported
        from sever.parallel import collectives

        world = collectives.world()
    pool = ThreadPoolExecutor()
    try:
        if world.size == 1:
            results: Iterator[_Result] = pool.map(work, items)
        else:
            results = _sharded(pool, work, items, world)
        yield from (result for _, result in zip(progress(items, label, unit="image"), results, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _sharded(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Sequence[_Item], world: World
) -> Iterator[_Result]:
    """The results of all processes, each of which works on some blocks of the items."""
    from sever.parallel.collectives import all_gather

    blocks = [items[first : first + _BLOCK] for first in range(0, len(items), _BLOCK)]
    own = pool.map(work, chain.from_iterable(blocks[world.rank :: world.size]))
    for first in range(0, len(blocks), world.size):
        count = len(blocks[first + world.rank]) if first + world.rank < len(blocks) else 0
        for of_process in all_gather(list(islice(own, count))):
            yield from of_process
