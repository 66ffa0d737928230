"""The choice of thresholds: counts by hand, and scores that are those of the masks themselves."""

import itertools

import numpy as np
import pytest

from sever.commands.tune import choice_table
from sever.predictor.postprocess import postprocess
from sever.predictor.threshold_counts import Counts, Values
from sever.predictor.threshold_search import choose, threshold_grid
from sever.utils.bootstrap import bootstrap

THRESHOLDS = [0.3, 0.5, 0.7]


def drawn(seed, images=12, classes=3, shape=(9, 11), step=0.05):
    """Probabilities (float32, on a coarse grid so that some equal a threshold) with truth, by name."""
    rng = np.random.default_rng(seed)
    sheets = {}
    for index in range(images):
        labels = rng.integers(0, classes + 1, shape) * (rng.random(shape) < 0.5)
        truth = (labels == np.arange(1, classes + 1)[:, None, None]) & (rng.random(classes) < 0.6)[
            :, None, None
        ]
        probs = 0.45 * truth + 0.6 * rng.random((classes, *shape)) * rng.random((classes, 1, 1))
        probs = (np.round(np.clip(probs, 0, 1) / step) * step).astype(np.float32)
        sheets[f"{seed}_{index}.png"] = probs, truth.astype(np.uint8)
    return sheets


def counted(sheets, thresholds=THRESHOLDS):
    counts = Counts(thresholds)
    for name, (probs, truth) in sheets.items():
        counts.add(name, probs, truth)
    return counts


def masks_dice(sheets, values):
    """Dice (N, C) of the masks that `postprocess` makes, by plain loops."""
    scores = []
    for probs, truth in sheets.values():
        masks = postprocess(probs, **values.as_dict())
        of_image = []
        for mask, true in zip(masks, truth, strict=True):
            both, total = int((mask & true).sum()), int(mask.sum()) + int(true.sum())
            of_image.append(2 * both / total if total else 1.0)
        scores.append(of_image)
    return np.array(scores)


# ----------------------------------------------------------------------------------------- counts


def test_an_image_is_counted_at_every_threshold():
    # Two classes on 1 x 5 pixels. Highest: class 1 on 0, 1 and 4, class 2 on 2 and 3.
    probs = np.array([[[0.9, 0.5, 0.6, 0.1, 0.4]], [[0.8, 0.2, 0.7, 0.2, 0.3]]], dtype=np.float32)
    masks = np.array([[[1, 1, 0, 0, 0]], [[0, 0, 1, 1, 0]]], dtype=np.uint8)
    counts = Counts(THRESHOLDS)
    counts.add("a.png", probs, masks)
    assert counts.areas.tolist() == [[[3, 1, 1], [1, 1, 0]]]  # 0.5 is not above 0.5, nor 0.7 above 0.7
    assert counts.both.tolist() == [[[2, 1, 1], [1, 1, 0]]]
    assert counts.truth.tolist() == [[2, 2]]
    assert counts.peaks.tolist() == [
        [np.float32(0.9), np.float32(0.8)]
    ]  # of the class, whoever has the pixel
    assert counts.areas.dtype == counts.both.dtype == np.int32


def test_the_dice_of_counts_follows_all_three_values():
    probs = np.array([[[0.9, 0.6, 0.4]]], dtype=np.float32)
    counts = counted({"a.png": (probs, np.array([[[1, 1, 0]]])), "b.png": (probs, np.zeros((1, 1, 3)))})

    def dice(**values):
        return counts.dice(Values.of(1, **values)).ravel().tolist()

    assert dice(threshold=0.3) == [0.8, 0]
    assert dice(threshold=0.5) == [1, 0]
    assert dice(threshold=0.7) == [pytest.approx(2 / 3), 0]
    assert dice(threshold=0.5, min_area=2) == [1, 0]
    assert dice(threshold=0.5, min_area=3) == [0, 1]
    assert dice(threshold=0.5, label_threshold=0.85) == [1, 0]
    assert dice(threshold=0.5, label_threshold=0.9) == [0, 1]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_scores_from_counts_are_those_of_the_masks(seed):
    sheets = drawn(seed)
    counts = counted(sheets, threshold_grid([0.5]))
    rng = np.random.default_rng(seed)
    for _ in range(10):
        values = Values.of(
            3,
            threshold=rng.choice(counts.thresholds, 3),
            label_threshold=rng.choice([0, 0.6, 0.75, 0.8, 0.9], 3),
            min_area=rng.integers(0, 15, 3),
        )
        np.testing.assert_array_equal(counts.dice(values), masks_dice(sheets, values))


def test_parts_counted_apart_are_the_whole():
    sheets = drawn(4)
    whole, names = counted(sheets), list(sheets)
    part = counted({name: sheets[name] for name in names[:5]})
    part.merge(counted({name: sheets[name] for name in names[5:]}))
    assert part.names == whole.names
    for attribute in ("areas", "both", "truth", "peaks"):
        np.testing.assert_array_equal(getattr(part, attribute), getattr(whole, attribute))


