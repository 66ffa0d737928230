"""Image files: which ones a folder holds, their sizes, their grey levels."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from sever.data_loader.data_faults import Fault
from sever.parallel.threads import in_threads
from sever.utils.errors import DataError
from sever.utils.files import neighbours

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"))
WHOLE_COPY = "Put a whole copy in its place, or remove it."


def list_images(folder: Path, named_by: str = "keys data_dir and images") -> list[str]:
    """The names of the images in a folder, sorted; messages call it by `named_by`, its keys or option.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if folder.is_file():
        raise DataError(f"{folder}: is a file; expected a folder of images ({named_by})")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images ({named_by}){neighbours(folder)}")
    names = sorted(
        entry.name
        for entry in folder.iterdir()
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

    def shape(name: str) -> tuple[int, int] | Fault:
        path = folder / name
        try:
            with Image.open(path) as image:
                return image.height, image.width
        except UnidentifiedImageError:
            if not path.stat().st_size:
                return Fault.of_image("empty_file", path, f"not an image: empty (0 bytes). {WHOLE_COPY}")
            return Fault.of_image("not_an_image", path, f"not an image, or damaged. {WHOLE_COPY}")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or error
            return Fault.of_image("not_an_image", path, f"cannot be read: {reason}. {WHOLE_COPY}")

    found = list(in_threads(shape, names))
    faults = [entry for entry in found if isinstance(entry, Fault)]
    shapes = [(0, 0) if isinstance(entry, Fault) else entry for entry in found]
    return np.array(shapes, dtype=np.int64).reshape(-1, 2), faults


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
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded: {error.err}") from error
    if image is None:
        state = "is empty (0 bytes)" if not data.size else "is not an image, or is damaged"
        raise DataError(f"{path}: {state}. Put a whole copy in its place, or remove it.")
    return image
