"""What can be wrong with a data set: each fault with its sort, file and row."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from sever.utils.errors import DataError, SeverError, first_few
from sever.utils.printing import printable

logger = logging.getLogger(__name__)

#: Sorts of faults at which `sever train`, `sever test` or `sever predict` would fail.
ERRORS = {
    "no_folder": "no folder with images",
    "no_csv": "CSV that is not there, or no table",
    "other_folder": "CSV of another folder's images",
    "bad_name": "row: image that is no plain file name",
    "no_image": "row: image that is not in the folder",
    "class_id": "row: unknown ClassId",
    "twice": "row: image and class a second time",
    "runs_text": "row: runs that are no numbers",
    "runs_odd": "row: start without a length",
    "runs_start": "row: run that starts at 0",
    "runs_empty": "row: run of length 0",
    "runs_outside": "row: run outside the image",
    "runs_overlap": "row: runs that overlap",
    "group": "row: group that cannot be read",
    "labelled_twice": "pseudo-labels of labelled images",
    "image_name": "image file: name that no CSV could hold",
    "empty_file": "image file: empty",
    "not_an_image": "image file: no image",
    "truncated": "image file: truncated or damaged",
    "other_than_header": "image file: other size than its header",
    "batches": "sizes that make no batch",
    "loader": "images that cannot be split or batched",
}
#: Sorts of faults at which no command fails, though hardly anyone means them.
WARNINGS = {
    "not_there": "no such folder or CSV yet",
    "damaged": "damaged image that is used as it is",
    "other_size": "image of another size than the most",
    "colour": "image in colour",
    "sixteen_bits": "image of 16 bits",
    "runs_unsorted": "row: runs that are not sorted",
    "empty_row": "row without a mask",
    "covers_all": "mask that covers the whole image",
    "classes_overlap": "masks of two classes that overlap",
    "class_without_mask": "class without any mask",
    "copy_other_masks": "copy of an image, with other masks",
    "copy": "copy of an image",
    "validation_copy": "validation image like a training image",
    "testing_copy": "test image like a training image",
}


@dataclass(frozen=True)
class Fault:
    """A fault or something odd in a data set."""

    sort: str  # a key of `ERRORS` or `WARNINGS`
    file: str  # path of the CSV, image or folder
    message: str  # what was expected, what was received, and what to do
    row: int | None = None  # of the CSV, the header being row 1; None if it is about no single row
    image: str | None = None  # file name; None if it is about no single image

    @classmethod
    def of_error(cls, sort: str, path: Path | str, error: SeverError) -> "Fault":
        """The fault of a whole file, from what its reader raised."""
        return cls(sort, str(path), "; ".join(error.args).removeprefix(f"{path}: "))

    @classmethod
    def of_image(cls, sort: str, path: Path, message: str) -> "Fault":
        """The fault of an image file."""
        return cls(sort, str(path), message, image=path.name)

    @property
    def is_error(self) -> bool:
        """Whether a command would fail at it."""
        return self.sort in ERRORS

    def __str__(self) -> str:
        row = "" if self.row is None else f", row {self.row}"
        return printable(f"{self.file}{row}: {self.message}")


class FaultyDataError(DataError):
    """A data set has faults; the message names the first ten of each sort."""


def by_sort(faults: Iterable[Fault]) -> dict[str, list[Fault]]:
    """Faults by sort, in the order of their first ones."""
    sorts: dict[str, list[Fault]] = {}
    for fault in faults:
        sorts.setdefault(fault.sort, []).append(fault)
    return sorts


def raise_faults(faults: Sequence[Fault]) -> None:
    """Raise a `FaultyDataError` where there are errors, else log the warnings."""
    errors = [fault for fault in faults if fault.is_error]
    groups = by_sort(errors or faults).values()
    lines = chain.from_iterable(first_few([str(fault) for fault in group]) for group in groups)
    if errors:
        raise FaultyDataError(*lines)
    for line in lines:
        logger.warning("%s", line)
