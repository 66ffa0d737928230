"""From probabilities to masks, worked by hand, and what holds for any probabilities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sever.predictor.connected_components import (
    dominant_components,
    fill_small_holes,
    grow,
    remove_small_components,
)
from sever.predictor.postprocess import postprocess

# Two classes on 2 x 3 pixels. Above 0.5: class 1 on all of row 0, class 2 on pixels 01, 02, 11 and 12.
# Of 01 and 02, which both claim, class 1 has the higher probability on 01, class 2 on 02.
PROBS = np.array(
    [
        [[0.9, 0.8, 0.6], [0.1, 0.2, 0.5]],
        [[0.3, 0.7, 0.9], [0.5, 0.6, 0.8]],
    ],
    dtype=np.float32,
)


def masks_of(*classes):
    """Masks (C, H, W) uint8 from rows of text, # where a class is."""
    return np.array([[[pixel == "#" for pixel in row] for row in rows] for rows in classes], dtype=np.uint8)


def text_of(masks):
    return [["".join(".#"[pixel] for pixel in row) for row in mask] for mask in masks.tolist()]


# ----------------------------------------------------------------------- thresholds, highest class


def test_a_pixel_goes_to_the_most_probable_class_above_its_threshold():
    masks = postprocess(PROBS)
    assert masks.dtype == np.uint8
    assert masks.tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 1, 1]]]


def test_each_class_may_have_its_own_threshold():
    # Class 1 above 0.85: pixel 00. Class 2 above 0.4: 01, 02, 10, 11, 12, but 01 is class 1's.
    assert postprocess(PROBS, threshold=[0.85, 0.4]).tolist() == [
        [[1, 0, 0], [0, 0, 0]],
        [[0, 0, 1], [1, 1, 1]],
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.6, 0.7])
def test_a_probability_equal_to_the_threshold_is_not_above_it(dtype, threshold):
    at = dtype(threshold)
    probs = np.array([[[at, np.nextafter(at, dtype(1))]]], dtype=dtype)
    assert postprocess(probs, threshold=threshold).tolist() == [[[0, 1]]]


def test_the_highest_probability_wins_whatever_the_thresholds():
    probs = np.array([[[0.45]], [[0.6]]])
    assert postprocess(probs, threshold=[0.1, 0.5]).ravel().tolist() == [0, 1]
    assert postprocess(probs, threshold=[0.1, 0.7]).ravel().tolist() == [0, 0]


def test_of_equally_probable_classes_the_first_wins():
    probs = np.array([0.2, 0.7, 0.7, 0.7]).reshape(4, 1, 1)
    assert postprocess(probs).ravel().tolist() == [0, 1, 0, 0]
    assert postprocess(probs, threshold=[0.5, 0.8, 0.5, 0.5]).ravel().tolist() == [0, 0, 0, 0]


def test_planes_that_lie_otherwise_in_memory_give_the_same_masks():
    turned = np.ascontiguousarray(PROBS.transpose(1, 2, 0)).transpose(2, 0, 1)
    arguments = {"threshold": [0.55, 0.4], "min_component": 2, "fill_holes": 1, "dilate": 1, "min_area": 1}
    np.testing.assert_array_equal(postprocess(turned, **arguments), postprocess(PROBS, **arguments))


@pytest.mark.parametrize(
    ("label_threshold", "areas"),
    [(0.0, [2, 3]), (0.85, [2, 3]), (0.9, [0, 0]), ([0.9, 0.8], [0, 3]), ([0.8, 0.95], [2, 0])],
)
def test_a_class_needs_a_peak_above_its_label_threshold(label_threshold, areas):
    # Both classes have their peak at 0.9, which is not above 0.9.
    assert postprocess(PROBS, label_threshold=label_threshold).sum(axis=(1, 2)).tolist() == areas


def test_a_class_without_its_label_leaves_its_pixels_to_none():
    probs = np.array([[[0.7, 0.7]], [[0.6, 0.9]]])
    assert postprocess(probs, label_threshold=[0.8, 0]).tolist() == [[[0, 0]], [[0, 1]]]


