"""Image files: which ones a folder holds, their sizes, their grey levels."""

import errno
import io
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from glob import glob, has_magic
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from sever.data_loader.data_faults import Fault
from sever.parallel.threads import in_threads
from sever.utils.errors import DataError
from sever.utils.files import neighbours
from sever.utils.input_files import MOST_IN_CSV, MOST_IN_IMAGE, check_regular, read_bytes
from sever.utils.printing import is_printable

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"))
NOT_WHOLE = "expected an image that can be decoded whole, received a truncated or damaged one."
WHOLE_COPY = "Put a whole copy in its place, or remove it."

Damaged = Literal["error", "warn"]
Shape = tuple[int, int]  # (H, W) in pixels

_LENIENT = "What can be decoded is used with data_loader.args.damaged: warn."
_LONGEST = 1_000_000  # pixels along a side, of which OpenCV reads no more
_NAMING = (
    "expected a name in UTF-8 without control characters, and without spaces at its ends: others cannot be "
    "written to a CSV, or not be shown safely. Rename the file."
)
_UNREADABLE: Shape = (0, 0)
_OTHER_KIND = "expected an image that OpenCV reads, such as a TIFF of 8 or 16 bits. Save it as one of those."
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"  # how files of these kinds begin
_EOI = b"\xff\xd9"  # how a JPEG ends
_FILLED = re.compile(rb"\0{1,8}\xff\xd9")  # some cameras fill the data up to whole words


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


def find_images(where: Path) -> tuple[Path, list[str] | None]:
    """The images that a user names.

    Args:
        where: a folder, an image, a pattern such as `sheets/**/*.jpg`, or a `.txt` file with a path in each
            line.

    Returns:
        A folder, and the images' paths from it on; None for all images in the folder.

    Raises:
        DataError: nothing is there.
    """
    if where.is_dir():
        return where, None
    if where.suffix.lower() == ".txt":
        try:
            text = read_bytes(where, MOST_IN_CSV).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: cannot be read as a list of images: {error}") from error
        paths = [Path(line) for line in text.splitlines() if line.strip()]
    elif where.exists():
        paths = [where]
    else:
        found = glob(str(where), recursive=True) if has_magic(str(where)) else []
        paths = sorted(Path(path) for path in found if Path(path).suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(
            f"{where}: no image there{neighbours(where)} Expected a folder, an image, a pattern such as "
            f"'sheets/*.jpg', or a .txt file with a path in each line"
        )
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names = [path.absolute().relative_to(folder).as_posix() for path in paths]
    if twice := [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []:
        raise DataError(f"{where}: names {twice[0]} twice; take one of them out")
    return (where.parent, names) if paths == [where] else (folder, names)


def folders_of(folder: Path, names: Sequence[str] | None) -> set[Path]:
    """The folders that hold what `find_images` found."""
    return {folder, *((folder / name).parent for name in names or ())}


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
    folder: Path, names: Sequence[str], damaged: Damaged = "error", known: Mapping[str, Shape] | None = None
) -> tuple[np.ndarray, list[Fault]]:
    """Read the sizes of the named images of a folder, and decode them to see whether they are whole.

    Args:
        folder: the folder.
        names: file names of the N images.
        damaged: what a damaged image is that can be decoded all the same: an error, or only a warning.
        known: the sizes of images that are known to be whole, which are not read.

    Returns:
        (N, 2) int64 (H, W) in pixels, 0 where there is an error, and the faults.
    """

    def checked(path: Path) -> tuple[Shape, Fault | None]:
        if known and path.name in known:
            return known[path.name], None
        data = read_bytes(path, MOST_IN_IMAGE)
        shape = _shape_in(io.BytesIO(data))
        if not is_damaged(data):
            if data.startswith((_JPEG, _PNG)) or _grey_of_opencv(data) is not None:
                return shape, None
            return _UNREADABLE, Fault.of_image("not_an_image", path, _OTHER_KIND)
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
        except OSError as error:
            is_kind = error.errno in (None, errno.EINVAL, errno.EFBIG)  # no image, rather than the system's
            reason = f"cannot be read: {error.strerror or error}.{f' {WHOLE_COPY}' if is_kind else ''}"
        except (ValueError, SyntaxError) as error:
            reason = f"cannot be read: {error}. {WHOLE_COPY}"
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
    if data.startswith(_JPEG):
        with suppress(ValueError):  # damaged, or a kind that OpenCV alone decodes
            return simplejpeg.decode_jpeg(data, "GRAY")[
                :, :, 0
            ]  # the same pixels in three quarters of the time
    try:
        image = _grey_of_opencv(data) if data else None
    except cv2.error as error:
        raise DataError(f"{path}: cannot be decoded: {error.err}") from error
    if image is None:
        state = "is not an image, or is damaged" if data else "is empty (0 bytes)"
        raise DataError(f"{path}: {state}. {WHOLE_COPY}")
    return image


def _grey_of_opencv(data: bytes) -> np.ndarray | None:
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)


def is_damaged(data: bytes) -> bool:
    """Whether the pixels of an image file are damaged, as far as a decoder can see.

    A JPEG has no check sums. libjpeg warns of Huffman codes that are none, and of data that ends before the
    pixels or after them. OpenCV and Pillow pass its warnings over; here they count. After most single flipped
    bits the codes soon fall into step again, of which it does not warn either.

    Args:
        data: the content of a file whose header Pillow can read.
    """
    try:
        if data.startswith(_JPEG):
            for same in (data, _FILLED.sub(_EOI, data)):
                with suppress(ValueError):
                    simplejpeg.decode_jpeg(same, "GRAY")
                    return False
            with suppress(ValueError):  # raised for a kind that it does not decode at all
                simplejpeg.decode_jpeg(data, "GRAY", strict=False)
                return True
        if data.startswith(_PNG):  # of which libpng compares all sums, and Pillow not all
            return _grey_of_opencv(data) is None
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except MemoryError:
        raise
    except Exception:  # what they raise on damaged data is not bounded
        return True
    return False
