"""Steel sheets with defects, drawn from random numbers.

They stand in for the real images where those cannot be had: in tests, in a first run on a new machine. Grey
levels, share of clean sheets, black sheet edges and areas of defects follow the 12,568 training images of
2019 (https://www.kaggle.com/c/severstal-steel-defect-detection); the physics does not, so a score on drawn
sheets shows that a model learns and nothing about its rank.

Lengths in this file are pixels on a sheet of `FULL_HEIGHT` rows; `s` scales them to the height that is drawn.
A *relief* is float32, the change of the grey level relative to what it lies on: -0.5 halves it, 1 doubles it.
"""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import cv2
import numpy as np

FULL_HEIGHT = 256
MIN_SIDE = 16
N_CLASSES = 4

# The ClassIds of 24 sheets in groups of four, shuffled within a group. Of the real images 47 % are clean and
# 7.1 / 2.0 / 41.0 / 6.4 % hold class 1 / 2 / 3 / 4; here 46 % and 8.3 / 4.2 / 41.7 / 8.3 %: class 2 and pairs
# of classes come twice too often, so that already the first eight sheets hold every class.
GROUPS: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((), (3,), (3, 4), (1,)),
    ((), (), (3,), (2,)),
    ((), (), (3,), (3,)),
    ((), (), (3,), (4,)),
    ((), (), (3,), (1, 3)),
    ((), (), (3,), (3,)),
)
GROUP_SIZE = 4

EDGE_SHARE = 0.27  # sheets with black beside the steel
TREAD_SHARE = 0.15  # clean sheets that are chequered plate; hardly any real one is annotated
DROPS_SHARE = 0.06  # sheets with glaring drops of water
GLARE_SHARE = 0.35  # sheets smooth enough to mirror the lamp
BLACK_LEVEL = 0.012
SENSOR_NOISE = 0.012
PLACING_TRIES = 30
ENOUGH_IN_ROOM = 0.7


class Patch(NamedTuple):
    """One mark of a defect, before it has a place on the sheet."""

    relief: np.ndarray  # (h, w) float32
    cover: np.ndarray  # (h, w) bool, what an annotator would draw around
    degrees: float  # to turn it by, counter-clockwise
    margin: float  # pixels that the annotator keeps away from it


