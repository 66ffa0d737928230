"""A DataLoader that splits off its validation images and repeats its batches exactly."""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sever.utils.errors import DataError, SeverError


class EpochSampler(Sampler[int]):
    """Indices in an order that depends on (seed, epoch) alone.

    Args:
        indices: of the samples in the data set.
        shuffle: False keeps their order.
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
        generator = np.random.default_rng([self.seed, self.epoch])
        return iter(generator.permutation(self.indices).tolist())

    def __len__(self) -> int:
        return len(self.indices)


class EpochBatches(Sampler[list[int]]):
    """Batches of indices that depend on (seed, epoch) alone; a `batch_sampler` for `BaseDataLoader`.

    Subclasses give `__iter__` and `__len__`.

    Attributes:
        indices: int64, of the samples that can be split into training and validation; the split leaves
            those of training here.
        epoch: of the next iteration.
    """

    indices: np.ndarray
    epoch: int = 0


class BaseDataLoader(DataLoader):
    """A `torch.utils.data.DataLoader` with `split_validation()`.

    A data set that has `set_epoch(epoch)` is told the epoch, so that it can draw its random choices
    from (seed, epoch, index).

    Args:
        dataset: the samples, by index.
        batch_size: samples in a batch.
        shuffle: another order each epoch.
        validation_split: what `split_validation` takes: a share in [0, 1), or a number of samples.
        num_workers: processes that read samples; 0 reads in the main process.
        collate_fn: samples -> batch; default torch's.
        seed: of the order and of the split.
        drop_last: leave out a last batch that is not full.
        batch_sampler: batches of indices, in the place of `shuffle` and `drop_last`: `EpochBatches`, or a
            list of batches, which cannot be split.
        keep_workers: let the worker processes live on from epoch to epoch.
        pin_memory: copy batches to page-locked memory, for a GPU.
    """

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
        pin_memory: bool = False,
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
        self._batch_args: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
        self._batch_args |= {"collate_fn": collate_fn, "pin_memory": pin_memory}
        self._order: EpochSampler | EpochBatches = (
            batch_sampler
            if isinstance(batch_sampler, EpochBatches)
            else EpochSampler(range(len(dataset)), shuffle, seed)  # type: ignore[arg-type]
        )
        batches: dict[str, Any] = {
            "batch_size": batch_size,
            "sampler": self._order,
            "drop_last": drop_last,
        }
        super().__init__(
            dataset,
            **(batches if batch_sampler is None else {"batch_sampler": batch_sampler}),
            num_workers=num_workers,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            persistent_workers=keep_workers and num_workers > 0,
            worker_init_fn=_start_worker,
            # Its own generator: torch's global one would move on with every epoch of every loader.
            generator=torch.Generator().manual_seed(seed),
        )

    @property
    def sample_names(self) -> Sequence[str]:
        """What the split calls the samples, by index."""
        return [str(index) for index in range(len(self.dataset))]  # type: ignore[arg-type]

    @property
    def indices(self) -> np.ndarray:
        """Which samples of the data set this loader gives, as int64."""
        return self._order.indices

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and random choices the next iteration gives."""
        self._order.epoch = epoch
        # Where workers draw their own random numbers, those depend on the epoch too.
        self.generator.manual_seed(self.seed + epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def split_validation(self, split: dict[str, list[str]] | None = None) -> "BaseDataLoader | None":
        """Take the validation samples out of this loader.

        Args:
            split: names under `training` and `validation`, as an earlier run wrote them down; None
                chooses anew, by the seed.

        Returns:
            A loader of the validation samples, or None where `validation_split` is 0.

        Raises:
            DataError: the samples are not those that `split` names.
        """
        if split is None:
            validation = np.zeros(0, np.int64)
            if self.validation_split:
                validation = np.sort(self._choose_validation())
            training = np.setdiff1d(self.indices, validation)
        else:
            training, validation = self._indices_of(split)
        names = self.sample_names
        self.split = {
            "training": [names[index] for index in training.tolist()],
            "validation": [names[index] for index in validation.tolist()],
        }
        self._order.indices = training
        return self._validation_loader(validation) if len(validation) else None

    def to_device(self, batch: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Move a batch to the device, in the form that model and loss take."""
        inputs, targets = batch
        return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        iterator = super().__iter__()
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except SeverError as error:
                fault = _without_worker_traceback(error)
                error.__traceback__ = None  # its frames refer to each other, and to the iterator
                break
            yield batch
        # Without a way back to the iterator, whose workers are ended as soon as nothing refers to it.
        del iterator
        raise fault

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
        """Which of the samples become validation samples."""
        count = self._validation_count()
        return np.random.default_rng(self.seed).choice(self.indices, count, replace=False)

    def _validation_loader(self, indices: np.ndarray) -> "BaseDataLoader":
        """The loader that `split_validation` returns."""
        loader = BaseDataLoader(self.dataset, seed=self.seed, **self._batch_args)
        loader._order.indices = indices
        return loader

    def _indices_of(self, split: dict[str, list[str]]) -> tuple[np.ndarray, np.ndarray]:
        place = {name: index for index, name in enumerate(self.sample_names)}
        gone = [name for half in split.values() for name in half if name not in place]
        if gone:
            raise DataError(
                f"the run's split names '{gone[0]}' (and {len(gone) - 1} more), which the data set does "
                f"not hold any more; put the data back, or start a new run"
            )
        new = sorted(set(place) - {name for half in split.values() for name in half})
        if new:
            raise DataError(
                f"the data set holds '{new[0]}' (and {len(new) - 1} more), which the run's split does not "
                f"name; take it out, or start a new run"
            )
        halves = [[place[name] for name in split[half]] for half in ("training", "validation")]
        return np.array(halves[0], dtype=np.int64), np.array(halves[1], dtype=np.int64)


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the threads
    # Ctrl-C reaches the whole group and is for the main process, which ends its workers. SIGTERM keeps
    # its effect here: it is what ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _without_worker_traceback(error: SeverError) -> SeverError:
    """A worker process sends its whole traceback as the message; the message is its last part."""
    kind = type(error)
    return kind(str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip())
