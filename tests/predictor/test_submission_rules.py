"""A submission is checked row by row, counted, and compared with others, against figures worked by hand."""

import csv
import json
import re

import numpy as np
import pytest

from sever.predictor.submission.rules import check_submission
from sever.utils.errors import DataError
from sever.utils.rle import decode

SIZE = (4, 6)  # 24 pixels
OF_2019 = "ImageId_ClassId,EncodedPixels"
GOOD = f"""{OF_2019}
a.jpg_1,
a.jpg_2,1 2 5 1
b.jpg_1,3 4
b.jpg_2,
c.jpg_1,
c.jpg_2,9 2 13 3
"""
TODAY = """EncodedPixels,ImageId,ClassId
,a.jpg,1
1 2 5 1,a.jpg,2
3 4,b.jpg,1
,b.jpg,2
,c.jpg,1
9 2 13 3,c.jpg,2
"""
SAMPLE = f"{OF_2019}\n" + "".join(f"{name}.jpg_{c},1 1\n" for name in "abc" for c in (1, 2))


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def check(tmp_path, text, **options):
    return check_submission(written(tmp_path / "submission.csv", text), size=SIZE, **options)


def of_text(findings):
    return [str(finding) for finding in findings]


@pytest.mark.parametrize("text", [GOOD, TODAY], ids=["2019", "today"])
@pytest.mark.parametrize("sample", [None, SAMPLE], ids=["alone", "sample"])
def test_a_whole_file_has_no_faults(tmp_path, text, sample):
    given = {} if sample is None else {"sample_submission": written(tmp_path / "sample.csv", sample)}
    report = check(tmp_path, text, **given)
    assert report.accepted
    assert (report.row_count, report.images, report.classes) == (6, 3, 2)
    other_columns = ["row 1: the sample submission has other columns: ImageId_ClassId,EncodedPixels"]
    if sample:
        assert of_text(report.warnings) == (other_columns if text is TODAY else [])
    else:
        (guessed,) = of_text(report.warnings)
        assert guessed.startswith("the number of classes, 2, is only guessed from the submission")
    assert [(c.masks, c.share, c.mean_pixels) for c in report.counts] == [(1, 1 / 3, 4.0), (2, 2 / 3, 4.0)]


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        (GOOD.replace("\n", "\r\n"), []),
        (GOOD.replace("\n", "\r"), []),
        (GOOD.rstrip("\n"), []),
        (GOOD + "\n\n", []),
        (GOOD.replace("a.jpg_2,1 2 5 1", '"a.jpg_2","1 2 5 1"'), []),
        (b"\xef\xbb\xbf" + GOOD.encode(), ["row 1: begins with a byte order mark"]),
        (GOOD.replace("b.jpg_1", "\nb.jpg_1"), ["row 4: a blank line"]),
        (GOOD.replace("1 2 5 1", "1 2 3 1"), ["row 3: image 'a.jpg', class 2: run '3 1' touches the run"]),
        (
            GOOD.replace("1 2 5 1", "1 1 2 1 3 1"),
            ["run '2 1' touches the run before it: they could be one (and 1"],
        ),
        (
            GOOD.replace("1 2 5 1", "1 2  5 1"),
            ["row 3: image 'a.jpg', class 2: unneeded spaces or leading zeros"],
        ),
        (
            GOOD.replace("1 2 5 1", "1 2 5 1 "),
            ["row 3: image 'a.jpg', class 2: unneeded spaces or leading zeros"],
        ),
        (
            GOOD.replace("1 2 5 1", "01 2 5 1"),
            ["row 3: image 'a.jpg', class 2: unneeded spaces or leading zeros"],
        ),
        (
            GOOD.replace("a.jpg_1,", "a.jpg_1,2 4"),
            ["row 3: image 'a.jpg': masks of class 1 (row 2) and 2 share 2 px"],
        ),
        (
            GOOD.replace("b.jpg_2,", "b.jpg_2, "),
            ["row 5: image 'b.jpg', class 2: unneeded spaces or leading zeros"],
        ),
    ],
    ids=[
        "CRLF",
        "CR",
        "no last line end",
        "blank lines at the end",
        "quotes",
        "byte order mark",
        "blank line",
        "touching runs",
        "several touching runs",
        "two spaces",
        "space at the end",
        "leading zero",
        "two classes on a pixel",
        "a space for an empty mask",
    ],
)
def test_what_is_odd_but_accepted_is_a_warning(tmp_path, text, warnings):
    report = check(tmp_path, text, classes=2)
    assert report.accepted
    assert len(report.warnings) == len(warnings)
    for finding, expected in zip(of_text(report.warnings), warnings, strict=True):
        assert expected in finding


