"""Submission files, in either layout, written whole."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sever.utils.csv_layouts import OF_2019
from sever.utils.files import atomic_write
from sever.utils.rle import encode


@dataclass(frozen=True)
class Layout:
    """The columns of a submission and the images that it is for.

    Attributes:
        columns: in their order.
        images: in their order; None is for all images of a folder.
        class_ids: named by a sample submission, ascending; today's names none, and a 2019 one all.
        complete: whether the sample has a row for each of these classes of each image, so that there are
            no others.
    """

    columns: tuple[str, ...] = OF_2019
    images: list[str] | None = None
    class_ids: tuple[str, ...] = ()
    complete: bool = False

    def rows(self, image: str, class_ids: Sequence[str], masks: np.ndarray) -> list[list[str]]:
        """The rows of an image, one per class, with an empty field for an empty mask.

        Args:
            image: its file name.
            class_ids: of the classes.
            masks: (C, H, W) in {0, 1}.
        """
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


def write_submission(path: Path, layout: Layout, rows_of_images: Iterable[list[list[str]]]) -> None:
    """Write a submission.

    Args:
        path: of the CSV, which appears only once it is complete.
        layout: its columns.
        rows_of_images: the rows of each image, made by `Layout.rows`.
    """
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(layout.columns)
        for rows in rows_of_images:
            writer.writerows(rows)
