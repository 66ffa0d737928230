"""Loaders of sheets with masks: what they have in common, and the one of whole sheets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sever.base import BaseDataLoader
from sever.data_loader.annotations import SheetTable
from sever.data_loader.augmentation.pipelines import Augmentation
from sever.data_loader.datasets import SteelDataset
from sever.data_loader.sampling import batches_of_equal_shape


class SheetLoader(BaseDataLoader):
    """Batches of sheets with masks: uint8 images (N, 1, h, w) and masks (N, C, h, w) in {0, 1}."""

    table: SheetTable
    augmentation: Augmentation
    groups: np.ndarray | None = None  # (N,) of the sheets of `table`, equal for those that belong together

    @property
    def sample_names(self) -> Sequence[str]:
        """The file names."""
        return self.table.names

    def to_device(self, batch: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Move a batch to the device: images float32 and normalised, masks float32 in {0, 1}."""
        images, masks = super().to_device(batch, device)
        return self.augmentation.normalize(images), masks.float()


class WholeSheetLoader(SheetLoader):
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
            batch_size,
            num_workers=num_workers,
            batch_sampler=whole_sheet_batches(table, indices, batch_size),
            pin_memory=pin_memory,
        )
        self._order.indices = indices


def whole_sheet_batches(table: SheetTable, indices: np.ndarray, batch_size: int) -> list[list[int]]:
    """Batches of sheets of one size each."""
    by_shape = indices[np.lexsort(table.shapes[indices].T)]
    return batches_of_equal_shape(by_shape, table.shapes, batch_size)
