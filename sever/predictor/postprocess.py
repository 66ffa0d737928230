"""Probabilities -> masks, as pure functions on NumPy arrays."""

from typing import Literal, get_args

import numpy as np

from sever.predictor.connected_components import (
    dominant_components,
    fill_small_holes,
    grow,
    remove_small_components,
)
from sever.predictor.per_class_values import PerClass, per_class

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
    """Make masks from probabilities.

    The steps are:

    1. pixels above `threshold`; with `overlap="highest"` for the most probable class alone,
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
        fill_holes: area in pixels of the largest hole that is filled.
        dilate: radius in pixels by which masks grow into pixels of no class.
        overlap: `highest`: a pixel can only belong to its most probable class, so that no class depends on
            another's threshold; `dominant`: of overlapping components of different classes the largest stays;
            `keep`: classes may overlap.
        label_probs: (C,) in [0, 1], a classifier's probabilities for the gate.
        gate_threshold: label probability below which a class is emptied.
        gate_factor: factor on `min_area` where the label probability is 0; see `gated_area`.

    Returns:
        (C, H, W) uint8 masks in {0, 1}; disjoint unless `overlap` is `keep`.

    Raises:
        ValueError: an argument has neither one nor C values, `overlap` is unknown, or a gate lacks
            `label_probs`.
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
    """Like `above_threshold`, but only the most probable class gets a pixel; of equals the first one."""
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
    return _keep_classes(masks, probs.max(axis=(1, 2)) > limits)


def empty_gated(masks: np.ndarray, label_probs: np.ndarray, gate_threshold: PerClass) -> np.ndarray:
    """Empty the masks (C, H, W) of classes whose label probability (C,) is below a threshold."""
    limits = per_class(gate_threshold, len(masks), "gate_threshold", label_probs.dtype)
    return _keep_classes(masks, label_probs >= limits)


def gated_area(min_area: PerClass, label_probs: np.ndarray, gate_factor: PerClass) -> np.ndarray:
    """Raise the minimum areas of classes that a classifier is not confident of: (C,) float64, in pixels.

    The seed's author used t0·c − t0·(c−1)·p with c = 5: `min_area` t0 where the label probability p is 1, and
    `gate_factor` c times as much where it is 0.

    Example:
        >>> gated_area([600, 600, 1000], np.array([1.0, 0.5, 0.0]), 5).tolist()
        [600.0, 1800.0, 5000.0]
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
    return _keep_classes(masks, areas >= minima)


def _keep_classes(masks: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Empty the masks (C, H, W) of all classes but the kept ones (C,) bool."""
    return masks if kept.all() else masks * kept.astype(np.uint8)[:, None, None]
