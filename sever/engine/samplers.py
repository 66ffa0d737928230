"""Which samples make the batches of an epoch, and which of them a process gets."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from sever.parallel.sharded_batch import Shard
from sever.utils.launcher_env import World


class EpochSampler(Sampler[int]):
    """Indices in an order that depends on (seed, epoch) alone; without `shuffle` in the given order."""

    def __init__(self, indices: Sequence[int] | np.ndarray, shuffle: bool, seed: int) -> None:
        self.indices = np.asarray(indices, dtype=np.int64)
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(self.indices.tolist())
        return iter(np.random.default_rng([self.seed, self.epoch]).permutation(self.indices).tolist())

    def __len__(self) -> int:
        return len(self.indices)


class EpochBatches(Sampler[list[int]]):
    """Batches of indices that depend on (seed, epoch) alone; a `batch_sampler` for `BaseDataLoader`.

    Subclasses implement `__iter__` and `__len__`.
    """

    indices: np.ndarray  # (N,) int64, the samples to draw; a split leaves the training samples
    epoch: int = 0  # of the next iteration

    def __len__(self) -> int:
        raise NotImplementedError


class ShardedBatches(Sampler[list[int]]):
    """The batches of an epoch for one process: all of them, some of them, or its shard of each.

    Where each batch is sharded, those with fewer images than processes are left out.

    Args:
        whole: the batches of all processes; has a length and can be iterated over again.
    """

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.first = 0  # number of the batch with which the next iteration begins
        self.world = World()
        self.sharded = False  # each batch over the processes, rather than given to one of them
        self._left_out = 0
        # Of each batch that was drawn but not yet read: the shard, and the indices in it.
        self.shards: deque[tuple[Shard, list[int]]] = deque()

    def __iter__(self) -> Iterator[list[int]]:
        self.shards = deque()  # of this iteration alone
        return self._own(self.shards)

    def shard(self, world: World) -> None:
        """Give the process its shard of every batch."""
        self.world, self.sharded = world, True
        self._left_out = len(self.whole) - sum(1 for _ in self.kept())

    def kept(self) -> Iterator[list[int]]:
        """The batches of an epoch that are not left out."""
        least = self.world.size if self.sharded else 1
        return (batch for batch in self.whole if len(batch) >= least)

    def _own(self, shards: deque[tuple[Shard, list[int]]]) -> Iterator[list[int]]:
        rank, processes = self.world.rank, self.world.size
        for number, batch in enumerate(islice(self.kept(), self.first, None)):
            shard = Shard(0, len(batch), len(batch))
            if self.sharded:
                shard = Shard.of(len(batch), rank, processes)
            elif number % processes != rank:
                continue
            own = batch[shard.first : shard.first + shard.images]
            shards.append((shard, own))
            yield own

    def __len__(self) -> int:
        count = len(self.whole) - self._left_out
        return count if self.sharded else len(range(self.world.rank, count, self.world.size))

    @property
    def rounds(self) -> int:
        """The most batches that any process gets in the next iteration."""
        left = len(self.whole) - self._left_out - self.first
        return left if self.sharded else -(-left // self.world.size)
