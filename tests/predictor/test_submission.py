"""From masks to a file, worked by hand."""

import csv
from functools import partial

import numpy as np
import pytest

from sever.predictor.postprocess import postprocess
from sever.predictor.submission.read import read_layout
from sever.predictor.submission.write import Layout, write_submission
from sever.utils.csv_reading import OF_2019
from sever.utils.errors import DataError
from sever.utils.files import atomic_write

PROBS = np.array(
    [
        [[0.9, 0.8, 0.6], [0.1, 0.2, 0.5]],
        [[0.3, 0.7, 0.9], [0.5, 0.6, 0.8]],
    ],
    dtype=np.float32,
)

MASKS = {
    "b.jpg": np.array([[[0, 1], [0, 1]], [[0, 0], [0, 0]]], dtype=np.uint8),
    "a.jpg": np.array([[[0, 0], [0, 0]], [[1, 0], [0, 1]]], dtype=np.uint8),
}


def write(path, layout, class_ids, predictions):
    with atomic_write(path) as file:
        write_submission(file, layout, (layout.rows(image, class_ids, masks) for image, masks in predictions))


def test_the_2019_layout_has_a_row_per_image_and_class(tmp_path):
    path = tmp_path / "new" / "submission.csv"
    write(path, Layout(), ["1", "2"], MASKS.items())
    assert path.read_bytes() == (
        b"ImageId_ClassId,EncodedPixels\nb.jpg_1,3 2\nb.jpg_2,\na.jpg_1,\na.jpg_2,1 1 4 1\n"
    )


def test_todays_layout_has_a_row_per_image_and_class_too(tmp_path):
    path = tmp_path / "submission.csv"
    layout = Layout(("ImageId", "EncodedPixels", "ClassId"))
    write(path, layout, ["1", "2"], MASKS.items())
    assert path.read_text() == (
        "ImageId,EncodedPixels,ClassId\nb.jpg,3 2,1\nb.jpg,,2\na.jpg,,1\na.jpg,1 1 4 1,2\n"
    )


def test_a_name_with_a_comma_is_one_field(tmp_path):
    path = tmp_path / "submission.csv"
    write(path, Layout(), ["1", "2"], [("a, b.jpg", MASKS["a.jpg"])])
    with path.open(newline="") as file:
        assert list(csv.reader(file))[1:] == [["a, b.jpg_1", ""], ["a, b.jpg_2", "1 1 4 1"]]


