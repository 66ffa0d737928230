"""The thresholds and minimum areas that maximise the competition's metric on labelled images.

Each image is counted once, for all pixel thresholds together. All combinations are scored from these counts,
exactly as `postprocess` with `overlap="highest"` and no other step would be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sever.predictor.per_class_values import PerClass
from sever.predictor.threshold_counts import Counts, Values
from sever.utils.bootstrap import RESAMPLES, Interval, bootstrap
from sever.utils.dice import dice_of
from sever.utils.stratify import stratified_folds

Grid = tuple[np.ndarray, np.ndarray, np.ndarray]

TOLERANCE = 1e-10  # difference in mean Dice that may be rounding alone
PIXEL_THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(30, 96))
LABEL_THRESHOLDS = (0.96, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)  # beyond the pixel thresholds; 1 empties all
AREAS_PER_DECADE = 24


@dataclass(frozen=True)
class Choice:
    """The chosen values and their scores: the competition's Dice, one for each class.

    Attributes:
        values: the values chosen on all images.
        scores: scores of `values` on the images that they were chosen on, which flatters them.
        current_scores: scores of the current values on the same images.
        gain: gain of `values` over the current ones on these images.
        held_out_scores: scores of each image under the values chosen on the other folds.
        held_out_gain: gain of those over the current values; what to expect on new images.
        fold_values: values chosen without each fold in turn; where they differ much, the class has too few
            images.
        combinations: number of combinations compared for each class.
    """

    values: Values
    scores: tuple[float, ...]
    current_scores: tuple[float, ...]
    gain: Interval
    held_out_scores: tuple[float, ...]
    held_out_gain: Interval
    fold_values: tuple[Values, ...]
    combinations: int

    @property
    def score(self) -> float:
        """The competition's Dice of `values`."""
        return float(np.mean(self.scores))

    @property
    def current_score(self) -> float:
        """The competition's Dice of the current values."""
        return float(np.mean(self.current_scores))

    @property
    def held_out_score(self) -> float:
        """The competition's Dice of the values chosen on the other folds."""
        return float(np.mean(self.held_out_scores))

    def as_config(self) -> dict[str, Any]:
        """The chosen values as the `predict:` section of a config."""
        return {"predict": self.values.as_dict()}


def choose(
    counts: Counts,
    current: Values,
    *,
    label_thresholds: Sequence[float] | None = None,
    min_areas: Sequence[int] | None = None,
    folds: int = 5,
    resamples: int = RESAMPLES,
    seed: int = 1234,
    groups: np.ndarray | None = None,
) -> Choice:
    """Choose per class the label threshold, pixel threshold and minimum area of the highest mean Dice.

    All combinations are compared, but for label thresholds up to the pixel threshold, which do nothing; 0 is
    no threshold. A class keeps its current values where no combination is better. Among equally good ones (up
    to `TOLERANCE`) the one farthest from worse ones is taken: the middle of the longest run of pixel
    thresholds, then of the label thresholds that go with it, then of the minimum areas; of two middles or
    runs the higher one, which predicts less.

    Args:
        counts: counts of N labelled images, at least as many as `folds`, at all current thresholds.
        current: the values in use.
        label_thresholds: label thresholds to try beside 0; default the pixel thresholds and
            `LABEL_THRESHOLDS`.
        min_areas: minimum areas in pixels to try beside 0; default `area_grid` up to the largest counted.
        folds: number of folds; see `stratified_folds`.
        resamples: number of resamples of the bootstrap over images.
        seed: seed of the folds and of the bootstrap.
        groups: (N,), equal for images that belong together, e.g. to one coil; a group is in one fold and is
            resampled as a whole. None treats each image as its own group.

    Raises:
        ValueError: fewer than 2 folds, fewer images or groups than folds, `groups` is not one per image, or
            `current` has another number of classes or a threshold that was not counted.
    """
    if groups is not None and np.shape(groups) != (len(counts),):
        raise ValueError(
            f"groups: expected one for each of {len(counts)} images, received {np.shape(groups)}"
        )
    units = len(counts) if groups is None else len(np.unique(groups))
    if folds < 2:
        raise ValueError(f"expected at least 2 folds, received {folds}")
    if units < folds:
        what = "images" if groups is None else "groups of images"
        raise ValueError(f"expected at least {folds} {what}, one for each fold; received {units}")
    searches = _searches(counts, label_thresholds, min_areas)
    current_dice = counts.dice(current)
    everything = np.arange(len(counts))
    values = _best(searches, everything, current, current_dice)

    fold_of = stratified_folds(counts.truth > 0, folds, seed, groups)
    held_out_dice = np.empty_like(current_dice)
    fold_values = []
    for fold in range(folds):
        chosen = _best(searches, np.flatnonzero(fold_of != fold), current, current_dice)
        held_out_dice[fold_of == fold] = counts.dice(chosen)[fold_of == fold]
        fold_values.append(chosen)

    def interval(gains: np.ndarray) -> Interval:
        return bootstrap(gains.mean(axis=1), seed=seed, groups=groups, resamples=resamples)

    dice = counts.dice(values)
    return Choice(
        values=values,
        scores=tuple(dice.mean(axis=0).tolist()),
        current_scores=tuple(current_dice.mean(axis=0).tolist()),
        gain=interval(dice - current_dice),
        held_out_scores=tuple(held_out_dice.mean(axis=0).tolist()),
        held_out_gain=interval(held_out_dice - current_dice),
        fold_values=tuple(fold_values),
        combinations=searches[0].combinations,
    )


