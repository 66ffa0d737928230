"""What a training loader reads: labelled images, the groups that they form, pseudo-labelled images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sever.data_loader.annotations import SheetTable, TableScan, scan_table
from sever.data_loader.data_faults import Fault
from sever.utils.csv_reading import read_csv
from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import DataError

_GROUPS = ("ImageId", "GroupId")
_GUESSES = 3  # at the names that were meant; each one compares all names


@dataclass(frozen=True)
class TrainingScan:
    """The data of a training as far as it could be read, and all that is wrong with it."""

    labelled: TableScan  # the images to train and validate on; its faults include those of the groups
    groups: np.ndarray | None  # (N,) int64, equal for labelled images of one group
    pseudo: TableScan | None

    @property
    def faults(self) -> list[Fault]:
        """All faults."""
        return self.labelled.faults + (self.pseudo.faults if self.pseudo else [])


def scan_training(
    data_dir: str | Path,
    csv: str | None,
    images: str | None,
    classes: int,
    groups: str | None = None,
    pseudo: Mapping[str, Any] | None = None,
) -> TrainingScan:
    """Read the data of a training, and collect what is wrong with it; see `SteelSegDataLoader`."""
    labelled = scan_table(data_dir, csv or "train.csv", images or "train_images", classes)
    of_group = _scan_groups(Path(data_dir) / groups, labelled) if groups else None
    pseudo_scan = _scan_pseudo(data_dir, pseudo, labelled.table) if pseudo else None
    return TrainingScan(labelled, of_group, pseudo_scan)


def _scan_groups(path: Path, scan: TableScan) -> np.ndarray:
    """Read the groups of images, e.g. of one coil, and add the faults of their CSV to those of the scan.

    Returns (N,) int64, equal within a group; an image that the CSV does not name is a group of its own.
    """
    table = scan.table
    groups = np.arange(len(table), dtype=np.int64)
    try:
        rows = read_csv(path, "keys data_dir and groups")
        if not set(_GROUPS) <= set(rows.columns):
            received = ",".join(rows.columns) or "none"
            raise DataError(f"expected the columns {','.join(_GROUPS)}, received {received}")
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


def _scan_pseudo(data_dir: str | Path, pseudo: Mapping[str, Any], labelled: SheetTable) -> TableScan:
    """Read the pseudo-labelled images, which must not be labelled ones."""
    scan = scan_table(
        data_dir,
        pseudo["csv"],
        pseudo.get("images", "test_images"),
        len(labelled.class_ids),
        section="pseudo.",
        only_named=True,
    )
    if not scan.csv.exists():
        cure = " Make it with sever pseudo, or train without it: -s data_loader.args.pseudo=null"
        absent = next(at for at, fault in enumerate(scan.faults) if fault.sort == "no_csv")
        scan.faults[absent] = replace(scan.faults[absent], message=scan.faults[absent].message + cure)
    table = scan.table
    if len(table) and table.folder.resolve() == labelled.folder.resolve():
        message = (
            f"expected another folder than that of the labelled images, received {table.folder}, where "
            f"'{table.names[0]}' (and {len(table) - 1} more of those that {pseudo['csv']} names) is labelled "
            f"already"
        )
        scan.faults.append(Fault("labelled_twice", "data_loader.args.pseudo.images", message))
    return scan