def test_images_may_differ_in_size_and_be_in_any_memory_order():
    sheets = drawn(5, images=2) | drawn(6, images=2, shape=(4, 30))
    turned = {
        name: tuple(np.ascontiguousarray(plane.transpose(2, 1, 0)).transpose(2, 1, 0) for plane in both)
        for name, both in sheets.items()
    }
    np.testing.assert_array_equal(counted(turned).both, counted(sheets).both)


def test_a_threshold_that_was_not_counted_has_no_score():
    counts = counted(drawn(8, images=3))
    for threshold in (0.4, 0.71):
        with pytest.raises(ValueError, match=f"expected one of the thresholds .*, received {threshold}"):
            counts.dice(Values.of(3, threshold=threshold))


# ----------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_no_combination_is_better_than_the_chosen_one(seed):
    sheets = drawn(seed, images=8, classes=2, shape=(6, 7))
    labels, areas = [0.6, 0.8, 0.95], [2, 4, 8]
    choice = choose(
        counted(sheets), Values.of(2), label_thresholds=labels, min_areas=areas, folds=2, resamples=10
    )
    best = np.zeros(2)
    combinations = set()
    for threshold, label, area in itertools.product(THRESHOLDS, [0, *labels], [0, *areas]):
        combinations |= {(threshold, label, area)} if label > threshold or not label else set()
        values = Values.of(2, threshold=threshold, label_threshold=label, min_area=area)
        best = np.maximum(best, masks_dice(sheets, values).mean(axis=0))
    np.testing.assert_allclose(choice.scores, best, rtol=0, atol=1e-12)
    np.testing.assert_allclose(masks_dice(sheets, choice.values).mean(axis=0), best, rtol=0, atol=1e-12)
    assert choice.score == pytest.approx(best.mean(), abs=1e-12)
    assert choice.combinations == len(combinations) == 44


@pytest.mark.parametrize("seed", [21, 22])
def test_on_the_full_grid_the_reported_scores_are_those_of_the_masks(seed):
    sheets = drawn(seed, images=20)
    current = Values.of(3, threshold=[0.5, 0.55, 0.6], min_area=[2, 0, 3])
    choice = choose(counted(sheets, threshold_grid(current.threshold)), current, resamples=10)
    assert choice.combinations > 10_000
    np.testing.assert_allclose(masks_dice(sheets, choice.values).mean(axis=0), choice.scores, atol=1e-12)
    np.testing.assert_allclose(masks_dice(sheets, current).mean(axis=0), choice.current_scores, atol=1e-12)
    gain = masks_dice(sheets, choice.values).mean() - masks_dice(sheets, current).mean()
    assert choice.gain.mean == pytest.approx(gain, abs=1e-12)
    assert choice.gain.mean > 0
    assert choice.score - choice.current_score == pytest.approx(gain, abs=1e-12)


def blobs(peaks_areas_truths):
    """One class; each image has one region of `area` pixels at `peak`, true in its first `true` pixels."""
    sheets = {}
    for index, (peak, area, true) in enumerate(peaks_areas_truths):
        probs = np.zeros((1, 10, 10), dtype=np.float32)
        probs.ravel()[:area] = peak
        truth = np.zeros((1, 10, 10), dtype=np.uint8)
        truth.ravel()[:true] = 1
        sheets[f"{index}.png"] = probs, truth
    return sheets


def test_false_alarms_that_are_small_are_cut_by_area_in_the_middle_of_what_is_equally_good():
    counts = counted(blobs([(0.9, 40, 40), (0.9, 40, 40), (0.9, 10, 0), (0.9, 10, 0)]))
    choice = choose(
        counts, Values.of(1), label_thresholds=[0.8], min_areas=[5, 10, 15, 20, 25, 30, 35, 40, 45], folds=2
    )
    # Equally good: all three thresholds, no label threshold or 0.8, and 15 to 40 pixels.
    assert choice.values == Values((0.5,), (0.8,), (30,))
    assert choice.current_score == 0.5
    assert choice.score == 1
    assert (choice.gain.mean, choice.gain.low, choice.gain.high) == (0.5, 0.0, 1.0)
    assert choice.as_config() == {"predict": {"threshold": [0.5], "label_threshold": [0.8], "min_area": [30]}}


def test_false_alarms_of_low_peaks_are_cut_by_the_label_threshold():
    counts = counted(blobs([(0.9, 20, 20), (0.9, 20, 20), (0.75, 20, 0), (0.72, 30, 0)]))
    labels = [0.74, 0.76, 0.78, 0.8, 0.92]
    choice = choose(counts, Values.of(1), label_thresholds=labels, min_areas=[], folds=2)
    assert choice.values == Values((0.5,), (0.78,), (0,))
    assert choice.scores == (1,)


