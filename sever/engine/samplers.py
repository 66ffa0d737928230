"""Which samples make the batches of an epoch, and which of them a process gets."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from sever.parallel.batch import Part
from sever.utils.rank import World


class EpochSampler(Sampler[int]):
    """Indices in an order that depends on (seed, epoch) alone.

    Args:
        indices: the samples of the data set to draw.
        shuffle: False keeps the order of `indices`.
        seed: at least 0.
    """

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

    Attributes:
        indices: (N,) int64, the samples to draw; a split leaves those for training.
        epoch: the epoch of the next iteration.
    """

    indices: np.ndarray
    epoch: int = 0

    def __len__(self) -> int:
        raise NotImplementedError


class ShardedBatches(Sampler[list[int]]):
    """What a process gets of the batches of an epoch: all of each, a part of each, or each of some.

    Args:
        whole: the batches of all processes; has a length and can be iterated over again.

    Attributes:
        first: number of the batch with which the next iteration begins.
        world: this process among the others.
        divided: whether each batch is divided over the processes, not given to one of them.
        parts: of the batches that were drawn but not yet read: the part, and the indices in it.
    """

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.first = 0
        self.world = World()
        self.divided = False
        self.parts: deque[tuple[Part, list[int]]] = deque()

    def __iter__(self) -> Iterator[list[int]]:
        self.parts = deque()  # of this iteration alone
        return self._own(self.parts)

    def _own(self, parts: deque[tuple[Part, list[int]]]) -> Iterator[list[int]]:
        rank, processes = self.world.rank, self.world.size
        for number, batch in enumerate(islice(iter(self.whole), self.first, None)):
            part = Part(0, len(batch), len(batch))
            if self.divided:
                part = Part.of(len(batch), rank, processes)
            elif number % processes != rank:
                continue
            own = batch[part.first : part.first + part.images]
            parts.append((part, own))
            yield own or batch[:1]

    def __len__(self) -> int:
        count = len(self.whole)
        return count if self.divided else len(range(self.world.rank, count, self.world.size))

    @property
    def rounds(self) -> int:
        """How many batches the process with the most of them gets in the next iteration."""
        left = len(self.whole) - self.first
        return left if self.divided else -(-left // self.world.size)