@pytest.mark.parametrize(
    ("min_area", "areas"),
    [(0, [2, 3]), (2, [2, 3]), (3, [0, 3]), (4, [0, 0]), ([3, 3], [0, 3]), ([2, 4], [2, 0])],
)
def test_a_class_needs_its_minimum_area_on_the_image(min_area, areas):
    assert postprocess(PROBS, min_area=min_area).sum(axis=(1, 2)).tolist() == areas


def test_the_area_is_counted_after_each_pixel_has_its_class():
    # Class 1 claims 3 pixels and keeps 2 of them.
    assert postprocess(PROBS, min_area=[3, 0])[0].sum() == 0


# ------------------------------------------------------------------------------------- components


def test_components_touch_by_sides_and_corners_and_go_where_they_are_small():
    masks = masks_of(["#..#", ".#..", "...#"], ["..#.", "....", "#..."])
    # Class 1: a diagonal pair and two single pixels. Class 2: two single pixels.
    assert text_of(remove_small_components(masks, 2)) == [["#...", ".#..", "...."], ["...."] * 3]
    assert text_of(remove_small_components(masks, [3, 1])) == [["...."] * 3, ["..#.", "....", "#..."]]


def test_holes_are_enclosed_by_sides_and_are_filled_up_to_a_size():
    masks = masks_of(["#####..#", "#.#..##.", "##.##..#", "####...."])
    # Of one pixel: 11 and 22, which touch by a corner alone. Of two: 13 and 14. The notch at the right edge
    # and the pocket below it are open to the edge.
    one = ["#####..#", "###..##.", "#####..#", "####...."]
    assert text_of(fill_small_holes(masks, 1)) == [one]
    assert text_of(fill_small_holes(masks, 2)) == [["#####..#", "#######.", "#####..#", "####...."]]


def test_a_hole_that_another_class_holds_in_part_is_filled_round_it():
    masks = masks_of(["####", "#..#", "####"], ["....", ".#..", "...."])
    assert text_of(fill_small_holes(masks, 1)) == text_of(masks)  # the hole has two pixels
    assert text_of(fill_small_holes(masks, 2))[0] == ["####", "#.##", "####"]
    assert text_of(fill_small_holes(masks, 2, may_overlap=True))[0] == ["####"] * 3


def test_of_nested_rings_the_first_class_has_the_hole():
    masks = masks_of(
        ["#####", "#...#", "#...#", "#...#", "#####"],
        [".....", ".###.", ".#.#.", ".###.", "....."],
    )
    filled = fill_small_holes(masks, [9, 1])
    assert filled[:, 2, 2].tolist() == [1, 0]
    assert fill_small_holes(masks, [0, 1])[:, 2, 2].tolist() == [0, 1]


def test_a_larger_component_removes_the_smaller_ones_that_it_overlaps():
    masks = masks_of(
        ["####...#", "........"],
        ["...###..", "........"],
        [".....#..", "..####.."],
    )
    # From the largest: class 3's five pixels remove class 2's three, so class 1's four stay, though they
    # overlap class 2 as well; its single pixel overlaps nothing.
    assert text_of(dominant_components(masks)) == [
        ["####...#", "........"],
        ["........", "........"],
        [".....#..", "..####.."],
    ]


def test_of_equally_large_components_the_first_class_stays():
    masks = masks_of([".##"], ["##."])
    assert text_of(dominant_components(masks)) == [[".##"], ["..."]]


def test_masks_grow_by_a_disc_into_free_pixels():
    masks = masks_of(
        [".....", ".....", "..#..", ".....", "....."], ["....#", ".....", ".....", ".....", "....."]
    )
    probs = np.zeros((2, 5, 5))
    assert text_of(grow(masks, [1, 0], probs))[0] == [".....", "..#..", ".###.", "..#..", "....."]
    assert text_of(grow(masks, [2, 0], probs))[0] == ["..#..", ".###.", "#####", ".###.", "..#.."]
    assert text_of(grow(masks, [3, 0], probs))[0] == ["####.", "#####", "#####", "#####", "#####"]


