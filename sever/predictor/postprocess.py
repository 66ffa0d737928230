"""From probabilities to masks: pure functions on NumPy arrays."""

from typing import Literal, get_args

import numpy as np

from sever.predictor.components import dominant_components, fill_small_holes, grow, remove_small_components
from sever.predictor.per_class import PerClass, per_class

Overlap = Literal["highest", "dominant", "keep"]


def postprocess(
    probs: np.ndarray,
    *,
    threshold: PerClass = 0.5,
    label_threshold: PerClass = 0.0,
    min_area: PerClass = 0,
    min_component: PerClass = 0,
    fill_holes: PerClass = 0,
    dilate: PerClass = 0,
    overlap: Overlap = "highest",
    label_probs: np.ndarray | None = None,
    gate_threshold: PerClass = 0.0,
    gate_factor: PerClass = 1.0,
) -> np.ndarray:
    """Make masks of probabilities.

    What is asked for is done in this order, whatever the order of the arguments:

    1. pixels above `threshold`; with `overlap="highest"` of the most probable class alone,
    2. classes emptied whose peak is not above `label_threshold`,
    3. classes emptied whose label probability is below `gate_threshold`,
    4. components removed that are smaller than `min_component`,
    5. holes filled up to `fill_holes` pixels,
    6. with `overlap="dominant"`, smaller components removed where larger ones of other classes overlap them,
    7. classes emptied that cover less than `min_area`, which `gate_factor` raises,
    8. masks grown by `dilate`.

    Example:
        >>> probs = np.array([[[0.9, 0.6]], [[0.2, 0.7]]])  # two classes on 1 x 2 pixels
        >>> postprocess(probs).tolist()
        [[[1, 0]], [[0, 1]]]
        >>> postprocess(probs, min_area=[2, 1]).tolist()
        [[[0, 0]], [[0, 1]]]
        >>> postprocess(probs, label_threshold=0.8).tolist()
        [[[1, 0]], [[0, 0]]]

    Args:
        probs: (C, H, W) in [0, 1].
        threshold: a pixel belongs to a class above it. This and all other numbers: one, or one per class.
        label_threshold: what the highest probability of a class on the image must exceed.
        min_area: pixels that a class must cover on the image to be kept.
        min_component: pixels that a connected component needs to be kept.
        fill_holes: pixels of the largest hole that is filled.
        dilate: radius in pixels by which masks grow into pixels that no class holds.
        overlap: `highest`: a pixel is set for the most probable class of all alone, and only where that
            one is above its own threshold, so that no class depends on another's threshold; `dominant`: of
            components of different classes that overlap the largest stays; `keep`: classes may overlap.
        label_probs: (C,) in [0, 1], a classifier's; for the gate.
        gate_threshold: label probability below which a class is emptied.
        gate_factor: times `min_area` that a class needs whose label probability is 0; see `gated_area`.

    Returns:
        (C, H, W) uint8 masks in {0, 1}; disjoint unless `overlap` is `keep`.

    Raises:
        ValueError: there are neither one nor C values of an argument, `overlap` is none of these, or a
            gate is asked for without `label_probs`.
    """
    if overlap not in get_args(Overlap):
        raise ValueError(f"overlap: expected one of {', '.join(get_args(Overlap))}, received {overlap!r}")
    if label_probs is not None and np.shape(label_probs) != (len(probs),):
        raise ValueError(f"label_probs: expected the shape ({len(probs)},), received {np.shape(label_probs)}")
    if label_probs is None and (np.any(gate_threshold) or not np.all(np.equal(gate_factor, 1))):
        raise ValueError("gate_threshold and gate_factor: expected label_probs beside them, received none")
    masks = highest_class(probs, threshold) if overlap == "highest" else above_threshold(probs, threshold)
    masks = empty_low_peaks(masks, probs, label_threshold)
    if label_probs is not None:
        masks = empty_gated(masks, label_probs, gate_threshold)
        min_area = gated_area(min_area, label_probs, gate_factor)
    masks = remove_small_components(masks, min_component)
    masks = fill_small_holes(masks, fill_holes, may_overlap=overlap != "highest")
    if overlap == "dominant":
        masks = dominant_components(masks)
    masks = empty_small(masks, min_area)
    return grow(masks, dilate, probs)


