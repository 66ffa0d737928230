"""Runs against masks worked by hand, random masks and real ones."""

import csv
import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sever.utils.rle import area, decode, decode_spans, encode, encode_spans, parse, shared_area, union

few = settings(deadline=None, max_examples=80, derandomize=True)
shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)


def masks_of(shape):
    return hnp.arrays(np.uint8, shape, elements=st.integers(0, 1))


masks = shapes.flatmap(masks_of)


def spans_of(mask):
    return parse(encode(mask), mask.shape)


# Positions count down the columns: in a 2 x 3 mask they are  1 3 5  and in a 3 x 2 mask  1 4
#                                                            2 4 6                       2 5
#                                                                                        3 6
BY_HAND = [
    ("1 1", [[1, 0, 0], [0, 0, 0]]),
    ("6 1", [[0, 0, 0], [0, 0, 1]]),
    ("2 2", [[0, 1, 0], [1, 0, 0]]),  # goes on into the next column
    ("2 3 6 1", [[0, 1], [1, 0], [1, 1]]),
    ("1 2 5 1", [[1, 0], [1, 1], [0, 0]]),
    ("1 1 3 1 5 1", [[1, 0, 1, 0, 1]]),
    ("2 1", [[0], [1], [0]]),
    ("", [[0, 0, 0], [0, 0, 0]]),
    ("1 6", [[1, 1, 1], [1, 1, 1]]),
]


@pytest.mark.parametrize(("runs", "mask"), BY_HAND)
def test_runs_decode_to_the_mask_worked_by_hand(runs, mask):
    decoded = decode(runs, np.shape(mask))
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == mask


@pytest.mark.parametrize(("runs", "mask"), BY_HAND)
def test_a_mask_encodes_to_the_runs_worked_by_hand(runs, mask):
    assert encode(np.array(mask, dtype=np.uint8)) == runs


@pytest.mark.parametrize("runs", ["2 2 6 1", "6 1 2 2", "2 1 3 1 6 1", " 2  2\t6 1 "])
def test_order_joints_and_spaces_of_runs_do_not_matter(runs):
    assert decode(runs, (2, 3)).tolist() == [[0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("runs", ["", " ", " \t "])
def test_spaces_alone_are_an_empty_mask(runs):
    assert decode(runs, (2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_a_mask_may_have_any_dtype(dtype):
    mask = np.array([[0, 3], [7, 0], [1, 1]]).astype(dtype)
    assert encode(mask) == "2 3 6 1"


def test_a_mask_may_be_a_view_in_any_order():
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[1, 2:5] = 1
    assert encode(mask.T) == "9 3"  # 6 x 4 now: rows 2 to 4 of column 1, so 6 + 2 positions before it
    assert encode(mask[::-1, ::-1]) == encode(np.ascontiguousarray(mask[::-1, ::-1]))
    assert encode(mask[:, ::2]) == encode(np.ascontiguousarray(mask[:, ::2]))


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3)])
def test_a_mask_must_have_two_axes(shape):
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        encode(np.ones(shape))


@few
@given(masks)
def test_a_mask_comes_back_from_its_runs(mask):
    np.testing.assert_array_equal(decode(encode(mask), mask.shape), mask)


LINES = st.sampled_from([(1, 1), (1, 40), (40, 1), (2, 40), (40, 2)])


@few
@given((shapes | LINES).flatmap(lambda shape: st.tuples(masks_of(shape), st.integers(1, 255))))
def test_a_mask_in_any_order_and_with_any_values_gives_the_same_runs(given_mask):
    mask, value = given_mask
    runs = encode(mask)
    np.testing.assert_array_equal(decode(runs, mask.shape), mask)
    wide = np.zeros((2 * mask.shape[0], 3 * mask.shape[1]), dtype=np.uint8)
    wide[::2, ::3] = mask
    several = [value * mask, np.asfortranarray(mask), mask == 1, wide[::2, ::3], mask[::-1, ::-1][::-1, ::-1]]
    assert [encode(same) for same in several] == [runs] * len(several)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 7)])
