"""Sheets without masks, by name."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sever.base import BaseDataLoader
from sever.data_loader.batch_composition import batches_of_equal_shape
from sever.data_loader.data_faults import raise_faults
from sever.data_loader.datasets import ImageDataset
from sever.data_loader.image_files import Damaged, list_images, scan_images
from sever.utils.errors import DataError, first_few


class PredictionDataLoader(BaseDataLoader):
    """Whole sheets without masks, in the given order.

    Batches are images (N, 1, H, W) uint8 of one size each, and the indices (N,) of their names.

    Args:
        folder: the folder of the images.
        names: paths of the images from the folder on; None takes all images in it.
        batch_size: sheets in a batch.
        num_workers: processes that read sheets; 0 reads in the calling thread, which is one of the
            predictor's own and fast enough beside models on a CPU.
        pin_memory: speeds up the transfer to a GPU.
        named_by: the keys or the option that name the folder, for messages.
        damaged: `warn` uses damaged images that can be decoded all the same.

    Raises:
        DataError: an image is missing or unreadable, or the folder holds none.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        pin_memory: bool = False,
        named_by: str = "keys data_dir and predict.images",
        damaged: Damaged = "error",
    ) -> None:
        self.names = list_images(folder, named_by) if names is None else list(names)
        if absent := [name for name in self.names if not (folder / name).exists()]:
            raise DataError(*first_few([f"{folder / name}: no such image ({named_by})" for name in absent]))
        shapes, faults = scan_images(folder, self.names, damaged)
        raise_faults(faults)
        super().__init__(
            ImageDataset(folder, self.names),
            batch_size,
            num_workers=num_workers,
            batch_sampler=batches_of_equal_shape(range(len(self.names)), shapes, batch_size),
            pin_memory=pin_memory,
        )

    @property
    def sample_names(self) -> Sequence[str]:
        """The paths from the folder on."""
        return self.names


class ArrayDataLoader(BaseDataLoader):
    """Whole sheets that are in memory, in batches as those of `PredictionDataLoader`.

    Args:
        arrays: images (H, W) uint8 in [0, 255].
        names: what messages call them.
        batch_size: sheets in a batch.

    Raises:
        DataError: an array is something else.
    """

    def __init__(self, arrays: Sequence[np.ndarray], names: Sequence[str], batch_size: int = 8) -> None:
        self.names = list(names)
        if faults := [
            f"image {name}: expected an array (H, W) uint8, received {array.shape} {array.dtype}"
            for name, array in zip(names, arrays, strict=True)
            if array.ndim != 2 or array.dtype != np.uint8 or not array.size
        ]:
            raise DataError(*first_few(faults))
        shapes = np.array([array.shape for array in arrays], dtype=np.int64)
        images = [
            (torch.from_numpy(np.require(array, requirements=["C", "W"]))[None], i)
            for i, array in enumerate(arrays)
        ]
        super().__init__(
            images,  # type: ignore[arg-type]
            batch_size,
            batch_sampler=batches_of_equal_shape(range(len(arrays)), shapes, batch_size),
        )

    @property
    def sample_names(self) -> Sequence[str]:
        """The given names."""
        return self.names
