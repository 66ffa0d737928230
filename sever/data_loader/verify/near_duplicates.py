"""Images that show the same steel: saved again, lit otherwise, mirrored, turned, or with parts pasted over.

An image is shrunk to 32 x 32 grey levels and described by their differences from cell to cell; two images are
as similar as the cosine between these. Unlike the bits of a difference hash
(https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html) they keep how strong an
edge is: rolled steel has little but faint streaks, whose signs often agree by chance.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

CELLS = 32  #: Cells along each side of an image.
#: The similarity from which images are near-duplicates. Copies saved as JPEG of quality 50, lit or scaled
#: otherwise are at 0.9 and more as a rule, those shifted by 1 % of the width at 0.8 to 0.9. Of different
#: Severstal sheets no pair is above 0.61. In NEU-Seg 48 inspected pairs from 0.80 to 0.84 all shared most of
#: their surface; pairs that share only a bright line in the same place are below 0.75.
ALIKE = 0.8

_LIMIT = 3.0  # of a difference, in multiples of the mean: else a black edge alone would decide
_FLAT = 1e-3  # mean difference in grey levels that is no more than rounding
_SIZE = 2 * CELLS * (CELLS - 1)
_BLOCK = 2048  # images that are compared at a time

#: The positions of an image: (transposed, then mirrored left to right, then top to bottom).
POSITIONS = {
    "as it is": (False, False, False),
    "mirrored left to right": (False, True, False),
    "mirrored top to bottom": (False, False, True),
    "turned by 180 degrees": (False, True, True),
    "turned by 90 degrees to the right": (True, True, False),
    "turned by 90 degrees to the left": (True, False, True),
    "mirrored along its diagonal": (True, False, False),
    "mirrored along its other diagonal": (True, True, True),
}
UPRIGHT = tuple(name for name, (transposed, _, _) in POSITIONS.items() if not transposed)


class Nearest(NamedTuple):
    """The most similar image."""

    number: int  # its index among the others
    similarity: float  # at most 1, which is the same image up to brightness and contrast
    position: str  # a key of `POSITIONS`: how the image must be turned to look like it


def fingerprint(image: np.ndarray) -> np.ndarray:
    """What an image looks like, whatever its size, brightness and contrast.

    Args:
        image: (H, W) uint8 in [0, 255].

    Returns:
        (1984,) int8: the differences between neighbouring cells, first along rows, then along columns; all
        0 for an image of one grey level.
    """
    height, width = image.shape
    if min(height, width) < CELLS:  # INTER_AREA is a mean over cells only where it shrinks
        image = image.repeat(-(-CELLS // height), axis=0).repeat(-(-CELLS // width), axis=1)
    small = cv2.resize(image.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    differences = np.concatenate([np.diff(small, axis=1).ravel(), np.diff(small, axis=0).ravel()])
    mean = np.abs(differences).mean()
    if mean < _FLAT:
        return np.zeros(_SIZE, dtype=np.int8)
    return np.rint(np.clip(differences / (_LIMIT * mean), -1, 1) * 127).astype(np.int8)


def moved(fingerprints: np.ndarray, position: str) -> np.ndarray:
    """The fingerprints (N, 1984) int8 of the images in another of the `POSITIONS`."""
    transposed, left_to_right, top_to_bottom = POSITIONS[position]
    half = _SIZE // 2
    along_rows = fingerprints[:, :half].reshape(-1, CELLS, CELLS - 1)
    along_columns = fingerprints[:, half:].reshape(-1, CELLS - 1, CELLS)
    if transposed:
        along_rows, along_columns = along_columns.transpose(0, 2, 1), along_rows.transpose(0, 2, 1)
    if left_to_right:
        along_rows, along_columns = -along_rows[:, :, ::-1], along_columns[:, :, ::-1]
    if top_to_bottom:
        along_rows, along_columns = along_rows[:, ::-1], -along_columns[:, ::-1]
    count = len(fingerprints)
    return np.concatenate([along_rows.reshape(count, -1), along_columns.reshape(count, -1)], axis=1)


def nearest(some: np.ndarray, others: np.ndarray, positions: tuple[str, ...] = UPRIGHT) -> list[Nearest]:
    """For each of some images the most similar one of the others.

    Args:
        some: (N, 1984) int8 fingerprints.
        others: (M, 1984) int8 fingerprints, M at least 1.
        positions: keys of `POSITIONS` in which the N images are compared.
    """
    best = np.full(len(some), -np.inf, dtype=np.float32)
    index = np.zeros(len(some), dtype=np.int64)
    position_of = np.zeros(len(some), dtype=np.int64)
    for first, block in _blocks(others):
        for number, position in enumerate(positions):
            for start, own in _blocks(some, position):
                alike = own @ block.T
                at = alike.argmax(axis=1)
                value = alike[np.arange(len(own)), at]
                rows = slice(start, start + len(own))
                better = value > best[rows]
                best[rows] = np.where(better, value, best[rows])
                index[rows] = np.where(better, first + at, index[rows])
                position_of[rows] = np.where(better, number, position_of[rows])
    found = zip(index.tolist(), best.tolist(), position_of.tolist(), strict=True)
    return [Nearest(at, similarity, positions[number]) for at, similarity, number in found]


def _blocks(fingerprints: np.ndarray, position: str = "as it is") -> Iterator[tuple[int, np.ndarray]]:
    """(index of the first, (n, 1984) float32 of length 1) for a block of images at a time."""
    for first in range(0, len(fingerprints), _BLOCK):
        block = moved(fingerprints[first : first + _BLOCK], position).astype(np.float32)
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1)
        yield first, block
