"""A data set of drawn steel sheets in the folder layout of Severstal's competition."""

from pathlib import Path

import cv2
import numpy as np

from sever.data_loader.synth.draw import GROUP_SIZE, GROUPS, N_CLASSES, draw_sheet
from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import DataError
from sever.utils.files import write_file
from sever.utils.input_files import MOST_IN_CSV, read_bytes
from sever.utils.outputs import CSV, PICTURES, Output, check_outputs
from sever.utils.rle import encode

JPEG_QUALITY = 90
MIN_TEST_SHEETS = 4
LAYOUTS = ("today", "2019")
TRAIN, TEST = "train_images", "test_images"
NAME_RANGE = 16**9  # nine hexadecimal digits, as in Severstal's names
NAME_STEP = 0x5851F42D5  # odd, so that multiples of it repeat no name within the range


def draw_dataset(
    folder: str | Path,
    n: int = 48,
    seed: int = 1234,
    layout: str = "today",
    shape: tuple[int, int] = (256, 1600),
) -> list[Path]:
    """Draw a data set in Severstal's layout: `n` training sheets and a quarter as many for testing.

    The same arguments give the same bytes, and a sheet depends on the seed, the shape and its number alone: a
    larger `n` adds sheets to those of a smaller one. Training and test sheets each follow `GROUPS`.

    Args:
        folder: where to write; made if missing. Sheets of the same seed that are there are drawn again.
        n: number of training sheets, at least 1; there are n // 4 test sheets, at least 4.
        seed: at least 0.
        layout: of the CSV files: "today" (`ImageId,ClassId,EncodedPixels`, defects only) or "2019"
            (`ImageId_ClassId,EncodedPixels`, a row per image and class).
        shape: (H, W) of a sheet in pixels.

    Returns:
        The paths of train_images, test_images, train.csv, test.csv (the test sheets' masks) and
        sample_submission.csv.

    Raises:
        DataError: an argument is out of range, or the folder holds other data.
    """
    folder = Path(folder)
    if layout not in LAYOUTS:
        guess = did_you_mean(layout, LAYOUTS)
        raise DataError(f"layout: expected {' or '.join(LAYOUTS)}, received {layout!r}.{guess}")
    if n < 1 or seed < 0:
        raise DataError(f"expected n of at least 1 and a seed >= 0, received n={n}, seed={seed}.")
    counts = {TRAIN: n, TEST: max(MIN_TEST_SHEETS, n // 4)}
    names = {subset: [_name(seed, subset, i) for i in range(counts[subset])] for subset in counts}
    csv_paths = [folder / name for name in ("train.csv", "test.csv", "sample_submission.csv")]
    _refuse_other_data(folder, names, csv_paths)
    check_outputs(
        [Output("DIR", folder / subset, PICTURES) for subset in counts]
        + [Output("DIR", path, CSV, makes_folder=True) for path in csv_paths]
    )

    tables = []
    for subset in counts:
        runs: dict[str, list[str]] = {}
        for i, name in enumerate(names[subset]):
            rng = np.random.default_rng((seed, subset == TEST, i))
            image, masks = draw_sheet(rng, shape, _classes_of(seed, subset, i))
            jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            write_file(folder / subset / name, jpeg.tobytes())
            runs[name] = [encode(mask) for mask in masks]
        tables.append(_annotation_rows(runs, layout))
    tables.append(_submission_rows(names[TEST], layout, shape))
    for path, rows in zip(csv_paths, tables, strict=True):  # last: a CSV says that its images exist
        write_file(path, "\n".join(rows) + "\n")
    return [folder / TRAIN, folder / TEST, *csv_paths]


def _name(seed: int, subset: str, i: int) -> str:
    """The file name of sheet `i` of a folder; no two sheets of one seed share a name."""
    start = int(np.random.default_rng(seed).integers(NAME_RANGE))
    return f"{(start + NAME_STEP * (2 * i + (subset == TEST))) % NAME_RANGE:09x}.jpg"


def _classes_of(seed: int, subset: str, i: int) -> tuple[int, ...]:
    """The ClassIds of sheet `i` of a folder."""
    # The trailing 1 keeps these numbers apart from the ones that draw a sheet.
    order = np.random.default_rng((seed, subset == TEST, i // GROUP_SIZE, 1)).permutation(GROUP_SIZE)
    return GROUPS[i // GROUP_SIZE % len(GROUPS)][order[i % GROUP_SIZE]]


def _refuse_other_data(folder: Path, names: dict[str, list[str]], csv_paths: list[Path]) -> None:
    """Raise DataError if the folder holds data that would mix with the sheets called `names`."""
    cure = "Choose an empty folder, or remove the data that is there."
    for path in (folder, *(folder / subset for subset in names)):
        if path.exists() and not path.is_dir():
            raise DataError(f"{path}: expected a folder, found a file. {cure}")
    others = [
        (folder / subset, "file(s)", sorted({p.name for p in (folder / subset).glob("[!.]*")} - set(own)))
        for subset, own in names.items()
    ]
    own_names = tuple(name for own in names.values() for name in own)
    for path in csv_paths:
        text = _text_of(path) if path.exists() else ""
        rows = [row[:40] for row in text.split("\n")[1:] if row and not row.startswith(own_names)]
        others.append((path, "row(s)", rows))
    for path, what, found in others:
        if found:
            raise DataError(
                f"{path}: expected only sheets that this call draws, found {len(found)} other {what}, the "
                f"first {found[0]!r}. {cure}"
            )


def _text_of(path: Path) -> str:
    try:
        return read_bytes(path, MOST_IN_CSV).decode(errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Choose another folder") from error


def _annotation_rows(runs: dict[str, list[str]], layout: str) -> list[str]:
    """The lines of train.csv; `runs` holds the text of each class's runs by image, empty where clean."""
    rows = ["ImageId,ClassId,EncodedPixels" if layout == "today" else "ImageId_ClassId,EncodedPixels"]
    for name in sorted(runs):
        for class_id, text in enumerate(runs[name], start=1):
            if layout == "2019":
                rows.append(f"{name}_{class_id},{text}")
            elif text:
                rows.append(f"{name},{class_id},{text}")
    return rows


def _submission_rows(names: list[str], layout: str, shape: tuple[int, int]) -> list[str]:
    """The lines of sample_submission.csv, with the placeholders of Kaggle's file."""
    if layout == "today":
        pixels = shape[0] * shape[1]
        return ["ImageId,EncodedPixels,ClassId", *(f"{name},1 {pixels},0" for name in sorted(names))]
    keys = (f"{name}_{k}" for name in sorted(names) for k in range(1, N_CLASSES + 1))
    return ["ImageId_ClassId,EncodedPixels", *(f"{key},1 1" for key in keys)]
