"""Which images are held out for validation: a random share, or one of k folds."""

import numpy as np

from sever.utils.errors import DataError
from sever.utils.stratify import stratified_choice, stratified_folds, stratified_parts


class Holdout:
    """How validation images are chosen: from the images and the seed alone.

    Args:
        validation_split: a share in [0, 1), or a number of images; default 0.2 without `folds`.
        folds: k, to split the images into k folds that agree in classes and size, the same for every `fold`.
        fold: the fold that is held out, 1 to k; default 1.

    Raises:
        ValueError: the arguments contradict each other or are out of range.
    """

    def __init__(
        self, validation_split: float | int | None = None, folds: int | None = None, fold: int | None = None
    ) -> None:
        if folds is None and fold is not None:
            raise ValueError(f"fold: expected 'folds' beside it, received fold {fold} alone")
        if folds is not None:
            if validation_split is not None:
                raise ValueError(
                    f"validation_split: expected none beside folds, which holds out one part in {folds}; "
                    f"received {validation_split}"
                )
            if folds < 2:
                raise ValueError(f"folds: expected at least 2, received {folds}")
            if fold is not None and not 1 <= fold <= folds:
                raise ValueError(f"fold: expected 1 to {folds} (folds), received {fold}")
        self.folds = folds
        self.fold = fold or 1
        self.validation_split = 1 / folds if folds else 0.2 if validation_split is None else validation_split

    def choose(
        self, present: np.ndarray, count: int, seed: int, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """Choose the validation images.

        Args:
            present: (N, C) bool, whether an image has a class.
            count: number of images to choose without folds; groups may not allow exactly that many.
            seed: at least 0.
            groups: (N,) int64, equal for images that stay together.

        Returns:
            int64 indices, sorted.

        Raises:
            DataError: too few images or groups.
        """
        if self.folds is None and groups is None:
            return stratified_choice(present.tolist(), count, seed)
        units = len(present) if groups is None else len(np.unique(groups))
        what = "images" if groups is None else "groups of images"
        if self.folds is not None:
            if units < self.folds:
                raise DataError(
                    f"data_loader.args.folds: expected at most {units}, the number of {what}; received "
                    f"{self.folds}"
                )
            held_out = stratified_folds(present, self.folds, seed, groups) == self.fold - 1
        else:
            share = count / len(present)
            held_out = stratified_parts(present, [share, 1 - share], seed, groups) == 0
        if held_out.all() or not held_out.any():
            raise DataError(
                f"data_loader.args.groups: {units} {what} leave none for "
                f"{'training' if held_out.all() else 'validation'}; give smaller groups, or another share"
            )
        return np.flatnonzero(held_out)
