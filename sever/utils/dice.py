"""The competition's Dice from pixel counts."""

import numpy as np


def dice_of(both: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice from areas in pixels, 1 where prediction and truth are both empty.

    Example:
        >>> dice_of(np.array([30, 0, 0]), np.array([40, 0, 5]), np.array([80, 0, 0])).tolist()
        [0.5, 1.0, 0.0]

    Args:
        both: number of pixels that are predicted and true.
        predicted: number of predicted pixels, of the same shape.
        truth: number of true pixels, of the same shape.

    Returns:
        Dice in [0, 1], float64, of the same shape.
    """
    total = predicted + truth
    return np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)