def test_a_submission_without_images_has_its_header(tmp_path):
    path = tmp_path / "submission.csv"
    write(path, Layout(), ["1"], [])
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
        write(path, Layout(), ["1", "2"], broken(error, path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("class_ids", [["1"], ["1", "2", "3"]])
def test_an_exception_midway_leaves_an_earlier_submission_as_it_was(tmp_path, class_ids):
    path = tmp_path / "submission.csv"
    path.write_text("an earlier one")
    with pytest.raises(ValueError, match="zip"):  # not a mask for each class
        write(path, Layout(), class_ids, MASKS.items())
    assert path.read_text() == "an earlier one"
    assert list(tmp_path.iterdir()) == [path]


def layout_of(tmp_path, text, class_ids=None):
    path = tmp_path / "sample.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_layout(path, class_ids)


ROWS_2019 = "b.jpg_1,1 1\nb.jpg_2,1 1\na_1.jpg_1,\na_1.jpg_2,1 1\n"


@pytest.mark.parametrize(
    ("text", "columns", "class_ids", "complete"),
    [
        ("ImageId_ClassId,EncodedPixels\n" + ROWS_2019, OF_2019, ("1", "2"), True),
        ("ImageId_ClassId,EncodedPixels\nb.jpg_10,\na_1.jpg_2,\na_1.jpg_10,\n", OF_2019, ("2", "10"), False),
        (
            "EncodedPixels,ImageId_ClassId\n1 1,b.jpg_1\n,a_1.jpg_3\n",
            ("EncodedPixels", "ImageId_ClassId"),
            ("1", "3"),
            False,
        ),
        (
            "ImageId,EncodedPixels,ClassId\nb.jpg,1 409600,0\na_1.jpg,1 409600,0\n",
            ("ImageId", "EncodedPixels", "ClassId"),
            (),
            False,
        ),
        (
            "ImageId,ClassId,EncodedPixels\nb.jpg,1,\na_1.jpg,1,\na_1.jpg,2,\n",
            ("ImageId", "ClassId", "EncodedPixels"),
            ("1", "2"),
            False,
        ),
        (
            b"\xef\xbb\xbfImageId_ClassId,EncodedPixels\r\nb.jpg_1,1 1\r\n\r\na_1.jpg_1,\r\n,\r\n",
            OF_2019,
            ("1",),
            True,
        ),
    ],
    ids=[
        "2019",
        "2019 with gaps",
        "2019 turned round",
        "today",
        "today like train.csv",
        "byte order mark, CRLF, blank lines",
    ],
)
def test_a_sample_gives_columns_images_in_their_order_and_classes(
    tmp_path, text, columns, class_ids, complete
):
    assert layout_of(tmp_path, text) == Layout(columns, ["b.jpg", "a_1.jpg"], class_ids, complete)


def of_classes(*class_ids):
    return "ImageId_ClassId,EncodedPixels\n" + "".join(f"{n}.jpg_{c},1 1\n" for n in "ab" for c in class_ids)


@pytest.mark.parametrize(
    "text",
    [
        of_classes(1, 2, 3),
        "ImageId,EncodedPixels,ClassId\na.jpg,1 4,0\n",  # names none
        "ImageId,EncodedPixels,ClassId\na.jpg,1 4,3\nb.jpg,1 4,1\n",  # some, as a train.csv does
    ],
    ids=["2019", "today", "defects"],
)
def test_a_sample_of_the_models_classes_is_taken(tmp_path, text):
    assert layout_of(tmp_path, text, ["1", "2", "3"]).images[0] == "a.jpg"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (of_classes(1, 2, 3, 4), "1, 2, 3, 4"),
        (of_classes(1, 2), "1, 2"),
        ("ImageId,EncodedPixels,ClassId\na.jpg,1 4,4\nb.jpg,1 4,1\n", "1, 4"),
    ],
    ids=["one more", "one less", "a defect of one more"],
)
def test_a_sample_of_other_classes_than_the_model_has_is_refused(tmp_path, text, named):
    with pytest.raises(
        DataError, match=f"sample.csv: asks for the classes {named}, but the model has 1, 2, 3;"
    ):
        layout_of(tmp_path, text, ["1", "2", "3"])


def test_a_sample_with_a_mask_longer_than_the_fields_of_the_csv_module_is_read(tmp_path):
    runs = " ".join(f"{start} 1" for start in range(1, 60000, 2))
    limit = csv.field_size_limit()
    assert len(runs) > limit
    assert layout_of(tmp_path, f"ImageId_ClassId,EncodedPixels\na.jpg_1,{runs}\n").images == ["a.jpg"]
    assert csv.field_size_limit() == limit


def test_a_submission_has_the_columns_of_its_sample(tmp_path):
    layout = layout_of(tmp_path, "ClassId,EncodedPixels,ImageId\n0,1 4,a.jpg\n")
    write(tmp_path / "s.csv", layout, ["1", "2"], [(name, MASKS[name]) for name in layout.images])
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
        ("ImageId_ClassId,EncodedPixels\nsheet_a.jpg,1 1\n", "row 2: image 'sheet': .* received 'a.jpg'"),
        ("ImageId,EncodedPixels,ClassId\na.jpg,1 1,-1\n", "row 2: image 'a.jpg': .* received '-1'"),
        ("ImageId,EncodedPixels,ClassId,ClassId\na.jpg,1 1,1,1\n", "more than one column ClassId"),
        ('ImageId_ClassId,EncodedPixels\n"a.jpg"_1,1 1\n', "row 2: not CSV"),
        ("ImageId,EncodedPixels,ClassId\n,1 1,1\n", "row 2"),
        (b"\xff\xfe\x00", "row 1: .* begins with the byte order mark of UTF-16"),
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
    write(path, Layout(), ["1", "2"], [("a.jpg", masks)])
    # class 2 on pixels 02, 11, 12: column-major, from 1, these are 4, 5 and 6
    assert path.read_text().splitlines()[1:] == ["a.jpg_1,", "a.jpg_2,4 3"]
