"""What drawn data sets promise; sheets are small here to be quick."""

import csv
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from sever.data_loader.synth.draw import draw_sheet
from sever.data_loader.synth.write import draw_dataset
from sever.utils.errors import DataError
from sever.utils.rle import decode

SHAPE = (64, 128)
CSV_NAMES = ("train.csv", "test.csv", "sample_submission.csv")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read_masks(folder: Path, csv_name: str, images: str) -> dict[tuple[str, int], np.ndarray]:
    """Masks by image and ClassId, of the pairs that have a defect, from either layout."""
    masks = {}
    with (folder / csv_name).open(newline="") as file:
        for row in csv.DictReader(file):
            if "ImageId_ClassId" in row:
                image_id, class_id = row["ImageId_ClassId"].rsplit("_", 1)
            else:
                image_id, class_id = row["ImageId"], row["ClassId"]
            assert (folder / images / image_id).is_file()
            if row["EncodedPixels"]:
                masks[image_id, int(class_id)] = decode(row["EncodedPixels"], SHAPE)
    return masks


def draw_sheets(n: int, shape: tuple[int, int] = SHAPE) -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_sheet(np.random.default_rng(i), shape) for i in range(n)]


@pytest.mark.parametrize("shape", [(256, 1600), (64, 128), (128, 800), (200, 200), (16, 16), (40, 17)])
def test_a_sheet_has_the_asked_shape_and_disjoint_masks(shape):
    image, masks = draw_sheet(np.random.default_rng(3), shape, classes=[1, 3, 4])
    assert image.shape == shape
    assert image.dtype == np.uint8
    assert masks.shape == (4, *shape)
    assert masks.dtype == np.uint8
    assert masks.sum(axis=0).max() == 1
    assert not masks[1].any()


@pytest.mark.parametrize("class_id", [1, 2, 3, 4])
def test_the_asked_class_alone_is_drawn(class_id):
    for seed in range(20):
        _, masks = draw_sheet(np.random.default_rng(seed), SHAPE, classes=[class_id])
        assert (np.flatnonzero(masks.any(axis=(1, 2))) + 1).tolist() == [class_id]


