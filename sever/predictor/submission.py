"""Submission files, in either layout, written whole."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sever.utils.errors import DataError, did_you_mean
from sever.utils.files import written_whole
from sever.utils.rle import encode

COLUMNS_2019 = ("ImageId_ClassId", "EncodedPixels")


@dataclass(frozen=True)
class Layout:
    """The columns of a submission and the images that it is for.

    Attributes:
        columns: in their order.
        images: in their order; None is for all that there are.
    """

    columns: tuple[str, ...] = COLUMNS_2019
    images: list[str] | None = None

    def rows(self, image: str, class_ids: Sequence[str], masks: np.ndarray) -> list[list[str]]:
        """The rows of an image, one per class.

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


def read_layout(path: Path) -> Layout:
    """Read the columns, the images and their order from a sample submission in either layout.

    Raises:
        DataError: it is missing, or its columns are of neither layout.
    """
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.csv")])
        raise DataError(f"--sample-submission {path}: no such file.{near}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"--sample-submission {path}: cannot be read: {error}") from error
    columns = tuple(column.strip() for column in header)
    if set(columns) not in ({"ImageId", "ClassId", "EncodedPixels"}, set(COLUMNS_2019)):
        raise DataError(
            f"--sample-submission {path}: expected the columns ImageId,EncodedPixels,ClassId or "
            f"{','.join(COLUMNS_2019)}, received {','.join(columns) or 'none'}"
        )
    place = columns.index("ImageId" if "ImageId" in columns else COLUMNS_2019[0])
    images = []
    for number, row in enumerate(rows, 2):
        where = f"--sample-submission {path}, row {number}"
        if not row:
            continue
        if len(row) != len(columns):
            raise DataError(f"{where}: expected {len(columns)} fields, received {len(row)}")
        key = row[place].strip()
        image = key if "ImageId" in columns else key.rpartition("_")[0]
        if not image:
            raise DataError(f"{where}: expected {columns[place]}, received {key!r}")
        images.append(image)
    if not images:
        raise DataError(f"--sample-submission {path}: names no image")
    return Layout(columns, list(dict.fromkeys(images)))


def write_submission(
    path: Path,
    layout: Layout,
    class_ids: Sequence[str],
    predictions: Iterable[tuple[str, np.ndarray]],
) -> int:
    """Write a submission, a row per image and class and an empty field for an empty mask.

    Args:
        path: of the CSV, which appears only once it is complete.
        layout: its columns.
        class_ids: of the classes.
        predictions: image names with their masks (C, H, W) in {0, 1}, in the order of the rows.

    Returns:
        The number of rows.
    """
    return write_rows(path, layout, (layout.rows(image, class_ids, masks) for image, masks in predictions))


def write_rows(path: Path, layout: Layout, rows_of_images: Iterable[list[list[str]]]) -> int:
    """Write a submission out of rows that `Layout.rows` made, perhaps in other threads.

    Args:
        path: of the CSV, which appears only once it is complete.
        layout: its columns.
        rows_of_images: the rows of each image, in their order.

    Returns:
        The number of rows.
    """
    count = 0
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(layout.columns)
        for rows in rows_of_images:
            writer.writerows(rows)
            count += len(rows)
    return count