def test_of_two_equally_good_runs_the_longer_and_of_equally_long_ones_the_higher_counts():
    # Best between 0.3 and 0.35, and from 0.5 on; neither 0.4 nor 0.45.
    counts = Counts([0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6])
    probs = np.zeros((1, 1, 8), dtype=np.float32)
    probs[0, 0, :4] = 0.9, 0.5, 0.37, 0.37
    truth = np.zeros((1, 1, 8), dtype=np.uint8)
    truth[0, 0, [0, 2]] = 1
    # 0.3, 0.35: 4 pixels, 2 true: 4/6. From 0.4: 2 pixels, 1 true: 2/4. From 0.5: 1 pixel, 1 true: 2/3.
    for name in "abc":
        counts.add(name, probs, truth)
    choice = choose(
        counts, Values.of(1, threshold=0.4), label_thresholds=[], min_areas=[], folds=2, resamples=5
    )
    assert choice.values.threshold == (0.55,)
    assert choice.score == pytest.approx(2 / 3)


def test_current_values_stay_where_nothing_is_better():
    counts = counted(blobs([(0.9, 20, 20), (0.9, 30, 30), (0.1, 5, 0)]))
    current = Values.of(1, threshold=0.3, label_threshold=0.123, min_area=17)
    choice = choose(counts, current, folds=3)
    assert choice.values == current
    assert choice.fold_values == (current,) * 3
    assert (choice.gain.mean, choice.gain.low, choice.gain.high) == (0, 0, 0)


def test_a_class_is_switched_off_where_that_is_best():
    counts = counted(blobs([(1.0, 100, 3), (1.0, 100, 0), (1.0, 100, 0), (1.0, 100, 0)]))
    choice = choose(counts, Values.of(1), min_areas=[50], folds=2)
    assert choice.values.label_threshold == (1.0,)
    assert choice.scores == (0.75,)


def test_folds_show_what_was_fitted_to_noise():
    """Masks at random: on the images chosen from there seems to be a gain, on others there is none."""
    rng = np.random.default_rng(0)
    regions = [(rng.uniform(0.5, 1), rng.integers(20, 40), int(rng.choice([0, 0, 30]))) for _ in range(60)]
    counts = counted(blobs(regions), threshold_grid())
    choice = choose(counts, Values.of(1, label_threshold=1.0), folds=5)
    assert choice.current_score == pytest.approx(np.mean([not true for _, _, true in regions]))
    assert choice.gain.mean > 0.02
    assert choice.held_out_gain.mean < choice.gain.mean - 0.02
    assert choice.held_out_gain.low < 0 < choice.held_out_gain.high


FOUND_BELOW = (0.6, 0.6)  # 20 true pixels at 0.6, none else: Dice 1 at 0.3 and 0.5, 0 at 0.7
FOUND_ABOVE = (0.9, 0.6)  # 10 true ones at 0.9 and 30 others at 0.6: 2·10 / (40 + 10) = 0.4, and 1 at 0.7


def two_kinds(names_and_kinds):
    """One class; images on which a low threshold is best, on which a high one is, and (None) empty ones."""
    sheets = {}
    for name, kind in names_and_kinds:
        probs = np.zeros((1, 5, 10), dtype=np.float32)
        truth = np.zeros((1, 5, 10), dtype=np.uint8)
        if kind is not None:
            true, above = (20, 20) if kind is FOUND_BELOW else (10, 40)
            probs.ravel()[:true], probs.ravel()[true:above] = kind
            truth.ravel()[:true] = 1
        sheets[name] = probs, truth
    return sheets


def test_each_fold_is_scored_by_what_the_others_chose():
    # Images with a defect are dealt to different folds, and so are the two without.
    counts = counted(two_kinds([("a", FOUND_BELOW), ("b", FOUND_ABOVE), ("c", None), ("d", None)]))
    current = Values.of(1, threshold=0.7)
    choice = choose(counts, current, min_areas=[], label_thresholds=[], folds=2)
    assert choice.current_scores == ((0 + 1 + 1 + 1) / 4,)
    # Where a is, 0.3 and 0.5 are equally good, so the higher; where b is, 0.7 stays.
    assert sorted(choice.fold_values, key=str) == [Values.of(1, threshold=0.5), current]
    # On all: 0.5 gives (1 + 0.4 + 2) / 4. Held out: a by 0.7, b by 0.5.
    assert choice.values == Values.of(1, threshold=0.5)
    assert choice.scores == (pytest.approx((1 + 0.4 + 2) / 4),)
    assert choice.held_out_scores == (pytest.approx((0 + 0.4 + 2) / 4),)
    assert choice.held_out_score == pytest.approx(0.6)
    assert choice.held_out_gain.mean == pytest.approx(0.6 - 0.75)


