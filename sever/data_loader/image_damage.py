"""Damage in image files that decoders pass over in silence.

A JPEG has no check sums. Where its data ends before its pixels do, libjpeg leaves the rest grey; where the
pixels end first, it skips the rest of the data. It reports either only as a warning on standard error,
without the name of the file, and neither OpenCV nor Pillow says more. Here Pillow decodes from a file that
gives its last bytes only when it is asked for them: then all of the data was needed, and it was enough for
all pixels. Damage after which the codes soon fall into step again, such as four in five single flipped bits,
is not found; libjpeg finds nothing then either.
"""

import io
import re
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

_SOF = (0xC0, 0xC1)  # frames of sequential Huffman codes; others are decoded without this check
_SOS, _DRI = 0xDA, 0xDD
_EOI = b"\xff\xd9"
_RST = re.compile(b"\xff([\xd0-\xd7])")
_BEYOND = bytes(16)  # libjpeg reads up to 8 bytes before it needs them
_SLACK = 8  # bytes at the end that may not be needed: some cameras fill the data up to whole words
_EIGHTH = 8  # libjpeg decodes to an eighth of the size without computing all pixels
_LONGEST = 65_500  # pixels along a side of a JPEG


def is_damaged(data: bytes) -> bool:
    """Whether the pixels of an image file are damaged, as far as that can be seen.

    Args:
        data: the content of a file whose header Pillow can read.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return not all(_is_whole(header, codes) for header, codes in _restart_intervals(data))
        if data.startswith(b"\x89PNG"):  # of which libpng compares all sums, and Pillow not all
            return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_GRAYSCALE) is None
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except MemoryError:
        raise
    except Exception:  # what they raise on damaged data is not bounded
        return True
    return False


class _Jpeg(io.BytesIO):
    """A JPEG that gives its last bytes in a read of their own, and notes that it was asked for them."""

    def __init__(self, header: bytes, codes: bytes) -> None:
        super().__init__(header + codes + _BEYOND)
        self.last = len(header) + max(0, len(codes) - _SLACK)
        self.is_used_up = False

    def read(self, size: int | None = -1, /) -> bytes:
        before = self.last - self.tell()
        if before > 0:
            return super().read(before if size is None or size < 0 else min(size, before))
        self.is_used_up = True
        return super().read(size)


def _is_whole(header: bytes, codes: bytes) -> bool:
    """Whether the Huffman codes of a JPEG are those of its pixels and no more."""
    file = _Jpeg(header, codes.rstrip(b"\xff"))  # a marker may begin with several of these
    with JpegImageFile(file) as image:
        image.draft("L", (max(1, image.width // _EIGHTH), max(1, image.height // _EIGHTH)))
        image.load()  # raises where data is missing
    return file.is_used_up


def _restart_intervals(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A JPEG as JPEGs, each a header and Huffman codes, of what lies between its restart markers.

    Most have no restart markers, and are one interval. Where pixels are in several scans, as in progressive
    ones, the file is only decoded, and nothing is yielded.

    Raises:
        ValueError: its markers are not those that its header asks for.
        IndexError, OSError: it is cut short.
    """
    at, marker, frame, blocks = 2, 0, 0, 0
    while marker != _SOS:
        while data[at + 1] == 0xFF:
            at += 1
        marker, start = data[at + 1], at + 4
        frame = start if marker in _SOF else frame
        blocks = _number(data, start) if marker == _DRI else blocks
        at = start - 2 + _number(data, start - 2)
    if not frame or data[start] != data[frame + 5]:  # components of the scan, and of the frame
        with JpegImageFile(io.BytesIO(data)) as image:
            image.load()
        return
    end = data.index(_EOI, at)
    if not blocks:
        yield data[:at], data[at:end]
        return
    samplings = [data[frame + 7 + 3 * component] for component in range(data[frame + 5])]
    high, wide = 8, 8  # pixels of a block; of one component each
    if len(samplings) > 1:
        high, wide = 8 * max(s & 15 for s in samplings), 8 * max(s >> 4 for s in samplings)
    height, width = _number(data, frame + 1), _number(data, frame + 3)
    in_row = -(-width // wide)
    left = in_row * -(-height // high)
    parts, markers = _RST.split(data[at:end])[::2], _RST.findall(data[at:end])
    if len(parts) != -(-left // blocks) or any(m[0] != 0xD0 + n % 8 for n, m in enumerate(markers)):
        raise ValueError("other restart markers")
    for part in parts:
        count = min(blocks, left)
        left -= count
        rows = 1 if count % in_row else count // in_row
        if count // rows * wide <= _LONGEST:
            size = (rows * high).to_bytes(2, "big") + (count // rows * wide).to_bytes(2, "big")
            yield data[: frame + 1] + size + data[frame + 5 : at], part


def _number(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]
