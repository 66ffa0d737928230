"""What a training loader reads: labelled images, the groups that they form, pseudo-labelled images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sever.data_loader.annotations import SheetTable, TableScan, scan_table
from sever.data_loader.faults import Fault
from sever.utils.csv_layouts import read_csv
from sever.utils.errors import DataError, did_you_mean

_GROUPS = ("ImageId", "GroupId")
_GUESSES = 3  # of names that were meant; a guess looks through all names


@dataclass(frozen=True)
class TrainingScan:
    """The data of a training as far as it could be read, and all that is wrong with it.

    Attributes:
        labelled: the images, some of which are validated on; its faults are those of the groups too.
        groups: (N,) int64, equal for labelled images of one group; None where there are no groups.
        pseudo: the pseudo-labelled images; None where there are none.
    """

    labelled: TableScan
    groups: np.ndarray | None
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
    """Read the data of a training, and collect what is wrong with it.

    Args:
        data_dir: the folder of the data set.
        csv: the labels in either layout; default `train.csv`.
        images: the folder of the labelled images; default `train_images`.
        classes: number of classes, C.
        groups: a CSV `ImageId,GroupId`.
        pseudo: `csv` and `images` (default `test_images`) of pseudo-labelled images.
    """
    labelled = scan_table(data_dir, csv or "train.csv", images or "train_images", classes)
    of_group = _scan_groups(Path(data_dir) / groups, labelled) if groups else None
    pseudo_scan = _scan_pseudo(data_dir, pseudo, labelled.table) if pseudo else None
    return TrainingScan(labelled, of_group, pseudo_scan)


def _scan_groups(path: Path, scan: TableScan) -> np.ndarray:
    """Read which images belong together, e.g. because they show the same coil.

    Args:
        path: a CSV `ImageId,GroupId`; an image that it does not name is a group of its own.
        scan: the images; every fault of the CSV is added to its faults, by row.

    Returns:
        (N,) int64, equal for images of one group.
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
    """The pseudo-labelled sheets, which must not be labelled ones."""
    scan = scan_table(
        data_dir,
        pseudo["csv"],
        pseudo.get("images", "test_images"),
        len(labelled.class_ids),
        section="pseudo.",
        only_named=True,
    )
    if not scan.csv.exists():
        cure = "; make it with sever pseudo, or train without it: -s data_loader.args.pseudo=null"
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
