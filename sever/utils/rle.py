"""Run-length codec of the Severstal competition.

Runs are `start length` pairs separated by spaces; starts are 1-based and count down the columns
(column-major), see https://www.kaggle.com/c/severstal-steel-defect-detection/overview/evaluation.
Inside the program runs are *spans*: int64 (R, 2) arrays of 0-based, half-open [start, stop) pixel
positions in the same column-major order, sorted and disjoint.
"""

import re

import cv2
import numpy as np
from numpy.typing import NDArray

Spans = NDArray[np.int64]
Mask = NDArray[np.uint8]


class RunsError(ValueError):
    """Runs that cannot be drawn on their image.

    Attributes:
        sort: `text` (no numbers), `odd` (a start without a length), `start` (a run starts at 0), `empty` (a
            run has the length 0), `outside` (a run leaves the image) or `overlap` (two runs share pixels).
    """

    def __init__(self, sort: str, message: str) -> None:
        super().__init__(message)
        self.sort = sort


_ALLOWED = b"0123456789 \t"
# The digits of 0 to 999 as four letters each, first with NUL in the leading places, then with 0.
_THREE_DIGITS = np.frombuffer(
    "".join(
        [f"{number or '':\0>3}\0" for number in range(1000)] + [f"{number:03d}\0" for number in range(1000)]
    ).encode(),
    dtype=np.uint32,
)
_SPACE = np.frombuffer(b"\0\0\0 ", dtype=np.uint32)


def decode(runs: str, shape: tuple[int, int]) -> Mask:
    """Draw runs as a mask.

    Example:
        >>> decode("1 2 5 1", shape=(3, 2)).tolist()
        [[1, 0], [1, 1], [0, 0]]

    Args:
        runs: `start length` pairs, 1-based, column-major; an empty string is an empty mask.
        shape: (H, W) in pixels.

    Returns:
        (H, W) uint8 mask in {0, 1}.

    Raises:
        ValueError: the text is not pairs of positive numbers, a run leaves the image or two overlap.
    """
    return decode_spans(parse(runs, shape), shape)