MUTILATIONS = [
    # what is replaced, by what, and the faults
    (
        "1 2 5 1",
        "1 2 5",
        ["row 3: image 'a.jpg', class 2: expected pairs 'start length', received 3 numbers"],
    ),
    ("1 2 5 1", "0 2 5 1", ["row 3: image 'a.jpg', class 2: run '0 2' starts at 0"]),
    ("1 2 5 1", "1 0 5 1", ["row 3: image 'a.jpg', class 2: run '1 0' has no length"]),
    ("1 2 5 1", "1 2 24 2", ["row 3: image 'a.jpg', class 2: run '24 2' leaves the image"]),
    ("1 2 5 1", "1 2 25 1", ["row 3: image 'a.jpg', class 2: run '25 1' leaves the image"]),
    (
        "1 2 5 1",
        f"{'9' * 30} 1",
        ["row 3: image 'a.jpg', class 2: run '999999999999999999999999999999 1' leaves"],
    ),
    ("1 2 5 1", "1 5 5 1", ["row 3: image 'a.jpg', class 2: run '5 1' overlaps another run"]),
    (
        "1 2 5 1",
        "5 1 1 2",
        ["row 3: image 'a.jpg', class 2: expected sorted runs, received '1 2' after '5 1'"],
    ),
    ("1 2 5 1", "-1 2 5 1", ["row 3: image 'a.jpg', class 2: expected numbers .* received '-1'"]),
    ("1 2 5 1", "1.0 2.0", ["row 3: image 'a.jpg', class 2: expected numbers .* received '1.0'"]),
    ("1 2 5 1", "nan", ["row 3: image 'a.jpg', class 2: expected numbers .* received 'nan'"]),
    ("1 2 5 1", "-1", ["row 3: image 'a.jpg', class 2: expected numbers .* received '-1'"]),
    ("1 2 5 1", '"1 2\n5 1"', ["row 3: image 'a.jpg', class 2: expected numbers"]),
    ("1 2 5 1", "[1 2]", [r"row 3: image 'a.jpg', class 2: expected numbers .* received '\[1'"]),
    ("1 2 5 1", "1 2,5 1", ["row 3: expected 2 fields, received 3", "image 'a.jpg' has no row of class 2"]),
    ("a.jpg_2,1 2 5 1", "a.jpg_2", ["row 3: expected 2 fields, received 1", "'a.jpg' has no row of class 2"]),
    ("a.jpg_2,1 2 5 1\n", "", ["^image 'a.jpg' has no row of class 2"]),
    ("c.jpg_1,\nc.jpg_2,9 2 13 3\n", "", ["^image 'c.jpg' has no row$"]),
    ("c.jpg_2,9 2 13 3\n", "c.jp", ["row 7: expected 2 fields, received 1", "'c.jpg' has no row of class 2"]),
    ("b.jpg_1,3 4\n", "b.jpg_1,3 4\nb.jpg_1,3 4\n", ["row 5: image 'b.jpg' has class 1 in row 4 already"]),
    ("b.jpg_1,3 4\n", "b.jpg_1,3 4\nb.jpg_1,\n", ["row 5: image 'b.jpg' has class 1 in row 4 already"]),
    ("b.jpg_2", "b.jpg_1", ["row 5: image 'b.jpg' has class 1 in row 4", "'b.jpg' has no row of class 2"]),
    ("b.jpg_2", "b.jpg_3", ["row 5: .*ClassId from 1 to 2, received 3", "'b.jpg' has no row of class 2"]),
    ("b.jpg_2", "b.jpg_0", ["row 5: .*ClassId from 1, received '0'", "'b.jpg' has no row of class 2"]),
    ("b.jpg_2", "b.jpg_02", ["row 5: .*ClassId from 1, received '02'", "'b.jpg' has no row of class 2"]),
    ("b.jpg_2", "b.jpg_x", ["row 5: .*ClassId from 1, received 'x'", "'b.jpg' has no row of class 2"]),
    ("b.jpg_2", "b.jpg_", ["row 5: .*ClassId from 1, received ''", "'b.jpg' has no row of class 2"]),
    ("b.jpg_2", "b.jpg", ["row 5: expected an ImageId_ClassId .* received 'b.jpg'", "no row of class 2"]),
    ("b.jpg_2", "_2", ["row 5: expected an image .* received ''", "'b.jpg' has no row of class 2"]),
    ("b.jpg_2", " b.jpg_2", ["row 5: expected an image without spaces .* ' b.jpg'", "no row of class 2"]),
    ("b.jpg_2", "b.jpg_2 ", ["row 5: .*ClassId from 1, received '2 '", "'b.jpg' has no row of class 2"]),
    ("b.jpg_2", "bb.jpg_2", [r"row 5: image 'bb.jpg' is not one of the 3 .* mean 'b.jpg'\?", "no row of"]),
    ("c.jpg_2", '"c.jpg"_2', ["row 7: not CSV", "image 'c.jpg' has no row of class 2"]),
    ("c.jpg_2,9", 'c.jpg_2,"9', ["row 7: not CSV", "image 'c.jpg' has no row of class 2"]),
    (OF_2019, "ImageId_ClassId, EncodedPixels", ["row 1: expected the columns .* ImageId_ClassId, Enc"]),
    (OF_2019, "imageid_classid,encodedpixels", ["row 1: expected the columns .* received imageid_classid"]),
    (OF_2019, "ImageId_ClassId;EncodedPixels", ["row 1: expected the columns .* ImageId_ClassId;Enc"]),
    (OF_2019, f"{OF_2019},EncodedPixels", ["row 1: has more than one column EncodedPixels"]),
    (OF_2019, f",{OF_2019}", ["row 1: expected the columns .* received ,ImageId_ClassId"]),
    (OF_2019 + "\n", "", ["row 1: expected the columns .* received a.jpg_1,$"]),
    (OF_2019 + "\n", "\n" + OF_2019 + "\n", ["row 1: expected the columns .* received none"]),
    (GOOD, "", ["row 1: expected the columns .* received none"]),
    (
        GOOD,
        OF_2019 + "\n",
        ["image 'a.jpg'", "image 'b.jpg'", "image 'c.jpg'", "has no rows below its header"],
    ),
]


