"""Submission files, in either layout, written whole."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sever.predictor.submission.rows import CLASS_ID
from sever.utils.csv_layouts import OF_2019, TODAY, neighbours, read_records
from sever.utils.errors import DataError
from sever.utils.files import atomic_write
from sever.utils.rle import encode

_NO_CLASS = ("0", "")  # in today's sample, which has one row for each image


@dataclass(frozen=True)
class Layout:
    """The columns of a submission and the images that it is for.

    Attributes:
        columns: in their order.
        images: in their order; None is for all that there are.
        class_ids: that a sample submission names, ascending; today's names none, and a 2019 one all.
        complete: whether it has a row for each of these classes of each image, so that there are no others.
    """

    columns: tuple[str, ...] = OF_2019
    images: list[str] | None = None
    class_ids: tuple[str, ...] = ()
    complete: bool = False

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


def read_layout(path: Path, class_ids: Sequence[str] | None = None) -> Layout:
    """Read the columns, the images, their order and the classes from a sample submission in either layout.

    Args:
        path: of the CSV.
        class_ids: those that a model has, where it is to be written for.

    Raises:
        DataError: it is missing, its columns are of neither layout, a row names no image or no ClassId, or
            it asks for other classes than `class_ids`.
    """
    columns, rows = _read_rows(path)
    pairs: dict[tuple[str, str], None] = {}
    for row, fields in rows:
        where = f"--sample-submission {path}, row {row}"
        if len(fields) != len(columns):
            raise DataError(f"{where}: expected {len(columns)} fields, received {len(fields)}")
        values = dict(zip(columns, (field.strip() for field in fields), strict=True))
        if "ImageId" in values:
            image, class_id = values["ImageId"], values["ClassId"]
        else:
            image, _, class_id = values["ImageId_ClassId"].rpartition("_")
        if not image:
            key = "ImageId" if "ImageId" in values else "ImageId_ClassId"
            raise DataError(f"{where}: expected {key} to name an image, received {values[key]!r}")
        if class_id not in _NO_CLASS and not CLASS_ID.fullmatch(class_id):
            raise DataError(
                f"{where}: image '{image}': expected a ClassId from 1, or 0, received '{class_id}'"
            )
        pairs[image, class_id] = None
    if not pairs:
        raise DataError(f"--sample-submission {path}: names no image")
    images = list(dict.fromkeys(image for image, _ in pairs))
    named = tuple(sorted({class_id for _, class_id in pairs if class_id not in _NO_CLASS}, key=int))
    layout = Layout(columns, images, named, bool(named) and len(pairs) == len(images) * len(named))
    if class_ids is not None:
        _check_classes(path, layout, class_ids)
    return layout


def _read_rows(path: Path) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    """The columns of a sample submission and the fields of its rows, with their lines."""
    if not path.is_file():
        raise DataError(f"--sample-submission {path}: no such file{neighbours(path)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--sample-submission {path}: cannot be read: {error}") from error
    rows, fault = read_records(text)
    columns = tuple(column.strip() for column in rows[0][1]) if rows else ()
    if sorted(columns) not in (sorted(TODAY), sorted(OF_2019)):
        raise DataError(
            f"--sample-submission {path}: expected the columns ImageId,EncodedPixels,ClassId or "
            f"{','.join(OF_2019)}, received {','.join(columns) or 'none'}"
        )
    if fault:
        raise DataError(f"--sample-submission {path}, row {fault[0]}: cannot be read: {fault[1]}")
    return columns, [(row, fields) for row, fields in rows[1:] if any(field.strip() for field in fields)]


def _check_classes(path: Path, layout: Layout, class_ids: Sequence[str]) -> None:
    asked, ours = set(layout.class_ids), set(class_ids)
    if asked <= ours and not (layout.complete and asked < ours):
        return
    raise DataError(
        f"--sample-submission {path}: asks for the classes {', '.join(layout.class_ids)}, but the model has "
        f"{', '.join(class_ids)}; give the sample submission of the data that the model was made for"
    )


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
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(layout.columns)
        for rows in rows_of_images:
            writer.writerows(rows)
            count += len(rows)
    return count