def above_threshold(probs: np.ndarray, threshold: PerClass) -> np.ndarray:
    """(C, H, W) probabilities -> (C, H, W) uint8, 1 above the threshold of the class."""
    limits = per_class(threshold, len(probs), "threshold", probs.dtype)
    return (probs > limits[:, None, None]).view(np.uint8)


def highest_class(probs: np.ndarray, threshold: PerClass) -> np.ndarray:
    """Set each pixel for the most probable of all classes, where that one is above its threshold.

    Args:
        probs: (C, H, W) in [0, 1].
        threshold: one value or one per class.

    Returns:
        (C, H, W) uint8 in {0, 1}, disjoint; of equally probable classes the first has the pixel.
    """
    masks = above_threshold(probs, threshold)
    limits = per_class(threshold, len(probs), "threshold", probs.dtype)
    lowest = limits.min()
    claims = masks if (limits == lowest).all() else above_threshold(probs, lowest)
    if not _contested(claims).any():  # no pixel has two classes above any of the thresholds
        return masks
    highest = claims & (probs == probs.max(axis=0))
    equal = _contested(highest)
    if equal.any():
        highest[:, equal] = highest[:, equal].argmax(axis=0) == np.arange(len(probs))[:, None]
    return masks & highest


def _contested(masks: np.ndarray) -> np.ndarray:
    """(C, H, W) uint8 -> (H, W) bool, where two classes or more are set."""
    return np.add.reduce(masks, axis=0, dtype=np.uint8) > 1


def empty_low_peaks(masks: np.ndarray, probs: np.ndarray, label_threshold: PerClass) -> np.ndarray:
    """Empty the masks (C, H, W) of classes whose highest probability is not above a threshold."""
    limits = per_class(label_threshold, len(probs), "label_threshold", probs.dtype)
    if not limits.any():
        return masks
    return _only(masks, probs.max(axis=(1, 2)) > limits)


def empty_gated(masks: np.ndarray, label_probs: np.ndarray, gate_threshold: PerClass) -> np.ndarray:
    """Empty the masks (C, H, W) of classes whose label probability (C,) is below a threshold."""
    limits = per_class(gate_threshold, len(masks), "gate_threshold", label_probs.dtype)
    return _only(masks, label_probs >= limits)


def gated_area(min_area: PerClass, label_probs: np.ndarray, gate_factor: PerClass) -> np.ndarray:
    """Raise the minimum areas of classes that a classifier is not confident of.

    The seed's author used t0·c − t0·(c−1)·p with c = 5, where t0 is the minimum area and p the label
    probability: t0 where p is 1, t0·c where it is 0.

    Example:
        >>> gated_area([600, 600, 1000], np.array([1.0, 0.5, 0.0]), 5).tolist()
        [600.0, 1800.0, 5000.0]

    Args:
        min_area: t0 in pixels, one value or one per class.
        label_probs: (C,) in [0, 1].
        gate_factor: c, likewise.

    Returns:
        (C,) float64, in pixels.
    """
    classes = len(label_probs)
    area = per_class(min_area, classes, "min_area", np.float64)
    factor = per_class(gate_factor, classes, "gate_factor", np.float64)
    return area * factor - area * (factor - 1) * label_probs


def empty_small(masks: np.ndarray, min_area: PerClass) -> np.ndarray:
    """Empty the masks (C, H, W) of classes that cover fewer pixels than their minimum."""
    minima = per_class(min_area, len(masks), "min_area", np.float64)
    if not (minima > 0).any():
        return masks
    areas = np.array([np.count_nonzero(mask.view(bool)) for mask in masks])
    return _only(masks, areas >= minima)


def _only(masks: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Masks (C, H, W) with those classes emptied that are not kept (C,) bool."""
    return masks if kept.all() else masks * kept.astype(np.uint8)[:, None, None]