@pytest.mark.parametrize(("good", "bad", "expected"), MUTILATIONS)
def test_every_fault_is_found_with_its_row(tmp_path, good, bad, expected):
    sample = written(tmp_path / "sample.csv", SAMPLE)
    report = check(tmp_path, GOOD.replace(good, bad, 1), sample_submission=sample)
    assert not report.accepted
    found = "\n".join(of_text(report.faults))
    assert len(report.faults) == len(expected), found
    for pattern in expected:
        assert re.search(pattern, found, re.MULTILINE), found


def test_bytes_that_are_no_text_are_a_fault_of_their_row(tmp_path):
    report = check(tmp_path, GOOD.encode().replace(b"b.jpg_2", b"b\xff.jpg_2"))
    assert of_text(report.faults) == [
        "row 5: expected text in UTF-8, but it holds the byte 0xff; save it as UTF-8 ('CSV UTF-8' in Excel)"
    ]


def test_a_file_alone_shows_its_own_gaps(tmp_path):
    report = check(tmp_path, GOOD.replace("b.jpg_2,\n", "").replace("c.jpg_1,", "c.jpg_9,"))
    assert of_text(report.faults) == [
        "row 5: image 'c.jpg': expected a ClassId from 1 to 2, received 9",
        "image 'b.jpg' has no row of class 2",
        "image 'c.jpg' has no row of class 1",
    ]
    assert of_text(check(tmp_path, GOOD, classes=3).faults) == [
        "no row of class 3: expected 3 classes, as --classes says"
    ]


OF_TODAY = "ImageId,EncodedPixels,ClassId\n"
FIVE = [f"{n}.jpg" for n in "abcde"]


def submission(layout, classes):
    """Rows for five images, a mask in one of class 1."""
    if layout == "2019":
        rows = [f"{n}_{c},{'1 2' if (n, c) == ('a.jpg', 1) else ''}\n" for n in FIVE for c in classes]
        return OF_2019 + "\n" + "".join(rows)
    return OF_TODAY + "".join(
        f"{n},{'1 2' if (n, c) == ('a.jpg', 1) else ''},{c}\n" for n in FIVE for c in classes
    )


