"""A plain `torch.utils.data.DataLoader` of the user's, made into a `BaseDataLoader`."""

import random
from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from sever.base import BaseDataLoader
from sever.engine.samplers import EpochBatches
from sever.utils.errors import ConfigError
from sever.utils.seed import random_states, restore_random_states


class SeededBatches(EpochBatches):
    """The batches of a plain loader's sampler, drawn from (seed, epoch) alone."""

    def __init__(self, loader: DataLoader, seed: int) -> None:
        self._loader = loader
        self._seed = seed
        self.indices = np.unique(list(chain.from_iterable(self)))

    def __iter__(self) -> Iterator[list[int]]:
        sampler = self._loader.batch_sampler
        before = random_states(torch.device("cpu"))
        drawn = int(np.random.default_rng([self._seed, self.epoch]).integers(2**63))
        random.seed(drawn)
        np.random.seed(drawn % 2**32)
        for generator in (torch.default_generator, self._loader.generator):  # and not those of GPUs
            if generator is not None:
                generator.manual_seed(drawn)
        if hasattr(self._loader.sampler, "set_epoch"):
            self._loader.sampler.set_epoch(self.epoch)
        try:
            return iter([list(batch) for batch in sampler])  # type: ignore[union-attr]
        finally:
            restore_random_states(before, torch.device("cpu"))

    def __len__(self) -> int:
        return len(self._loader.batch_sampler)  # type: ignore[arg-type]


class TorchDataLoader(BaseDataLoader):
    """The data set, sampler and settings of a plain loader; it has no validation samples.

    All batches of an epoch are drawn before the first one is read, so that it can be resumed within an
    epoch and shared by several processes like any `BaseDataLoader`.

    Args:
        loader: the plain loader.
        seed: at least 0; with the epoch it decides what the loader's sampler draws.

    Raises:
        ConfigError: the loader does not draw its batches by index.
    """

    def __init__(self, loader: DataLoader, seed: int) -> None:
        by_index = loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset)
        if not by_index or type(loader).__iter__ is not DataLoader.__iter__:
            raise ConfigError(
                f"data_loader.type: {type(loader).__name__}: expected a torch.utils.data.DataLoader that "
                f"reads batches by index, without an IterableDataset or an __iter__ of its own; derive it "
                f"from sever.base.BaseDataLoader"
            )
        batches = SeededBatches(loader, seed)
        super().__init__(
            loader.dataset,
            loader.batch_size or max(map(len, batches)),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            seed=seed,
            batch_sampler=batches,
            keep_workers=loader.persistent_workers,
            worker_init_fn=loader.worker_init_fn,
            pin_memory=loader.pin_memory,
            prefetch_factor=loader.prefetch_factor,
            timeout=loader.timeout,
            multiprocessing_context=loader.multiprocessing_context,
        )

    def split_validation(self, split: dict[str, list[str]] | None = None) -> None:
        """Nothing: a plain loader cannot be split."""
