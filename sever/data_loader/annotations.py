"""Both layouts of the competition's CSV and the image folder -> one table, a row per image."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sever.utils.csv_layouts import neighbours, read_csv, split_rows
from sever.utils.errors import DataError, did_you_mean, first_few
from sever.utils.rle import Spans, decode_spans, parse

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"))
NO_SPANS: Spans = np.zeros((0, 2), dtype=np.int64)

_GROUPS = ("ImageId", "GroupId")


@dataclass(frozen=True)
class SheetTable:
    """The images of a folder with their defects.

    Attributes:
        folder: where the images are.
        names: file names, sorted.
        shapes: (N, 2) int64, the (H, W) of each image in pixels.
        class_ids: the ClassId of each class, `"1"` first.
        spans: of each (image index, class index) that has a defect.
    """

    folder: Path
    names: list[str]
    shapes: np.ndarray
    class_ids: list[str]
    spans: dict[tuple[int, int], Spans]

    def __len__(self) -> int:
        return len(self.names)

    def of_image(self, index: int) -> list[Spans]:
        """The spans of an image, one array per class."""
        return [self.spans.get((index, c), NO_SPANS) for c in range(len(self.class_ids))]

    def masks(self, index: int) -> np.ndarray:
        """The masks of an image, (C, H, W) uint8 in {0, 1}."""
        height, width = self.shapes[index].tolist()
        return np.stack([decode_spans(spans, (height, width)) for spans in self.of_image(index)])

    @property
    def present(self) -> np.ndarray:
        """(N, C) bool: which image has which class."""
        present = np.zeros((len(self.names), len(self.class_ids)), dtype=bool)
        for index, class_index in self.spans:
            present[index, class_index] = True
        return present


def read_table(
    data_dir: str | Path, csv: str, images: str, classes: int, *, section: str = "", only_named: bool = False
) -> SheetTable:
    """Read a data set in the Severstal layout.

    Args:
        data_dir: the folder with both.
        csv: `ImageId,ClassId,EncodedPixels` (defects only) or `ImageId_ClassId,EncodedPixels` (a row
            per image and class, as in 2019), under `data_dir`.
        images: the image folder under `data_dir`; an image that the CSV does not name has no defect.
        classes: number of classes, C; a ClassId is 1 to C.
        section: what messages put before the keys `csv` and `images`, e.g. `pseudo.`.
        only_named: leave out the images that the CSV does not name, be it in a row without a mask.

    Raises:
        DataError: with every fault of the CSV, by row, and of the image headers, by file.
    """
    path = Path(data_dir) / csv
    folder = Path(data_dir) / images
    there = list_images(folder, f"{section}images")
    rows = _read_rows(path, f"{section}csv")
    named = {name for _, name, _, _ in rows}
    names = [name for name in there if name in named] if only_named else there
    if only_named and not named:
        raise DataError(f"{path}: expected rows that name images, received none (key {section}csv)")
    shapes, faults = read_shapes(folder, names)
    place = {name: index for index, name in enumerate(names)}
    spans: dict[tuple[int, int], Spans] = {}
    class_ids = [str(c + 1) for c in range(classes)]
    seen: set[tuple[int, int]] = set()
    for row, name, class_id, runs in rows:
        where = f"{path}, row {row}"
        if class_id not in class_ids:
            faults.append(f"{where}: expected a ClassId from 1 to {classes}, received '{class_id}'")
            continue
        if name not in place:
            near = did_you_mean(name, there) if len(faults) < 3 else ""
            faults.append(f"{where}: image '{name}' is not in {folder}.{near}")
            continue
        key = (place[name], int(class_id) - 1)
        if key in seen:
            faults.append(f"{where}: image '{name}' has class {class_id} in an earlier row already")
            continue
        seen.add(key)
        height, width = shapes[key[0]].tolist()
        if not runs or not height:  # no defect, or an image whose header is a fault already
            continue
        try:
            spans[key] = parse(runs, (height, width))
        except ValueError as error:
            faults.append(f"{where}: image '{name}', class {class_id}: {error}")
    if faults:
        raise DataError(first_few(faults))
    return SheetTable(folder, names, shapes, class_ids, spans)


def list_images(folder: Path, key: str = "images") -> list[str]:
    """The image files of a folder, sorted by name.

    Args:
        folder: where they are.
        key: the key beside `data_dir` that names the folder, for messages.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images (keys data_dir and {key}){neighbours(folder)}")
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
    )
    if not names:
        raise DataError(f"{folder}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return names


def read_shapes(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Read the sizes of images from their headers.

    Returns:
        (N, 2) int64 (H, W) in pixels, 0 where unreadable, and a fault for each of those.
    """

    def shape(name: str) -> tuple[int, int] | str:
        try:
            with Image.open(folder / name) as image:
                return image.height, image.width
        except UnidentifiedImageError:
            return f"{folder / name}: not an image, or damaged"
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            return f"{folder / name}: cannot be read: {error}"

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(shape, names, chunksize=64))
    faults = [entry for entry in found if isinstance(entry, str)]
    shapes = [(0, 0) if isinstance(entry, str) else entry for entry in found]
    return np.array(shapes, dtype=np.int64).reshape(-1, 2), faults


def read_groups(data_dir: str | Path, csv: str, table: SheetTable) -> np.ndarray:
    """Read which images belong together, e.g. because they show the same coil.

    Args:
        data_dir: the folder of the data set.
        csv: `ImageId,GroupId`, under `data_dir`.
        table: the images; one that the CSV does not name is a group of its own.

    Returns:
        (N,) int64, a number for each image, the same for those of one group.

    Raises:
        DataError: with every fault of the CSV, by row.
    """
    path = Path(data_dir) / csv
    rows = read_csv(path, "keys data_dir and groups")
    if not set(_GROUPS) <= set(rows.columns):
        raise DataError(
            f"{path}: expected the columns {','.join(_GROUPS)}, received {','.join(rows.columns) or 'none'}"
        )
    place = {name: index for index, name in enumerate(table.names)}
    groups = np.arange(len(table), dtype=np.int64)
    first: dict[str, int] = {}
    seen: set[str] = set()
    faults: list[str] = []
    for row, (name, group) in enumerate(zip(*(rows[c].str.strip() for c in _GROUPS), strict=True), 2):
        if not name and not group:
            continue
        where = f"{path}, row {row}"
        if name not in place:
            near = did_you_mean(name, place) if len(faults) < 3 else ""
            faults.append(f"{where}: image '{name}' is not in {table.folder}.{near}")
        elif not group:
            faults.append(f"{where}: expected the GroupId of image '{name}', received nothing")
        elif name in seen:
            faults.append(f"{where}: image '{name}' has a group in an earlier row already")
        else:
            seen.add(name)
            groups[place[name]] = first.setdefault(group, place[name])
    if faults:
        raise DataError(first_few(faults))
    return groups


def _read_rows(path: Path, key: str) -> list[tuple[int, str, str, str]]:
    table = read_csv(path, f"keys data_dir and {key}")
    rows = split_rows(table, path)
    return [row for row in rows if any(row[1:])]  # a blank line is no row