def encode(mask: np.ndarray) -> str:
    """Write a mask as runs; the inverse of `decode`.

    Example:
        >>> encode(np.array([[1, 0], [1, 1], [0, 0]]))
        '1 2 5 1'

    Args:
        mask: (H, W), any dtype; not zero where the defect is.

    Returns:
        `start length` pairs, 1-based, column-major; an empty string for an empty mask.

    Raises:
        ValueError: the mask does not have two axes.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"expected a mask of shape (H, W), received shape {mask.shape}")
    on = mask if mask.dtype == np.uint8 else (mask != 0).view(np.uint8)
    # A defect usually covers few columns: all but the first pass over the mask skip the others.
    columns = np.bitwise_or.reduce(on, axis=0).tobytes()
    right = len(columns.rstrip(b"\0"))
    left = len(columns) - len(columns.lstrip(b"\0"))
    if not right:
        return ""
    inside = np.empty((right - left) * mask.shape[0] + 2, dtype=np.uint8)
    inside[0] = inside[-1] = 0  # a pixel outside the mask at either end
    column_major = inside[1:-1].reshape(right - left, mask.shape[0])
    part = on[:, left:right]
    if part.flags.f_contiguous:
        column_major[...] = part.T
    else:  # ten times as fast as NumPy's copy of a transposed view
        cv2.transpose(part, column_major)
    np.not_equal(column_major, 0, out=column_major.view(bool))
    spans = (inside[1:] != inside[:-1]).nonzero()[0].reshape(-1, 2)
    spans += left * mask.shape[0]
    return encode_spans(spans)


def encode_spans(spans: Spans) -> str:
    """Write spans as runs.

    Example:
        >>> encode_spans(np.array([[0, 2], [4, 5]]))
        '1 2 5 1'

    Args:
        spans: (R, 2), sorted and disjoint.

    Returns:
        `start length` pairs, 1-based; an empty string where there are no spans.
    """
    runs = np.empty_like(spans)
    runs[:, 0] = spans[:, 0] + 1
    runs[:, 1] = spans[:, 1] - spans[:, 0]
    rest = runs.ravel()
    if not rest.size:
        return ""
    # Three digits at a time from a table, and NUL where a number has fewer, take half the time of
    # formatting one number after the other.
    groups = -(-len(str(spans[-1, 1])) // 3)
    words = np.empty((rest.size, groups), dtype=np.uint32)
    for group in reversed(range(groups)):
        upper = rest // 1000
        words[:, group] = _THREE_DIGITS[rest - 1000 * (upper - (upper > 0))]
        rest = upper
    words[:, -1] |= _SPACE
    return words.tobytes().translate(None, b"\0")[:-1].decode("ascii")


def parse(runs: str, shape: tuple[int, int]) -> Spans:
    """Read runs as spans and check them against the size of their image.

    Args:
        runs: `start length` pairs, 1-based, column-major.
        shape: (H, W) in pixels.

    Returns:
        (R, 2) spans, sorted and disjoint; spans that touch are not joined.

    Raises:
        RunsError: the text is not pairs of positive numbers, a run leaves the image or two overlap.
    """
    if runs.encode("utf-8", "surrogatepass").translate(None, _ALLOWED):
        allowed = set(_ALLOWED.decode())
        strange = next(word for word in re.split("[ \t]", runs) if not allowed.issuperset(word))
        raise RunsError("text", f"expected numbers separated by spaces, received {strange[:40]!r}")
    # The characters are checked above, so this fast reader misreads nothing; a number too large for it
    # saturates and is out of bounds below.
    numbers = np.fromstring(runs.strip(), dtype=np.int64, sep=" ")
    if numbers.size % 2:
        raise RunsError("odd", f"expected pairs 'start length', received {numbers.size} numbers")
    starts, lengths = numbers[::2], numbers[1::2]
    pixels = shape[0] * shape[1]
    # In this order, because a sum of saturated numbers would overflow.
    if numbers.size and (
        numbers.min() < 1 or numbers.max() > pixels or (starts + lengths).max() > pixels + 1
    ):
        raise _impossible(runs, starts, lengths, shape)
    spans = np.empty((starts.size, 2), dtype=np.int64)
    spans[:, 0] = starts - 1
    spans[:, 1] = spans[:, 0] + lengths
    if (spans[1:, 0] < spans[:-1, 1]).any():
        spans = spans[np.argsort(spans[:, 0], kind="stable")]
        overlap = np.flatnonzero(spans[1:, 0] < spans[:-1, 1])
        if overlap.size:
            start, stop = spans[overlap[0] + 1]
            raise RunsError("overlap", f"run '{start + 1} {stop - start}' overlaps another run of the mask")
    return spans


def _impossible(runs: str, starts: np.ndarray, lengths: np.ndarray, shape: tuple[int, int]) -> RunsError:
    """The error of the first run that does not fit on the image, with its numbers as they are written."""
    height, width = shape
    pixels = height * width
    wrong = (starts < 1) | (lengths < 1) | (starts > pixels) | (lengths > pixels - starts + 1)
    at = int(np.flatnonzero(wrong)[0])
    start, length = (word[:40] + "…" * (len(word) > 40) for word in runs.split()[2 * at : 2 * at + 2])
    if starts[at] < 1:
        return RunsError("start", f"run '{start} {length}' starts at 0: expected starts from 1 to {pixels}")
    if lengths[at] < 1:
        return RunsError("empty", f"run '{start} {length}' has no length: expected at least 1 pixel")
    message = (
        f"run '{start} {length}' leaves the image: expected runs of positive length within 1 to {pixels}"
    )
    return RunsError("outside", f"{message} ({height} x {width} pixels)")


def decode_spans(spans: Spans, shape: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> Mask:
    """Draw spans as a mask, or only the part of it inside a box.

    Args:
        spans: (R, 2), sorted and disjoint.
        shape: (H, W) of the whole image in pixels.
        box: (top, left, height, width) in pixels, inside the image; None is the whole image.

    Returns:
        (h, w) uint8 mask in {0, 1} of the box.
    """
    height = shape[0]
    top, left, box_height, box_width = box or (0, 0, *shape)
    mask = np.zeros((box_height, box_width), dtype=np.uint8)
    low, high = left * height, (left + box_width) * height
    first = np.searchsorted(spans[:, 1], low, side="right")
    last = np.searchsorted(spans[:, 0], high, side="left")
    if first >= last:
        return mask
    # Only the columns that the spans reach are drawn, usually a small part of a sheet.
    left_drawn = max(int(spans[first, 0]) // height, left)
    right_drawn = min(-(-int(spans[last - 1, 1]) // height), left + box_width)
    low, high = left_drawn * height, right_drawn * height
    bounds = np.zeros(2 * (last - first) + 2, dtype=np.int64)
    bounds[1:-1] = spans[first:last].ravel()
    bounds[1:-1] -= low
    bounds[-1] = high - low
    # Of sorted, disjoint spans only the first and the last can reach out of the box.
    bounds[1], bounds[-2] = max(bounds[1], 0), min(bounds[-2], bounds[-1])
    on = np.zeros(bounds.size - 1, dtype=np.uint8)
    on[1::2] = 1
    columns = np.repeat(on, bounds[1:] - bounds[:-1]).reshape(right_drawn - left_drawn, height)
    cv2.transpose(columns[:, top : top + box_height], mask[:, left_drawn - left : right_drawn - left])
    return mask


def union(spans: list[Spans]) -> Spans:
    """The spans, sorted and disjoint, of the pixels of any of several masks of one image."""
    joined = np.concatenate([np.zeros((0, 2), np.int64), *spans])
    joined = joined[np.argsort(joined[:, 0], kind="stable")]
    stops = np.maximum.accumulate(joined[:, 1])
    starts_new = np.r_[True, joined[1:, 0] > stops[:-1]][: len(joined)]
    ends = np.flatnonzero(np.r_[starts_new[1:], True][: len(joined)])
    return np.stack([joined[starts_new, 0], stops[ends]], axis=1)


def area(spans: Spans) -> int:
    """The number of pixels in spans that are disjoint."""
    return int((spans[:, 1] - spans[:, 0]).sum())


def shared_area(some: Spans, others: Spans) -> int:
    """The number of pixels that two masks of one image have in common.

    Example:
        >>> shared_area(np.array([[0, 4], [6, 8]]), np.array([[3, 7]]))
        2
    """
    return area(some) + area(others) - area(union([some, others]))
