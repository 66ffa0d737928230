"""The rows of a submission file, read as strictly as the competition does."""

import codecs
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sever.predictor.submission.report import Finding
from sever.utils.csv_layouts import OF_2019, TODAY, neighbours, read_records
from sever.utils.errors import DataError

CLASS_ID = re.compile("[1-9][0-9]{0,5}")


class Row(NamedTuple):
    """A row whose image and ClassId could be read.

    Attributes:
        row: the line that it begins in, the header being row 1.
        image: file name.
        class_id: from 1.
        runs: as they stand there.
    """

    row: int
    image: str
    class_id: int
    runs: str


@dataclass
class SubmissionRows:
    """What a submission file holds.

    Attributes:
        columns: of the header.
        count: of the rows below it, blank lines left out.
        readable: whether the columns are of one of the two layouts.
        rows: those that name an image and a class.
        faults: for which the competition would reject the file.
        warnings: what is odd.
    """

    columns: list[str] = field(default_factory=list)
    count: int = 0
    readable: bool = False
    rows: list[Row] = field(default_factory=list)
    faults: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)


def read_rows(path: Path) -> SubmissionRows:
    """Read a submission file in either layout.

    Args:
        path: of the CSV, UTF-8 with or without a byte order mark, with any line ends.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file{neighbours(path)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    file = SubmissionRows()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        file.faults.append(Finding(row, f"expected UTF-8 text, received the byte {data[error.start]:#04x}"))
        return file
    if data.startswith(codecs.BOM_UTF8):
        file.warnings.append(Finding(1, "begins with a byte order mark, which not every reader takes"))
    records, not_csv = read_records(text)
    if not_csv:
        file.faults.append(Finding(not_csv[0], f"not CSV: {not_csv[1]}"))
    while records and not records[-1][1]:
        records.pop()
    file.columns = records[0][1] if records else []
    file.readable = sorted(file.columns) in (sorted(OF_2019), sorted(TODAY))
    if file.readable:
        file.warnings += [Finding(row, "a blank line") for row, fields in records[1:] if not fields]
        records = [record for record in records[1:] if record[1]]
        file.count = len(records)
        file.rows = _rows(file.columns, records, file.faults)
    if file.readable and not records:
        file.faults.append(Finding(None, "has no rows below its header"))
    elif not file.readable and not file.faults:
        expected = "ImageId_ClassId,EncodedPixels or ImageId,EncodedPixels,ClassId"
        received = ",".join(file.columns) or "none"
        file.faults.append(Finding(1, f"expected the columns {expected}, received {received}"))
    return file


def _rows(columns: list[str], records: list[tuple[int, list[str]]], faults: list[Finding]) -> list[Row]:
    place = {column: index for index, column in enumerate(columns)}
    rows = []
    for row, fields in records:
        if len(fields) != len(columns):
            faults.append(Finding(row, f"expected {len(columns)} fields, received {len(fields)}"))
            continue
        if "ImageId" in place:
            image, class_id = fields[place["ImageId"]], fields[place["ClassId"]]
        else:
            key = fields[place["ImageId_ClassId"]]
            image, joint, class_id = key.rpartition("_")
            if not joint:
                faults.append(Finding(row, f"expected an ImageId_ClassId as in 'x.jpg_1', received '{key}'"))
                continue
        if not image or image != image.strip():
            faults.append(Finding(row, f"expected an image without spaces around it, received '{image}'"))
        elif not CLASS_ID.fullmatch(class_id):
            faults.append(Finding(row, f"image '{image}': expected a ClassId from 1, received '{class_id}'"))
        else:
            rows.append(Row(row, image, int(class_id), fields[place["EncodedPixels"]]))
    return rows