SHOW_CLASS_4 = {
    "a sample of 2019": ({"sample_submission": submission("2019", "1234")}, "those of the sample submission"),
    "a sample of today that names some": (
        {"sample_submission": OF_TODAY + "".join(f"{n},1 1,4\n" for n in FIVE) + "a.jpg,1 1,1\n"},
        "those of the sample submission",
    ),
    "a train.csv of today": (
        {"reference": "ImageId,ClassId,EncodedPixels\nx.jpg,4,1 1\nx.jpg,1,4 1\n"},
        "those of the reference",
    ),
    "a train.csv of 2019 without a mask of it": (
        {
            "reference": f"{OF_2019}\n"
            + "".join(f"x.jpg_{c},{'1 1' if c == 1 else ''}\n" for c in (1, 2, 3, 4))
        },
        "those of the reference",
    ),
    "another submission": ({"against": submission("today", "1234")}, "those of the other submission"),
    "the user": ({"classes": 4}, "as --classes says"),
}


@pytest.mark.parametrize("layout", ["2019", "today"])
@pytest.mark.parametrize(("given", "source"), SHOW_CLASS_4.values(), ids=SHOW_CLASS_4)
@pytest.mark.parametrize("sample", [True, False], ids=["today's sample", "no sample"])
def test_a_class_that_is_not_there_at_all_is_a_fault(tmp_path, layout, given, source, sample):
    given = (
        {"sample_submission": OF_TODAY + "".join(f"{n},1 24,0\n" for n in FIVE)} | given if sample else given
    )
    paths = {
        key: value if key == "classes" else written(tmp_path / f"{key}.csv", value)
        for key, value in given.items()
    }
    report = check(tmp_path, submission(layout, "123"), **paths)
    assert of_text(report.faults) == [f"no row of class 4: expected 4 classes, {source}"]
    assert not [warning for warning in of_text(report.warnings) if "guessed" in warning]
    assert f"  classes  4, {source}" in report.lines()
    assert check(tmp_path, submission(layout, "1234"), **paths).accepted


@pytest.mark.parametrize("layout", ["2019", "today"])
def test_a_number_of_classes_that_is_only_guessed_is_a_warning_and_in_the_verdict(tmp_path, layout):
    sample = written(tmp_path / "sample.csv", OF_TODAY + "".join(f"{n},1 24,0\n" for n in FIVE))
    reference = written(tmp_path / "train.csv", "ImageId,ClassId,EncodedPixels\nx.jpg,2,1 1\n")
    for given in ({}, {"sample_submission": sample}, {"reference": reference}):
        report = check(tmp_path, submission(layout, "123"), **given)
        assert report.accepted
        assert [
            w for w in of_text(report.warnings) if w.startswith("the number of classes, 3, is only guessed")
        ]
        assert "  classes  3, guessed from the submission alone" in report.lines()


def test_classes_beyond_those_that_are_asked_for_are_a_warning(tmp_path):
    reference = written(tmp_path / "train.csv", "ImageId,ClassId,EncodedPixels\nx.jpg,4,1 1\n")
    for given in (
        {"classes": 3},
        {"sample_submission": written(tmp_path / "s.csv", submission("2019", "123"))},
    ):
        report = check(tmp_path, submission("2019", "123"), reference=reference, **given)
        assert report.accepted
        assert "the reference has class 4; the submission is checked for 3 classes" in str(report.warnings[0])


def test_the_verdict_says_which_images_and_sizes_it_is_for(tmp_path):
    def basis(**given):
        *_, images, sizes, _ = check(tmp_path, GOOD, **given).lines()
        return images.split(maxsplit=1)[1], sizes.split(maxsplit=1)[1]

    assert basis() == ("3 that the submission itself names", "4 x 6 pixels taken for all images")
    sizes = dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), SIZE)
    assert basis(sizes=sizes) == ("3 of the image folder", "of the image folder")
    sample = written(tmp_path / "sample.csv", SAMPLE)
    del sizes["c.jpg"]
    assert basis(sizes=sizes, sample_submission=sample) == (
        "3 of the sample submission",
        "of the image folder; 4 x 6 pixels taken for the 1 that it lacks",
    )