def test_a_sheet_repeats_with_its_generator():
    first, again, other = (draw_sheet(np.random.default_rng(seed), SHAPE) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_grey_levels_are_near_those_of_the_real_images():
    images = np.stack([image for image, _ in draw_sheets(200)]) / 255
    assert images.mean() == pytest.approx(0.344, abs=0.04)
    assert images.std() == pytest.approx(0.196, abs=0.04)


def test_no_defect_lies_on_the_black_beside_the_steel():
    n_with_black = 0
    for image, masks in draw_sheets(120):
        black = image.max(axis=0) < 14
        n_with_black += bool(black.any())
        assert not masks[:, :, black].any()
    assert 12 < n_with_black < 48


def test_defects_stand_out_from_the_steel():
    for class_id in (1, 2, 3, 4):
        contrasts = []
        for seed in range(25):
            image, masks = draw_sheet(np.random.default_rng(seed), (128, 512), classes=[class_id])
            detail = np.abs(image - cv2.GaussianBlur(image.astype(np.float32), (0, 0), 6))
            defect = masks[class_id - 1] > 0
            steel = ~defect & (image > 25)
            contrasts.append(np.quantile(detail[defect], 0.95) / np.quantile(detail[steel], 0.95))
        assert np.median(contrasts) > 1.25, class_id


@pytest.mark.parametrize(
    ("shape", "classes", "expected"),
    [
        ((15, 128), [3], "at least 16 x 16"),
        (SHAPE, [0, 3], r"received \[0\]"),
        (SHAPE, [5], r"received \[5\]"),
    ],
)
def test_a_sheet_refuses_what_it_cannot_draw(shape, classes, expected):
    with pytest.raises(ValueError, match=expected):
        draw_sheet(np.random.default_rng(0), shape, classes)


def test_a_data_set_holds_what_it_returns(tmp_path):
    paths = draw_dataset(tmp_path / "new" / "steel", n=20, shape=SHAPE)
    folder = tmp_path / "new" / "steel"
    assert paths == [folder / "train_images", folder / "test_images", *(folder / name for name in CSV_NAMES)]
    assert sorted(folder.iterdir()) == sorted(paths)
    names = [path.name for part in paths[:2] for path in part.iterdir()]
    assert len(names) == len(set(names)) == 20 + 5
    assert all(re.fullmatch(r"[0-9a-f]{9}\.jpg", name) for name in names)
    for path in paths[0].iterdir():
        assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == SHAPE


@pytest.mark.parametrize("layout", ["today", "2019"])
def test_the_same_seed_gives_the_same_bytes(tmp_path, layout):
    for name in ("a", "b"):
        draw_dataset(tmp_path / name, n=6, seed=5, layout=layout, shape=SHAPE)
    draw_dataset(tmp_path / "c", n=6, seed=6, layout=layout, shape=SHAPE)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not set(contents(tmp_path / "a")) & set(contents(tmp_path / "c")) - set(CSV_NAMES)


def test_a_larger_data_set_begins_with_the_smaller_one(tmp_path):
    for n in (5, 22):
        draw_dataset(tmp_path / str(n), n=n, shape=SHAPE)
    small, large = contents(tmp_path / "5"), contents(tmp_path / "22")
    for name in small.keys() - CSV_NAMES:
        assert small[name] == large[name]
    assert set(small["train.csv"].split()) <= set(large["train.csv"].split())


def test_both_layouts_say_the_same(tmp_path):
    for layout in ("today", "2019"):
        draw_dataset(tmp_path / layout, n=24, layout=layout, shape=SHAPE)
    for csv_name, images in (("train.csv", "train_images"), ("test.csv", "test_images")):
        today = read_masks(tmp_path / "today", csv_name, images)
        masks_2019 = read_masks(tmp_path / "2019", csv_name, images)
        assert today.keys() == masks_2019.keys()
        for pair, mask in today.items():
            np.testing.assert_array_equal(mask, masks_2019[pair])
            assert mask.any()
        for image_id in {image_id for image_id, _ in today}:
            assert sum(mask for (name, _), mask in today.items() if name == image_id).max() == 1


def test_the_files_have_the_columns_of_the_competition(tmp_path):
    for layout in ("today", "2019"):
        draw_dataset(tmp_path / layout, n=4, layout=layout, shape=SHAPE)
    names = sorted(path.name for path in (tmp_path / "today" / "test_images").iterdir())
    today, lines_2019 = (
        {name: (tmp_path / layout / name).read_text().splitlines() for name in CSV_NAMES}
        for layout in ("today", "2019")
    )
    assert today["train.csv"][0] == today["test.csv"][0] == "ImageId,ClassId,EncodedPixels"
    assert today["sample_submission.csv"] == [
        "ImageId,EncodedPixels,ClassId",
        *(f"{name},1 {64 * 128},0" for name in names),
    ]
    assert lines_2019["train.csv"][0] == lines_2019["test.csv"][0] == "ImageId_ClassId,EncodedPixels"
    assert len(lines_2019["train.csv"]) == 1 + 4 * 4
    assert lines_2019["sample_submission.csv"] == [
        "ImageId_ClassId,EncodedPixels",
        *(f"{name}_{class_id},1 1" for name in names for class_id in (1, 2, 3, 4)),
    ]


def test_classes_come_in_about_the_real_proportions(tmp_path):
    draw_dataset(tmp_path, n=96, shape=(32, 64))
    with (tmp_path / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    clean_share = 1 - len({row["ImageId"] for row in rows}) / 96
    counts = [sum(row["ClassId"] == str(class_id) for row in rows) for class_id in (1, 2, 3, 4)]
    assert clean_share == pytest.approx(5902 / 12568, abs=0.03)
    assert counts == [8, 4, 40, 8]


def test_eight_sheets_hold_every_class_and_four_hold_several(tmp_path):
    for seed in range(4):
        draw_dataset(tmp_path / str(seed), n=8, seed=seed, shape=SHAPE)
        train = read_masks(tmp_path / str(seed), "train.csv", "train_images")
        test = read_masks(tmp_path / str(seed), "test.csv", "test_images")
        assert {class_id for _, class_id in train} == {1, 2, 3, 4}
        assert {class_id for _, class_id in test} == {1, 3, 4}


def test_a_data_set_can_be_drawn_again_enlarged_or_in_the_other_layout(tmp_path):
    draw_dataset(tmp_path, n=6, shape=SHAPE)
    first = contents(tmp_path)
    draw_dataset(tmp_path, n=6, shape=SHAPE)
    assert contents(tmp_path) == first
    draw_dataset(tmp_path, n=6, layout="2019", shape=SHAPE)
    draw_dataset(tmp_path, n=9, shape=SHAPE)
    assert len(list((tmp_path / "train_images").iterdir())) == 9


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("train_images/0a1b2c3d4.jpg", "a photograph"),
        ("test_images/0a1b2c3d4.jpg", "a photograph"),
        ("train.csv", "ImageId,ClassId,EncodedPixels\n0a1b2c3d4.jpg,1,1 3\n"),
        ("sample_submission.csv", "ImageId_ClassId,EncodedPixels\n0a1b2c3d4.jpg_1,1 1\n"),
        ("train_images", "not a folder"),
    ],
)
def test_other_data_is_left_alone(tmp_path, path, text):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(DataError, match="empty folder") as error:
        draw_dataset(tmp_path, n=4, shape=SHAPE)
    assert str(tmp_path) in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("changed", [{"seed": 6}, {"n": 4}])
def test_sheets_of_another_data_set_are_left_alone(tmp_path, changed):
    asked = {"n": 6, "seed": 5, "shape": SHAPE}
    draw_dataset(tmp_path, **asked)
    before = contents(tmp_path)
    with pytest.raises(DataError, match="train_images"):
        draw_dataset(tmp_path, **(asked | changed))
    assert contents(tmp_path) == before


def test_the_csv_files_come_last(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sever.data_loader.synth.write._submission_rows", fail)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path, n=4, shape=SHAPE)
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [({"layout": "2018"}, "Did you mean '2019'"), ({"n": 0}, "n=0"), ({"seed": -1}, "seed=-1")],
)
def test_a_wrong_argument_is_named(tmp_path, argument, expected):
    with pytest.raises(DataError, match=expected):
        draw_dataset(tmp_path, shape=SHAPE, **argument)
    assert not list(tmp_path.iterdir())
