"""Connected components of masks (C, H, W) uint8 in {0, 1}, as pure functions: each returns new masks.

Masks are 8-connected and what is around them is 4-connected, so that a closed diagonal line encloses a hole.
A setting is one value for all classes, or one for each.
"""

from collections import defaultdict
from itertools import combinations

import cv2
import numpy as np

from sever.predictor.per_class_values import PerClass, per_class


def remove_small_components(masks: np.ndarray, min_component: PerClass) -> np.ndarray:
    """Remove the connected components of fewer than `min_component` pixels.

    Example:
        >>> masks = np.array([[[1, 1, 0, 1]]], dtype=np.uint8)
        >>> remove_small_components(masks, 2).tolist()
        [[[1, 1, 0, 0]]]
    """
    minima = per_class(min_component, len(masks), "min_component", np.int64)
    if not (minima > 1).any():
        return masks
    kept = masks.copy()
    for mask, minimum in zip(kept, minima, strict=True):
        if minimum > 1 and (box := _bounding_box(mask)):
            labels, areas = _components(mask[box])
            mask[box] = _mask_of(labels, areas >= minimum)
    return kept


def fill_small_holes(masks: np.ndarray, max_hole: PerClass, may_overlap: bool = False) -> np.ndarray:
    """Fill the holes of at most `max_hole` pixels: regions outside a mask that do not reach the image's edge.

    Example:
        >>> ring = np.array([[[1, 1, 1], [1, 0, 1], [1, 1, 1]]], dtype=np.uint8)
        >>> int(fill_small_holes(ring, 1).sum())
        9

    Args:
        masks: (C, H, W) uint8 in {0, 1}.
        max_hole: area in pixels of the largest hole to fill.
        may_overlap: fill pixels of other classes too; else a pixel in holes of two classes goes to the first.
    """
    maxima = per_class(max_hole, len(masks), "fill_holes", np.int64)
    if not (maxima > 0).any():
        return masks
    filled = masks.copy()
    for mask, maximum in zip(filled, maxima, strict=True):
        if maximum > 0 and (box := _bounding_box(mask)):
            # Nothing of the mask lies outside its box, so a region that meets the box's edge is no hole.
            around = 1 - mask[box]
            _, labels, stats, _ = cv2.connectedComponentsWithStats(around, connectivity=4)
            left, top, width, height, areas = stats.T
            rows, columns = around.shape
            inside = (left > 0) & (left + width < columns) & (top > 0) & (top + height < rows)
            holes = _mask_of(labels, inside & (areas <= maximum))
            if not may_overlap:
                holes &= filled[(slice(None), *box)].max(axis=0) == 0
            mask[box] |= holes
    return filled


def dominant_components(masks: np.ndarray) -> np.ndarray:
    """Where components of two classes overlap, keep the larger one and remove the whole smaller one.

    They are taken from the largest down (at equal size by class), and a removed one removes no other.

    Example:
        >>> masks = np.array([[[1, 1, 1, 0, 0]], [[0, 0, 1, 1, 0]]], dtype=np.uint8)
        >>> dominant_components(masks).tolist()
        [[[1, 1, 1, 0, 0]], [[0, 0, 0, 0, 0]]]
    """
    contested = np.add.reduce(masks, axis=0, dtype=np.uint8) > 1
    if not contested.any():
        return masks
    in_contest = np.flatnonzero(masks[:, contested].any(axis=1)).tolist()
    components = {index: _components(masks[index]) for index in in_contest}
    rivals: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
    for a, b in combinations(in_contest, 2):
        for of_a, of_b in _label_pairs(components[a][0][contested], components[b][0][contested]):
            rivals[a, of_a].add((b, of_b))
            rivals[b, of_b].add((a, of_a))
    beaten: set[tuple[int, int]] = set()
    for one in sorted(rivals, key=lambda one: (-components[one[0]][1][one[1]], one)):
        if one not in beaten:
            beaten |= rivals[one]
    kept = masks.copy()
    for index, (labels, areas) in components.items():
        lost = [label for of_class, label in beaten if of_class == index]
        kept[index] = _mask_of(labels, ~np.isin(np.arange(len(areas)), lost))
    return kept


def grow(masks: np.ndarray, radius: PerClass, probs: np.ndarray) -> np.ndarray:
    """Grow the masks into pixels that no class holds.

    Example:
        >>> masks = np.array([[[1, 0, 0, 0]], [[0, 0, 0, 1]]], dtype=np.uint8)
        >>> probs = np.array([[[0.9, 0.4, 0.3, 0.1]], [[0.1, 0.1, 0.2, 0.8]]])
        >>> grow(masks, [2, 1], probs).tolist()
        [[[1, 1, 1, 0]], [[0, 0, 0, 1]]]

    Args:
        masks: (C, H, W) uint8 in {0, 1}.
        radius: largest distance in pixels, between centres, of a new pixel from the mask.
        probs: (C, H, W); of the classes that reach a pixel the most probable one gets it.
    """
    radii = per_class(radius, len(masks), "dilate", np.int64)
    if not (radii > 0).any():
        return masks
    reached = np.zeros_like(masks)
    for mask, target, pixels in zip(masks, reached, radii.tolist(), strict=True):
        if pixels > 0 and (box := _bounding_box(mask, margin=pixels)):
            offsets = np.arange(-pixels, pixels + 1) ** 2
            disc = (offsets[:, None] + offsets <= pixels**2).astype(np.uint8)
            target[box] = cv2.dilate(mask[box], disc)
    reached &= masks.max(axis=0) == 0
    contested = np.add.reduce(reached, axis=0, dtype=np.uint8) > 1
    if contested.any():
        claims = reached[:, contested] != 0
        highest = np.where(claims, probs[:, contested], -1).argmax(axis=0)
        reached[:, contested] = highest == np.arange(len(masks))[:, None]
    return masks | reached


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mask (H, W) -> label of each pixel (H, W), 0 outside, and the area of each label from 0."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return labels, stats[:, cv2.CC_STAT_AREA]


def _label_pairs(one: np.ndarray, other: np.ndarray) -> list[tuple[int, int]]:
    """The distinct pairs of labels above 0 at the same pixels of two arrays (M,)."""
    both = (one > 0) & (other > 0)
    if not both.any():
        return []
    count = int(other.max()) + 1
    pairs = one[both].astype(np.int64) * count + other[both]
    # Neighbours are mostly equal, and sorting is expensive.
    pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])]
    return [divmod(pair, count) for pair in np.unique(pairs).tolist()]


def _mask_of(labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The mask (H, W) uint8 of the chosen (L,) bool among the labels (H, W); label 0 is never chosen."""
    values = chosen.astype(np.uint8)
    values[0] = 0
    return values[labels]


def _bounding_box(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice] | None:
    """Rows and columns of a mask's bounding box, widened by a margin; None where the mask is empty."""
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return None
    return (
        slice(max(top - margin, 0), top + height + margin),
        slice(max(left - margin, 0), left + width + margin),
    )
