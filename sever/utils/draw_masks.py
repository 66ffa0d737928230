"""Draws masks on sheets: a colour for each class, tinted areas with outlines."""

import cv2
import numpy as np

# One colour per class, RGB, told apart on grey and by colour-blind people
# (Okabe and Ito, https://jfly.uni-koeln.de/color/), repeated where there are more classes.
COLOURS = ((240, 228, 66), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (230, 159, 0))
_FILL = 0.35  # how much of a mask's colour covers the steel


def colour(class_index: int) -> tuple[int, int, int]:
    """The colour of a class (0-based), RGB."""
    return COLOURS[class_index % len(COLOURS)]


def overlay(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Draw masks on a sheet as tinted areas with outlines.

    Args:
        image: (H, W) uint8 in [0, 255].
        masks: (C, H, W), not zero where the class is.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    for class_index, mask in enumerate(masks):
        on = (mask != 0).astype(np.uint8)
        if not on.any():
            continue
        tint = np.array(colour(class_index), dtype=np.float32)
        inside = on.astype(bool)
        picture[inside] = ((1 - _FILL) * picture[inside] + _FILL * tint).astype(np.uint8)
        outlines, _ = cv2.findContours(on, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour(class_index), 1)
    return picture
