"""Masks and probabilities -> a table of the defects: one row for each connected component."""

from collections.abc import Sequence

import cv2
import numpy as np
import pandas as pd

COLUMNS = {
    "class_id": str,
    "name": str,
    "x": int,
    "y": int,
    "box_width": int,
    "box_height": int,
    "area": int,
    "length": float,
    "width": float,
    "angle": float,
    "mean_probability": float,
    "peak_probability": float,
}


def defect_table(
    masks: np.ndarray,
    probs: np.ndarray,
    class_ids: Sequence[str],
    class_names: Sequence[str] | None = None,
    mm_per_pixel: float | None = None,
) -> pd.DataFrame:
    """Measure the 8-connected components of masks.

    Example:
        >>> masks = np.array([[[1, 1, 0], [0, 0, 0], [0, 0, 1]]], dtype=np.uint8)
        >>> table = defect_table(masks, np.full((1, 3, 3), 0.75), ["1"], mm_per_pixel=0.5)
        >>> print(table[["x", "y", "area", "length", "width", "area_mm2"]].to_string(index=False))
         x  y  area  length  width  area_mm2
         0  0     2     2.0    1.0      0.50
         2  2     1     1.0    1.0      0.25

    Args:
        masks: (C, H, W) uint8 in {0, 1}.
        probs: (C, H, W) in [0, 1], from which the masks were made.
        class_ids: the ClassIds of the C classes.
        class_names: what people call them; None is `class 1` and so on.
        mm_per_pixel: the side of a pixel in millimetres, where it is known.

    Returns:
        A row for each component, by class and then from top to bottom: `class_id` and `name`; `x` and `y` of
        its upper left corner, `box_width` and `box_height`; `area` in pixels; `length` and `width` of the
        smallest rectangle around it, turned by `angle` degrees, clockwise from the x axis to the long side,
        in (-90, 90]; the mean and the peak of its probabilities. With `mm_per_pixel` also `area_mm2`,
        `length_mm` and `width_mm`.
    """
    names = class_names or [f"class {class_id}" for class_id in class_ids]
    rows = [
        (class_id, name, *_measured(x, y, inside, of_class))
        for class_id, name, mask, of_class in zip(class_ids, names, masks, probs, strict=True)
        for x, y, inside in components(mask)
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    if mm_per_pixel is not None:
        table["area_mm2"] = table["area"] * mm_per_pixel**2
        table["length_mm"] = table["length"] * mm_per_pixel
        table["width_mm"] = table["width"] * mm_per_pixel
    return table


def components(mask: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """The 8-connected components of a mask (H, W) uint8, from top to bottom.

    Returns:
        For each x and y of its upper left corner, and (h, w) bool: which pixels of its box belong to it.
    """
    if not mask.any():
        return []
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    boxes = enumerate(stats[1:, :4].tolist(), start=1)
    found = [(x, y, labels[y : y + h, x : x + w] == label) for label, (x, y, w, h) in boxes]
    return sorted(found, key=lambda component: component[1::-1])


def coco_counts(inside: np.ndarray, x: int, y: int, shape: tuple[int, int]) -> list[int]:
    """The runs of a component in the order of COCO: column by column, lengths of 0 and 1 in turn, 0 first.

    Example:
        >>> coco_counts(np.array([[True], [True]]), 1, 0, (3, 3))
        [3, 2, 4]

    Args:
        inside: (h, w) bool, the component in its box.
        x: of the box's upper left corner.
        y: of it.
        shape: (H, W) of the image.
    """
    height, width = shape
    columns = np.zeros((inside.shape[1], height + 1), np.int8)
    columns[:, y : y + inside.shape[0]] = inside.T
    edges = np.flatnonzero(np.diff(columns.reshape(-1), prepend=0))
    edges = (edges // (height + 1) + x) * height + edges % (height + 1)
    inner = edges[1:-1].reshape(-1, 2)
    kept = inner[inner[:, 0] < inner[:, 1]].reshape(-1)  # a run may go on in the next column
    return np.diff([0, edges[0], *kept, edges[-1], height * width]).tolist()


def _measured(x: int, y: int, inside: np.ndarray, probs: np.ndarray) -> tuple[float, ...]:
    """The measures of a component, in the order of `COLUMNS`."""
    height, width = inside.shape
    values = probs[y : y + height, x : x + width][inside]
    return (
        *(x, y, width, height, values.size),
        *_rectangle(inside),
        *(float(values.mean()), float(values.max())),
    )


def _rectangle(inside: np.ndarray) -> tuple[float, float, float]:
    """Length, width and angle of the smallest rectangle around the pixels of a component."""
    (contour, *_), _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = cv2.boxPoints(cv2.minAreaRect(contour)).astype(float)
    one, other = corners[1] - corners[0], corners[2] - corners[1]
    along, across = sorted((one, other), key=lambda side: float(np.hypot(*side)), reverse=True)
    length, width = float(np.hypot(*along)), float(np.hypot(*across))
    angle = float(np.degrees(np.arctan2(along[1], along[0]))) if length - width > 0.5 else 0.0
    angle = angle - 180 if angle > 90 else angle + 180 if angle <= -90 else angle
    return length + 1, width + 1, angle  # from the centres of pixels to their edges