def test_images_have_the_sizes_that_are_given(tmp_path):
    sizes = {"a.jpg": (4, 6), "b.jpg": (2, 2), "c.jpg": (4, 6), "d.jpg": (4, 6)}
    report = check(tmp_path, GOOD, sizes=sizes)
    assert of_text(report.faults) == [
        "row 4: image 'b.jpg', class 1: run '3 4' leaves the image: expected runs of positive length within "
        "1 to 4 (2 x 2 pixels)",
        "image 'd.jpg' has no row",
    ]
    assert report.assumed_size is None
    sample = written(tmp_path / "sample.csv", SAMPLE)
    report = check(tmp_path, GOOD, sizes={"a.jpg": (4, 6), "c.jpg": (4, 6)}, sample_submission=sample)
    assert report.accepted
    assert of_text(report.warnings) == [
        "1 images are not in the image folder, e.g. 'b.jpg': their size is taken as 4 x 6 pixels"
    ]


def test_a_mask_longer_than_the_fields_of_the_csv_module_is_read(tmp_path):
    runs = " ".join(f"{start} 1" for start in range(1, 60000, 2))
    limit = csv.field_size_limit()
    assert len(runs) > limit
    path = written(tmp_path / "noise.csv", f"{OF_2019}\na.jpg_1,{runs}\n")
    assert check_submission(path).accepted
    assert csv.field_size_limit() == limit


REFERENCES = {
    "defects alone": (
        "ImageId,ClassId,EncodedPixels\nx.jpg,1,1 1\nx.jpg,2,4 1\ny.jpg,1,1 1\nz.jpg,3,1 1\n",
        None,
    ),
    "every row": (OF_2019 + "\nx.jpg_1,1 1\nx.jpg_2,4 1\ny.jpg_1,1 1\ny.jpg_2,\n", 2),
}


@pytest.mark.parametrize(("text", "images"), REFERENCES.values(), ids=REFERENCES)
def test_masks_are_counted_beside_a_reference(tmp_path, text, images):
    reference = written(tmp_path / "train.csv", text)
    report = check(tmp_path, GOOD, reference=reference, classes=2)
    assert [count.reference_masks for count in report.counts] == [2, 1]
    assert report.reference_images == images
    shares = [count.reference_share for count in report.counts]
    assert shares == ([1.0, 0.5] if images else [None, None])
    report = check(tmp_path, GOOD, reference=reference, reference_images=8, classes=2)
    assert [count.reference_share for count in report.counts] == [0.25, 0.125]
    assert "25.00%" in "\n".join(report.lines())


def test_a_class_that_was_never_found_is_a_warning(tmp_path):
    reference = written(tmp_path / "train.csv", "ImageId,ClassId,EncodedPixels\nx.jpg,1,1 1\n")
    report = check(tmp_path, GOOD.replace("3 4", ""), reference=reference, classes=2)
    assert of_text(report.warnings) == ["no mask of class 1, of which the reference has 1"]


def test_masks_are_compared_with_those_of_another_submission(tmp_path):
    # a 2: 3 px and 4 px, 3 of them shared, so 6 / 7; b 1: 4 px against none, so 0; c 2: the same; c 1: none
    # against 1 px, so 0; three of the six pairs differ
    other = (
        GOOD.replace("1 2 5 1", "1 2 5 2")
        .replace("b.jpg_1,3 4", "b.jpg_1,")
        .replace("c.jpg_1,", "c.jpg_1,7 1")
    )
    report = check(tmp_path, GOOD, against=written(tmp_path / "other.csv", other))
    comparison = report.comparison
    assert (comparison.images, comparison.pairs) == (3, 6)
    assert (comparison.masks_only_here, comparison.masks_only_there, comparison.masks_differ) == (1, 1, 1)
    assert comparison.dice == pytest.approx((3 + 6 / 7) / 6)
    assert comparison.dice_per_class == pytest.approx({1: 1 / 3, 2: (2 + 6 / 7) / 3})
    differences = [(d.image, d.class_id, round(d.dice, 4)) for d in comparison.differences]
    assert differences == [("b.jpg", 1, 0.0), ("c.jpg", 1, 0.0), ("a.jpg", 2, 0.8571)]
    text = "\n".join(report.lines(most=1))
    assert "3 of 6 pairs of image and class differ" in text
    assert "b.jpg class 1: Dice 0.0000, 4 pixels here, 0 there" in text
    assert "(and 2 more)" in text


