"""Writes submission files in either layout."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from sever.utils.csv_reading import OF_2019
from sever.utils.files import FileInProgress
from sever.utils.rle import encode


@dataclass(frozen=True)
class Layout:
    """The columns of a submission and the images that it is for.

    Attributes:
        columns: columns in their order.
        images: file names of the images in their order; None for all images of a folder.
        class_ids: ClassIds that the sample submission names, ascending; today's names none, that of 2019 all.
        complete: whether the sample has a row for each of `class_ids` of each image.
    """

    columns: tuple[str, ...] = OF_2019
    images: list[str] | None = None
    class_ids: tuple[str, ...] = ()
    complete: bool = False

    def rows(self, image: str, class_ids: Sequence[str], masks: np.ndarray) -> list[list[str]]:
        """The rows of an image with masks (C, H, W) in {0, 1}, one per class; an empty mask has no runs."""
        rows = []
        for class_id, mask in zip(class_ids, masks, strict=True):
            fields = {
                "ImageId": image,
                "ClassId": class_id,
                "ImageId_ClassId": f"{image}_{class_id}",
                "EncodedPixels": encode(mask),
            }
            rows.append([fields[column] for column in self.columns])
        return rows


def write_submission(file: FileInProgress, layout: Layout, rows_of_images: Iterable[list[list[str]]]) -> None:
    """Write a CSV of the rows that `Layout.rows` made of each image."""
    head: list[list[str]] = [list(layout.columns)]
    for rows in chain([head], rows_of_images):
        file.write(csv_text(rows))


def csv_text(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as the lines of a CSV, in UTF-8."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
