"""Sheets with masks for training and testing, and sheets by name for prediction."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from sever.data_loader.annotations import SheetTable
from sever.data_loader.image_files import read_grey
from sever.engine.loader_workers import WorkerStatus
from sever.utils.errors import DataError
from sever.utils.rle import Spans, decode_spans
from sever.utils.seed import SampleRandom

# (image (H, W) uint8, spans per class, random) -> (image (h, w) uint8, masks (C, h, w) uint8)
Transform = Callable[[np.ndarray, Sequence[Spans], SampleRandom], tuple[np.ndarray, np.ndarray]]


def whole_sheet(
    image: np.ndarray, spans: Sequence[Spans], random: SampleRandom
) -> tuple[np.ndarray, np.ndarray]:
    """The `Transform` that changes nothing."""
    return image, np.stack([decode_spans(of_class, image.shape) for of_class in spans])


class SteelDataset(Dataset):
    """Sheets with a mask per class.

    With N labelled sheets, index N is the first pseudo-labelled one. A sample's random choices come from
    (seed, epoch, index), so it is the same for any number of workers, and after a resume.

    Args:
        table: the labelled sheets.
        transform: crops and augments; see `Transform`.
        seed: at least 0; decides the random choices.
        pseudo: the pseudo-labelled sheets.
    """

    def __init__(
        self,
        table: SheetTable,
        transform: Transform = whole_sheet,
        seed: int = 0,
        pseudo: SheetTable | None = None,
    ) -> None:
        self.table = table
        self.pseudo = pseudo
        self.transform = transform
        self.seed = seed
        self.worker_status: WorkerStatus | None = None  # the loader sets it
        # In shared memory: persistent workers must see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.table) + (len(self.pseudo) if self.pseudo else 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides the random choices of the next samples."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One sheet.

        Returns:
            image (1, h, w) uint8 in [0, 255] and masks (C, h, w) uint8 in {0, 1}.

        Raises:
            DataError: the image cannot be read, or changed its size since the start.
        """
        table, row = self.table, index
        if self.pseudo is not None and index >= len(table):
            table, row = self.pseudo, index - len(table)
        if self.worker_status:
            self.worker_status.note(index)
        image = table.image(row)
        random = SampleRandom.of(self.seed, int(self._epoch), int(index), getattr(index, "before", 0))
        try:
            image, masks = self.transform(image, table.of_image(row), random)
        except Exception as error:
            where = table.folder / table.names[row]
            raise DataError(f"{where}: augmentation: {type(error).__name__}: {error}") from error
        image, masks = np.require(image, requirements=["C", "W"]), np.ascontiguousarray(masks)
        return torch.from_numpy(image)[None], torch.from_numpy(masks)


class ImageDataset(Dataset):
    """The sheets of a folder with the given file names, without masks."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One sheet: image (1, H, W) uint8 in [0, 255], and its index."""
        return torch.from_numpy(read_grey(self.folder / self.names[index]))[None], index