def test_a_pixel_that_two_classes_reach_goes_to_the_more_probable():
    masks = masks_of(["#....#"], ["...#.."])
    probs = np.array([[[0.9, 0.4, 0.1, 0.1, 0.3, 0.9]], [[0.1, 0.1, 0.4, 0.9, 0.2, 0.1]]])
    # Both reach 1, 2 and 4 by two pixels; class 1 is likelier on 1 and 4, class 2 on 2.
    assert text_of(grow(masks, 2, probs)) == [["##..##"], ["..##.."]]


# ------------------------------------------------------------------------------------------- gate


def test_a_class_below_its_gate_is_emptied():
    label_probs = np.array([0.6, 0.59])
    areas = postprocess(PROBS, label_probs=label_probs, gate_threshold=0.6).sum(axis=(1, 2))
    assert areas.tolist() == [2, 0]
    areas = postprocess(PROBS, label_probs=label_probs, gate_threshold=[0.7, 0.5]).sum(axis=(1, 2))
    assert areas.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("label_probs", "areas"),
    # t0 = 1, c = 5: 5 - 4 p pixels are needed
    [([1, 1], [2, 3]), ([0.75, 0.75], [2, 3]), ([0.7, 0.5], [0, 3]), ([0.5, 0.4], [0, 0])],
)
def test_an_unsure_classifier_asks_for_a_larger_area(label_probs, areas):
    masks = postprocess(PROBS, min_area=1, label_probs=np.array(label_probs), gate_factor=5)
    assert masks.sum(axis=(1, 2)).tolist() == areas


def test_a_gate_without_label_probabilities_is_refused():
    for gate in ({"gate_threshold": 0.5}, {"gate_factor": [5, 1]}):
        with pytest.raises(ValueError, match="expected label_probs beside them"):
            postprocess(PROBS, **gate)


def test_label_probabilities_must_be_one_per_class():
    with pytest.raises(ValueError, match=r"label_probs: expected the shape \(2,\), received \(3,\)"):
        postprocess(PROBS, label_probs=np.ones(3))


# --------------------------------------------------------------------------------------- together

RING = 0.2 + 0.7 * masks_of(["#####....", "#...#..#.", "#...#....", "#####...."])  # 14 + 1 pixels above 0.5


def test_holes_count_for_the_area_and_removed_components_and_growth_do_not():
    def area(**settings):
        return int(postprocess(RING, **settings).sum())

    assert area(min_area=15) == 15
    assert area(min_component=2) == 14
    assert area(min_component=2, min_area=15) == 0
    assert area(min_component=2, fill_holes=6, min_area=20) == 20
    assert area(min_component=2, fill_holes=6, min_area=21, dilate=1) == 0
    assert area(min_component=2, fill_holes=6, min_area=20, dilate=1) == 20 + 4


def test_small_components_do_not_dominate_and_emptied_classes_do_not_either():
    probs = np.array([[[0.9, 0.9, 0.1, 0.6]], [[0.1, 0.8, 0.1, 0.8]]])
    # Class 1 has two pixels and one, class 2 twice one; class 1 removes class 2's left pixel, and on the
    # right, where both are equally large, the first class stays.
    assert postprocess(probs, overlap="dominant").tolist() == [[[1, 1, 0, 1]], [[0, 0, 0, 0]]]
    assert postprocess(probs, overlap="dominant", min_component=[2, 0]).tolist() == [
        [[1, 1, 0, 0]],
        [[0, 0, 0, 1]],
    ]
    assert postprocess(probs, overlap="dominant", label_threshold=[0.95, 0]).tolist() == [
        [[0, 0, 0, 0]],
        [[0, 1, 0, 1]],
    ]
    # min_area comes after it: class 1, too small in all, has removed class 2 before
    assert postprocess(probs, overlap="dominant", min_area=[4, 0]).sum() == 0


