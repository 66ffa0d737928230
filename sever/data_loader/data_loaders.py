"""The loaders of sheets with masks: for training, and whole sheets for validation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sever.base import BaseDataLoader
from sever.config.schema import BatchSize, Folds, Workers
from sever.data_loader.annotations import SheetTable, read_table
from sever.data_loader.augmentation.pipelines import Augmentation
from sever.data_loader.batch_composition import Balance, MixedBatches, Pseudo, batches_of_equal_shape
from sever.data_loader.data_faults import raise_faults
from sever.data_loader.datasets import SteelDataset
from sever.data_loader.decoded_cache import DecodedCache, Kind
from sever.data_loader.image_files import Damaged
from sever.data_loader.mnist import MnistDataLoader
from sever.data_loader.prediction_loader import PredictionDataLoader
from sever.data_loader.splits import Holdout
from sever.data_loader.table_record import record_of
from sever.data_loader.training_data import scan_training
from sever.engine.data_record import Record
from sever.utils.errors import DataError

__all__ = ["MnistDataLoader", "PredictionDataLoader", "SteelSegDataLoader"]

_TRIED_SIZES = 8  # of the sheets, on which the augmentation is tried


class SheetLoader(BaseDataLoader):
    """Batches of sheets with masks: uint8 images (N, 1, h, w) and masks (N, C, h, w) in {0, 1}."""

    table: SheetTable
    augmentation: Augmentation
    groups: np.ndarray | None = None  # (N,) int64, equal for sheets of the table that belong together

    @property
    def sample_names(self) -> Sequence[str]:
        """The file names."""
        return self.table.names

    def to_device(self, batch: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Move a batch to the device: images float32 and normalised, masks float32 in {0, 1}."""
        images, masks = super().to_device(batch, device)
        return self.augmentation.normalize(images), masks.float()


class SteelSegDataLoader(SheetLoader):
    """Sheets with a mask per class, from a data set in the Severstal layout.

    Batches are uint8: images (N, 1, h, w) in [0, 255] and masks (N, C, h, w) in {0, 1};
    `to_device` makes both float. Validation and test sheets are whole.

    Args:
        data_dir: the folder of the data set.
        csv: the labels in either layout; default `train.csv`, or `test.csv` for testing.
        images: the image folder; default `train_images`, or `test_images` for testing.
        batch_size: sheets in a batch.
        num_workers: processes that read sheets; 0 reads in the main process.
        shuffle: draws another order each epoch.
        validation_split: a share in [0, 1), or a number of sheets, stratified by the set of classes;
            default 0.2 where there are no `folds`.
        validation_batch_size: whole sheets in a batch of validation; default `batch_size`.
        drop_last: leave out a last batch that is not full.
        balance: `{alpha: 0.5, kind: fixed}` draws batches whose classes are between those of the data
            (alpha 0) and equal ones (1); `kind` fixed (the default) or random. See `MixedBatches`.
        pseudo: `{csv: pseudo.csv, images: test_images, share: 0.12, rate: 0.6}` mixes the sheets that a
            pseudo-label CSV names into each batch. Both paths are under `data_dir`; all but `csv` have
            the defaults shown. See `MixedBatches`.
        folds: k, to hold out one of k folds instead of a random share; see `stratified_folds`.
        fold: the fold to hold out, 1 to `folds`; default 1.
        groups: a CSV `ImageId,GroupId` under `data_dir`; images of a group stay together in the split.
        damaged: `error` (the default) refuses images whose data is damaged, as far as that can be seen;
            `warn` names those that can be decoded all the same, and uses them. Testing and prediction
            follow it too.
        cache: `ram` or `disk` decodes each training image once, before the first epoch, and then reads
            crops of it; `off` (the default) decodes it anew for each sample. The samples are the same.
        cache_dir: the folder of the cache on a disk, which later runs use too; default `<save_dir>/cache`.
        classes: number of classes, C (given by the program).
        augmentation: changes the training sheets (given by the program).
        seed: decides order, split and augmentation (given by the program).
        training: False gives whole sheets in a fixed order (given by the program).
        pin_memory: for a GPU (given by the program).
        default_cache_dir: where `cache_dir` is not given (given by the program).
    """

    _pseudo: SheetTable | None = None

    def __init__(
        self,
        data_dir: str,
        csv: str | None = None,
        images: str | None = None,
        batch_size: BatchSize = 8,
        num_workers: Workers = 0,
        shuffle: bool = True,
        validation_split: float | None = None,
        validation_batch_size: BatchSize | None = None,
        drop_last: bool = False,
        balance: Balance | None = None,
        pseudo: Pseudo | None = None,
        folds: Folds | None = None,
        fold: int | None = None,
        groups: str | None = None,
        damaged: Damaged = "error",
        cache: Kind = "off",
        cache_dir: str | None = None,
        *,
        classes: int = 4,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        training: bool = True,
        pin_memory: bool = False,
        default_cache_dir: str = "saved/cache",
    ) -> None:
        if classes < 1:
            raise ValueError("the number of classes comes from arch.args.classes, which this arch lacks")
        self.augmentation = augmentation or Augmentation([])
        if not training:
            files = csv or "test.csv", images or "test_images"
            self.table = read_table(data_dir, *files, classes, damaged)
            super().__init__(
                SteelDataset(self.table),
                batch_size,
                num_workers=num_workers,
                batch_sampler=whole_sheet_batches(self.table, np.arange(len(self.table)), batch_size),
                pin_memory=pin_memory,
            )
            return
        if not shuffle and (balance or pseudo):
            raise ValueError("shuffle: expected true beside balance and pseudo, which draw; received false")
        self._holdout = Holdout(validation_split, folds, fold)
        self._validation_batch_size = validation_batch_size or batch_size
        on_disk = Path(cache_dir or default_cache_dir) if cache == "disk" else None
        scan = scan_training(data_dir, csv, images, classes, groups, pseudo, damaged, on_disk)
        raise_faults(scan.faults)
        self.table, self.groups = scan.labelled.table, scan.groups
        self._pseudo = scan.pseudo.table if scan.pseudo else None
        if cache != "off":
            self.table = with_cache(self.table, on_disk, damaged)
            self._pseudo = with_cache(self._pseudo, on_disk, damaged) if self._pseudo else None
        check_batches([table for table in (self.table, self._pseudo) if table], self.augmentation, batch_size)
        mixed: dict[str, Any] = {**(balance or {})}
        if pseudo and self._pseudo:
            mixed |= {key: value for key, value in pseudo.items() if key in ("share", "rate")}
            mixed["pseudo_images"] = len(self._pseudo)
        super().__init__(
            SteelDataset(self.table, self.augmentation, seed, self._pseudo),
            batch_size,
            shuffle,
            self._holdout.validation_split,
            num_workers,
            seed=seed,
            drop_last=drop_last,
            batch_sampler=MixedBatches(self.table.present, batch_size, seed, drop_last=drop_last, **mixed)
            if mixed
            else None,
            keep_workers=True,
            pin_memory=pin_memory,
        )

    @property
    def caches(self) -> list[DecodedCache]:
        """The caches of labelled and pseudo-labelled sheets."""
        tables = [table for table in (self.table, self._pseudo) if table]
        return [table.cache for table in tables if table.cache]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for cache in self.caches:  # before there are workers
            cache.build()
        return super().__iter__()

    @cached_property
    def data_record(self) -> Record:
        """The files of labelled and pseudo-labelled sheets, and their masks; a collective."""
        pseudo = record_of(self._pseudo, "pseudo") if self._pseudo else {}
        return record_of(self.table, "labelled") | pseudo

    def samples_per_epoch(self) -> dict[str, int]:
        """Number of images in the batches of the first epoch.

        Returns:
            By ClassId the labelled images that have it, under `clean` those without a defect, and under
            `pseudo` the pseudo-labelled ones, if any. An image counts each time that it comes.
        """
        epoch, self._order.epoch = self._order.epoch, 1
        drawn = np.array(list(chain.from_iterable(self.whole_batches)), dtype=np.int64)
        self._order.epoch = epoch
        labelled = drawn[drawn < len(self.table)]
        present = self.table.present[labelled]
        counts = dict(zip(self.table.class_ids, present.sum(axis=0).tolist(), strict=True))
        counts["clean"] = int((~present.any(axis=1)).sum())
        return counts | ({"pseudo": len(drawn) - len(labelled)} if self._pseudo else {})

    def _choose_validation(self) -> np.ndarray:
        count = 0 if self._holdout.folds else self._validation_count()
        return self._holdout.choose(self.table.present, count, self.seed, self.groups)

    def _validation_loader(self, indices: np.ndarray) -> BaseDataLoader:
        return WholeSheetLoader(
            self.table,
            indices,
            self.augmentation,
            self._validation_batch_size,
            self.groups,
            num_workers=self.num_workers,
            keep_workers=True,
            pin_memory=self.pin_memory,
        )


