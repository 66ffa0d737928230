"""One value for all classes, or one for each."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PerClass = float | Sequence[float] | np.ndarray


def per_class(value: PerClass, classes: int, name: str, dtype: npt.DTypeLike) -> np.ndarray:
    """One value for all classes, or one for each, as an array (C,) of the dtype.

    Example:
        >>> per_class(0.5, 3, "threshold", np.float32).tolist()
        [0.5, 0.5, 0.5]
        >>> per_class([600, 600, 1000, 2000], 3, "min_area", np.int64)
        Traceback (most recent call last):
        ValueError: min_area: expected one value, or one for each of 3 classes, received 4

    Raises:
        ValueError: there are neither one nor C values; the message calls them `name`.
    """
    values: np.ndarray = np.asarray(value, dtype=dtype)
    if values.ndim > 1 or (values.ndim and len(values) != classes):
        raise ValueError(
            f"{name}: expected one value, or one for each of {classes} classes, received {values.size}"
        )
    return np.broadcast_to(values, (classes,))
