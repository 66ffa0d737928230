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


@dataclass(frozen=True)
class TrainingScan:
    """The data of a training as far as it could be read, and all that is wrong with it.

    Attributes:
        labelled: the images, some of which are validated on.
        groups: (N,) int64, equal for labelled images of one group; None where there are no groups.
        group_faults: the faults of the CSV of the groups.
        pseudo: the pseudo-labelled images; None where there are none.
    """

    labelled: TableScan
    groups: np.ndarray | None
    group_faults: list[Fault]
    pseudo: TableScan | None

    @property
    def faults(self) -> list[Fault]:
        """All faults."""
        return self.labelled.faults + self.group_faults + (self.pseudo.faults if self.pseudo else [])


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
    of_group, group_faults = scan_groups(data_dir, groups, labelled.table) if groups else (None, [])
    pseudo_scan = _scan_pseudo(data_dir, pseudo, labelled.table) if pseudo else None
    return TrainingScan(labelled, of_group, group_faults, pseudo_scan)


def scan_groups(data_dir: str | Path, csv: str, table: SheetTable) -> tuple[np.ndarray, list[Fault]]:
    """Read which images belong together, e.g. because they show the same coil.

    Args:
        data_dir: the folder of the data set.
        csv: `ImageId,GroupId`, under `data_dir`.
        table: the images; one that the CSV does not name is a group of its own.

    Returns:
        (N,) int64, equal for images of one group; and every fault of the CSV, by row.
    """
    path = Path(data_dir) / csv
    groups = np.arange(len(table), dtype=np.int64)
    try:
        rows = read_csv(path, "keys data_dir and groups")
    except DataError as error:
        return groups, [Fault.of_error("no_csv", path, error)]
    if not set(_GROUPS) <= set(rows.columns):
        received = ",".join(rows.columns) or "none"
        message = f"expected the columns {','.join(_GROUPS)}, received {received}"
        return groups, [Fault("no_csv", str(path), message)]
    if not len(table):  # its folder is a fault already
        return groups, []
    index_of = {name: index for index, name in enumerate(table.names)}
    first: dict[str, int] = {}
    seen: set[str] = set()
    faults: list[Fault] = []
    for row, (name, group) in enumerate(zip(*(rows[c].str.strip() for c in _GROUPS), strict=True), 2):
        if not name and not group:
            continue
        message = ""
        if name not in index_of:
            near = did_you_mean(name, index_of) if len(faults) < 3 else ""
            message = f"image '{name}' is not in {table.folder}.{near} Put it there, or remove the row."
        elif not group:
            message = f"expected the GroupId of image '{name}', received nothing; write it, or remove the row"
        elif name in seen:
            message = f"image '{name}' has a group in an earlier row already; remove one of the rows"
        if message:
            faults.append(Fault("group", str(path), message, row, name))
            continue
        seen.add(name)
        groups[index_of[name]] = first.setdefault(group, index_of[name])
    return groups, faults


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
        cure = "make it with sever pseudo, or train without it: -s data_loader.args.pseudo=null"
        scan.faults[:] = [
            replace(fault, message=f"{fault.message}; {cure}") if fault.sort == "no_csv" else fault
            for fault in scan.faults
        ]
    table = scan.table
    if len(table) and table.folder.resolve() == labelled.folder.resolve():
        message = (
            f"expected another folder than that of the labelled images, received {table.folder}, where "
            f"'{table.names[0]}' (and {len(table) - 1} more of those that {pseudo['csv']} names) is labelled "
            f"already"
        )
        scan.faults.append(Fault("labelled_twice", "data_loader.args.pseudo.images", message))
    return scan