def test_images_of_one_file_alone_are_named_and_not_compared(tmp_path):
    other = GOOD.replace("c.jpg", "d.jpg")
    report = check(tmp_path, GOOD, against=written(tmp_path / "other.csv", other))
    assert (report.comparison.images_only_here, report.comparison.images_only_there) == (["c.jpg"], ["d.jpg"])
    assert report.comparison.pairs == 4
    assert report.comparison.dice == 1.0
    nothing = GOOD.replace("jpg", "png")
    report = check(tmp_path, GOOD, against=written(tmp_path / "other.csv", nothing))
    assert report.comparison.dice is None
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["comparison"]["pairs"] == 0


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        (
            "against",
            GOOD.replace("3 4", "3 40"),
            "other.csv, row 4: image 'b.jpg', class 1: run '3 40' leaves",
        ),
        ("against", GOOD.replace("b.jpg_2", "b.jpg_1"), "other.csv, row 5: .* class 1 in row 4 already"),
        ("against", GOOD.replace("b.jpg_2", "b.jpg"), "other.csv, row 5: expected an ImageId_ClassId"),
        ("reference", GOOD.replace("b.jpg_2", "b.jpg_0"), "other.csv, row 5: .*'b.jpg': .* received '0'"),
        ("reference", "name,mask\n", "other.csv, row 1: expected the columns .* received name,mask"),
        (
            "sample_submission",
            GOOD.replace("b.jpg_2", "_2"),
            "other.csv, row 5: expected an image",
        ),
        ("sample_submission", OF_2019 + "\n", "other.csv: has no rows below its header"),
        ("sample_submission", OF_2019 + "\na.jpg_1\n", "other.csv, row 2: expected 2 fields, received 1"),
    ],
)
def test_faults_of_the_other_files_are_named(tmp_path, option, text, expected):
    with pytest.raises(DataError, match=expected):
        check(tmp_path, GOOD, **{option: written(tmp_path / "other.csv", text)})


@pytest.mark.parametrize("option", ["against", "reference", "sample_submission"])
def test_a_file_that_is_not_there_is_named(tmp_path, option):
    with pytest.raises(DataError, match=r"submision\.csv.*Did you mean 'submission\.csv'"):
        check(tmp_path, GOOD, **{option: tmp_path / "submision.csv"})
    with pytest.raises(DataError, match=r"submision\.csv: no such file.*Did you mean 'submission\.csv'"):
        check_submission(tmp_path / "submision.csv")


def test_the_lines_show_the_first_findings_and_the_verdict(tmp_path):
    lines = check(tmp_path, GOOD).lines()
    assert lines[0].endswith(
        "submission.csv: 6 rows, 3 images, 2 classes, columns ImageId_ClassId,EncodedPixels"
    )
    assert lines[-1].endswith("nothing that the competition would reject")
    lines = check(tmp_path, GOOD.replace("_1,", "_7,").replace("_2,", "_x,")).lines(most=2)
    assert "  (and 2 more)" in lines
    assert lines[-1].endswith("would be rejected")


REAL = ["pseudo", "submission_v1", "submission_v2", "sample_submission_2019_7204rows"]


@pytest.mark.parametrize("name", REAL)
def test_real_submissions_have_no_faults(shared_data, name):
    folder = shared_data / "rle"
    report = check_submission(
        folder / f"{name}.csv", sample_submission=folder / "sample_submission_2019_7204rows.csv"
    )
    assert of_text(report.faults) == []
    assert (report.row_count, report.images, report.classes) == (7204, 1801, 4)
    masks = {"pseudo": 782, "submission_v1": 558, "submission_v2": 551}.get(name, 7204)
    assert sum(count.masks for count in report.counts) == masks
    # The samples say "1 1" for all four classes: 6 pairs of them on each image.
    assert len(report.warnings) == (6 * 1801 if name.startswith("sample") else 0)


def test_todays_real_sample_names_no_class(shared_data):
    folder = shared_data / "rle"
    report = check_submission(folder / "sample_submission_current_5506rows.csv")
    assert len(report.faults) == 5506
    assert str(report.faults[0]) == "row 2: image '0000f269f.jpg': expected a ClassId from 1, received '0'"


