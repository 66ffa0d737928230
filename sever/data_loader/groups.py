"""Groups of images that belong together, such as those of one coil, out of a CSV."""

from pathlib import Path

import numpy as np

from sever.data_loader.annotations import TableScan
from sever.data_loader.data_faults import Fault
from sever.utils.csv_reading import expected_columns, read_csv
from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import DataError

_GROUPS = ("ImageId", "GroupId")
_GUESSES = 3  # at the names that were meant; each one compares all names


def scan_groups(path: Path, scan: TableScan) -> np.ndarray:
    """Read the groups of images, e.g. of one coil, and add the faults of their CSV to those of the scan.

    Returns (N,) int64, equal within a group; an image that the CSV does not name is a group of its own.
    """
    table = scan.table
    groups = np.arange(len(table), dtype=np.int64)
    try:
        rows = read_csv(path, "keys data_dir and groups")
        if not set(_GROUPS) <= set(rows.columns):
            raise DataError(expected_columns(",".join(_GROUPS), list(rows.columns)))
    except DataError as error:
        scan.faults.append(Fault.of_error("no_csv", path, error))
        return groups
    if not len(table):  # its folder is a fault already
        return groups
    index_of = {name: index for index, name in enumerate(table.names)}
    first: dict[str, int] = {}
    seen: set[str] = set()
    guesses = _GUESSES
    for row, (name, group) in enumerate(zip(*(rows[c].str.strip() for c in _GROUPS), strict=True), 2):
        if not name and not group:
            continue
        message = ""
        if name not in index_of:
            near = did_you_mean(name, index_of) if guesses > 0 else ""
            guesses -= 1
            message = f"image '{name}' is not in {table.folder}.{near} Put it there, or remove the row."
        elif not group:
            message = f"expected the GroupId of image '{name}', received nothing; write it, or remove the row"
        elif name in seen:
            message = f"image '{name}' has a group in an earlier row already; remove one of the rows"
        if message:
            scan.faults.append(Fault("group", str(path), message, row, name))
            continue
        seen.add(name)
        groups[index_of[name]] = first.setdefault(group, index_of[name])
    return groups
