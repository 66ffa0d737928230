"""Stratified choices, parts and folds: each has its share of every class, and groups stay together."""

import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sever.utils.stratify import stratified_choice, stratified_folds, stratified_parts

SETS = [(20, ()), (11, (1,)), (5, (2,)), (2, (1, 2)), (1, (1, 3)), (1, (3,))]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.data())
def test_each_stratum_gives_its_share_and_all_together_the_count(strata, data):
    count = data.draw(st.integers(1, len(strata)))
    chosen = stratified_choice(strata, count, seed=data.draw(st.integers(0, 2**40)))
    assert len(set(chosen.tolist())) == count
    assert sorted(chosen) == chosen.tolist()
    for stratum in set(strata):
        share = strata.count(stratum) * count / len(strata)
        given_by_it = sum(strata[index] == stratum for index in chosen)
        assert given_by_it in (math.floor(share), math.ceil(share))


def test_a_choice_depends_on_its_seed_alone():
    strata = [[index % 3 == 0, index % 2 == 0] for index in range(60)]
    first = stratified_choice(strata, 12, seed=5).tolist()
    assert stratified_choice(strata, 12, seed=5).tolist() == first
    assert stratified_choice(strata, 12, seed=6).tolist() != first
    assert stratified_choice(strata, 60, seed=5).tolist() == list(range(60))


def test_every_sample_is_chosen_about_as_often_as_any_other():
    strata = "aaaaaaab"
    counts = np.bincount(np.concatenate([stratified_choice(strata, 2, seed) for seed in range(2000)]))
    np.testing.assert_allclose(counts / 2000, 2 / 8, atol=0.04)  # 4 standard deviations


def test_any_two_samples_may_be_chosen_together():
    pairs = {tuple(stratified_choice("aaaaa", 2, seed).tolist()) for seed in range(300)}
    assert pairs == {(first, second) for second in range(5) for first in range(second)}


def present_of(sets, classes):
    rows = [[c + 1 in of_image for c in range(classes)] for count, of_image in sets for _ in range(count)]
    return np.array(rows, dtype=bool)


@pytest.mark.parametrize("folds", [2, 3, 5, 7])
def test_folds_agree_in_size_classes_and_sets_of_classes(folds):
    present = present_of(SETS, 3)
    fold_of = stratified_folds(present, folds, seed=1)
    counts = np.array([present[fold_of == fold].sum(axis=0) for fold in range(folds)])
    assert np.ptp(counts, axis=0).max() <= 1
    kinds = np.unique(present, axis=0, return_inverse=True)[1]
    of_set = np.array([np.bincount(kinds[fold_of == fold], minlength=6) for fold in range(folds)])
    assert np.ptp(of_set, axis=0).max() <= 2  # a set gives way to its classes
    assert np.ptp(np.bincount(fold_of)) <= 2


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(2, 6), st.integers(0, 2**40))
def test_a_class_with_enough_images_is_in_every_fold(counts, folds, seed):
    sets = [(count, (c,)) for c, count in enumerate(counts, 1)]
    present = present_of([*sets, (3, ())], len(counts))
    if len(present) < folds:
        return
    fold_of = stratified_folds(present, folds, seed)
    for c, count in enumerate(counts):
        in_fold = np.bincount(fold_of[present[:, c]], minlength=folds)
        assert in_fold.sum() == count
        assert in_fold.max() <= -(-count // folds)
        assert in_fold.min() >= count // folds


def test_a_class_that_only_comes_with_others_is_in_every_fold():
    # Class 1 is in 8 images, all but one in sets of fewer than 4; each label alone could lie anywhere.
    sets = [(2, (1, 2)), (2, (1, 3)), (3, (1, 4)), (1, (1,)), (2, (2,)), (2, (3,)), (1, (4,)), (9, ())]
    present = present_of(sets, 4)
    for seed in range(50):
        fold_of = stratified_folds(present, 4, seed)
        for c in range(4):
            assert set(fold_of[present[:, c]]) == {0, 1, 2, 3}


def test_a_gap_that_the_greedy_search_leaves_is_filled():
    # Classes 2 and 3 are in three images each; to give class 1 away first leads class 3 into a dead end.
    present = present_of([(1, (2, 3)), (1, (3,)), (1, (1, 3)), (2, (2,)), (2, ())], 3)
    for seed in range(50):
        fold_of = stratified_folds(present, 3, seed)
        assert set(fold_of[present[:, 1]]) == set(fold_of[present[:, 2]]) == {0, 1, 2}


@pytest.fixture(scope="module")
def real_presence(shared_data):
    path = shared_data / "rle" / "train_class_presence.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with path.open(newline="") as file:
        return np.array([[row[c] == "1" for c in "1234"] for row in csv.DictReader(file)])


def test_five_folds_of_the_real_images(real_presence):
    assert real_presence.sum(axis=0).tolist() == [897, 247, 5150, 801]
    fold_of = stratified_folds(real_presence, 5, seed=1234)
    counts = np.array([real_presence[fold_of == fold].sum(axis=0) for fold in range(5)])
    clean = [(~real_presence[fold_of == fold].any(axis=1)).sum() for fold in range(5)]
    assert np.ptp(np.bincount(fold_of)) <= 1
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(clean) <= 1


def test_groups_of_the_real_images_stay_together_and_folds_still_agree(real_presence):
    groups = np.random.default_rng(0).integers(0, 2000, len(real_presence))
    fold_of = stratified_folds(real_presence, 5, seed=1, groups=groups)
    assert len({(group, fold) for group, fold in zip(groups.tolist(), fold_of, strict=True)}) == len(
        set(groups)
    )
    counts = np.array([real_presence[fold_of == fold].sum(axis=0) for fold in range(5)])
    assert np.ptp(counts, axis=0).max() <= 3


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.integers(0, 9), min_size=30, max_size=60), st.integers(0, 1000), st.data())
def test_a_share_of_groups_is_near_its_size(groups, seed, data):
    present = np.array(data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))))[
        :, None
    ]
    parts = stratified_parts(present, [0.2, 0.8], seed, np.array(groups))
    assert all(len(set(parts[np.array(groups) == group])) == 1 for group in set(groups))
    largest = max(groups.count(group) for group in set(groups))
    assert abs((parts == 0).sum() - 0.2 * len(groups)) <= largest
