"""From probabilities to masks: pure functions on NumPy arrays."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def postprocess(
    probs: np.ndarray,
    threshold: float | Sequence[float] = 0.5,
    min_area: int | Sequence[int] = 0,
) -> np.ndarray:
    """Thresholds, then the highest class per pixel, then minimum areas.

    Example:
        >>> probs = np.array([[[0.9, 0.6]], [[0.2, 0.7]]])  # two classes on 1 x 2 pixels
        >>> postprocess(probs).tolist()
        [[[1, 0]], [[0, 1]]]
        >>> postprocess(probs, min_area=[2, 1]).tolist()
        [[[0, 0]], [[0, 1]]]

    Args:
        probs: (C, H, W) in [0, 1].
        threshold: a pixel belongs to a class above it; one for all classes or one per class.
        min_area: pixels that a class must cover on the image to be kept; likewise.

    Returns:
        (C, H, W) uint8 masks in {0, 1}; no pixel belongs to two classes.

    Raises:
        ValueError: there are neither one nor C thresholds or minimum areas.
    """
    masks = highest_class(probs, above_threshold(probs, threshold))
    return drop_small(masks, min_area)


def above_threshold(probs: np.ndarray, threshold: float | Sequence[float]) -> np.ndarray:
    """(C, H, W) probabilities -> (C, H, W) bool, above the threshold of the class."""
    return probs > _per_class(threshold, len(probs), "threshold", probs.dtype)


def highest_class(probs: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Leave each pixel to the most probable of the classes whose masks hold it.

    Args:
        probs: (C, H, W) in [0, 1].
        masks: (C, H, W) bool.

    Returns:
        (C, H, W) uint8 in {0, 1}, disjoint; the first of equally probable classes wins.
    """
    if not (masks.sum(axis=0, dtype=np.uint8) > 1).any():
        return masks.astype(np.uint8)
    highest = np.where(masks, probs, -1).argmax(axis=0)
    return (masks & (highest == np.arange(len(probs))[:, None, None])).astype(np.uint8)


def drop_small(masks: np.ndarray, min_area: int | Sequence[int]) -> np.ndarray:
    """Empty the masks (C, H, W) uint8 of classes that cover fewer pixels than their minimum."""
    large = masks.sum(axis=(1, 2), keepdims=True) >= _per_class(min_area, len(masks), "min_area", np.int64)
    return masks * large.astype(np.uint8)


def _per_class(value: float | Sequence[float], classes: int, name: str, dtype: npt.DTypeLike) -> np.ndarray:
    """One value or one per class -> (C, 1, 1)."""
    values: np.ndarray = np.asarray(value, dtype=dtype)
    if values.ndim and len(values) != classes:
        raise ValueError(
            f"{name}: expected one value, or one for each of {classes} classes, received {len(values)}"
        )
    return np.broadcast_to(values, (classes,)).reshape(classes, 1, 1)
