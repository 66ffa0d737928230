"""The competition's metric of what would be submitted, worked by hand."""

import numpy as np
import pytest

from sever.model.competition_metric import PairScores

IDS = ["1", "2"]


def masks(*classes):
    """Classes of 0s and 1s in one row of pixels -> (C, 1, W) uint8."""
    return np.array(classes, dtype=np.uint8)[:, None, :]


@pytest.fixture
def scores():
    """Four pairs.

    a.jpg: class 1 found on pixels 0 1, true on 1 2: 2·1/4, inexact; class 2 empty in both: 1.
    b.jpg: class 1 found on pixel 3, true nowhere: 0, a false alarm; class 2 true on pixels 0 1 2, not
    found: 0, missed.
    """
    counted = PairScores(IDS)
    counted.add("a.jpg", masks([1, 1, 0, 0], [0, 0, 0, 0]), masks([0, 1, 1, 0], [0, 0, 0, 0]))
    counted.add("b.jpg", masks([0, 0, 0, 1], [0, 0, 0, 0]), masks([0, 0, 0, 0], [1, 1, 1, 0]))
    return counted


def test_the_score_is_the_mean_over_pairs_and_its_shares(scores):
    named = scores.scores()
    assert named["competition_dice"] == (0.5 + 1 + 0 + 0) / 4
    assert named["competition_dice_1"] == 0.5 / 2
    assert named["competition_dice_2"] == 1 / 2
    assert named["competition_dice_of_nothing"] == 2 / 4


def test_pairs_with_and_without_a_defect_are_scored_apart(scores):
    named = scores.scores()
    assert named["competition_dice_with_defect_1"] == 0.5
    assert named["competition_dice_with_defect_2"] == 0
    assert named["competition_dice_with_defect_mean"] == 0.5 / 2
    assert named["competition_dice_without_defect_1"] == 0
    assert named["competition_dice_without_defect_2"] == 1
    assert named["competition_dice_without_defect_mean"] == 1 / 2


def test_what_is_lost_has_three_causes_that_add_up(scores):
    named = scores.scores()
    assert named["lost_to_inexact_shape_mean"] == 0.5 / 4
    assert named["lost_to_false_alarms_mean"] == 1 / 4
    assert named["lost_to_missed_defects_mean"] == 1 / 4
    causes = ("inexact_shape", "false_alarms", "missed_defects")
    assert sum(named[f"lost_to_{cause}_mean"] for cause in causes) == 1 - named["competition_dice"]
    assert named["lost_to_false_alarms_1"] == 1 / 2


def test_pixels_of_all_images_are_scored_under_names_of_their_own(scores):
    named = scores.scores()
    # class 1: 2 true, 3 found, 1 both; class 2: 3 true, none found
    assert named["pixel_dice_1"] == pytest.approx(2 / 5)
    assert named["pixel_iou_1"] == pytest.approx(1 / 4)
    assert (named["pixel_dice_2"], named["pixel_iou_2"]) == (0, 0)
    assert named["pixel_dice_mean"] == pytest.approx(1 / 5)
    # background: pixel 3 of a.jpg right; 0 of a.jpg and 3 of b.jpg found wrongly; 2 and 0 1 2 missed: 1 of 7
    assert named["miou"] == pytest.approx((1 / 7 + 1 / 4 + 0) / 3)


def label_map(masks):
    """The plain formula: 0 is background, else the first class that is set, from 1."""
    return np.where(masks.any(axis=0), masks.argmax(axis=0) + 1, 0)


@pytest.mark.parametrize("classes", [1, 2, 4, 15, 16])  # 16 classes and background no longer fit into a byte
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, bool])
def test_counts_are_those_of_the_plain_formula_where_masks_overlap_too(classes, dtype):
    generator = np.random.default_rng(classes)
    counted = PairScores([str(c + 1) for c in range(classes)])
    confusion = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    areas = []
    for number in range(3):
        predicted, truth = (generator.random((2, classes, 20, 30)) < (0.4 * number) ** 2 / classes).astype(
            dtype
        )
        counted.add(f"{number}.jpg", predicted, truth)
        found, there = predicted != 0, truth != 0
        np.add.at(confusion, (label_map(there).ravel(), label_map(found).ravel()), 1)
        areas.append([masks.sum(axis=(1, 2)) for masks in (there, found, there & found)])
    np.testing.assert_array_equal(counted.counts, np.array(areas).transpose(1, 0, 2))
    right = confusion.diagonal()
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    assert counted.scores()["miou"] == (right[either > 0] / either[either > 0]).mean()


def test_masks_of_other_classes_than_those_that_are_scored_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        PairScores(IDS).add("a.jpg", masks([1, 0]), masks([1, 0], [0, 0]))


def test_the_worst_pairs_come_with_what_is_wrong(scores):
    worst = scores.worst()
    assert [(pair.image, pair.class_id, pair.kind) for pair in worst] == [
        ("b.jpg", "2", "missed"), ("b.jpg", "1", "false alarm"), ("a.jpg", "1", "inexact")
    ]  # fmt: skip
    assert (worst[0].true_pixels, worst[0].predicted_pixels, worst[0].dice) == (3, 0, 0)
    assert len(scores.worst(most=2)) == 2


def test_perfect_pairs_are_not_among_the_worst():
    counted = PairScores(["1"])
    counted.add("a.jpg", masks([1, 0]), masks([1, 0]))
    assert counted.worst() == []
    assert counted.scores()["competition_dice"] == 1


def test_merged_halves_equal_the_whole(scores):
    one, other = PairScores(IDS), PairScores(IDS)
    one.add("a.jpg", masks([1, 1, 0, 0], [0, 0, 0, 0]), masks([0, 1, 1, 0], [0, 0, 0, 0]))
    other.add("b.jpg", masks([0, 0, 0, 1], [0, 0, 0, 0]), masks([0, 0, 0, 0], [1, 1, 1, 0]))
    one.merge(other)
    assert one.scores() == scores.scores()
    assert one.worst() == scores.worst()


def test_the_interval_holds_the_score_and_shrinks_with_more_images():
    generator = np.random.default_rng(0)

    def counted(images):
        pairs = PairScores(["1"])
        for number in range(images):
            truth = (generator.random((1, 4, 8)) < 0.3).astype(np.uint8)
            pairs.add(f"{number}.jpg", truth * (generator.random() < 0.7), truth)
        return pairs

    few, many = counted(20), counted(500)
    for pairs in (few, many):
        low, high = pairs.interval()
        assert low < pairs.scores()["competition_dice"] < high
    # of a mean of values that are 1 with a chance of 0.7: 1.96 times its standard error on each side
    low, high = many.interval()
    assert high - low == pytest.approx(2 * 1.96 * (0.7 * 0.3 / 500) ** 0.5, rel=0.2)
    assert few.interval()[1] - few.interval()[0] > 3 * (high - low)
    assert many.interval() == many.interval()
