"""Both layouts of the competition's CSV, read as text."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sever.utils.errors import DataError
from sever.utils.files import neighbours
from sever.utils.input_files import MOST_IN_CSV, read_bytes, text_fault

TODAY = ("ImageId", "ClassId", "EncodedPixels")
OF_2019 = ("ImageId_ClassId", "EncodedPixels")
EITHER = f"{','.join(TODAY)} or {','.join(OF_2019)}"
AS_UTF8 = "save it as UTF-8 ('CSV UTF-8' in Excel)"

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SHOWN = 200  # characters of a header in a message


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
        DataError: the file is missing, empty or not a table, or has a column twice.
    """
    why = f" ({named_by})" if named_by else ""
    try:
        data = read_bytes(path, MOST_IN_CSV)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such CSV{why}{neighbours(path)}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected a CSV{why}{neighbours(path)}") from error
    fault = text_fault(data)
    if fault:
        raise DataError(f"{path}: not a CSV table: line {fault[0]} {fault[1]}; {AS_UTF8}")
    text = data.decode("utf-8-sig")
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, skip_blank_lines=False)
        # pandas renames columns that come twice
        table.columns = [name.strip() for name in next(csv.reader(io.StringIO(text, newline="")))]
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV table: {str(error).strip()}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise DataError(f"{path}: not a CSV table: its rows have more fields than its header")
    twice = columns_twice(list(table.columns))
    if twice:
        raise DataError(f"{path}: {twice}")
    return table


def columns_twice(columns: Sequence[str]) -> str:
    """The fault of columns that come more than once; empty where there are none."""
    twice = [name for name, count in Counter(columns).items() if name and count > 1]
    return f"has more than one column {' and '.join(twice)}; keep one, or rename the others" if twice else ""


def expected_columns(expected: str, received: Sequence[str]) -> str:
    """The fault of a header that has other columns than the expected ones."""
    header = ",".join(received)
    shown = f"{header[:_SHOWN]} …" if len(header) > _SHOWN else header or "none"
    fault = f"expected the columns {expected}, received {shown}"
    for mark, name in _SEPARATORS.items():
        if len(received) == 1 and mark in header:
            return f"{fault}; its fields are separated by {name}: save it with commas"
    return fault


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
    raise DataError(f"{path}: {expected_columns(EITHER, columns)}")