def test_empty_and_full_masks_and_single_pixels_come_back(shape):
    pixels = shape[0] * shape[1]
    assert encode(np.zeros(shape, dtype=np.uint8)) == ""
    assert encode(np.ones(shape, dtype=np.uint8)) == f"1 {pixels}"
    assert decode(f"1 {pixels}", shape).all()
    for position in range(pixels):
        mask = np.zeros(shape, dtype=np.uint8)
        mask[position % shape[0], position // shape[0]] = 1
        assert encode(mask) == f"{position + 1} 1"
        np.testing.assert_array_equal(decode(f"{position + 1} 1", shape), mask)


@st.composite
def texts(draw):
    """Runs of a mask in any order, some of which touch, with the shape of the mask."""
    shape = draw(shapes | LINES)
    cuts = sorted(draw(st.sets(st.integers(0, shape[0] * shape[1]), max_size=12)))
    runs = [f"{a + 1} {b - a}" for a, b in itertools.pairwise(cuts) if draw(st.booleans())]
    return " ".join(draw(st.permutations(runs))), shape


@few
@given(texts())
def test_what_comes_back_from_any_runs_is_sorted_and_joined(given_text):
    runs, shape = given_text
    assert encode(decode(runs, shape)) == joined_text(runs)


@few
@given(st.lists(st.integers(1, 10**12), max_size=40))
def test_spans_are_written_number_by_number(steps):
    spans = np.cumsum(steps[: len(steps) // 2 * 2], dtype=np.int64).reshape(-1, 2)
    numbers = [number for start, stop in spans.tolist() for number in (start + 1, stop - start)]
    assert encode_spans(spans) == " ".join(map(str, numbers))


@pytest.mark.parametrize("digits", range(1, 16))
def test_numbers_keep_their_zeros(digits):
    for start in (10 ** (digits - 1), 10**digits - 1, 10 ** (digits - 1) + 1):
        assert encode_spans(np.array([[start - 1, 2 * start]])) == f"{start} {start + 1}"


@few
@given(shapes.flatmap(lambda shape: st.tuples(masks_of(shape), masks_of(shape))))
def test_areas_count_pixels(two):
    some, other = (spans_of(mask) for mask in two)
    assert area(some) == two[0].sum()
    assert shared_area(some, other) == (two[0] & two[1]).sum()


@few
@given(masks)
def test_runs_are_sorted_and_joined_pairs_from_1(mask):
    numbers = [int(word) for word in encode(mask).split()]
    flat = np.zeros(mask.size + 1, dtype=np.uint8)
    before = 0
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        assert start > before + 1 or before == 0  # with a gap to the run before it
        flat[start : start + length] = 1
        before = start + length - 1
    np.testing.assert_array_equal(flat[1:].reshape(mask.shape, order="F"), mask)


@few
@given(masks, st.data())
def test_a_box_decodes_to_that_part_of_the_whole(mask, data):
    height, width = mask.shape
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = (top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    part = decode_spans(spans_of(mask), mask.shape, box)
    np.testing.assert_array_equal(part, mask[top : top + box[2], left : left + box[3]])


def test_a_union_joins_what_overlaps_or_touches():
    several = [np.array(spans) for spans in ([[0, 3], [8, 9]], [[2, 5], [5, 6]], [[12, 14]])]
    assert union(several).tolist() == [[0, 6], [8, 9], [12, 14]]
    assert union([np.array([[0, 9]]), np.array([[2, 4]])]).tolist() == [[0, 9]]
    assert union([]).shape == (0, 2)


@few
@given(shapes.flatmap(lambda shape: st.lists(masks_of(shape), min_size=1, max_size=4)))
def test_a_union_holds_the_pixels_of_any_mask(several):
    shape = several[0].shape
    joined = union([spans_of(mask) for mask in several])
    np.testing.assert_array_equal(decode_spans(joined, shape), np.any(several, axis=0))


HUGE = "9" * 400


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ("1", "pairs.*received 1 numbers"),
        ("1 2 3", "pairs.*received 3 numbers"),
        ("0 1", "run '0 1' starts at 0: expected starts from 1 to 6"),
        ("1 0", "run '1 0' has no length"),
        ("7 1", "run '7 1' leaves the image"),
        ("5 3", "run '5 3' leaves the image"),
        ("1 7", "run '1 7' leaves the image"),
        (f"{HUGE} 1", "leaves the image"),
        (f"{2**70} 1", f"run '{2**70} 1' leaves the image"),
        ("5 " + "9" * 400, f"run '5 {'9' * 40}…' leaves the image"),
        (f"1 {HUGE}", "leaves the image"),
        (f"{HUGE} {HUGE}", "leaves the image"),
        ("1 2 2 1", "run '2 1' overlaps"),
        ("4 2 1 4", "run '4 2' overlaps"),
        ("3 1 3 1", "run '3 1' overlaps"),
        ("1 x", "expected numbers .* received 'x'"),
        ("nan 1", "expected numbers .* received 'nan'"),
        ("-1 2", "expected numbers .* received '-1'"),
        ("1 +2", r"expected numbers .* received '\+2'"),
        ("1.0 2", r"expected numbers .* received '1\.0'"),
        ("1,2", "expected numbers .* received '1,2'"),
        ("1e0 2", "expected numbers .* received '1e0'"),
        ("٣ 1", "expected numbers"),  # a digit, but not one of ours
        ("1 2\n4 1", "expected numbers"),
        ("1\u00a02", "expected numbers"),  # a space that does not break
    ],
)
def test_runs_that_cannot_be_drawn_are_refused_with_the_reason(runs, reason):
    with pytest.raises(ValueError, match=reason):
        decode(runs, (2, 3))


def joined_text(runs):
    """The runs sorted and, where they touch, joined."""
    numbers = [int(word) for word in runs.split()]
    joined = []
    for start, length in sorted(zip(numbers[::2], numbers[1::2], strict=True)):
        if joined and start == sum(joined[-1]):
            joined[-1][1] += length
        else:
            joined.append([start, length])
    return " ".join(f"{start} {length}" for start, length in joined)


def test_the_text_of_real_masks_comes_back(shared_data):
    folder = shared_data / "severstal-sample"
    with (folder / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        shape = cv2.imread(str(folder / "train_images" / row["ImageId"]), cv2.IMREAD_GRAYSCALE).shape
        assert encode(decode(row["EncodedPixels"], shape)) == joined_text(row["EncodedPixels"])


@pytest.mark.parametrize("name", ["pseudo", "submission_v1", "submission_v2"])
def test_the_text_of_real_submissions_comes_back(shared_data, name):
    with (shared_data / "rle" / f"{name}.csv").open(newline="") as file:
        texts = [row["EncodedPixels"] for row in csv.DictReader(file)]
    assert sum(map(bool, texts)) > 500
    assert [encode(decode(text, (256, 1600))) for text in texts if text] == [text for text in texts if text]
