"""What a training loader reads: labelled images, the groups that they form, pseudo-labelled images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sever.data_loader.annotations import SheetTable, TableScan, scan_table
from sever.data_loader.data_faults import Fault
from sever.data_loader.groups import scan_groups
from sever.data_loader.image_files import Damaged


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
    damaged: Damaged = "error",
    cache_dir: Path | None = None,
) -> TrainingScan:
    """Read the data of a training, and collect what is wrong with it.

    For the arguments see `SteelSegDataLoader` and `scan_table`.
    """
    files = csv or "train.csv", images or "train_images"
    labelled = scan_table(data_dir, *files, classes, damaged=damaged, cache_dir=cache_dir)
    of_group = scan_groups(Path(data_dir) / groups, labelled) if groups else None
    pseudo_scan = _scan_pseudo(data_dir, pseudo, labelled.table, damaged, cache_dir) if pseudo else None
    return TrainingScan(labelled, of_group, pseudo_scan)


def _scan_pseudo(
    data_dir: str | Path,
    pseudo: Mapping[str, Any],
    labelled: SheetTable,
    damaged: Damaged,
    cache_dir: Path | None,
) -> TableScan:
    """Read the pseudo-labelled images, which must not be labelled ones."""
    scan = scan_table(
        data_dir,
        pseudo["csv"],
        pseudo.get("images", "test_images"),
        len(labelled.class_ids),
        section="pseudo.",
        only_named=True,
        damaged=damaged,
        cache_dir=cache_dir,
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