def threshold_grid(current: PerClass = ()) -> tuple[float, ...]:
    """Pixel thresholds to count: `PIXEL_THRESHOLDS` and those in use.

    Example:
        >>> threshold_grid([0.5, 0.485])[17:21]
        (0.47, 0.48, 0.485, 0.49)
    """
    values = np.append(PIXEL_THRESHOLDS, current)
    # Probabilities are float32: thresholds that are equal in float32 count once.
    _, first = np.unique(values.astype(np.float32), return_index=True)
    return tuple(values[first].tolist())


def area_grid(largest: int) -> np.ndarray:
    """Minimum areas to try: 0, then steps of about a tenth, rounded to two digits.

    Example:
        >>> area_grid(20).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 18, 20, 22]
        >>> area_grid(800)[-4:].tolist()
        [620, 680, 750, 830]

    Args:
        largest: largest area in pixels; the last step is the first one above it and empties every mask.

    Returns:
        (A,) int64 in pixels, ascending.
    """
    steps = np.arange(AREAS_PER_DECADE * (np.log10(largest + 1) + 1) + 1)
    areas = 10 ** (steps / AREAS_PER_DECADE)
    digits = 10.0 ** np.maximum(np.floor(np.log10(areas)) - 1, 0)
    grid = np.unique(np.append(0, np.rint(areas / digits) * digits).astype(np.int64))
    return grid[: np.searchsorted(grid, largest, side="right") + 1]


class _Search:
    """All combinations of one class, scored from its counts.

    Args:
        grid: ascending pixel thresholds (T,), label thresholds (L,) and minimum areas (A,).
        empty: (N,) Dice of an empty mask.
        dice: (N, T) Dice at each pixel threshold alone.
        areas: (N, T) in pixels.
        peaks: (N,) float32.
    """

    def __init__(
        self, grid: Grid, empty: np.ndarray, dice: np.ndarray, areas: np.ndarray, peaks: np.ndarray
    ) -> None:
        self.grid = thresholds, label_thresholds, min_areas = grid
        # A label threshold up to the pixel threshold would do nothing.
        self.redundant = (label_thresholds > 0) & (label_thresholds <= thresholds[:, None])
        self.combinations = int((~self.redundant).sum()) * len(min_areas)
        self.empty = empty
        self.gains = dice - empty[:, None]
        self.shape = (len(thresholds), len(label_thresholds) + 1, len(min_areas) + 1)
        # So many of the label thresholds and of the minimum areas, counted from the lowest, keep a mask.
        labels = np.searchsorted(label_thresholds.astype(np.float32), peaks, side="left")[:, None]
        minima = np.searchsorted(min_areas, areas, side="right")
        self.cells = (np.arange(self.shape[0]) * self.shape[1] + labels) * self.shape[2] + minima

    def best(self, images: np.ndarray, current: float) -> tuple[float, float, int] | None:
        """The best combination on images (M,); None if its mean Dice is no better than the current one's."""
        scores = self._scores(images)
        highest = scores.max()
        if current >= highest - TOLERANCE:
            return None
        equal = scores >= highest - TOLERANCE
        pixel = _middle(equal.any(axis=(1, 2)))
        label = _middle(equal[pixel].any(axis=1))
        area = _middle(equal[pixel, label])
        thresholds, label_thresholds, min_areas = self.grid
        return float(thresholds[pixel]), float(label_thresholds[label]), int(min_areas[area])

    def _scores(self, images: np.ndarray) -> np.ndarray:
        """Mean Dice over images (M,) of each combination (T, L, A), -inf for redundant ones."""
        cells, gains = self.cells[images].ravel(), self.gains[images].ravel()
        sums = np.bincount(cells, gains, minlength=int(np.prod(self.shape))).reshape(self.shape)
        for axis in (1, 2):
            sums = np.flip(np.flip(sums, axis).cumsum(axis), axis)
        scores = self.empty[images].mean() + sums[:, 1:, 1:] / len(images)
        scores[self.redundant] = -np.inf
        return scores


def _searches(
    counts: Counts, label_thresholds: Sequence[float] | None, min_areas: Sequence[int] | None
) -> list[_Search]:
    """The search of each class."""
    areas, truth, peaks = counts.areas, counts.truth, counts.peaks
    if label_thresholds is None:
        label_thresholds = (*counts.thresholds, *LABEL_THRESHOLDS)
    if min_areas is None:
        min_areas = area_grid(int(areas.max())).tolist()
    grid = np.array(counts.thresholds), np.unique([0.0, *label_thresholds]), np.unique([0, *min_areas])
    dice = dice_of(counts.both, areas, truth[:, :, None])
    empty = (truth == 0).astype(np.float64)
    return [_Search(grid, empty[:, c], dice[:, c], areas[:, c], peaks[:, c]) for c in range(truth.shape[1])]


def _best(
    searches: Sequence[_Search], images: np.ndarray, current: Values, current_dice: np.ndarray
) -> Values:
    """The best values on images (M,) of all N; `current_dice` is (N, C)."""
    means = current_dice[images].mean(axis=0).tolist()
    of_classes = zip(current.threshold, current.label_threshold, current.min_area, strict=True)
    chosen = [
        search.best(images, mean) or in_use
        for search, mean, in_use in zip(searches, means, of_classes, strict=True)
    ]
    thresholds, label_thresholds, min_areas = zip(*chosen, strict=True)
    return Values(thresholds, label_thresholds, min_areas)


def _middle(good: np.ndarray) -> int:
    """The middle of the longest run of True in (n,) bool; of two runs or middles the higher."""
    edges = np.flatnonzero(np.diff(good.astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    lengths = ends - starts
    longest = len(lengths) - 1 - int(lengths[::-1].argmax())
    return int(starts[longest] + ends[longest]) // 2
