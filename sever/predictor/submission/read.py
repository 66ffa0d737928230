"""The one reader of submissions: the file under check, samples, references and other submissions."""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from sever.predictor.submission.write import Layout
from sever.utils.csv_reading import (
    AS_UTF8,
    OF_2019,
    TODAY,
    columns_twice,
    expected_columns,
    read_records,
)
from sever.utils.errors import DataError, first_few
from sever.utils.files import neighbours
from sever.utils.input_files import MOST_IN_CSV, read_bytes, reason_of, text_fault
from sever.utils.printing import printable

Kind = Literal["submission", "sample", "reference"]

_CLASS_ID = re.compile("[1-9][0-9]{0,5}")
_NO_CLASS = ("0", "")  # in today's sample, which has one row for each image


class Row(NamedTuple):
    """A row of a submission.

    Attributes:
        line: line in which it begins; the header is line 1.
        image: file name of the image.
        class_id: ClassId from 1; 0 for a row of a sample that names no class.
        runs: runs as they are written.
    """

    line: int
    image: str
    class_id: int
    runs: str

    @property
    def pair(self) -> tuple[str, int]:
        """Image and ClassId."""
        return self.image, self.class_id


@dataclass(frozen=True)
class Finding:
    """A fault or warning; `row` is the line of the file from 1, or None where it is about no single row."""

    row: int | None
    message: str

    def __str__(self) -> str:
        return printable(self.message if self.row is None else f"row {self.row}: {self.message}")


@dataclass
class Submission:
    """A submission file as far as it could be read.

    Attributes:
        columns: columns of its header.
        readable: whether the columns are those of one of the two layouts.
        row_count: number of rows below the header that are not blank.
        rows: rows that name an image and a class.
        faults: why the competition would reject the file.
        warnings: what is odd but would be accepted.
    """

    columns: list[str] = field(default_factory=list)
    readable: bool = False
    row_count: int = 0
    rows: list[Row] = field(default_factory=list)
    faults: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)


def read_submission(path: Path, kind: Kind = "submission", option: str = "") -> Submission:
    """Read a submission in either layout and collect what is wrong with it.

    Args:
        path: path of the CSV, UTF-8 with or without a byte order mark, with any line ends.
        kind: a `submission` is read as strictly as the competition reads it. A `sample` and a `reference`
            (a training CSV) may have spaces around fields and rows of empty fields; a sample's rows may name
            no class (ClassId 0), and a reference may have other columns too.
        option: command line option that names the file, for messages.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    where = f"{option} {path}".lstrip()
    try:
        data = read_bytes(path, MOST_IN_CSV)
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file{neighbours(path)}") from error
    except OSError as error:
        raise DataError(f"{where}: {reason_of(error, 'a CSV')}") from error
    file = Submission()
    fault = text_fault(data)
    if fault:
        file.faults.append(Finding(fault[0], f"expected text in UTF-8, but it {fault[1]}; {AS_UTF8}"))
        return file
    text = data.decode("utf-8-sig")
    if data.startswith(codecs.BOM_UTF8):
        file.warnings.append(Finding(1, "begins with a byte order mark, which some readers reject"))
    records, not_csv = read_records(text)
    if not_csv:
        file.faults.append(Finding(not_csv[0], f"not CSV: {not_csv[1]}"))
    while records and not records[-1][1]:  # blank lines at the end
        records.pop()
    if kind != "submission":
        stripped = ((line, [text.strip() for text in fields]) for line, fields in records)
        records = [record for record in stripped if any(record[1])]
    file.columns = records[0][1] if records else []
    file.readable = sorted(file.columns) in (sorted(OF_2019), sorted(TODAY)) or (
        kind == "reference"
        and any(set(columns) <= set(file.columns) for columns in (OF_2019, TODAY))
        and not columns_twice(file.columns)
    )
    if file.readable:
        _read_rows(file, records[1:], kind)
    elif not file.faults:
        expected = "ImageId_ClassId,EncodedPixels or ImageId,EncodedPixels,ClassId"
        message = columns_twice(file.columns) or expected_columns(expected, file.columns)
        file.faults.append(Finding(1, message))
    return file


def _read_rows(file: Submission, records: Sequence[tuple[int, list[str]]], kind: Kind) -> None:
    for line, fields in records:
        if not fields:
            file.warnings.append(Finding(line, "a blank line"))
            continue
        file.row_count += 1
        try:
            file.rows.append(_row(line, file.columns, fields, kind))
        except ValueError as error:
            file.faults.append(Finding(line, str(error)))
    if not file.row_count:
        file.faults.append(Finding(None, "has no rows below its header"))


def _row(line: int, columns: Sequence[str], fields: Sequence[str], kind: Kind) -> Row:
    if len(fields) != len(columns):
        raise ValueError(f"expected {len(columns)} fields, received {len(fields)}")
    values = dict(zip(columns, fields, strict=True))
    if "ImageId" in values:
        image, class_id = values["ImageId"], values["ClassId"]
    else:
        image, joint, class_id = values["ImageId_ClassId"].rpartition("_")
        if not joint:
            raise ValueError(f"expected an ImageId_ClassId as in 'x.jpg_1', received '{class_id}'")
    if not image or image != image.strip():
        raise ValueError(f"expected an image without spaces around it, received '{image}'")
    if kind == "sample" and class_id in _NO_CLASS:
        class_id = "0"
    elif not _CLASS_ID.fullmatch(class_id):
        raise ValueError(f"image '{image}': expected a ClassId from 1, received '{class_id}'")
    return Row(line, image, int(class_id), values["EncodedPixels"])


def read_whole(path: Path, kind: Kind, option: str) -> Submission:
    """Read a submission as `read_submission` does, but raise a `DataError` of its faults if it has any."""
    file = read_submission(path, kind, option)
    raise_findings(file.faults, path, option)
    return file


def raise_findings(faults: Sequence[Finding], path: Path, option: str) -> None:
    """Raise a `DataError` of the first few faults, if there are any."""
    if faults:
        where = [f"{option} {path}{':' if fault.row is None else ','} {fault}" for fault in faults]
        raise DataError(*first_few(where))


def read_layout(path: Path, class_ids: Sequence[str] | None = None) -> Layout:
    """Read the columns, images and classes of a sample submission in either layout.

    Args:
        path: path of the CSV.
        class_ids: ClassIds of the model whose masks will be written.

    Raises:
        DataError: the file has faults, or asks for other classes than `class_ids`.
    """
    file = read_whole(path, "sample", "--sample-submission")
    pairs = {row.pair for row in file.rows}
    images = list(dict.fromkeys(row.image for row in file.rows))
    named = tuple(str(class_id) for class_id in sorted({class_id for _, class_id in pairs} - {0}))
    layout = Layout(
        tuple(file.columns), images, named, bool(named) and len(pairs) == len(images) * len(named)
    )
    if class_ids is not None:
        asked, known = set(named), set(class_ids)
        if not asked <= known or (layout.complete and asked < known):
            raise DataError(
                f"--sample-submission {path}: asks for the classes {', '.join(named)}, but the model has "
                f"{', '.join(class_ids)}; give the sample submission of the data that the model was made for"
            )
    return layout
