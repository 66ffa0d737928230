"""From probabilities to masks, and from masks to a file, worked by hand."""

import csv
from functools import partial

import numpy as np
import pytest

from sever.predictor.postprocess import postprocess
from sever.predictor.submission import COLUMNS_2019, Layout, read_layout, write_submission
from sever.utils.errors import DataError

# Two classes on 2 x 3 pixels. Above 0.5: class 1 on all of row 0, class 2 on pixels 01, 02, 11 and 12.
# Of 01 and 02, which both claim, class 1 has the higher probability on 01, class 2 on 02.
PROBS = np.array(
    [
        [[0.9, 0.8, 0.6], [0.1, 0.2, 0.5]],
        [[0.3, 0.7, 0.9], [0.5, 0.6, 0.8]],
    ],
    dtype=np.float32,
)


def test_a_pixel_goes_to_the_most_probable_class_above_its_threshold():
    masks = postprocess(PROBS)
    assert masks.dtype == np.uint8
    assert masks.tolist() == [[[1, 1, 0], [0, 0, 0]], [[0, 0, 1], [0, 1, 1]]]


def test_each_class_may_have_its_own_threshold():
    # Class 1 above 0.85: pixel 00. Class 2 above 0.4: 01, 02, 10, 11, 12.
    assert postprocess(PROBS, threshold=[0.85, 0.4]).tolist() == [
        [[1, 0, 0], [0, 0, 0]],
        [[0, 1, 1], [1, 1, 1]],
    ]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.6, 0.7])
def test_a_probability_equal_to_the_threshold_is_not_above_it(dtype, threshold):
    at = dtype(threshold)
    probs = np.array([[[at, np.nextafter(at, dtype(1))]]], dtype=dtype)
    assert postprocess(probs, threshold).tolist() == [[[0, 1]]]


def test_the_highest_probability_wins_whatever_the_thresholds():
    probs = np.array([[[0.45]], [[0.6]]])
    assert postprocess(probs, threshold=[0.1, 0.5]).ravel().tolist() == [0, 1]
    assert postprocess(probs, threshold=[0.1, 0.7]).ravel().tolist() == [1, 0]


def test_of_equally_probable_classes_the_first_wins():
    probs = np.array([0.2, 0.7, 0.7, 0.7]).reshape(4, 1, 1)
    assert postprocess(probs).ravel().tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("min_area", "areas"),
    [(0, [2, 3]), (2, [2, 3]), (3, [0, 3]), (4, [0, 0]), ([3, 3], [0, 3]), ([2, 4], [2, 0])],
)
def test_a_class_needs_its_minimum_area_on_the_image(min_area, areas):
    assert postprocess(PROBS, min_area=min_area).sum(axis=(1, 2)).tolist() == areas


def test_the_area_is_counted_after_each_pixel_has_its_class():
    # Class 1 claims 3 pixels and keeps 2 of them.
    assert postprocess(PROBS, min_area=[3, 0])[0].sum() == 0


@pytest.mark.parametrize("name", ["threshold", "min_area"])
@pytest.mark.parametrize("values", [[1], [1, 1, 1], []])
def test_there_is_one_value_or_one_per_class(name, values):
    reason = f"{name}: expected one value, or one for each of 2 classes, received {len(values)}"
    with pytest.raises(ValueError, match=reason):
        postprocess(PROBS, **{name: values})


def test_the_probabilities_are_left_as_they_are():
    before = PROBS.copy()
    postprocess(PROBS, threshold=[0.6, 0.4], min_area=3)
    np.testing.assert_array_equal(PROBS, before)


# ------------------------------------------------------------------------------------- submission

MASKS = {
    "b.jpg": np.array([[[0, 1], [0, 1]], [[0, 0], [0, 0]]], dtype=np.uint8),
    "a.jpg": np.array([[[0, 0], [0, 0]], [[1, 0], [0, 1]]], dtype=np.uint8),
}


def test_the_2019_layout_has_a_row_per_image_and_class(tmp_path):
    path = tmp_path / "new" / "submission.csv"
    assert write_submission(path, Layout(), ["1", "2"], MASKS.items()) == 4
    assert path.read_bytes() == (
        b"ImageId_ClassId,EncodedPixels\nb.jpg_1,3 2\nb.jpg_2,\na.jpg_1,\na.jpg_2,1 1 4 1\n"
    )


def test_todays_layout_has_a_row_per_image_and_class_too(tmp_path):
    path = tmp_path / "submission.csv"
    layout = Layout(("ImageId", "EncodedPixels", "ClassId"))
    assert write_submission(path, layout, ["1", "2"], MASKS.items()) == 4
    assert path.read_text() == (
        "ImageId,EncodedPixels,ClassId\nb.jpg,3 2,1\nb.jpg,,2\na.jpg,,1\na.jpg,1 1 4 1,2\n"
    )


def test_a_name_with_a_comma_is_one_field(tmp_path):
    path = tmp_path / "submission.csv"
    write_submission(path, Layout(), ["1", "2"], [("a, b.jpg", MASKS["a.jpg"])])
    with path.open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["a, b.jpg_1", ""], ["a, b.jpg_2", "1 1 4 1"]]


def test_a_submission_without_images_has_its_header(tmp_path):
    path = tmp_path / "submission.csv"
    assert write_submission(path, Layout(), ["1"], []) == 0
    assert path.read_text() == "ImageId_ClassId,EncodedPixels\n"


