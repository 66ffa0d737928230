"""Images that come twice, and held-out images that a model has seen in training."""

from collections.abc import Sequence

import numpy as np

from sever.data_loader.annotations import SheetTable, TableScan
from sever.data_loader.faults import Fault
from sever.data_loader.verify.near_duplicates import ALIKE, POSITIONS, UPRIGHT, Nearest, nearest
from sever.data_loader.verify.sheets import InspectedSheets
from sever.utils.rle import area, union


def copies(seen: Sequence[InspectedSheets]) -> list[list[Fault]]:
    """Images with the same grey levels as an earlier one, of the same table or another.

    Args:
        seen: of each table.

    Returns:
        The faults of each table.
    """
    first: dict[bytes, tuple[TableScan, int]] = {}
    faults: list[list[Fault]] = [[] for _ in seen]
    for sheets, of_table in zip(seen, faults, strict=True):
        for index, digest in zip(sheets.indices.tolist(), sheets.digests, strict=True):
            scan, original = first.setdefault(digest, (sheets.scan, index))
            if scan is not sheets.scan or original != index:
                of_table.append(_copy(sheets.scan, index, scan, original))
    return faults


def _copy(scan: TableScan, index: int, other: TableScan, original: int) -> Fault:
    """The fault of an image with the pixels of an earlier one."""
    name, path = scan.table.names[index], str(scan.table.folder / scan.table.names[index])
    there = _told(other.table, original, scan.table)
    pairs = zip(scan.table.of_image(index), other.table.of_image(original), strict=True)
    differing = [
        (c, f"class {scan.table.class_ids[c]}: {area(mine):,} px here, {area(others):,} px there")
        for c, (mine, others) in enumerate(pairs)
        if not np.array_equal(union([mine]), union([others]))
    ]
    if not differing:
        message = f"has the pixels and the masks of '{there}'. Remove one, or give both one group."
        return Fault("copy", path, message, None, name)
    told = "; ".join(text for _, text in differing)
    message = f"image '{name}' has the pixels of '{there}', but other masks ({told}). Correct the wrong ones."
    rows = [scan.rows[index, c][0] for c, _ in differing if (index, c) in scan.rows]
    return Fault("copy_other_masks", str(scan.csv) if rows else path, message, min(rows, default=None), name)


def _told(table: SheetTable, index: int, beside: SheetTable) -> str:
    """An image as a message about one of `beside` names it."""
    name = table.names[index]
    return name if table.folder == beside.folder else str(table.folder / name)


def leaks(
    held_out: InspectedSheets, trained_on: Sequence[InspectedSheets], sort: str, cure: str
) -> list[Fault]:
    """Held-out images that show the same steel as one that the model is trained on.

    Args:
        held_out: images to validate or test on.
        trained_on: of each table.
        sort: of the faults.
        cure: what to do.
    """
    origins = [(sheets.scan.table, index) for sheets in trained_on for index in sheets.indices.tolist()]
    if not origins or not len(held_out.indices):
        return []
    fingerprints = np.concatenate([sheets.fingerprints for sheets in trained_on if len(sheets.indices)])
    digests = [digest for sheets in trained_on for digest in sheets.digests]
    same = {digest: at for at, digest in reversed(list(enumerate(digests)))}
    sizes = {tuple(table.shapes[index].tolist()) for table, index in origins}
    turned = {(width, height) for height, width in held_out.scan.table.shapes[held_out.indices].tolist()}
    positions = tuple(POSITIONS) if sizes & turned else UPRIGHT
    found = nearest(held_out.fingerprints, fingerprints, positions)
    faults = []
    for index, digest, near in zip(held_out.indices.tolist(), held_out.digests, found, strict=True):
        if digest in same:  # black sheets have no features to be alike in
            near = Nearest(same[digest], 1.0, "as it is")
        if near.similarity < ALIKE:
            continue
        table, original = origins[near.place]
        how = "the same pixels" if digest in same else f"similarity {near.similarity:.2f}, {near.position}"
        name = held_out.scan.table.names[index]
        there = _told(table, original, held_out.scan.table)
        message = f"shows the steel of '{there}' ({how}), which is trained on. {cure}"
        faults.append(Fault(sort, str(held_out.scan.table.folder / name), message, None, name))
    return faults
