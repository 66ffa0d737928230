"""Both layouts of the CSV, every fault in them, and the split."""

import csv
import io

import cv2
import numpy as np
import pytest
from sheets import OF_2019, TODAY, draw_images

from sever.data_loader.annotations import read_table
from sever.data_loader.augmentation.pipelines import HeavyCropTransforms
from sever.data_loader.data_loaders import SteelSegDataLoader
from sever.engine.stored_split import split_csv
from sever.utils.errors import DataError

SIZES = {"a.png": (4, 6), "b.png": (4, 6), "c_1.png": (3, 5), "d.png": (4, 6)}  # (H, W)


@pytest.fixture
def data_dir(tmp_path):
    """A data set of four small images, of which one is smaller than the others."""
    for name, size in SIZES.items():
        draw_images(tmp_path / "train_images", [name], size)
    return tmp_path


def table_of(data_dir, text, classes=4):
    (data_dir / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(data_dir, "train.csv", "train_images", classes)


def faults_of(data_dir, text, classes=4):
    with pytest.raises(DataError) as error:
        table_of(data_dir, text, classes)
    return str(error.value).splitlines()


def plain(table):
    spans = {pair: of_pair.tolist() for pair, of_pair in table.spans.items()}
    return table.names, table.shapes.tolist(), table.class_ids, spans


def test_both_layouts_give_the_same_table(data_dir):
    today = table_of(data_dir, TODAY + "b.png,3,5 1 9 2\na.png,1,1 2\nc_1.png,4,1 15\n")
    masks_2019 = {("a.png", 1): "1 2", ("b.png", 3): "5 1 9 2", ("c_1.png", 4): "1 15"}
    rows = [f"{name}_{c},{masks_2019.get((name, c), '')}\n" for name in SIZES for c in (1, 2, 3, 4)]
    of_2019 = table_of(data_dir, OF_2019 + "".join(rows))
    assert plain(today) == plain(of_2019)
    assert plain(today) == (
        ["a.png", "b.png", "c_1.png", "d.png"],
        [[4, 6], [4, 6], [3, 5], [4, 6]],
        ["1", "2", "3", "4"],
        {(0, 0): [[0, 2]], (1, 2): [[4, 5], [8, 10]], (2, 3): [[0, 15]]},
    )


def test_an_image_that_the_csv_does_not_name_is_there_without_defects(data_dir):
    table = table_of(data_dir, TODAY + "b.png,2,1 1\n", classes=2)
    assert len(table) == 4
    assert table.present.tolist() == [[False, False], [False, True], [False, False], [False, False]]
    assert table.masks(3).shape == (2, 4, 6)
    assert not table.masks(3).any()


def test_masks_have_the_size_of_their_own_image(data_dir):
    table = table_of(data_dir, TODAY + "a.png,1,2 2\nc_1.png,2,2 2\n", classes=2)
    assert table.masks(0)[0].tolist() == [[0] * 6, [1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6]
    assert table.masks(2)[1].tolist() == [[0] * 5, [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]


def test_only_images_of_the_folder_count(data_dir):
    folder = data_dir / "train_images"
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    cv2.imwrite(str(folder / "E.JPG"), np.zeros((4, 6), dtype=np.uint8))
    assert table_of(data_dir, TODAY).names == ["E.JPG", "a.png", "b.png", "c_1.png", "d.png"]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + TODAY.encode() + b"a.png,1,1 2\nb.png,2,3 4\n",
        TODAY.replace("\n", "\r\n") + "a.png,1,1 2\r\nb.png,2,3 4\r\n",
        TODAY + "a.png,1,1 2\n\n,,\nb.png,2,3 4\n\n",
        TODAY + "a.png,1,1 2\nb.png,2,3 4",
        "ImageId, ClassId ,EncodedPixels\n a.png , 1 , 1 2 \nb.png,2,3 4\n",
        'ImageId,ClassId,EncodedPixels\n"a.png","1","1 2"\nb.png,2,3 4\n',
        "EncodedPixels,ImageId,by,ClassId\n1 2,a.png,Anna,1\n3 4,b.png,Ben,2\n",
        TODAY + "a.png,1,1 2\nb.png,2,3 4\nd.png,3,\n",
    ],
    ids=[
        "byte order mark",
        "CRLF",
        "blank lines",
        "no last line end",
        "spaces",
        "quotes",
        "columns",
        "empty",
    ],
)
def test_harmless_differences_of_the_file_do_not_matter(data_dir, text):
    assert plain(table_of(data_dir, text))[3] == {(0, 0): [[0, 2]], (1, 1): [[2, 6]]}


def test_all_faults_are_reported_at_once_with_their_rows(data_dir):
    (data_dir / "train_images" / "e.jpg").write_bytes(b"")
    (data_dir / "train_images" / "f.jpg").write_text("this is a text")
    rows = [
        "a.png,5,1 2",  # row 2: the header is row 1
        "zz.png,1,1 1",
        "a.png,1,24 2",
        "",
        "a.png,2,1 x",
        "a.png,3,1",
        "b.png,1,1 1",
        "b.png,1,3 1",
    ]
    faults = faults_of(data_dir, TODAY + "\n".join(rows) + "\n")
    expected = [
        ("e.jpg", "not an image"),
        ("f.jpg", "not an image"),
        ("row 2", "ClassId from 1 to 4, received '5'"),
        ("row 3", "'zz.png' is not in"),
        ("row 4", "'a.png', class 1: run '24 2' leaves the image"),
        ("row 6", "'a.png', class 2: expected numbers"),
        ("row 7", "'a.png', class 3: expected pairs"),
        ("row 9", "'b.png' has class 1 in an earlier row"),
    ]
    assert len(faults) == len(expected)
    for fault, (where, what) in zip(faults, expected, strict=True):
        assert where in fault
        assert what in fault


def test_of_many_faults_the_first_ten_are_shown_and_the_rest_counted(data_dir):
    faults = faults_of(data_dir, TODAY + "".join(f"a.png,q{i},1 1\n" for i in range(14)))
    assert len(faults) == 11
    assert faults[-1] == "(and 4 more)"


@pytest.mark.parametrize("class_id", ["0", "5", "-1", "1.0", "", "x", "²", "0000000012", "9" * 400])
def test_a_class_must_be_one_of_those_that_there_are(data_dir, class_id):
    (fault,) = faults_of(data_dir, TODAY + f"a.png,{class_id},1 2\n")
    assert f"row 2: expected a ClassId from 1 to 4, received '{class_id}'" in fault


def test_the_number_of_classes_is_free(data_dir):
    assert table_of(data_dir, TODAY + "a.png,12,1 2\n", classes=12).class_ids[-1] == "12"
    assert "from 1 to 3" in faults_of(data_dir, TODAY + "a.png,4,1 2\n", classes=3)[0]


def test_an_image_that_is_not_there_gets_the_nearest_name(data_dir):
    (fault,) = faults_of(data_dir, TODAY + "c1.png,1,1 2\n")
    assert "row 2" in fault
    assert "Did you mean 'c_1.png'?" in fault


@pytest.mark.parametrize(("first", "second"), [("1 2", "5 1"), ("1 2", "1 2"), ("1 2", ""), ("", "1 2")])
@pytest.mark.parametrize("layout", [TODAY, OF_2019])
def test_an_image_has_each_class_in_one_row(data_dir, layout, first, second):
    joint = "," if layout is TODAY else "_"
    (fault,) = faults_of(data_dir, f"{layout}a.png{joint}1,{first}\na.png{joint}1,{second}\n")
    assert "row 3: image 'a.png' has class 1 in an earlier row already" in fault


def test_a_run_must_fit_its_own_image_not_another(data_dir):
    (fault,) = faults_of(data_dir, TODAY + "a.png,1,16 1\nc_1.png,1,16 1\n")
    assert "row 3: image 'c_1.png', class 1: run '16 1' leaves the image" in fault
    assert "3 x 5" in fault


@pytest.mark.parametrize("runs", ["1", "1 2 3", "0 1", "1 0", "1 99", "1 2 2 1", "1 x", "-1 2", '"1 2\n4 1"'])
def test_runs_that_cannot_be_drawn_are_a_fault_of_their_row(data_dir, runs):
    (fault,) = faults_of(data_dir, TODAY + f"b.png,2,1 1\na.png,1,{runs}\n")
    assert "row 3: image 'a.png', class 1: " in fault


@pytest.mark.parametrize("name", ["a.png", "a.png_", "a.png_x", "_1"])
def test_a_2019_row_names_image_and_class(data_dir, name):
    (fault,) = faults_of(data_dir, OF_2019 + f"{name},1 2\n")
    assert "row 2" in fault


@pytest.mark.parametrize(
    ("text", "received"),
    [
        ("ImageId,EncodedPixels\na.png,1 2\n", "received ImageId,EncodedPixels"),
        (TODAY.replace(",", ";") + "a.png;1;1 2\n", "received ImageId;ClassId;EncodedPixels"),
        ("a.png,1,1 2\n", "received a.png,1,1 2"),
    ],
    ids=["a column too few", "semicolons", "no header"],
)
def test_other_columns_are_named_beside_those_that_are_expected(data_dir, text, received):
    (fault,) = faults_of(data_dir, text)
    assert "train.csv" in fault
    assert "ImageId,ClassId,EncodedPixels or ImageId_ClassId,EncodedPixels" in fault
    assert received in fault


@pytest.mark.parametrize(
    "text",
    [b"", TODAY.encode() + b"a.png,1,1 2\nb.png,1,1 2,5\n", "ImageId,Größe\n".encode("latin-1")],
    ids=["empty", "a field too many", "not UTF-8"],
)
def test_what_is_no_table_is_named(data_dir, text):
    (fault,) = faults_of(data_dir, text)
    assert "train.csv: not a CSV table" in fault


@pytest.mark.parametrize(
    ("csv_name", "images", "expected"),
    [
        ("train.csv", "train_image", "train_image: no such folder.* 'train_images'"),
        ("trian.csv", "train_images", "trian.csv: no such CSV.* 'train.csv'"),
        (
            "train_images",
            "train_images",
            "train_images: is a folder; expected a CSV.* Beside it: empty, train.csv",
        ),
        ("train.csv", "nothing/here", "nothing/here: no such folder"),
        ("train.csv", "empty", "empty: holds no image"),
    ],
)
def test_a_missing_file_or_folder_is_named_with_its_nearest_neighbour(data_dir, csv_name, images, expected):
    (data_dir / "train.csv").write_text(TODAY)
    (data_dir / "empty").mkdir()
    with pytest.raises(DataError, match=expected):
        read_table(data_dir, csv_name, images, classes=4)


def test_a_damaged_image_is_named_before_anything_is_trained(data_dir):
    whole = cv2.imencode(".png", np.zeros((9, 9), dtype=np.uint8))[1].tobytes()
    (data_dir / "train_images" / "e.png").write_bytes(whole[:20])
    (data_dir / "train_images" / "f.jpg").mkdir()
    faults = faults_of(data_dir, TODAY + "e.png,1,1 2\n")
    assert [fault.split(":")[0].rpartition("/")[2] for fault in faults] == ["e.png", "f.jpg"]


@pytest.fixture
def loader_args(tmp_path):
    """20 images: 10 clean, 5 with class 1, 5 with classes 1 and 2."""
    names = [f"{index:02d}.png" for index in range(20)]
    draw_images(tmp_path / "train_images", names, (4, 6))
    rows = [f"{name},1,1 2\n" for name in names[10:]] + [f"{name},2,5 1\n" for name in names[15:]]
    (tmp_path / "train.csv").write_text(TODAY + "".join(rows))
    return {"data_dir": str(tmp_path), "classes": 2, "augmentation": HeavyCropTransforms(4, 4), "seed": 3}


def test_a_split_takes_its_share_of_each_set_of_classes(loader_args):
    loader = SteelSegDataLoader(**loader_args, validation_split=0.2)
    validation = loader.split_validation()
    kinds = loader.table.present[validation.indices].sum(axis=1).tolist()
    assert sorted(kinds) == [0, 0, 1, 2]
    assert sorted([*loader.indices, *validation.indices]) == list(range(20))
    assert SteelSegDataLoader(**loader_args, validation_split=0).split_validation() is None


def test_the_split_is_written_with_every_image_once_and_can_be_used_again(loader_args):
    loader = SteelSegDataLoader(**loader_args, validation_split=5)
    validation = loader.split_validation()
    rows = list(csv.DictReader(io.StringIO(split_csv(loader.split))))
    assert sorted(row["image"] for row in rows) == [f"{index:02d}.png" for index in range(20)]
    names = [row["image"] for row in rows if row["split"] == "validation"]
    assert names == [loader.table.names[index] for index in validation.indices]
    assert len(names) == 5

    other_seed = SteelSegDataLoader(**loader_args | {"seed": 4}, validation_split=5)
    again = other_seed.split_validation(loader.split)
    assert again.indices.tolist() == validation.indices.tolist()
    assert other_seed.indices.tolist() == loader.indices.tolist()


def test_a_split_that_names_an_image_that_is_gone_is_refused(loader_args):
    loader = SteelSegDataLoader(**loader_args)
    with pytest.raises(DataError, match=r"split names: gone\.png"):
        loader.split_validation({"training": ["00.png"], "validation": ["gone.png"]})


def test_a_name_with_a_comma_or_a_quote_stays_one_field_of_the_split():
    split = {"training": ["a, b.png"], "validation": ['"c".png']}
    rows = list(csv.reader(io.StringIO(split_csv(split))))
    assert rows == [["image", "split"], ["a, b.png", "training"], ['"c".png', "validation"]]


def test_a_2019_csv_without_rows_is_a_clean_set(tmp_path):
    (tmp_path / "train_images").mkdir()
    cv2.imwrite(str(tmp_path / "train_images" / "a.png"), np.zeros((4, 6), np.uint8))
    (tmp_path / "train.csv").write_text("ImageId_ClassId,EncodedPixels\n")
    table = read_table(tmp_path, "train.csv", "train_images", classes=2)
    assert table.names == ["a.png"]
    assert not table.present.any()
