"""Faults in the pixels and masks of a data set: damage, and what is hardly meant."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from sever.data_loader.annotations import SheetTable, TableScan
from sever.data_loader.data_faults import Fault
from sever.data_loader.image_files import NOT_WHOLE, WHOLE_COPY, read_grey
from sever.data_loader.verify.near_duplicates import fingerprint
from sever.parallel.threads import in_threads
from sever.utils.errors import DataError
from sever.utils.input_files import MOST_IN_IMAGE, read_bytes
from sever.utils.rle import area, shared_area


@dataclass(frozen=True)
class InspectedSheets:
    """The images of a table that could be decoded, without their pixels."""

    scan: TableScan
    indices: np.ndarray  # (N,) int64, in the table
    digests: list[bytes]  # SHA-256 of the size and grey levels of each image
    fingerprints: np.ndarray  # (N, 1984) int8, see `near_duplicates`

    def of(self, wanted: Collection[str]) -> "InspectedSheets":
        """The images with the wanted names."""
        names = self.scan.table.names
        kept = [at for at, index in enumerate(self.indices.tolist()) if names[index] in wanted]
        return InspectedSheets(
            self.scan, self.indices[kept], [self.digests[at] for at in kept], self.fingerprints[kept]
        )


def inspect_sheets(scan: TableScan, label: str) -> tuple[InspectedSheets, list[Fault]]:
    """Decode the images of a table whose headers can be read; `label` is that of the progress bar.

    Returns:
        The images that can be decoded, and the faults of all.
    """
    readable = np.flatnonzero(scan.table.shapes[:, 0]).tolist()
    found = list(in_threads(lambda index: _inspect(scan.table, index), readable, label))
    faults = [fault for of_image, _ in found for fault in of_image]
    decoded = [(index, *pixels) for index, (_, pixels) in zip(readable, found, strict=True) if pixels]
    indices = np.array([index for index, _, _ in decoded], dtype=np.int64)
    prints = [of_image for _, _, of_image in decoded]
    fingerprints = np.stack(prints) if prints else np.zeros((0, 0), dtype=np.int8)
    return InspectedSheets(scan, indices, [digest for _, digest, _ in decoded], fingerprints), faults


def _inspect(table: SheetTable, index: int) -> tuple[list[Fault], tuple[bytes, np.ndarray] | None]:
    """The faults, digest and fingerprint of an image, decoded as in training."""
    path = table.folder / table.names[index]
    faults: list[Fault] = []
    try:
        grey = _grey_of(path, faults)
    except DataError:
        return [Fault.of_image("truncated", path, f"{NOT_WHOLE} {WHOLE_COPY}")], None
    height, width = table.shapes[index].tolist()
    if grey.shape != (height, width):
        message = f"has {grey.shape[0]} x {grey.shape[1]} pixels, but its header says {height} x {width}"
        faults.append(Fault.of_image("other_than_header", path, f"{message}. {WHOLE_COPY}"))
    digest = hashlib.sha256(str(grey.shape).encode())
    digest.update(np.ascontiguousarray(grey).data)
    return faults, (digest.digest(), fingerprint(grey))


def _grey_of(path: Path, faults: list[Fault]) -> np.ndarray:
    """The grey levels (H, W) uint8 that training reads; decoded once if the file stores just these."""
    try:
        data = np.frombuffer(read_bytes(path, MOST_IN_IMAGE), dtype=np.uint8)
        stored = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error):
        stored = None
    if stored is None:  # damaged, or of a kind that OpenCV can only convert
        return read_grey(path)
    if stored.dtype != np.uint8:
        bits = 8 * stored.dtype.itemsize
        message = f"expected 8 bits for a grey level, received {bits}; the program reads the upper 8 of them"
        cure = "Save it with 8 bits, scaled as you want it seen."
        faults.append(Fault.of_image("sixteen_bits", path, f"{message}. {cure}"))
        return read_grey(path)
    if stored.ndim == 2:
        return stored
    blue, green, red = cv2.split(stored)[:3]
    if np.array_equal(blue, green) and np.array_equal(blue, red):
        return blue
    most = int(max(cv2.norm(blue, green, cv2.NORM_INF), cv2.norm(green, red, cv2.NORM_INF)))
    message = f"expected equal channels, received colours that differ by up to {most} grey levels"
    cure = "the program reads it as grey. Is it an image of the sheet?"
    faults.append(Fault.of_image("colour", path, f"{message}; {cure}"))
    return read_grey(path)


def odd_sizes(table: SheetTable) -> list[Fault]:
    """A fault for each image of another size than that of at least half of the images."""
    shapes = Counter((height, width) for height, width in table.shapes.tolist() if height)
    if len(shapes) < 2:
        return []
    (common, count), *_ = shapes.most_common(1)
    if 2 * count < sum(shapes.values()):  # they are meant to differ
        return []
    wanted = f"{common[0]} x {common[1]} pixels (H x W), as {count} of {len(table)} images have"
    return [
        Fault.of_image(
            "other_size",
            table.folder / name,
            f"expected {wanted}, received {height} x {width}. Is it a whole sheet of this set?",
        )
        for name, (height, width) in zip(table.names, table.shapes.tolist(), strict=True)
        if height and (height, width) != common
    ]


def odd_masks(scan: TableScan, pseudo: bool = False) -> list[Fault]:
    """What is odd in the rows and masks of a data set.

    Args:
        scan: the data set.
        pseudo: whether it is pseudo-labelled; its CSV then names clean images in rows without a mask.
    """
    faults: list[Fault] = []
    rows_of_image: dict[int, list[int]] = defaultdict(list)
    for index, class_index in scan.rows:
        rows_of_image[index].append(class_index)
    classes = len(scan.table.class_ids)
    for index, of_image in rows_of_image.items():
        for class_index in of_image:
            sparse = not (pseudo or scan.every_class or len(of_image) == classes)
            faults += _odd_row(scan, index, class_index, sparse)
        faults += _overlaps(scan, index, of_image)
    return sorted(faults, key=lambda fault: fault.row or 0)


def _odd_row(scan: TableScan, index: int, class_index: int, sparse: bool) -> Iterator[Fault]:
    """What is odd in one row; `sparse` says that its CSV should have no empty rows."""
    row, runs = scan.rows[index, class_index]
    name, class_id = scan.table.names[index], scan.table.class_ids[class_index]
    where = f"image '{name}', class {class_id}"

    def fault(sort: str, message: str) -> Fault:
        return Fault(sort, str(scan.csv), f"{where}: {message}", row, name)

    if not runs and sparse:
        yield fault("empty_row", "expected runs, received none; write them, or remove the row")
    spans = scan.table.spans.get((index, class_index))
    if spans is None:
        return
    starts = np.array(runs.split()[::2], dtype=np.int64)
    if (np.diff(starts) < 0).any():
        yield fault("runs_unsorted", "expected runs sorted by start, received others; sort them")
    height, width = scan.table.shapes[index].tolist()
    if area(spans) == height * width:
        yield fault(
            "covers_all", f"covers all of {height} x {width} pixels. Is it a mask? Correct it, or remove it."
        )


def _overlaps(scan: TableScan, index: int, of_image: Sequence[int]) -> Iterator[Fault]:
    """A fault for each pair of an image's masks that share pixels."""
    name, class_ids = scan.table.names[index], scan.table.class_ids
    with_mask = [c for c in of_image if (index, c) in scan.table.spans]
    for some, other in combinations(with_mask, 2):
        pixels = shared_area(scan.table.spans[index, some], scan.table.spans[index, other])
        if pixels:
            message = (
                f"image '{name}': expected one class for a pixel, received {pixels} px of class "
                f"{class_ids[other]} that class {class_ids[some]} (row {scan.rows[index, some][0]}) has too; "
                f"correct one of the masks"
            )
            yield Fault("classes_overlap", str(scan.csv), message, scan.rows[index, other][0], name)


def absent_classes(scan: TableScan) -> list[Fault]:
    """A fault for each class that no image has."""
    counts = scan.table.present.sum(axis=0).tolist()
    return [
        Fault(
            "class_without_mask",
            str(scan.csv),
            f"expected masks of each of {len(counts)} classes, received none of class {class_id}; a model "
            f"cannot learn it. Is arch.args.classes right?",
        )
        for class_id, count in zip(scan.table.class_ids, counts, strict=True)
        if not count
    ]
