"""Which images are held out for validation: a random share, or one of k folds."""

from collections.abc import Sequence

import numpy as np

from sever.utils.errors import DataError


class Holdout:
    """How validation images are chosen; a pure function of the images and the seed.

    Args:
        validation_split: a share in [0, 1), or a number of images; None is 0.2, or nothing beside `folds`.
        folds: k, to cut the images into k parts of equal kind and size.
        fold: the part that is held out, 1 to k; default 1. For all values of `fold` the parts are the same.

    Raises:
        ValueError: the arguments contradict each other or are out of range.
    """

    def __init__(
        self, validation_split: float | int | None = None, folds: int | None = None, fold: int | None = None
    ) -> None:
        if folds is None and fold is not None:
            raise ValueError(
                f"fold: expected folds beside it, the number of folds; received fold {fold} alone"
            )
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
        #: What `BaseDataLoader` calls `validation_split`.
        self.share = 1 / folds if folds else 0.2 if validation_split is None else validation_split

    def choose(
        self, present: np.ndarray, count: int, seed: int, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """Choose the validation images.

        Args:
            present: (N, C) bool, which image has which class.
            count: how many to choose where there are no folds; with groups, as near as they allow.
            seed: of the choice.
            groups: (N,) int64; images of one group stay on one side.

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


def stratified_choice(strata: Sequence[object], count: int, seed: int) -> np.ndarray:
    """Choose samples so that each stratum gives its share.

    Samples are put in random order, then side by side by stratum, and taken at equal distances: each
    stratum gives its share, rounded up or down, and all together exactly `count`.

    Args:
        strata: what kind each sample is of.
        count: how many to choose.
        seed: of the choice.

    Returns:
        (count,) int64 indices, sorted.
    """
    generator = np.random.default_rng(seed)
    _, codes = np.unique(np.array([str(stratum) for stratum in strata]), return_inverse=True)
    shuffled = generator.permutation(len(codes))
    by_stratum = shuffled[np.argsort(codes[shuffled], kind="stable")]
    places = (np.arange(count) + generator.random()) * len(codes) / count
    return np.sort(by_stratum[places.astype(np.int64)])


def stratified_folds(
    present: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Cut images into k equal parts; see `stratified_parts`.

    A class that at least k images (or groups) have is in every fold; where classes overlap so much that
    this cannot be, in as many as a greedy search finds.

    Args:
        present: (N, C) bool, which image has which class.
        folds: k.
        seed: of what is left to chance.
        groups: (N,) int64; images of one group stay together.

    Returns:
        (N,) int64, the fold of each image, 0 to k - 1.
    """
    part_of_image = stratified_parts(present, [1 / folds] * folds, seed, groups)
    unit_of_image, counts = _units(present, groups)
    part_of_unit = np.zeros(len(counts), dtype=np.int64)
    part_of_unit[unit_of_image] = part_of_image
    _fill_gaps(counts[:, : present.shape[1]] > 0, part_of_unit, folds)
    return part_of_unit[unit_of_image]


def stratified_parts(
    present: np.ndarray, shares: Sequence[float], seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Cut images into parts that agree in their classes, their sets of classes and their size.

    Images with the rarest class are given away first, each to the part that still lacks most of that
    class, then most of its set of classes, of its other classes, of images at all: the iterative
    stratification of Sechidis et al. (2011, https://doi.org/10.1007/978-3-642-23808-6_10), here with sets
    of classes and groups besides. scikit-learn has none of it: its `StratifiedKFold` sees one label per
    image, and of labels with fewer than k images it warns.

    Args:
        present: (N, C) bool, which image has which class.
        shares: of the parts, which sum to 1.
        seed: of what is left to chance.
        groups: (N,) int64; images of one group stay together, large groups are given away first.

    Returns:
        (N,) int64, the part of each image, from 0.
    """
    generator = np.random.default_rng(seed)
    unit_of_image, counts = _units(present, groups)
    class_count = present.shape[1]
    by_rarity = np.argsort(present.sum(axis=0), kind="stable")
    has = counts[:, by_rarity] > 0
    rarest = np.where(has.any(axis=1), has.argmax(axis=1), class_count)
    first_set = counts[:, class_count:-1].argmax(axis=1)
    order = generator.permutation(len(counts))
    order = order[np.lexsort((first_set[order], -counts[order, -1], rarest[order]))]

    lacking = np.outer(shares, counts.sum(axis=0))  # of each part, by feature
    part_of_unit = np.zeros(len(counts), dtype=np.int64)
    for unit in order.tolist():
        classes = [c for c in by_rarity.tolist() if counts[unit, c]]
        sets = (class_count + np.flatnonzero(counts[unit, class_count:-1])).tolist()
        candidates = generator.permutation(len(shares))
        for feature in (*classes[:1], *sets, *classes[1:], -1):
            lack = lacking[candidates, feature]
            candidates = candidates[lack >= lack.max() - 1e-9]
        part_of_unit[unit] = candidates[0]
        lacking[candidates[0]] -= counts[unit]
    return part_of_unit[unit_of_image]


def _units(present: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """What is given away as a whole: images, or groups of them.

    Returns:
        (N,) int64, the unit of each image, and (units, C + sets + 1) int64, how many images of each class,
        with each set of classes, and in all a unit has.
    """
    _, unit_of_image = np.unique(np.arange(len(present)) if groups is None else groups, return_inverse=True)
    _, set_of_image = np.unique(present, axis=0, return_inverse=True)
    sets = np.eye(set_of_image.max() + 1, dtype=np.int64)[set_of_image]
    features = np.concatenate([present, sets, np.ones((len(present), 1))], axis=1).astype(np.int64)
    counts = np.zeros((unit_of_image.max() + 1, features.shape[1]), dtype=np.int64)
    np.add.at(counts, unit_of_image, features)
    return unit_of_image, counts


def _fill_gaps(has: np.ndarray, part_of_unit: np.ndarray, parts: int) -> None:
    """Move units, as long as that helps, to parts that lack a class which enough units have.

    Args:
        has: (units, C) bool, which unit has which class.
        part_of_unit: (units,) int64, changed in place.
        parts: how many there are.
    """
    enough = has.sum(axis=0) >= parts
    moved = True
    while moved:
        moved = False
        held = np.stack([has[part_of_unit == part].sum(axis=0) for part in range(parts)])
        leaves_gap = ((held[part_of_unit] == 1) & has & enough).any(axis=1)
        for part, of_class in np.argwhere((held == 0) & enough):
            free = np.flatnonzero(has[:, of_class] & ~leaves_gap)
            if len(free):
                part_of_unit[free[0]] = part
                moved = True
                break