class WholeSheetLoader(SheetLoader):
    """Whole sheets of a table in a fixed order, in batches of one size each, for validation.

    Of the augmentation only the normalisation is used.
    """

    def __init__(
        self,
        table: SheetTable,
        indices: np.ndarray,
        augmentation: Augmentation,
        batch_size: int,
        groups: np.ndarray | None = None,
        **options: Any,
    ) -> None:
        self.table = table
        self.augmentation = augmentation
        self.groups = groups
        batches = whole_sheet_batches(table, indices, batch_size)
        super().__init__(SteelDataset(table), batch_size, batch_sampler=batches, **options)
        self._order.indices = indices


def with_cache(table: SheetTable, directory: Path | None, damaged: Damaged) -> SheetTable:
    """A table whose images come out of a cache, once that is built; see `DecodedCache`."""
    return replace(table, cache=DecodedCache(table.folder, table.names, table.shapes, directory, damaged))


def whole_sheet_batches(table: SheetTable, indices: np.ndarray, batch_size: int) -> list[list[int]]:
    """Batches of sheets of one size each."""
    by_shape = indices[np.lexsort(table.shapes[indices].T)]
    return batches_of_equal_shape(by_shape, table.shapes, batch_size)


def check_batches(tables: Sequence[SheetTable], augmentation: Augmentation, batch_size: int) -> None:
    """Try the augmentation on the sizes of the sheets, and check that its results can be batched.

    Raises:
        DataError: it fails on them, or gives several sizes.
    """
    if augmentation.crop is not None:
        return
    readable = (shape for table in tables for shape in table.shapes.tolist() if all(shape))
    shapes = sorted({(height, width) for height, width in readable})
    folders = " and ".join(str(table.folder) for table in tables)
    try:
        sizes = {augmentation.size_after(shape) for shape in shapes[:_TRIED_SIZES]}
    except ValueError as error:
        raise DataError(f"augmentation, on images of {folders}: {error}") from error
    if len(sizes) > 1 and batch_size > 1:
        raise DataError(
            f"{folders}: holds images of {len(shapes)} sizes, which make no batch. Choose an augmentation"
            f" with a crop, e.g. HeavyCropTransforms, or batch_size 1."
        )