def draw_sheet(
    rng: np.random.Generator, shape: tuple[int, int] = (256, 1600), classes: Collection[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one sheet and the masks of its defects.

    Example:
        >>> image, masks = draw_sheet(np.random.default_rng(0), shape=(64, 128), classes=[1, 3])
        >>> image.shape, masks.shape, masks.any(axis=(1, 2)).tolist()
        ((64, 128), (4, 64, 128), [True, False, True, False])

    Args:
        rng: the source of all that is random; the same state gives the same sheet.
        shape: (H, W) in pixels, each at least 16.
        classes: ClassIds to draw: 1 pits, 2 thin vertical lines, 3 scratches, 4 rough patches; None draws
            them from `GROUPS`.

    Returns:
        image: (H, W) uint8 in [0, 255].
        masks: (4, H, W) uint8 in {0, 1}, channel ClassId - 1; generous outlines, as annotators drew them.
            No pixel has two classes, none lies on the black beside the steel. On a very small sheet one
            class may leave no room for the next, whose mask is then empty.

    Raises:
        ValueError: the shape is too small or a ClassId unknown.
    """
    if min(shape) < MIN_SIDE:
        raise ValueError(f"expected (H, W) of at least {MIN_SIDE} x {MIN_SIDE} pixels, received {shape}")
    if classes is None:
        classes = GROUPS[rng.integers(len(GROUPS))][rng.integers(GROUP_SIZE)]
    if unknown := set(classes) - set(PATCHES):
        raise ValueError(f"expected ClassIds from 1 to {N_CLASSES}, received {sorted(unknown)}")

    image = _draw_steel(rng, shape)
    if not classes and rng.random() < TREAD_SHARE:
        image *= 1 + _tread(rng, shape)
    _add_dirt(rng, image)
    inside = _add_edge(rng, image)
    ramp = max(3 * shape[0] / FULL_HEIGHT, 1)  # the steel darkens to the edge within so many pixels
    masks = np.zeros((N_CLASSES, *shape), np.uint8)
    for class_id in sorted(classes, reverse=True):  # patches first: the others fit between them
        room = (inside > ramp) & ~masks.any(axis=0)
        if room.any():
            masks[class_id - 1] = _add_defect(rng, image, room, class_id)

    image = cv2.GaussianBlur(image, (0, 0), 0.6) * np.clip(inside / ramp, 0, 1) + BLACK_LEVEL
    noise = SENSOR_NOISE * rng.standard_normal(shape, dtype=np.float32)
    image += noise * np.sqrt(np.clip(image, 0.02, 1) / 0.3)
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8), masks


# The steel


def _field(rng: np.random.Generator, shape: tuple[int, ...], cell: tuple[float, float]) -> np.ndarray:
    """Smooth noise (H, W) float32, mean 0, deviation about 1, over cells; (1, W) if flat."""
    (height, width), (cell_height, cell_width) = shape, cell
    flat = cell_height >= 3 * height
    rows = 1 if flat else min(height, max(2, round(height / max(cell_height, 1)) + 1))
    columns = min(width, max(2, round(width / max(cell_width, 1)) + 1))
    # Interpolation between the grid's points lowers the deviation: 1.2 makes up for it.
    grid = np.float32(1.2) * rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(grid, (width, 1 if flat else height), interpolation=cv2.INTER_CUBIC)


def _octaves(
    rng: np.random.Generator, shape: tuple[int, ...], cell: tuple[float, float], n: int = 3
) -> np.ndarray:
    """`n` fields (H, W) float32, each with half the cell and 0.6 of the amplitude of the last."""
    total = _field(rng, shape, cell)
    for k in range(1, n):
        total += 0.6**k * _field(rng, shape, (cell[0] / 2**k, cell[1] / 2**k))
    return total


def _draw_steel(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A bare rolled surface under uneven light, (H, W) float32, 0 black and 1 white."""
    height, width = shape
    s = height / FULL_HEIGHT
    level = np.clip(rng.normal(0.36, 0.1), 0.17, 0.65)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    glare = rng.uniform(0.3, 0.6) if rng.random() < GLARE_SHARE else rng.uniform(0.03, 0.2)
    light = glare * _field(rng, shape, (4 * height, 400 * s)) * (1 + rng.uniform(-1, 1) * down)
    light += rng.uniform(-0.4, 0.4) * down + rng.uniform(-0.25, 0.25) * np.linspace(-1, 1, width)
    light += rng.uniform(0.01, 0.08) * _field(rng, shape, (4 * height, 40 * s))
    # Rolling runs down the columns: its streaks are a few pixels wide. Some sheets have ripples.
    grain = rng.uniform(0.06, 0.16) * _field(rng, shape, (1.25, 1.3))
    grain += rng.uniform(0.01, 0.05) * _field(rng, shape, (4, 4.5))
    grain += rng.uniform(0.01, 0.05) * _field(rng, shape, (12 * s, 2))
    grain += rng.choice([0.0, 0.0, 0.04]) * _field(rng, shape, (2.2, 9 * s))
    grain += rng.uniform(0.0, 0.03) * _field(rng, shape, (90 * s, 5 * s))
    grain *= np.clip(1 + 0.4 * _field(rng, shape, (150 * s, 300 * s)), 0.4, 2)
    grain *= min(s, 1) ** 0.5  # a sheet scaled down has less of it
    lit = level * np.exp(np.clip(light, -0.9, 1.2))
    return (1.2 * np.tanh(lit / 1.2) * (1 + grain)).astype(np.float32)  # the camera saturates gently


def _tread(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """The raised diamonds of chequered plate, lit from one side: relief (H, W) float32."""
    s = shape[0] / FULL_HEIGHT
    y = np.arange(shape[0], dtype=np.float32)[:, None] / s
    x = np.arange(shape[1], dtype=np.float32) / s
    pitch, slope, start = rng.uniform(90, 110), rng.uniform(0.38, 0.5), rng.uniform(0, 90)
    relief = np.zeros(shape, np.float32)
    for sign in (1, -1):
        across = (x + start + sign * slope * y) % pitch - pitch / 2
        lit = np.where(across > 0, 0.9, -1.2) * np.abs(across) / 4
        relief += lit * np.exp(-((across / 5) ** 2))
    return rng.uniform(0.7, 1.2) * relief


def _add_dirt(rng: np.random.Generator, image: np.ndarray) -> None:
    """Put scale, oil, water marks and dust, none of them a defect, on `image` (H, W) float32."""
    shape = image.shape
    tall, s = 3 * shape[0], shape[0] / FULL_HEIGHT
    if rng.random() < 0.55:  # flakes of scale, drawn out by the rolls
        flakes = _octaves(rng, shape, (rng.uniform(25, 90) * s, rng.uniform(4, 12) * s))
        flakes += 1.2 * _field(rng, shape, (tall, 110 * s)) + 0.4 * _field(rng, shape, (80, 80))
        shade = np.clip(4 * (flakes - rng.uniform(2.0, 3.2)), 0, 1)
        image *= 1 + rng.choice([-0.35, -0.25, 0.3]) * shade
    if rng.random() < 0.3:  # oil: flat and dark
        cell = (rng.uniform(30, 90) * s, rng.uniform(30, 120) * s)
        stain = _octaves(rng, shape, cell, 5) + 0.8 * _field(rng, shape, (shape[0], 300 * s))
        image *= 1 - rng.uniform(0.15, 0.4) * np.clip(5 * (stain - rng.uniform(2.0, 2.8)), 0, 1)
    if rng.random() < 0.3:  # wide bands that water left
        bands = _field(rng, shape, (tall, 25 * s)) + 0.8 * _field(rng, shape, (300 * s, 250 * s))
        image *= 1 - rng.uniform(0.08, 0.2) * np.clip(6 * (bands - 0.7), 0, 1)
    if rng.random() < 0.6:  # hairlines, fainter than the lines and scratches that count
        hair = _field(rng, shape, (120 * s, 2)) * (_field(rng, shape, (tall, 60 * s)) > 0.8)
        image *= 1 - rng.uniform(0.08, 0.2) * np.clip(hair - 1, 0, 1)
    if rng.random() < DROPS_SHARE:  # wet and glaring
        drops = _octaves(rng, shape, (26 * s, 12 * s)) + 1.6 * _field(rng, shape, (tall, 110 * s))
        image *= 1 + 4 * np.clip(4 * (drops - 4.2), 0, 1)
    dust = _field(rng, shape, (2, 2.5)) + 0.8 * _field(rng, shape, (150 * s, 150 * s))
    image *= 1 + rng.uniform(0.3, 1.2) * np.clip(dust - rng.uniform(3.6, 4.6), 0, 1)


def _add_edge(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Shade an edge of `image` (H, W) float32, if any; returns the distance to it, positive on the steel."""
    (height, width), s = image.shape, image.shape[0] / FULL_HEIGHT
    if rng.random() >= EDGE_SHARE:
        return np.full(image.shape, width, np.float32)
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)
    black = (0.03 + 0.85 * rng.beta(0.8, 1.6)) * width
    inside = x - black - rng.normal(0, 0.02) * (y - height / 2)
    inside += 0.8 * s * _field(rng, image.shape, (90 * s, 3 * width))
    if rng.random() < 0.5:
        inside = np.ascontiguousarray(inside[:, ::-1])
    rough = rng.uniform(-0.6, 0.3) + 0.25 * _field(rng, image.shape, (8 * s, 3))
    near = np.exp(-np.maximum(inside, 0) / (rng.uniform(5, 30) * s))
    image *= np.clip(1 + rough * near, 0.1, 3)
    return inside


# The defects


def _add_defect(rng: np.random.Generator, image: np.ndarray, room: np.ndarray, class_id: int) -> np.ndarray:
    """Draw on `image` (H, W) float32 where `room` (H, W) bool allows; returns the mask (H, W) uint8."""
    s = image.shape[0] / FULL_HEIGHT
    columns = np.flatnonzero(room.any(axis=0))
    spread = _px(SPREAD[class_id] * s, 1) if class_id in SPREAD else len(columns)
    start = rng.integers(max(len(columns) - spread, 0) + 1)
    mask = np.zeros(image.shape, np.uint8)
    for patch in PATCHES[class_id](rng, s):
        mask |= _stamp(rng, image, room, patch, columns[start : start + spread])
    return mask


def _pits(rng: np.random.Generator, s: float) -> Iterator[Patch]:
    """Class 1: small dark marks, most of them with a bright tip."""
    for _ in range(1 + rng.poisson(rng.uniform(0, 13))):
        size = (_px(rng.uniform(16, 42) * s, 6), _px(rng.uniform(11, 18) * s, 5))
        blob = _blob(rng, size)
        relief = -rng.uniform(0.45, 0.75) * np.clip(3 * blob, 0, 1)
        if rng.random() < 0.75:
            tip = _blob(rng, (_px(rng.uniform(0.3, 0.6) * size[0], 3), size[1]))
            relief[: len(tip)] += rng.uniform(0.5, 2.2) * np.clip(3 * tip, 0, 1)
        yield Patch(relief, blob > -0.2, rng.choice([0, 180]) + rng.normal(0, 12), margin=5 * s)


def _lines(rng: np.random.Generator, s: float) -> Iterator[Patch]:
    """Class 2: thin dark lines that run down the sheet and waver."""
    for _ in range(rng.integers(1, 4)):
        size = (_px(rng.uniform(60, 230) * s, 8), _px(18 * s, 5))
        x = np.arange(size[1], dtype=np.float32) - size[1] / 2
        middle = 2.5 * s * _field(rng, (size[0], 1), (45 * s, 1))
        profile = np.exp(-0.5 * ((x - middle) / max(rng.uniform(1.2, 2.2) * s, 0.6)) ** 2)
        depth = rng.uniform(0.5, 0.75) * (0.9 + 0.15 * _field(rng, size, (20 * s, 4)))
        yield Patch(-depth * profile, profile > 0.4, rng.normal(0, 1), margin=4.5 * s)


def _scratches(rng: np.random.Generator, s: float) -> Iterator[Patch]:
    """Class 3: gouges along the rolling direction, or abrasions at any angle."""
    if rng.random() < 0.65:
        for _ in range(1 + rng.poisson(2.5)):
            yield _gouge(rng, s)
    else:
        for _ in range(1 + rng.poisson(1)):
            yield _abrasion(rng, s)


def _gouge(rng: np.random.Generator, s: float) -> Patch:
    """Straight dark lines side by side, torn and with bright splinters, nearly upright."""
    n_lines = rng.choice([1, 1, 1, 2, 6])
    size = (_px(rng.uniform(60, 330) * s, 12), _px((8 + 14 * n_lines) * s, 5))
    y = np.linspace(0, 1, size[0], dtype=np.float32)[:, None]
    x = np.arange(size[1], dtype=np.float32)
    relief = np.zeros(size, np.float32)
    for middle in rng.uniform(0.2, 0.8, n_lines) * size[1]:
        profile = np.exp(-0.5 * ((x - middle) / max(rng.uniform(1.5, 3.5) * s, 0.7)) ** 2)
        start, length = (0, 1) if n_lines == 1 else (rng.uniform(0, 0.6), rng.uniform(0.3, 1))
        torn = np.clip(0.8 + 0.35 * _field(rng, size, (25 * s, 2)), 0, 1.3)
        splinters = np.clip(2 * _field(rng, size, (3 * s, 1.5)) - 3.2, 0, 3) * rng.uniform(0, 1)
        stroke = profile * (splinters - rng.uniform(0.45, 0.75) * torn)
        relief += np.where((y >= start) & (y <= start + length), stroke, 0)
    return Patch(relief, relief < -0.15, rng.normal(0, 2), margin=7 * s)


def _abrasion(rng: np.random.Generator, s: float) -> Patch:
    """A ragged area of parallel streaks, scraped bright or worn dark; some very long."""
    length = 90 * 10 ** rng.power(0.6)
    size = (_px(min(rng.uniform(0.25, 0.7) * length, rng.uniform(50, 150)) * s, 8), _px(length * s, 10))
    blob = _blob(rng, size)
    streaks = _field(rng, size, (rng.uniform(1.5, 5) * s, length * s / rng.uniform(4, 25)))
    streaks += 0.5 * _field(rng, size, (1.5, rng.uniform(2, 8) * s))
    bright = rng.uniform(0.3, 3.0) * np.clip(2 * (streaks - rng.uniform(0.7, 1.7)), 0, 1)
    relief = np.clip(5 * blob, 0, 1) * (bright - rng.uniform(0.1, 0.4) * (1 + 0.4 * streaks))
    return Patch(relief, blob > 0, rng.choice([0, 10, 60, 90, -15]) + rng.normal(0, 6), margin=7 * s)


def _patches(rng: np.random.Generator, s: float) -> Iterator[Patch]:
    """Class 4: rough, torn or sunken areas with a lit rim."""
    for _ in range(rng.integers(1, 5)):
        size = (_px(50 * 5.5 ** rng.random() * s, 10), _px(60 * 8 ** rng.random() * s, 12))
        blob = _blob(rng, size)
        soft = np.clip(8 * blob, 0, 1)
        surface = _octaves(rng, size, (22 * s, rng.uniform(30, 90) * s), 5)
        slope = np.gradient(cv2.GaussianBlur(surface, (0, 0), 0.8), axis=0)
        tone = rng.uniform(-0.65, 0.15) + 0.15 * _field(rng, size, (50 * s, 80 * s))
        relief = soft * (tone + rng.uniform(0.12, 0.55) * slope / max(slope.std(), 1e-6))
        rim = np.gradient(cv2.GaussianBlur(soft, (0, 0), 2 * s + 0.5), axis=0)
        relief += rng.uniform(2, 6) * s * rim
        if rng.random() < 0.4:  # a facet that mirrors the lamp
            facet = np.clip(6 * (_octaves(rng, size, (40 * s, 60 * s)) - 1.7), 0, 1)
            relief += 1.5 * soft * facet
        yield Patch(relief, blob > 0, rng.normal(0, 8), margin=6 * s)


PATCHES: dict[int, Callable[[np.random.Generator, float], Iterator[Patch]]] = {
    1: _pits,
    2: _lines,
    3: _scratches,
    4: _patches,
}
SPREAD = {1: 600, 2: 400}  # columns over which the marks of a class lie; the others lie anywhere


# Placing


def _px(length: float, least: int) -> int:
    return max(least, round(length))


def _blob(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A ragged island in a patch of `size`: (h, w) float32, positive on it, negative around it."""
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, size[1], dtype=np.float32)
    return 0.7 - np.hypot(x, y) + 0.16 * _octaves(rng, size, (size[0] / 3, size[1] / 4), 5)


def _stamp(
    rng: np.random.Generator, image: np.ndarray, room: np.ndarray, patch: Patch, columns: np.ndarray
) -> np.ndarray:
    """Apply a patch to `image` (H, W) float32 where most of it lies in `room` (H, W) bool.

    Its middle lies in one of `columns`; the top or the bottom may cut it. Returns the annotator's polygon
    within `room`, (H, W) uint8 in {0, 1}.
    """
    height, width = image.shape
    cover = patch.cover.astype(np.uint8)
    middle = (cover.shape[1] / 2, cover.shape[0] / 2)
    best_share = -1.0
    for _ in range(PLACING_TRIES):
        trial = cv2.getRotationMatrix2D(middle, patch.degrees, 1.0)
        trial[:, 2] += (rng.choice(columns) - middle[0], rng.integers(height) - middle[1])
        laid = cv2.warpAffine(cover, trial, (width, height), flags=cv2.INTER_NEAREST) & room
        share = np.count_nonzero(laid) / max(int(np.count_nonzero(cover)), 1)
        if share > best_share:
            best_share, matrix, best_laid = share, trial, laid
        if share > ENOUGH_IN_ROOM:
            break
    relief = cv2.warpAffine(patch.relief.astype(np.float32), matrix, (width, height))
    image *= 1 + np.maximum(relief, -0.95) * room
    return _outline(best_laid, patch.margin) & room


def _outline(cover: np.ndarray, margin: float) -> np.ndarray:
    """The polygon that a hand would click around a cover (H, W): uint8 (H, W) in {0, 1}."""
    contours, _ = cv2.findContours(cover, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(contour) for contour in contours]
    mask = np.zeros_like(cover)
    for contour, area in zip(contours, areas, strict=True):
        if area >= 0.1 * max(areas):  # nobody clicks around the crumbs
            polygon = cv2.approxPolyDP(contour, 0.6 * margin, True)
            cv2.fillPoly(mask, [polygon], 1)
            cv2.polylines(mask, [polygon], True, 1, thickness=_px(2 * margin, 3))
    return mask