@pytest.mark.parametrize("seed", range(5))
def test_images_of_one_coil_are_in_one_fold(seed):
    # One coil of each kind: what is chosen on the other is all wrong, be the folds dealt as they may.
    kinds = [FOUND_BELOW, FOUND_ABOVE] * 4
    counts = counted(two_kinds([(str(n), kind) for n, kind in enumerate(kinds)]))
    settings = {"min_areas": [], "label_thresholds": [], "folds": 2, "resamples": 200, "seed": seed}
    coils = np.array([7, 3] * 4)
    choice = choose(counts, Values.of(1, threshold=0.7), **settings, groups=coils)
    assert choice.held_out_scores == (pytest.approx((0 + 0.4) / 2),)
    # The gain of 0.5 over 0.7 is 1 on one coil and -0.6 on the other: every other resample holds but one.
    assert (choice.gain.low, choice.gain.high) == (pytest.approx(-0.6), pytest.approx(1))


def test_folds_of_coils_are_as_large_as_the_coils_allow():
    # 6 images in one coil, 3 in another, 1 in each of three: 6 and 6, whatever their order.
    coils = np.array([0] * 6 + [1] * 3 + [2, 3, 4])
    counts = counted(two_kinds([(str(n), FOUND_ABOVE if n < 6 else FOUND_BELOW) for n in range(12)]))
    settings = {"min_areas": [], "label_thresholds": [], "folds": 2, "resamples": 2}
    choice = choose(counts, Values.of(1), **settings, groups=coils)
    assert set(choice.fold_values) == {Values.of(1, threshold=0.7), Values.of(1)}
    assert choice.held_out_scores == (pytest.approx(0.4 / 2),)


def test_groups_of_one_image_each_are_no_groups():
    counts = counted(drawn(51, images=15))
    alone, alike = (choose(counts, Values.of(3), resamples=50, groups=g) for g in (None, np.arange(15)))
    assert alone == alike


def test_the_same_seed_gives_the_same_choice():
    counts = counted(drawn(31, images=15))
    one, two, other = (choose(counts, Values.of(3), seed=seed, resamples=50) for seed in (1, 1, 2))
    assert one == two
    assert one.values == other.values
    assert (one.gain, one.held_out_scores) != (other.gain, other.held_out_scores)


def test_the_bootstrap_gives_the_spread_of_a_mean():
    # 400 numbers 0 or 1, half of each: the mean has a standard error of 0.025.
    interval = bootstrap(np.arange(400) % 2, seed=3)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)


def test_images_that_repeat_each_other_in_groups_tell_no_more_than_one_of_each():
    # 100 groups of four equal numbers, half of them 0: a standard error of 0.05, not of 0.025
    groups = np.repeat(np.arange(100), 4)
    interval = bootstrap(groups % 2, seed=3, groups=groups)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.012)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.012)
    # groups of 1 and 3 images: alone they have means 0 and 1, together 3/4
    assert bootstrap(np.array([0, 1, 1, 1]), seed=3, groups=np.array([5, 2, 2, 2])).mean == 0.75


def test_no_image_has_no_interval():
    interval = bootstrap(np.zeros(0), seed=3)
    assert np.isnan([interval.mean, interval.low, interval.high]).all()


def test_the_table_shows_what_each_fold_chose():
    counts = counted(two_kinds([("a", FOUND_BELOW), ("b", FOUND_ABOVE), ("c", None), ("d", None)]))
    choice = choose(counts, Values.of(1, threshold=0.7), min_areas=[], label_thresholds=[], folds=2)
    lines = choice_table(choice, ["1"], 4)
    assert "class 1: threshold 0.5 to 0.7, label_threshold 0, min_area 0" in "\n".join(lines)


def test_what_cannot_be_chosen_from_is_refused():
    counts = counted(drawn(41, images=3))
    with pytest.raises(ValueError, match="expected at least 2 folds, received 1"):
        choose(counts, Values.of(3), folds=1)
    with pytest.raises(ValueError, match="expected at least 4 images, one for each fold; received 3"):
        choose(counts, Values.of(3), folds=4)
    with pytest.raises(ValueError, match=r"expected at least 3 groups of images, .* received 2"):
        choose(counts, Values.of(3), folds=3, groups=np.array([4, 9, 4]))
    with pytest.raises(ValueError, match="groups: expected one for each of 3 images, received"):
        choose(counts, Values.of(3), folds=2, groups=np.array([4, 9]))
    with pytest.raises(ValueError, match="expected values for 3 classes, received 2"):
        choose(counts, Values.of(2), folds=2)
    with pytest.raises(ValueError, match=r"received 0\.55"):
        choose(counts, Values.of(3, threshold=0.55), folds=2)
