"""How far a mean over images would move on other images of the same kind."""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean over images, and the ends of its bootstrap interval in the same unit."""

    mean: float
    low: float
    high: float


def bootstrap(
    per_image: np.ndarray, *, seed: int, groups: np.ndarray | None = None, resamples: int = RESAMPLES
) -> Interval:
    """Resample images with replacement, or groups of images as wholes.

    Images of one coil look alike, so an interval that takes them for independent is too narrow.

    Example:
        >>> bootstrap(np.array([0.25, 0.25]), seed=0)
        Interval(mean=0.25, low=0.25, high=0.25)

    Args:
        per_image: (N,) a number for each image; where N is 0 all results are NaN.
        seed: seed of the draws.
        groups: (N,), equal for images that belong together; None draws each image by itself.
        resamples: number of draws.

    Returns:
        The mean and the interval that holds 95 % of the resampled means.
    """
    if not len(per_image):
        return Interval(float("nan"), float("nan"), float("nan"))
    sums: np.ndarray = np.asarray(per_image, dtype=np.float64)
    sizes: np.ndarray = np.ones(len(per_image))
    if groups is not None:
        _, group_of = np.unique(groups, return_inverse=True)
        sums, sizes = (np.bincount(group_of, of_images) for of_images in (sums, sizes))
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(sums), size=len(sums)) for _ in range(resamples))
    means = [sums[drawn].sum() / sizes[drawn].sum() for drawn in draws]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(np.mean(per_image)), float(low), float(high))