def broken(error, path):
    """Predictions that end with an exception after the first image."""
    yield "b.jpg", MASKS["b.jpg"]
    assert not path.exists()  # nor is there half a file while it is written
    raise error


@pytest.mark.parametrize("error", [DataError("damaged"), KeyboardInterrupt(), ZeroDivisionError()])
def test_an_exception_midway_leaves_nothing_behind(tmp_path, error):
    path = tmp_path / "submission.csv"
    with pytest.raises(type(error)):
        write_submission(path, Layout(), ["1", "2"], broken(error, path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("class_ids", [["1"], ["1", "2", "3"]])
def test_an_exception_midway_leaves_an_earlier_submission_as_it_was(tmp_path, class_ids):
    path = tmp_path / "submission.csv"
    path.write_text("an earlier one")
    with pytest.raises(ValueError, match="zip"):  # not a mask for each class
        write_submission(path, Layout(), class_ids, MASKS.items())
    assert path.read_text() == "an earlier one"
    assert list(tmp_path.iterdir()) == [path]


def layout_of(tmp_path, text):
    path = tmp_path / "sample.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_layout(path)


ROWS_2019 = "b.jpg_1,1 1\nb.jpg_2,1 1\na_1.jpg_1,\na_1.jpg_2,1 1\n"


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("ImageId_ClassId,EncodedPixels\n" + ROWS_2019, COLUMNS_2019),
        (
            "EncodedPixels,ImageId_ClassId\n1 1,b.jpg_1\n,a_1.jpg_3\n",
            ("EncodedPixels", "ImageId_ClassId"),
        ),
        (
            "ImageId,EncodedPixels,ClassId\nb.jpg,1 409600,0\na_1.jpg,1 409600,0\n",
            ("ImageId", "EncodedPixels", "ClassId"),
        ),
        ("ImageId,ClassId,EncodedPixels\nb.jpg,1,\na_1.jpg,1,\n", ("ImageId", "ClassId", "EncodedPixels")),
        (b"\xef\xbb\xbfImageId_ClassId,EncodedPixels\r\nb.jpg_1,1 1\r\n\r\na_1.jpg_1,\r\n", COLUMNS_2019),
    ],
    ids=["2019", "2019 turned round", "today", "today like train.csv", "byte order mark, CRLF, blank line"],
)
def test_a_sample_gives_columns_and_images_in_their_order(tmp_path, text, columns):
    assert layout_of(tmp_path, text) == Layout(columns, ["b.jpg", "a_1.jpg"])


def test_a_submission_has_the_columns_of_its_sample(tmp_path):
    layout = layout_of(tmp_path, "ClassId,EncodedPixels,ImageId\n0,1 4,a.jpg\n")
    write_submission(tmp_path / "s.csv", layout, ["1", "2"], [(name, MASKS[name]) for name in layout.images])
    assert (tmp_path / "s.csv").read_text() == "ClassId,EncodedPixels,ImageId\n1,,a.jpg\n2,1 1 4 1,a.jpg\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "received none"),
        ("ImageId,EncodedPixels\na.jpg,1 1\n", "received ImageId,EncodedPixels"),
        ("ImageId_ClassId;EncodedPixels\na.jpg_1;1 1\n", "received ImageId_ClassId;EncodedPixels"),
        ("ImageId_ClassId,EncodedPixels,ClassId\n", "expected the columns"),
        ("ImageId_ClassId,EncodedPixels\na.jpg_1,1 1\nb.jpg_1\n", "row 3: expected 2 fields"),
        ("ImageId_ClassId,EncodedPixels\na.jpg_1,1 1\n\nb.jpg_1\n", "row 4: expected 2 fields"),
        ("ImageId_ClassId,EncodedPixels\na.jpg_1,1 1\nb.jpg,1 1\n", "row 3.*'b.jpg'"),
        ("ImageId,EncodedPixels,ClassId\n,1 1,1\n", "row 2"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_sample_of_another_form_is_refused_with_the_place(tmp_path, text, reason):
    with pytest.raises(DataError, match=f"--sample-submission .*sample.csv.*{reason}"):
        layout_of(tmp_path, text)


def test_a_missing_sample_gets_the_nearest_name(tmp_path):
    (tmp_path / "sample_submission.csv").write_text("")
    with pytest.raises(DataError, match=r"no such file\. Did you mean 'sample_submission\.csv'"):
        read_layout(tmp_path / "sample_submision.csv")


@pytest.mark.parametrize("name", ["sample_submission.csv", "sample_submission_2019.csv"])
def test_the_real_samples_name_the_31_images_of_their_folder(shared_data, name):
    folder = shared_data / "severstal-sample"
    layout = read_layout(folder / name)
    assert layout.images == sorted(path.name for path in (folder / "test_images").iterdir())


def test_the_masks_of_a_submission_are_those_of_the_probabilities(tmp_path):
    path = tmp_path / "submission.csv"
    masks = partial(postprocess, min_area=3)(PROBS)
    write_submission(path, Layout(), ["1", "2"], [("a.jpg", masks)])
    # class 2 on pixels 02, 11, 12: column-major, from 1, these are 4, 5 and 6
    assert path.read_text().splitlines()[1:] == ["a.jpg_1,", "a.jpg_2,4 3"]
