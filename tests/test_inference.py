"""`sever.load`: the same masks as `sever predict`, from Python."""

import csv
import json
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from runs import done, run_folder, steel_config, synthetic_sheets, write_config

import sever
from sever.errors import CheckpointError, ConfigError, DataError, DeviceError
from sever.inference import _GROUP
from sever.predictor.defects import defect_table

ROOT = Path(sever.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, and two models whose settings give masks, in `one.pth` and `two.pth`."""
    folder = tmp_path_factory.mktemp("inference")
    config = steel_config(synthetic_sheets(folder / "data"), folder / "saved")
    config["training"] |= {"epochs": 2, "save_period": 1}
    config["predict"] = {"threshold": 0.4, "min_area": 5, "class_names": ["a", "b", "c", "d"]}
    run = run_folder(done("train", "-c", write_config(folder / "c.yml", config)))
    for number, name in enumerate(("one.pth", "two.pth"), start=1):
        shutil.copy(run / f"checkpoint_epoch_{number}.pth", folder / name)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return sever.load(folder / "one.pth", device="cpu")


@pytest.fixture
def images(folder):
    return sorted((folder / "data" / "test_images").iterdir())


def rows_of(path):
    with path.open(newline="") as file:
        return {tuple(row[:-1]): row[-1] for row in csv.reader(file)}


def rows_found(found):
    return {(f"{each.name}_{class_id}",): runs for each in found for class_id, runs in each.rle().items()}


ENSEMBLES = {
    "one model": ({}, ()),
    "flips": ({"tta": "both"}, ("--tta", "both")),
    "other settings": (
        {"overrides": ["predict.threshold=0.45", "predict.fill_holes=9"]},
        ("-s", "predict.threshold=0.45", "-s", "predict.fill_holes=9"),
    ),
    "bf16": ({"precision": "bf16"}, ("--precision", "bf16")),
}


@pytest.mark.parametrize(
    ("given", "options"),
    [
        pytest.param(*case, id=name, marks=() if name == "one model" else pytest.mark.slow)
        for name, case in ENSEMBLES.items()
    ],
)
def test_python_gives_the_rows_of_the_command(given, options, folder, tmp_path):
    done("predict", "-r", folder / "one.pth", *options, "-o", tmp_path / "s.csv")
    expected = rows_of(tmp_path / "s.csv")
    found = sever.load(folder / "one.pth", device="cpu", **given)(folder / "data" / "test_images")
    expected.pop(("ImageId_ClassId",), None)
    assert any(expected.values())
    assert rows_found(found) == expected


def test_several_models_are_an_ensemble(folder, tmp_path):
    paths = [folder / "one.pth", folder / "two.pth"]
    options = ("--average", "geometric", "--weights", "1,2")
    done("predict", "-r", paths[0], "-r", paths[1], *options, "-o", tmp_path / "s.csv")
    expected = rows_of(tmp_path / "s.csv")
    expected.pop(("ImageId_ClassId",), None)
    model = sever.load(paths, average="geometric", weights=[1, 2], device="cpu")
    assert rows_found(model(folder / "data" / "test_images")) == expected


def test_an_image_may_come_in_any_way(model, images):
    """As an array, a path, in a list, a folder, a pattern, an iterator, by itself or among others."""
    grey = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION) for path in images]
    expected = [found.rle() for found in model(images[0].parent)]
    ways = {
        "path": [model(path) for path in images],
        "text": [model(str(path)) for path in images],
        "array": [model(image) for image in grey],
        "list": model([*images]),
        "pattern": list(model(f"{images[0].parent}/*.jpg")),
        "tuple of both": list(model((*grey[:2], *images[2:]))),
        "iterator": list(model(iter(grey))),
    }
    for way, found in ways.items():
        assert [each.rle() for each in found] == expected, way
    assert [found.name for found in ways["list"]] == [path.name for path in images]
    assert [found.name for found in ways["iterator"]] == [str(number) for number in range(len(images))]
    np.testing.assert_array_equal(ways["array"][0].image, grey[0])


def test_what_is_found_has_the_documented_form(model, images):
    found = model(images[0])
    height, width = found.image.shape
    assert (found.masks.shape, found.masks.dtype) == ((4, height, width), np.uint8)
    assert (found.probabilities.shape, found.probabilities.dtype) == ((4, height, width), np.float32)
    assert set(np.unique(found.masks)) <= {0, 1}
    assert (found.class_ids, found.class_names) == (["1", "2", "3", "4"], ["a", "b", "c", "d"])
    assert set(found.defects["name"]) <= set("abcd")
    assert found.defects.groupby("class_id")["area"].sum().to_dict() == {
        class_id: mask.sum()
        for class_id, mask in zip(found.class_ids, found.masks, strict=True)
        if mask.any()
    }
    assert found.plot().width >= width
    assert str(found) == f"Found({images[0].name}, {height} x {width}, {len(found.defects)} defects)"


def test_a_stream_is_read_as_it_is_asked_for(model, images):
    image = cv2.imread(str(images[0]), cv2.IMREAD_GRAYSCALE)
    read = []

    def camera():
        for number in count():
            read.append(number)
            yield image

    stream = model(camera())
    assert read == []
    names = [next(stream).name for _ in range(_GROUP + 1)]
    assert names == [str(number) for number in range(_GROUP + 1)]
    assert len(read) == 2 * _GROUP


def test_images_of_several_sizes_come_in_their_order(model):
    shapes = [(48, 64), (32, 96), (48, 64), (33, 47)]
    found = model([np.full(shape, 90, np.uint8) for shape in shapes])
    assert [each.masks.shape[1:] for each in found] == shapes


BAD = {
    "colour": (
        np.zeros((8, 8, 3), np.uint8),
        r"image 0: expected an array \(H, W\) uint8, received \(8, 8, 3\)",
    ),
    "floats": (np.zeros((8, 8)), r"received \(8, 8\) float64"),
    "16 bits": (np.zeros((8, 8), np.uint16), "uint16"),
    "empty": (np.zeros((0, 8), np.uint8), r"received \(0, 8\)"),
    "a number": (5, "expected an image, or several, received 5"),
    "a list of numbers": ([5], "image 0: expected an array or a path, received 5"),
    "a missing file": ("none.jpg", "none.jpg: no image there"),
    "a missing file in a list": (["none.jpg"], "image 0: none.jpg: no such file"),
    "a pattern": ("none/*.jpg", "no image there"),
    "a text": ("c.yml", "c.yml: not an image"),
    "an empty folder": ("nothing", "holds no image"),
}


@pytest.mark.parametrize(("given", "words"), BAD.values(), ids=BAD)
def test_what_is_no_image_is_named(given, words, model, folder, monkeypatch):
    monkeypatch.chdir(folder)
    Path("nothing").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=words):
        list(model(given))


def test_what_cannot_be_loaded_is_named(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        sever.load(tmp_path / "none.pth")
    with pytest.raises(DeviceError):
        sever.load(folder / "one.pth", device="77")
    with pytest.raises(ConfigError, match="device: expected one, received cpu,cpu"):
        sever.load(folder / "one.pth", device="cpu,cpu")
    with pytest.raises(ConfigError, match="unknown key 'thresold'"):
        sever.load(folder / "one.pth", overrides=["predict.thresold=0.5"])
    with pytest.raises(ConfigError, match="class_names: expected 4, one for each class, received 1"):
        sever.load(folder / "one.pth", overrides=["predict.class_names=[x]"])


def test_importing_sever_is_light():
    code = "import sever, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        sever.lode  # noqa: B018


def test_the_notebook_runs(folder, tmp_path, monkeypatch):
    shutil.copy(folder / "one.pth", tmp_path / "model_best.pth")
    shutil.copytree(folder / "data" / "test_images", tmp_path / "sheets")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs" / "predict.ipynb").read_text(encoding="utf-8"))
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    images = {path.name for path in Path("sheets").iterdir()}
    assert set(pd.read_csv("defects.csv")["image"]) <= images
    assert names["rows"].keys() == {f"{name}_{class_id}" for name in images for class_id in "1234"}


# ------------------------------------------------------------------------------------------ defects


def drawn(*lines):
    return np.array([[int(letter != ".") for letter in line] for line in lines], np.uint8)


def test_defects_worked_by_hand():
    masks = np.stack(
        [drawn("......", ".####.", "......", "#....."), drawn("#.....", ".#....", "..#...", "...#..")]
    )
    probs = np.full(masks.shape, 0.2, np.float32)
    probs[0, 1, 1:5] = [0.5, 0.6, 0.7, 0.8]
    probs[0, 3, 0] = 0.9
    probs[1] = 0.75
    table = defect_table(masks, probs, ["1", "3"], ["scratch", "crack"], mm_per_pixel=2.0)
    first, dot, diagonal = (row._asdict() for row in table.itertuples(index=False))
    assert first == {
        **{"class_id": "1", "name": "scratch", "x": 1, "y": 1, "box_width": 4, "box_height": 1, "area": 4},
        **{"length": 4.0, "width": 1.0, "angle": 0.0},
        **{"mean_probability": pytest.approx(0.65), "peak_probability": pytest.approx(0.8)},
        **{"area_mm2": 16.0, "length_mm": 8.0, "width_mm": 2.0},
    }
    assert (dot["x"], dot["y"], dot["area"], dot["length"], dot["angle"]) == (0, 3, 1, 1.0, 0.0)
    assert (diagonal["name"], diagonal["area"]) == ("crack", 4)
    assert diagonal["length"] == pytest.approx(3 * 2**0.5 + 1, abs=0.01)
    assert diagonal["angle"] == pytest.approx(45, abs=0.1)  # clockwise, as y points down


@pytest.mark.parametrize(("lines", "angle"), [(("#", "#", "#"), 90), (("..#", ".#.", "#.."), -45)])
def test_the_angle_of_a_defect(lines, angle):
    mask = drawn(*lines)[None]
    assert defect_table(mask, mask * 0.5, ["1"])["angle"].tolist() == pytest.approx([angle], abs=0.1)


def test_no_defect_makes_an_empty_table_of_the_same_columns():
    empty = defect_table(np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4)), ["1"])
    full = defect_table(np.ones((1, 4, 4), np.uint8), np.ones((1, 4, 4)), ["1"])
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
