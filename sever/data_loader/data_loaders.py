"""Tables, transforms and sizes -> loaders."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from sever.base import BaseDataLoader
from sever.data_loader.annotations import (
    SheetTable,
    list_images,
    read_shapes,
    read_table,
    stratified_choice,
)
from sever.data_loader.augmentation import Augmentation
from sever.data_loader.datasets import ImageDataset, SteelDataset
from sever.utils.errors import DataError, first_few
from sever.utils.registry import Registry

LOADERS = Registry("data loader", base=BaseDataLoader)


class _SheetLoader(BaseDataLoader):
    """Batches of sheets with masks: uint8 images (N, 1, h, w) and masks (N, C, h, w) in {0, 1}."""

    table: SheetTable
    augmentation: Augmentation

    @property
    def sample_names(self) -> Sequence[str]:
        """The file names."""
        return self.table.names

    def to_device(self, batch: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Move a batch to the device: images float32 and normalised, masks float32 in {0, 1}."""
        images, masks = super().to_device(batch, device)
        return self.augmentation.normalize(images), masks.float()


class WholeSheetLoader(_SheetLoader):
    """Whole sheets in a fixed order, in batches of equal size, for validation.

    Args:
        table: the sheets.
        indices: which of them.
        augmentation: for its normalisation alone.
        batch_size: sheets in a batch.
        num_workers: processes that read sheets.
        pin_memory: for a GPU.
    """

    def __init__(
        self,
        table: SheetTable,
        indices: np.ndarray,
        augmentation: Augmentation,
        batch_size: int,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self.table = table
        self.augmentation = augmentation
        super().__init__(
            SteelDataset(table),
            num_workers=num_workers,
            batch_sampler=_whole_sheet_batches(table, indices, batch_size),
            pin_memory=pin_memory,
        )
        self._order.indices = indices


@LOADERS.register
class SteelSegDataLoader(_SheetLoader):
    """Sheets with a mask per class, from a data set in the Severstal layout.

    Batches are uint8: images (N, 1, h, w) in [0, 255] and masks (N, C, h, w) in {0, 1};
    `to_device` makes both float. Validation and test sheets are whole.

    Args:
        data_dir: the folder of the data set.
        csv: in either layout; default `train.csv`, or `test.csv` for testing.
        images: the image folder; default `train_images`, or `test_images` for testing.
        batch_size: sheets in a batch.
        num_workers: processes that read sheets; 0 reads in the main process.
        shuffle: another order each epoch.
        validation_split: a share in [0, 1), or a number of sheets; stratified by the set of classes.
        validation_batch_size: whole sheets in a batch of validation; default `batch_size`.
        drop_last: leave out a last batch that is not full.
        classes: number of classes, C (given by the program).
        augmentation: of the training sheets (given by the program).
        seed: of order, split and augmentation (given by the program).
        training: False gives whole sheets in a fixed order (given by the program).
        pin_memory: for a GPU (given by the program).
    """

    def __init__(
        self,
        data_dir: str,
        csv: str | None = None,
        images: str | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        shuffle: bool = True,
        validation_split: float = 0.2,
        validation_batch_size: int | None = None,
        drop_last: bool = False,
        *,
        classes: int = 4,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        training: bool = True,
        pin_memory: bool = False,
    ) -> None:
        if classes < 1:
            raise ValueError("the number of classes comes from arch.args.classes, which this arch lacks")
        half = "train" if training else "test"
        self.table = read_table(data_dir, csv or f"{half}.csv", images or f"{half}_images", classes)
        self.augmentation = augmentation or Augmentation([])
        self._validation_batch_size = validation_batch_size or batch_size
        if not training:
            batches = _whole_sheet_batches(self.table, np.arange(len(self.table)), batch_size)
            super().__init__(
                SteelDataset(self.table),
                num_workers=num_workers,
                batch_sampler=batches,
                pin_memory=pin_memory,
            )
            return
        self._check_batches(batch_size)
        super().__init__(
            SteelDataset(self.table, self.augmentation, seed),
            batch_size,
            shuffle,
            validation_split,
            num_workers,
            seed=seed,
            drop_last=drop_last,
            keep_workers=True,
            pin_memory=pin_memory,
        )

    def _check_batches(self, batch_size: int) -> None:
        sizes = {tuple(shape) for shape in self.table.shapes.tolist()}
        if self.augmentation.crop is None and len(sizes) > 1 and batch_size > 1:
            raise DataError(
                f"{self.table.folder}: holds images of {len(sizes)} sizes, which make no batch. Choose "
                f"an augmentation with a crop, e.g. HeavyCropTransforms, or batch_size 1."
            )

    def _choose_validation(self, count: int) -> np.ndarray:
        kinds = self.table.present[self.indices]
        return self.indices[stratified_choice(kinds.tolist(), count, self.seed)]

    def _validation_loader(self, indices: np.ndarray) -> BaseDataLoader:
        return WholeSheetLoader(
            self.table,
            indices,
            self.augmentation,
            self._validation_batch_size,
            self.num_workers,
            self.pin_memory,
        )


@LOADERS.register
class MnistDataLoader(BaseDataLoader):
    """The template's handwritten digits, from the IDX files that torchvision reads or downloads.

    Args:
        data_dir: the files are in `MNIST/raw` under it.
        batch_size: digits in a batch.
        shuffle: another order each epoch.
        validation_split: a share in [0, 1), or a number of digits.
        num_workers: processes that read digits.
        seed: of order and split (given by the program).
        training: False gives the test digits in a fixed order (given by the program).
        pin_memory: for a GPU (given by the program).
    """

    def __init__(
        self,
        data_dir: str,
        batch_size: int = 128,
        shuffle: bool = True,
        validation_split: float = 0.0,
        num_workers: int = 0,
        *,
        seed: int = 0,
        training: bool = True,
        pin_memory: bool = False,
    ) -> None:
        # Mean and deviation of the training digits, as in https://github.com/pytorch/examples
        transform = torchvision.transforms.Compose(
            [
                torchvision.transforms.ToTensor(),
                torchvision.transforms.Normalize((0.1307,), (0.3081,)),
            ]
        )
        raw = Path(data_dir) / "MNIST" / "raw"
        try:
            digits = torchvision.datasets.MNIST(data_dir, training, transform, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"data_loader.args.data_dir: the MNIST files are not in {raw} and could not be "
                f"downloaded ({error}). Put train-images-idx3-ubyte, train-labels-idx1-ubyte, "
                f"t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte there."
            ) from error
        except ValueError as error:
            raise DataError(f"{raw}: the MNIST files are damaged: {error}") from error
        super().__init__(
            digits,
            batch_size,
            shuffle and training,
            validation_split if training else 0,
            num_workers,
            seed=seed,
            keep_workers=training,
            pin_memory=pin_memory,
        )


class PredictionDataLoader(BaseDataLoader):
    """Whole sheets without masks, in the given order.

    Batches are images (N, 1, H, W) uint8 of one size each, and the indices (N,) of their names.

    Args:
        folder: of the images.
        names: which of them; None takes all.
        batch_size: sheets in a batch.
        num_workers: processes that read sheets.
        pin_memory: for a GPU.

    Raises:
        DataError: an image is missing or unreadable.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        there = list_images(folder)
        self.names = list(names) if names is not None else there
        absent = sorted(set(self.names) - set(there))
        if absent:
            raise DataError(first_few([f"{folder}: image '{name}' is not there" for name in absent]))
        shapes, faults = read_shapes(folder, self.names)
        if faults:
            raise DataError(first_few(faults))
        super().__init__(
            ImageDataset(folder, self.names),
            num_workers=num_workers,
            batch_sampler=batches_of_equal_shape(range(len(self.names)), shapes, batch_size),
            pin_memory=pin_memory,
        )


def _whole_sheet_batches(table: SheetTable, indices: np.ndarray, batch_size: int) -> list[list[int]]:
    by_shape = indices[np.lexsort(table.shapes[indices].T)]
    return batches_of_equal_shape(by_shape, table.shapes, batch_size)


def batches_of_equal_shape(indices: Iterable[int], shapes: np.ndarray, batch_size: int) -> list[list[int]]:
    """Cut a sequence into batches; one ends early where the next image has another size.

    Example:
        >>> shapes = np.array([[8, 8], [8, 8], [8, 8], [4, 8]])
        >>> batches_of_equal_shape(range(4), shapes, batch_size=2)
        [[0, 1], [2], [3]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, received {batch_size}")
    batches: list[list[int]] = []
    for index in map(int, indices):
        last = batches[-1] if batches else []
        if last and len(last) < batch_size and (shapes[last[0]] == shapes[index]).all():
            last.append(index)
        else:
            batches.append([index])
    return batches
