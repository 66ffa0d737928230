"""A DataLoader that splits off its validation images and repeats its batches exactly."""

import signal
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from sever.engine.data_record import Record
from sever.engine.loader_workers import WorkerStatus, starting_workers
from sever.engine.samplers import EpochBatches, EpochSampler, ShardedBatches
from sever.engine.stored_split import indices_of
from sever.parallel import collectives
from sever.parallel.sharded_batch import Shard
from sever.utils.errors import DataError, ElsewhereError, SeverError
from sever.utils.launcher_env import World

_TIME_TO_DIE = 0.2  # seconds, for a worker that closes its connection


class BaseDataLoader(DataLoader):
    """A `torch.utils.data.DataLoader` with `split_validation()`.

    A data set that has `set_epoch(epoch)` is told the epoch, so that it can draw its random choices from
    (seed, epoch, index). One that has `worker_status` is given the loader's, to `note` what it reads.

    Args:
        dataset: the samples, by index.
        batch_size: samples in a batch of all processes together.
        shuffle: draws another order each epoch.
        validation_split: what `split_validation` takes: a share in [0, 1), or a number of samples.
        num_workers: worker processes that read samples; 0 reads in the main process.
        collate_fn: makes a batch of samples; default torch's.
        seed: decides the order and the split.
        drop_last: leaves out a last batch that is not full.
        batch_sampler: replaces `shuffle` and `drop_last`: `EpochBatches`, or a list of batches of indices,
            which cannot be split.
        keep_workers: whether the workers live on from epoch to epoch.
        worker_init_fn: called with its number in each worker as it starts.
        **options: further arguments of torch's `DataLoader`, such as `pin_memory` and `prefetch_factor`.

    Attributes:
        lockstep: whether the processes wait for each other before each batch, and all end where one fails.
        ended_together: whether a fault in one process has ended an iteration in all of them.
        shard: this process's shard of the last batch.
        batch_names: names of the samples in that shard.
        split: names under `training` and `validation` once `split_validation` was called.
    """

    lockstep: bool = False
    ended_together: bool = False
    shard: Shard | None = None
    _running: weakref.ref[Any] | None = None  # the iterator
    batch_names: Sequence[str] = ()

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        validation_split: float | int = 0.0,
        num_workers: int = 0,
        collate_fn: Callable[[list], Any] | None = None,
        *,
        seed: int = 0,
        drop_last: bool = False,
        batch_sampler: EpochBatches | Sequence[list[int]] | None = None,
        keep_workers: bool = False,
        worker_init_fn: Callable[[int], None] | None = None,
        **options: Any,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, received {batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, received {num_workers}")
        if validation_split < 0 or (isinstance(validation_split, float) and validation_split >= 1):
            raise ValueError(
                f"validation_split must be a share in [0, 1) or a number of samples, received "
                f"{validation_split}"
            )
        if isinstance(batch_sampler, Sequence) and validation_split:
            raise ValueError("a loader with a list of batches cannot split off validation samples")
        self.validation_split = validation_split
        self.seed = seed
        self.split: dict[str, list[str]] | None = None
        self.worker_status = WorkerStatus(num_workers, worker_init_fn)
        if hasattr(dataset, "worker_status"):
            dataset.worker_status = self.worker_status
        self._batch_size = batch_size
        self._options = options | {"num_workers": num_workers, "collate_fn": collate_fn}
        self._order: EpochSampler | EpochBatches = (
            batch_sampler
            if isinstance(batch_sampler, EpochBatches)
            else EpochSampler(range(len(dataset)), shuffle, seed)  # type: ignore[arg-type]
        )
        if batch_sampler is None:
            batch_sampler = BatchSampler(self._order, batch_size, drop_last)  # type: ignore[assignment, arg-type]
        self._batches = ShardedBatches(batch_sampler)
        super().__init__(
            dataset,
            batch_sampler=self._batches,
            persistent_workers=keep_workers and num_workers > 0,
            worker_init_fn=self.worker_status.start,
            # Its own generator: torch's global one would move on with every epoch of every loader.
            generator=torch.Generator().manual_seed(seed),
            **self._options,
        )

    @property
    def batch_size(self) -> int:
        """Samples in a batch of all processes together."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, _: int | None) -> None:
        """Nothing: torch knows no size beside a sampler of batches."""

    @property
    def whole_batches(self) -> Iterable[list[int]]:
        """The indices in each batch of the epoch, for all processes together."""
        return self._batches.whole

    @property
    def batch_count(self) -> int:
        """How many batches an epoch has, for all processes together."""
        return len(self._batches.whole)

    def shard_batches(self, world: World) -> None:
        """Give this process its shard of every batch that has a sample for each process."""
        self._batches.shard(world)

    def distribute_batches(self, world: World) -> None:
        """Give this process whole batches: those numbered rank, rank + world size, and so on."""
        self._batches.world = world

    @property
    def sample_names(self) -> Sequence[str]:
        """The name of each sample of the data set, for the split and for messages."""
        return [str(index) for index in range(len(self.dataset))]  # type: ignore[arg-type]

    @cached_property
    def data_record(self) -> Record:
        """Sizes and check sums of the samples' files, taken once; a collective.

        A resume compares them with those in `data.csv`. An empty record, the default, compares nothing.
        """
        return {}

    @property
    def indices(self) -> np.ndarray:
        """(N,) int64: the samples of the data set that this loader gives."""
        return self._order.indices

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch, from 1, of the next iterations, which leave out its first `skip` batches."""
        self._order.epoch = epoch
        self._batches.first = skip
        # Where workers draw their own random numbers, those depend on epoch and process too.
        self.generator.manual_seed(self.seed + epoch + (self._batches.world.rank << 32))
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def names_in_epoch(self, first: int, end: int) -> list[str]:
        """The names of the samples in the epoch's batches `first` (from 0) to `end` - 1."""
        names = self.sample_names
        batches = islice(self._batches.kept(), first, end)
        return [names[index] for batch in batches for index in batch if index < len(names)]

    def split_validation(self, split: dict[str, list[str]] | None = None) -> "BaseDataLoader | None":
        """Take the validation samples out of this loader.

        Args:
            split: the `split` of an earlier run, to use again; None chooses one by the seed.

        Returns:
            A loader of the validation samples, or None where `validation_split` is 0.

        Raises:
            DataError: `split` names other samples than the data set holds, or one on both sides.
        """
        if split is None:
            validation = (
                np.sort(self._choose_validation()) if self.validation_split else np.zeros(0, np.int64)
            )
            training = np.setdiff1d(self.indices, validation)
        else:
            training, validation = indices_of(split, self.sample_names)
        names = self.sample_names
        subsets = {"training": training, "validation": validation}
        self.split = {subset: [names[i] for i in indices.tolist()] for subset, indices in subsets.items()}
        self._order.indices = training
        return self._validation_loader(validation) if len(validation) else None

    def to_device(self, batch: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Move a batch to the device, in the form that model and loss take."""
        inputs, targets = batch
        return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with starting_workers(self.num_workers):
            iterator = super().__iter__()
        self._running = weakref.ref(iterator)
        shards = self._batches.shards
        names = self.sample_names
        rounds = self._batches.rounds if self.lockstep else 0
        fault: Exception | None = None
        while fault is None:
            batch = None
            try:
                batch = next(iterator)
            except StopIteration:
                if not rounds:
                    return
            except (ConnectionError, EOFError) as error:  # of a worker that died while it sent a batch
                time.sleep(_TIME_TO_DIE)
                dead = [w.pid for w in getattr(iterator, "_workers", ()) if not w.is_alive()]
                told = f"DataLoader worker (pid(s) {', '.join(map(str, dead))}) exited unexpectedly"
                fault = self._fault_of(RuntimeError(told)) if dead else error
            except (SeverError, RuntimeError) as error:
                fault = self._fault_of(error)
                error.__traceback__ = None  # its frames refer to each other, and to the iterator
            if self.lockstep:
                rounds -= 1
                if collectives.on_any_rank(fault is not None) and fault is None:
                    fault = ElsewhereError("another process could not read its data")
            if fault is None and batch is None:
                return
            if fault is None:
                self.shard, own = shards.popleft()
                self.batch_names = [names[index] for index in own if index < len(names)]
                yield batch
        self.ended_together = self.lockstep
        self.end_workers()
        raise fault

    def end_workers(self) -> None:
        """End the worker processes, whose iterator an exception may still refer to.

        Else torch would raise for a dead one again whenever another process ends.
        """
        ends = {signal.SIGCHLD} if hasattr(signal, "SIGCHLD") else set()  # not on Windows
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ends) if ends else set()
        for iterator in (self._running and self._running(), self._iterator):
            if isinstance(iterator, _MultiProcessingDataLoaderIter):
                iterator._shutdown_workers()
        self._iterator = None
        if ends:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _fault_of(self, error: SeverError | RuntimeError) -> Exception:
        """An error without a worker's traceback; for a worker that died, with what it was reading."""
        if isinstance(error, SeverError):
            # A worker sends its whole traceback as the message; the message proper is the last part of it.
            kind, text = type(error), "\n".join(error.args)
            return kind(*text.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip().split("\n"))
        return self.worker_status.fault(error, self.sample_names) or error

    def _validation_count(self) -> int:
        """How many samples `validation_split` takes."""
        total = len(self.indices)
        share = self.validation_split
        count = share if isinstance(share, int) else max(1, round(total * share))
        if count >= total:
            raise DataError(
                f"data_loader.args.validation_split: {share} of {total} samples leaves none for training"
            )
        return count

    def _choose_validation(self) -> np.ndarray:
        """The indices of the validation samples."""
        generator = np.random.default_rng(self.seed)
        return generator.choice(self.indices, self._validation_count(), replace=False)

    def _validation_loader(self, indices: np.ndarray) -> "BaseDataLoader":
        """The loader that `split_validation` returns."""
        loader = BaseDataLoader(self.dataset, self._batch_size, seed=self.seed, **self._options)
        loader._order.indices = indices
        return loader
