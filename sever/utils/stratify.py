"""Stratified splits: every part has its share of each class."""

from collections.abc import Sequence

import numpy as np


def stratified_choice(strata: Sequence[object], count: int, seed: int) -> np.ndarray:
    """Choose exactly `count` samples, of which each stratum gives its share, rounded up or down.

    Samples are put in random order, then sorted by stratum, and taken at equal distances.

    Args:
        strata: the stratum of each sample.
        count: number of samples to choose.
        seed: seed of the draw, at least 0.

    Returns:
        (count,) int64 indices of samples, sorted.
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
    """Split images into k folds with the same shares of classes; see `stratified_parts`.

    A class of at least k images (or groups) is in every fold, or in as many as a greedy search finds.

    Args:
        present: (N, C) bool, whether an image has a class.
        folds: k, at most the number of images (or groups).
        seed: seed of the draw, at least 0.
        groups: (N,), equal for images that are kept together.

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
    """Split images into parts with the same shares of each class and of each set of classes.

    Images with the rarest class come first; each goes to the part that still lacks most of that class, then
    most of its set of classes, of its other classes, of images at all: the iterative stratification of
    Sechidis et al. (2011, https://doi.org/10.1007/978-3-642-23808-6_10), with sets of classes and groups
    added. scikit-learn's `StratifiedKFold` takes one label per image.

    Args:
        present: (N, C) bool, whether an image has a class.
        shares: the size of each part, with sum 1.
        seed: seed of the draw, at least 0.
        groups: (N,), equal for images that are kept together; large groups are assigned first.

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
    """The unit (the image itself, or its group) of each image, (N,), and what is counted of each unit.

    The counts, (units, C + sets + 1), are of the unit's images by class, by set of classes, and of all.
    """
    _, unit_of_image = np.unique(np.arange(len(present)) if groups is None else groups, return_inverse=True)
    _, set_of_image = np.unique(present, axis=0, return_inverse=True)
    sets = np.eye(set_of_image.max() + 1, dtype=np.int64)[set_of_image]
    features = np.concatenate([present, sets, np.ones((len(present), 1))], axis=1).astype(np.int64)
    counts = np.zeros((unit_of_image.max() + 1, features.shape[1]), dtype=np.int64)
    np.add.at(counts, unit_of_image, features)
    return unit_of_image, counts


def _fill_gaps(has: np.ndarray, part_of_unit: np.ndarray, parts: int) -> None:
    """Move units, by changing `part_of_unit`, to parts that lack a class which enough units have."""
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
