"""Both layouts of the competition's CSV and the image folder -> one table, a row per image."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sever.data_loader.data_faults import Fault, raise_faults
from sever.data_loader.decoded_cache import DecodedCache, shapes_in_cache
from sever.data_loader.image_files import Damaged, list_images, read_grey, scan_headers, scan_images
from sever.utils.csv_reading import OF_2019, TODAY, read_csv, split_rows
from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import DataError
from sever.utils.rle import RunsError, Spans, decode_spans, parse

Row = tuple[int, str, str, str]  # number in the CSV, image, ClassId, runs
NO_SPANS: Spans = np.zeros((0, 2), dtype=np.int64)

_CLASS_ID = re.compile("[1-9][0-9]{0,2}")
_SEVERAL = 3  # as many rows are hardly slips
_SOME = 5  # as many images are hardly slips
_GUESSES = 3  # at the names that were meant; each one compares all names
_CURE_OF_RUNS = {
    "text": "write 'start length' pairs",
    "odd": "write the length that is missing, or take the start away",
    "start": "count the first pixel as 1",
    "empty": "write its length, or take the run away",
    "outside": "draw the mask on this image's size",
    "overlap": "join the two runs",
}


@dataclass(frozen=True)
class SheetTable:
    """The images of a folder with their defects."""

    folder: Path
    names: list[str]  # file names, sorted
    shapes: np.ndarray  # (N, 2) int64, the (H, W) of each image in pixels
    class_ids: list[str]  # the ClassId of each class, "1" first
    spans: dict[tuple[int, int], Spans]  # the defect of each (image index, class index) that has one
    cache: DecodedCache | None = None

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:
        """Read an image: (H, W) uint8 in [0, 255]; out of the cache it is read-only.

        Raises:
            DataError: it cannot be read, or changed its size since the start.
        """
        cached = self.cache.read(index) if self.cache else None
        if cached is not None:
            return cached
        path = self.folder / self.names[index]
        image = read_grey(path)
        height, width = self.shapes[index].tolist()
        if image.shape != (height, width):
            raise DataError(
                f"{path}: has {image.shape[0]} x {image.shape[1]} pixels, but its header says "
                f"{height} x {width}"
            )
        return image

    def of_image(self, index: int) -> list[Spans]:
        """The spans of an image, one array per class."""
        return [self.spans.get((index, c), NO_SPANS) for c in range(len(self.class_ids))]

    def masks(self, index: int) -> np.ndarray:
        """The masks of an image, (C, H, W) uint8 in {0, 1}."""
        height, width = self.shapes[index].tolist()
        return np.stack([decode_spans(spans, (height, width)) for spans in self.of_image(index)])

    @property
    def present(self) -> np.ndarray:
        """(N, C) bool: whether an image has a class."""
        present = np.zeros((len(self.names), len(self.class_ids)), dtype=bool)
        for index, class_index in self.spans:
            present[index, class_index] = True
        return present


@dataclass
class TableScan:
    """A data set as far as it could be read, and all that is wrong with it.

    Attributes:
        csv: path of the CSV.
        table: the images with those masks that have no fault.
        rows: (row, runs as written) of each (image index, class index) that the CSV names.
        named: the images that the CSV names.
        every_class: whether the CSV has a row for every image and class, as in 2019, even without a mask.
        faults: first those of image files, which are errors but for `damaged` ones, then errors by row.
    """

    csv: Path
    table: SheetTable
    rows: dict[tuple[int, int], tuple[int, str]]
    named: set[str]
    every_class: bool
    faults: list[Fault]


def read_table(
    data_dir: str | Path, csv: str, images: str, classes: int, damaged: Damaged | None = None
) -> SheetTable:
    """Read a data set in the Severstal layout; see `scan_table`.

    Raises:
        DataError: with every fault of the CSV, by row, and of the images, by file.
    """
    scan = scan_table(data_dir, csv, images, classes, damaged=damaged)
    raise_faults(scan.faults)
    return scan.table


def scan_table(
    data_dir: str | Path,
    csv: str,
    images: str,
    classes: int,
    *,
    section: str = "",
    only_named: bool = False,
    damaged: Damaged | None = None,
    cache_dir: Path | None = None,
) -> TableScan:
    """Read the masks and look at the images of a data set in the Severstal layout, and collect all faults.

    Args:
        data_dir: the folder of the data set.
        csv: `ImageId,ClassId,EncodedPixels` (defects only) or `ImageId_ClassId,EncodedPixels` (a row
            per image and class, as in 2019), under `data_dir`.
        images: the image folder under `data_dir`; an image that the CSV does not name has no defect.
        classes: number of classes, C; a ClassId is 1 to C.
        section: what messages put before the keys `csv` and `images`, e.g. `pseudo.`.
        only_named: leave out the images that have no row in the CSV.
        damaged: see `scan_images`; None reads the images' headers alone.
        cache_dir: a folder of caches; images in them were decoded already. None decodes all.
    """
    path = Path(data_dir) / csv
    folder = Path(data_dir) / images
    faults: list[Fault] = []
    names: list[str] = []
    rows: list[Row] = []
    every_class = False
    try:
        names = list_images(folder, f"keys data_dir and {section}images")
    except DataError as error:
        faults.append(Fault.of_error("no_folder", folder, error))
    try:
        text = read_csv(path, f"keys data_dir and {section}csv")
        rows = [row for row in split_rows(text, path) if any(row[1:])]  # a blank line is no row
        every_class = not set(TODAY) <= set(text.columns) and set(OF_2019) <= set(text.columns)
    except DataError as error:
        faults.append(Fault.of_error("no_csv", path, error))
    named = {name for _, name, _, _ in rows}
    elsewhere = _other_folder(path, folder, named, set(names), section)
    if elsewhere:
        faults.append(elsewhere)
        rows = []
    if only_named and not named and not faults:
        message = f"expected rows that name images, received none (key {section}csv)"
        faults.append(Fault("no_csv", str(path), message))
    kept = [name for name in names if name in named] if only_named else names
    if damaged:
        known = shapes_in_cache(cache_dir, folder, kept) if cache_dir and damaged == "error" else {}
        shapes, of_images = scan_images(folder, kept, damaged, known)
    else:
        shapes, of_images = scan_headers(folder, kept)
    class_ids = [str(c + 1) for c in range(classes)]
    table = SheetTable(folder, kept, shapes, class_ids, {})
    scan = TableScan(path, table, {}, named, every_class, faults + of_images)
    if names:
        _scan_rows(scan, rows, names)
    return scan


def _other_folder(path: Path, folder: Path, named: set[str], there: set[str], section: str) -> Fault | None:
    """The fault of a CSV whose images are nearly all missing, instead of one for each row."""
    absent = {name for name in named - there if not _leads_elsewhere(name)}
    shared = len(named & there)
    if not there or len(absent) < _SOME or shared * 10 > len(named):
        return None
    message = (
        f"it names {len(named)} images, of which {shared or 'none'} {'are' if shared > 1 else 'is'} in "
        f"{folder} ('{min(absent)}' is not): the CSV of another folder. Name the one that belongs to the "
        f"images there (key {section}csv), or the folder that belongs to the CSV (key {section}images)"
    )
    return Fault("other_folder", str(path), message)


def _other_classes(path: Path, rows: Sequence[Row], classes: int) -> tuple[Fault | None, set[str]]:
    """The fault of a CSV of other classes, instead of one for each row, and the ClassIds that it covers."""
    rows_of: dict[str, list[int]] = {}
    for row, _, class_id, _ in rows:
        rows_of.setdefault(class_id, []).append(row)
    if set(rows_of) == {"0"} and len(rows) >= _SEVERAL:
        message = (
            f"all its {len(rows)} rows have the ClassId 0, as in a sample submission, which has no labels; "
            f"name the CSV of the masks"
        )
        return Fault("class_id", str(path), message, rows[0][0]), {"0"}
    numbers = {int(class_id) for class_id in rows_of if _CLASS_ID.fullmatch(class_id)}
    highest = max(numbers, default=0)
    beyond = {str(number) for number in numbers if number > classes}
    beyond_rows = sorted(row for class_id in beyond for row in rows_of[class_id])
    # A few rows may be slips, and so may a class above a gap.
    if len(beyond_rows) < _SEVERAL or numbers != set(range(1, highest + 1)):
        return None, set()
    message = (
        f"the CSV has classes 1 to {highest}, arch.args.classes is {classes}: {len(beyond_rows)} rows are of "
        f"classes above it. Set arch.args.classes to {highest}"
    )
    return Fault("class_id", str(path), message, beyond_rows[0]), beyond


def _scan_rows(scan: TableScan, rows: Sequence[Row], there: Collection[str]) -> None:
    """Add the masks of the rows to the scan's table, and what is wrong with the rows to its faults."""
    table = scan.table
    index_of = {name: index for index, name in enumerate(table.names)}
    class_of = {class_id: c for c, class_id in enumerate(table.class_ids)}
    guesses = _GUESSES
    of_classes, reported = _other_classes(scan.csv, rows, len(class_of))
    if of_classes:
        scan.faults.append(of_classes)
    for row, name, class_id, runs in rows:
        sort = message = ""
        if class_id in reported:
            continue
        if class_id not in class_of:
            sort = "class_id"
            message = (
                f"expected a ClassId from 1 to {len(class_of)}, received '{class_id}'; correct it, or "
                f"arch.args.classes"
            )
        elif name not in index_of:
            sort, message = _not_there(name, table.folder, there if guesses > 0 else ())
            guesses -= 1
        elif (key := (index_of[name], class_of[class_id])) in scan.rows:
            sort = "twice"
            message = (
                f"image '{name}' has class {class_id} in an earlier row already (row {scan.rows[key][0]}); "
                f"join the two, or remove one"
            )
        else:
            scan.rows[key] = (row, runs)
            height, width = table.shapes[key[0]].tolist()
            try:
                if runs and height:  # a height of 0 is an unreadable header, which is a fault already
                    table.spans[key] = parse(runs, (height, width))
            except RunsError as error:
                sort = f"runs_{error.sort}"
                message = f"image '{name}', class {class_id}: {error}; {_CURE_OF_RUNS[error.sort]}"
        if message:
            scan.faults.append(Fault(sort, str(scan.csv), message, row, name))


def _not_there(name: str, folder: Path, there: Collection[str]) -> tuple[str, str]:
    """The sort and the message for a row whose image is not in the folder."""
    if _leads_elsewhere(name):
        message = f"expected the file name of an image in {folder}, received '{name}'"
        return "bad_name", f"{message}; put the image there, and write its name alone"
    near = did_you_mean(name, there)
    return "no_image", f"image '{name}' is not in {folder}.{near} Put it there, or remove the row."


def _leads_elsewhere(name: str) -> bool:
    """Whether a name is a path that could lead out of the image folder."""
    return not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name