def test_classes_may_overlap_where_that_is_kept():
    assert postprocess(PROBS, overlap="keep").tolist() == [
        [[1, 1, 1], [0, 0, 0]],
        [[0, 1, 1], [0, 1, 1]],
    ]


PER_CLASS = [
    "threshold",
    "label_threshold",
    "min_area",
    "min_component",
    "fill_holes",
    "dilate",
    "gate_threshold",
    "gate_factor",
]


@pytest.mark.parametrize("name", PER_CLASS)
@pytest.mark.parametrize("values", [[1], [1, 1, 1], []])
def test_there_is_one_value_or_one_per_class(name, values):
    reason = f"{name}: expected one value, or one for each of 2 classes, received {len(values)}"
    with pytest.raises(ValueError, match=reason):
        postprocess(PROBS, **{"label_probs": np.ones(2), name: values})


def test_an_unknown_way_of_overlap_is_refused():
    with pytest.raises(ValueError, match="expected one of highest, dominant, keep, received 'largest'"):
        postprocess(PROBS, overlap="largest")


numbers = st.integers(0, 12)
SETTINGS = st.fixed_dictionaries(
    {
        "threshold": st.lists(st.sampled_from([0.2, 0.4, 0.5, 0.7]), min_size=3, max_size=3),
        "label_threshold": st.sampled_from([0.0, 0.6, 0.8]),
        "min_component": numbers,
        "fill_holes": numbers,
        "dilate": st.integers(0, 3),
        "gate_threshold": st.sampled_from([0.0, 0.5]),
        "gate_factor": st.sampled_from([1.0, 5.0]),
    }
)
SHEETS = arrays(np.float32, (3, 7, 9), elements=st.sampled_from([0.0, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0]))
LABELS = arrays(np.float64, (3,), elements=st.floats(0, 1))


@settings(max_examples=80, deadline=None)
@given(SHEETS, LABELS, SETTINGS, st.sampled_from(["highest", "dominant"]), st.integers(0, 20))
def test_whatever_is_asked_no_pixel_has_two_classes_and_nothing_is_changed(
    probs, label_probs, asked, overlap, area
):
    before = probs.copy(), label_probs.copy()
    masks = postprocess(probs, label_probs=label_probs, overlap=overlap, min_area=area, **asked)
    assert masks.dtype == np.uint8
    assert masks.shape == probs.shape
    assert masks.sum(axis=0).max() <= 1
    np.testing.assert_array_equal(probs, before[0])
    np.testing.assert_array_equal(label_probs, before[1])


@settings(max_examples=40, deadline=None)
@given(SHEETS, LABELS, SETTINGS, st.integers(0, 20), st.integers(0, 20))
def test_a_larger_minimum_area_empties_classes_and_changes_no_other(probs, label_probs, asked, area, more):
    asked = {**asked, "dilate": 0}  # masks grow into what others leave free
    smaller = postprocess(probs, label_probs=label_probs, min_area=area, **asked)
    larger = postprocess(probs, label_probs=label_probs, min_area=area + more, **asked)
    for one, other in zip(smaller, larger, strict=True):
        assert not other.any() or (one == other).all()


@settings(max_examples=40, deadline=None)
@given(SHEETS, st.permutations(range(3)), st.sampled_from([0.2, 0.4, 0.5, 0.7]))
def test_a_class_does_not_depend_on_the_thresholds_of_the_others(probs, order, threshold):
    thresholds = np.array([0.2, 0.5, 0.7])[list(order)]
    together = postprocess(probs, threshold=thresholds)
    for index, own in enumerate(thresholds):
        others = np.where(np.arange(3) == index, own, threshold)
        assert (postprocess(probs, threshold=others)[index] == together[index]).all()


@settings(max_examples=40, deadline=None)
@given(SHEETS, numbers)
def test_removing_small_components_and_filling_holes_twice_changes_nothing(probs, size):
    masks = postprocess(probs)
    for step in (remove_small_components, fill_small_holes):
        once = step(masks, size)
        np.testing.assert_array_equal(step(once, size), once)
