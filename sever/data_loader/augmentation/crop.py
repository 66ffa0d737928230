"""Windows cut out of a sheet and its masks, before the masks are decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pydantic import ConfigDict, with_config
from typing_extensions import NotRequired, TypedDict

from sever.config.schema import Side
from sever.utils.rle import Spans, decode_spans, union
from sever.utils.seed import SampleRandom

# Mean grey level below which a column or row is no steel. On Severstal's sheets the columns beside the
# steel have 0 to 14 and the darkest ones on it 34; between them lie only the few that the edge crosses.
BLACK = 20


@with_config(ConfigDict(extra="forbid"))
class CropSettings(TypedDict):
    """A `Crop` as written in a config."""

    height: Side
    width: Side
    on_defect: NotRequired[float]
    avoid_black: NotRequired[bool]


@dataclass(frozen=True)
class Crop:
    """How windows are chosen.

    Args:
        height: height of the window in pixels.
        width: width of the window in pixels.
        on_defect: share of the windows, in [0, 1], that must hold a defect, where there is one.
        avoid_black: keep windows off the black beside the steel; see `crop_sheet`.
    """

    height: int
    width: int
    on_defect: float = 0.5
    avoid_black: bool = False

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"height and width must be at least 1, received {self.height} and {self.width}")
        if not 0 <= self.on_defect <= 1:
            raise ValueError(f"on_defect: expected a share from 0 to 1, received {self.on_defect}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width


def crop_sheet(
    image: np.ndarray,
    spans: Sequence[Spans],
    size: tuple[int, int],
    random: SampleRandom,
    on_defect: float = 0.5,
    avoid_black: bool = False,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cut a window out of a sheet, and out of its masks without decoding them whole.

    It is chosen as by Albumentations' `CropNonEmptyMaskIfExists` and `RandomCrop`, which take some 10 ms to
    search the masks of a 256 x 1600 sheet. A sheet smaller than the window is reflected at its edges.

    Args:
        image: (H, W) uint8.
        spans: the defects of each class that is on the sheet.
        size: (height, width) of the window in pixels.
        random: the sample's random generators.
        on_defect: share of the windows, in [0, 1], that must hold a defect, where there is one.
        avoid_black: keep the window between the first and the last row and column that are not black, or
            around them where it is larger. It has no effect on an all-black sheet, nor where the window
            must hold a defect that lies on black.

    Returns:
        image (height, width) uint8, and a mask (height, width) uint8 for each of `spans`.
    """
    pads = [max(0, wanted - there) for wanted, there in zip(size, image.shape, strict=True)]
    before = [pad // 2 for pad in pads]
    focus: Sequence[int | None] = (None, None)
    if random.python.random() < on_defect and spans:
        row, column = _defect_pixel(spans, image.shape[0], random)
        focus = (row + before[0], column + before[1])
    lit = lit_part(image) if avoid_black else None
    top, left = (
        _window_start(focus[axis], size[axis], image.shape[axis] + pads[axis], lit and lit[axis], random)
        for axis in (0, 1)
    )
    if not any(pads):
        masks = [decode_spans(s, image.shape, (top, left, *size)) for s in spans]
        return image[top : top + size[0], left : left + size[1]], masks
    whole = [image, *(decode_spans(s, image.shape) for s in spans)]
    sides = (before[0], pads[0] - before[0], before[1], pads[1] - before[1])
    padded = [cv2.copyMakeBorder(part, *sides, cv2.BORDER_REFLECT_101) for part in whole]
    cut = [part[top : top + size[0], left : left + size[1]] for part in padded]
    return cut[0], cut[1:]


def lit_part(image: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The (first, last) row and column of a sheet (H, W) uint8 that are not black; None where all are."""
    columns = _first_and_last_lit(image, axis=0)
    if columns is None:
        return None
    # Within the lit columns alone: on a sheet that is mostly edge every whole row is dark.
    rows = _first_and_last_lit(image[:, columns[0] : columns[1] + 1], axis=1)
    return None if rows is None else (rows, columns)


def _first_and_last_lit(image: np.ndarray, axis: int) -> tuple[int, int] | None:
    means = cv2.reduce(image, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
    lit = np.flatnonzero(means >= BLACK)
    return (int(lit[0]), int(lit[-1])) if lit.size else None


def _defect_pixel(spans: Sequence[Spans], height: int, random: SampleRandom) -> tuple[int, int]:
    """The (row, column) of a pixel of any defect, each as likely as any other."""
    pixels = union(list(spans))
    ends = np.cumsum(pixels[:, 1] - pixels[:, 0])
    chosen = random.python.randrange(int(ends[-1]))
    run = int(np.searchsorted(ends, chosen, side="right"))
    column, row = divmod(int(pixels[run, 1]) - (int(ends[run]) - chosen), height)
    return row, column


def _window_start(
    at: int | None, wanted: int, there: int, lit: tuple[int, int] | None, random: SampleRandom
) -> int:
    """Where a window of `wanted` of `there` pixels starts, so that it holds `at` and no black."""
    low, high = 0, there - wanted
    if lit and high and (at is None or lit[0] <= at <= lit[1]):
        ends = sorted((lit[0], lit[1] + 1 - wanted))
        low, high = (min(max(end, 0), high) for end in ends)
    if at is None:
        return random.python.randint(low, high)
    return min(max(at - random.python.randint(0, wanted - 1), low), high)
