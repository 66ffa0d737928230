"""Sheets without masks, by name."""

from collections.abc import Sequence
from pathlib import Path

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
        names: file names of the images; None takes all.
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
        present = list_images(folder, named_by)
        self.names = list(names) if names is not None else present
        if absent := sorted(set(self.names) - set(present)):
            told = f"is not there; give its folder ({named_by})"
            raise DataError(*first_few([f"{folder}: image '{name}' {told}" for name in absent]))
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
        """The file names."""
        return self.names
