"""Images that come twice, and held-out images that a model has seen in training."""

from collections.abc import Sequence

import numpy as np

from sever.data_loader.annotations import SheetTable, TableScan
from sever.data_loader.data_faults import Fault
from sever.data_loader.verify.images_and_masks import InspectedSheets
from sever.data_loader.verify.near_duplicates import ALIKE, POSITIONS, UPRIGHT, Nearest, nearest
from sever.utils.rle import area, union


def copies(seen: Sequence[InspectedSheets]) -> list[list[Fault]]:
    """A fault for each image with the grey levels of an earlier one in any of the tables; by table."""
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
    path = scan.table.folder / scan.table.names[index]
    named = _name_beside(scan.table, other.table, original)
    pairs = zip(scan.table.of_image(index), other.table.of_image(original), strict=True)
    differing = [
        (c, f"class {scan.table.class_ids[c]}: {area(mine):,} px here, {area(others):,} px there")
        for c, (mine, others) in enumerate(pairs)
        if not np.array_equal(union([mine]), union([others]))
    ]
    if not differing:
        message = f"has the pixels and the masks of '{named}'. Remove one, or give both one group."
        return Fault.of_image("copy", path, message)
    masks = "; ".join(text for _, text in differing)
    message = (
        f"image '{path.name}' has the pixels of '{named}', but other masks ({masks}). Correct the wrong ones."
    )
    rows = [scan.rows[index, c][0] for c, _ in differing if (index, c) in scan.rows]
    file = str(scan.csv) if rows else str(path)
    return Fault("copy_other_masks", file, message, min(rows, default=None), path.name)


def _name_beside(table: SheetTable, other: SheetTable, index: int) -> str:
    """The name of an image of `other` in a message about one of `table`: with its folder if they differ."""
    name = other.names[index]
    return name if table.folder == other.folder else str(other.folder / name)


def leaks(
    held_out: InspectedSheets, trained_on: Sequence[InspectedSheets], sort: str, cure: str
) -> list[Fault]:
    """A fault of the given sort for each held-out image that shows the steel of a training image.

    Args:
        held_out: the images to validate or test on.
        trained_on: the images to train on, by table.
        sort: the sort of the faults.
        cure: the end of their messages, which says what to do.
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
        if digest in same:  # all-black sheets have no features to compare
            near = Nearest(same[digest], 1.0, "as it is")
        if near.similarity < ALIKE:
            continue
        table, original = origins[near.number]
        how = "the same pixels" if digest in same else f"similarity {near.similarity:.2f}, {near.position}"
        own = held_out.scan.table
        named = _name_beside(own, table, original)
        message = f"shows the steel of '{named}' ({how}), which is trained on. {cure}"
        faults.append(Fault.of_image(sort, own.folder / own.names[index], message))
    return faults
