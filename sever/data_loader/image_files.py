"""Image files: which ones a folder holds, their sizes, their grey levels."""

import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from sever.data_loader.data_faults import Fault
from sever.data_loader.image_damage import is_damaged
from sever.parallel.threads import in_threads
from sever.utils.errors import DataError
from sever.utils.files import neighbours
from sever.utils.input_files import MOST_IN_IMAGE, check_regular, read_bytes
from sever.utils.printing import is_printable

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"))
NOT_WHOLE = "expected an image that can be decoded whole, received a truncated or damaged one."
WHOLE_COPY = "Put a whole copy in its place, or remove it."

Damaged = Literal["error", "warn"]
Shape = tuple[int, int]  # (H, W) in pixels

_LENIENT = "What can be decoded is used with data_loader.args.damaged: warn."
_LONGEST = 1_000_000  # pixels along a side, of which OpenCV reads no more
_NAMING = (
    "expected a name in UTF-8 without control characters, and without spaces at its ends: no CSV could hold "
    "it. Rename the file."
)
_UNREADABLE: Shape = (0, 0)


def list_images(folder: Path, named_by: str = "keys data_dir and images") -> list[str]:
    """The names of the images in a folder, sorted; messages call it by `named_by`, its keys or option.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no such folder of images ({named_by}){neighbours(folder)}") from error
    except NotADirectoryError as error:
        raise DataError(f"{folder}: is a file; expected a folder of images ({named_by})") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror} ({named_by})") from error
    names = sorted(
        entry.name
        for entry in entries
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
    )
    if not names:
        raise DataError(
            f"{folder}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}). Put some there, or name "
            f"another folder ({named_by})"
        )
    return names


def scan_headers(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, list[Fault]]:
    """Read the sizes of the named images of a folder from their headers.

    Returns:
        (N, 2) int64 (H, W) in pixels, 0 where unreadable, and a fault for each of those.
    """

    def header(path: Path) -> tuple[Shape, None]:
        check_regular(path, MOST_IN_IMAGE)
        return _shape_in(path), None

    return _scanned(folder, names, header)


def scan_images(
    folder: Path, names: Sequence[str], damaged: Damaged = "error"
) -> tuple[np.ndarray, list[Fault]]:
    """Read the sizes of the named images of a folder, and decode them to see whether they are whole.

    Args:
        folder: the folder.
        names: file names of the N images.
        damaged: what a damaged image is that can be decoded all the same: an error, or only a warning.

    Returns:
        (N, 2) int64 (H, W) in pixels, 0 where there is an error, and the faults.
    """

    def checked(path: Path) -> tuple[Shape, Fault | None]:
        data = read_bytes(path, MOST_IN_IMAGE)
        shape = _shape_in(io.BytesIO(data))
        if not is_damaged(data):
            return shape, None
        if damaged == "warn":
            with suppress(DataError):
                read_grey(path)
                told = "is damaged: some of its pixels are wrong. It is used as it is (damaged: warn)."
                return shape, Fault.of_image("damaged", path, told)
        return _UNREADABLE, Fault.of_image("truncated", path, f"{NOT_WHOLE} {WHOLE_COPY} {_LENIENT}")

    return _scanned(folder, names, checked, "images")


def _scanned(
    folder: Path,
    names: Sequence[str],
    look_at: Callable[[Path], tuple[Shape, Fault | None]],
    label: str = "",
) -> tuple[np.ndarray, list[Fault]]:
    """The sizes of images, and their faults; `label` is that of the progress bar."""

    def result(name: str) -> tuple[Shape, Fault | None]:
        path = folder / name
        sort, reason = "not_an_image", f"not an image, or damaged. {WHOLE_COPY}"
        try:
            if name == name.strip() and is_printable(name):
                return look_at(path)
            sort, reason = "image_name", _NAMING
        except UnidentifiedImageError:
            if not path.stat().st_size:
                sort, reason = "empty_file", f"not an image: empty (0 bytes). {WHOLE_COPY}"
        except Image.DecompressionBombError as error:
            reason = f"{str(error).partition(',')[0]}. Cut it into smaller images, or remove it."
        except (OSError, ValueError, SyntaxError) as error:
            reason = f"cannot be read: {getattr(error, 'strerror', None) or error}. {WHOLE_COPY}"
        return _UNREADABLE, Fault.of_image(sort, path, reason)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, which name no file
        found = list(in_threads(result, names, label))
    shapes = np.array([shape for shape, _ in found], dtype=np.int64).reshape(-1, 2)
    return shapes, [fault for _, fault in found if fault]


def _shape_in(file: Path | io.BytesIO) -> Shape:
    """The (H, W) in the header of an image."""
    with Image.open(file) as image:
        if max(image.size) > _LONGEST:
            raise Image.DecompressionBombError(
                f"Image of {image.width} x {image.height} pixels (W x H) exceeds a side of {_LONGEST:,}"
            )
        return image.height, image.width


def read_grey(path: Path) -> np.ndarray:
    """Read an image as one grey channel.

    Severstal's sheets have three equal channels, and decoding one is cheaper. A rotation in the file's
    metadata is not applied: masks are drawn on the stored pixels.

    Returns:
        (H, W) uint8 in [0, 255].

    Raises:
        DataError: the file is missing, empty or not an image that can be decoded whole.
    """
    try:
        data = read_bytes(path, MOST_IN_IMAGE)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags) if data else None
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded: {error.err}") from error
    if image is None:
        state = "is not an image, or is damaged" if data else "is empty (0 bytes)"
        raise DataError(f"{path}: {state}. {WHOLE_COPY}")
    return image
