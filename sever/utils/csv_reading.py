"""Both layouts of the competition's CSV, read as text."""

import csv
import io
from pathlib import Path

import pandas as pd

from sever.utils.errors import DataError
from sever.utils.files import neighbours

TODAY = ("ImageId", "ClassId", "EncodedPixels")
OF_2019 = ("ImageId_ClassId", "EncodedPixels")


def read_records(text: str) -> tuple[list[tuple[int, list[str]]], tuple[int, str] | None]:
    r"""Split the text of a CSV strictly, however long its fields are, up to the first record that is not CSV.

    Example:
        >>> read_records("a,b\n1,2\n")
        ([(1, ['a', 'b']), (2, ['1', '2'])], None)

    Returns:
        The fields of each record after the line, from 1, that it begins in; a blank line has no fields. And
        the line and reason where the text stops being CSV, or None.
    """
    records: list[tuple[int, list[str]]] = []
    fault = None
    line = 1
    # The runs of a noisy mask are longer than the fields that the csv module allows.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        for fields in reader:
            records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        fault = (line, str(error))
    finally:
        csv.field_size_limit(limit)
    return records, fault


def read_csv(path: Path, named_by: str = "") -> pd.DataFrame:
    """Read a CSV as text, column names stripped.

    Args:
        path: the CSV file.
        named_by: the config keys or the option that name it, for messages.

    Raises:
        DataError: the file is missing, empty or not a table.
    """
    why = f" ({named_by})" if named_by else ""
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a CSV{why}{neighbours(path)}")
    if not path.is_file():
        raise DataError(f"{path}: no such CSV{why}{neighbours(path)}")
    try:
        table = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, OSError) as error:
        raise DataError(f"{path}: not a CSV table: {str(error).strip()}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise DataError(f"{path}: not a CSV table: its rows have more fields than its header")
    return table.rename(columns=lambda name: str(name).strip())


def split_rows(table: pd.DataFrame, path: Path) -> list[tuple[int, str, str, str]]:
    """(row, image, ClassId, runs) of a CSV in either layout; rows count from 2, below the header."""
    columns = tuple(table.columns)
    if set(TODAY) <= set(columns):
        parts = [table[column].str.strip() for column in TODAY]
        return list(zip(range(2, len(table) + 2), *parts, strict=True))
    if set(OF_2019) <= set(columns):
        keys = [key.strip().rpartition("_") for key in table["ImageId_ClassId"]]
        runs = table["EncodedPixels"].str.strip()
        return [
            (row, key[0], key[2], text) for row, (key, text) in enumerate(zip(keys, runs, strict=True), 2)
        ]
    raise DataError(
        f"{path}: expected the columns {','.join(TODAY)} or {','.join(OF_2019)}, received "
        f"{','.join(columns) or 'none'}"
    )
