"""The base of all loaders of sheets with masks, and the loader of whole sheets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sever.base import BaseDataLoader
from sever.data_loader.annotations import SheetTable
from sever.data_loader.augmentation.pipelines import Augmentation
from sever.data_loader.balanced_batches import batches_of_equal_shape
from sever.data_loader.datasets import SteelDataset


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


def whole_sheet_batches(table: SheetTable, indices: np.ndarray, batch_size: int) -> list[list[int]]:
    """Batches of sheets of one size each."""
    by_shape = indices[np.lexsort(table.shapes[indices].T)]
    return batches_of_equal_shape(by_shape, table.shapes, batch_size)