def test_a_submission_for_other_images_lacks_those_of_todays_sample(shared_data):
    folder = shared_data / "rle"
    sample = folder / "sample_submission_current_5506rows.csv"
    report = check_submission(folder / "pseudo.csv", sample_submission=sample)
    with sample.open(newline="") as file:
        names = {row["ImageId"] for row in csv.DictReader(file)}
    absent = names - {key.removesuffix("_1") for key in runs_of(folder / "pseudo.csv")}
    assert len(absent) == 5506 - 1801
    assert {str(fault) for fault in report.faults} == {f"image '{name}' has no row" for name in absent}


@pytest.mark.parametrize("name", ["pseudo", "submission_v1", "submission_v2"])
def test_a_mutilated_real_submission_shows_each_fault_and_no_other(shared_data, tmp_path, name):
    lines = (shared_data / "rle" / f"{name}.csv").read_text().splitlines()
    full = [
        at for at, line in enumerate(lines[:-8], 1) if at > 1 and not line.endswith(",")
    ]  # rows with a mask
    rows = full[3::60][:7]
    assert len(rows) == 7
    at = [row - 1 for row in rows]
    words = [lines[place].replace(",", " ").split() for place in at]
    lines[at[0]] += " 7"  # half a pair
    lines[at[1]] += " 409600 2"
    lines[at[2]] += f" {words[2][1]} 1"  # the first pixel again
    lines[at[3]] = f"{words[3][0]},{' '.join(words[3][3:] + words[3][1:3])}"
    lines[at[4]] = lines[at[4]].replace(",", ",x", 1)
    lines[at[5]] = lines[at[5]].replace(".jpg_", ".png_")
    lines[at[6]] = lines[at[6]] + ",1"
    lines.pop()
    report = check_submission(
        written(tmp_path / "mutilated.csv", "\n".join(lines)),
        sample_submission=shared_data / "rle" / "sample_submission_2019_7204rows.csv",
    )
    assert [fault.row for fault in report.faults] == [*rows, None, None, None]
    expected = [
        "pairs",
        "leaves the image",
        "overlaps",
        "sorted runs",
        "received 'x",
        "is not one of",
        "2 fields",
    ]
    expected += ["has no row of class"] * 3
    for fault, message in zip(report.faults, expected, strict=True):
        assert message in fault.message
    assert report.warnings == []


def test_agreement_of_real_submissions_is_that_of_their_pixels(shared_data):
    paths = [shared_data / "rle" / f"submission_v{version}.csv" for version in (1, 2)]
    here, there = (runs_of(path) for path in paths)
    scores = []
    for key in here:
        if here[key] == there[key]:
            scores.append(1.0)
            continue
        some, other = (decode(runs[key], (256, 1600)).astype(bool) for runs in (here, there))
        shared = np.count_nonzero(some & other)
        scores.append(2 * shared / (np.count_nonzero(some) + np.count_nonzero(other)))
    comparison = check_submission(paths[0], against=paths[1]).comparison
    assert comparison.dice == pytest.approx(np.mean(scores), abs=1e-12)
    assert len(comparison.differences) == sum(score < 1 for score in scores)
    assert comparison.pairs == 7204


def runs_of(path):
    with path.open(newline="") as file:
        return {row["ImageId_ClassId"]: row["EncodedPixels"] for row in csv.DictReader(file)}


def test_both_layouts_pass_against_the_samples_of_real_sheets(shared_data, tmp_path):
    folder = shared_data / "severstal-sample"
    names = sorted(path.name for path in (folder / "test_images").iterdir())
    rows = [f"{name}_{c},{'1 3' if c == 3 else ''}\n" for name in names for c in (1, 2, 3, 4)]
    of_2019 = written(tmp_path / "2019.csv", f"{OF_2019}\n" + "".join(rows))
    rows = [f"{name},{'1 3' if c == 3 else ''},{c}\n" for name in names for c in (1, 2, 3, 4)]
    today = written(tmp_path / "today.csv", "ImageId,EncodedPixels,ClassId\n" + "".join(rows))
    for path in (of_2019, today):
        for sample in ("sample_submission.csv", "sample_submission_2019.csv"):
            report = check_submission(path, sample_submission=folder / sample)
            assert of_text(report.faults) == []
            assert report.classes == 4
