"""All that `sever predict` writes says the same, and images come in any way."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from launched import PATIENCE, started
from runs import done, mistake, run_folder, steel_config, synthetic_sheets, write_config

import sever
from sever.predictor.defects import coco_counts, components

FILES = ("-o", "s.csv", "--masks", "m", "--probabilities", "p", "--defects", "d.csv", "--coco", "c.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with data and a model whose settings give masks of all classes."""
    folder = tmp_path_factory.mktemp("files") / "base"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = steel_config(synthetic_sheets(Path("data")), Path("saved"))
        config["training"] |= {"epochs": 1}
        config["predict"] = {"threshold": 0.4, "class_names": ["a", "b", "c", "d"], "mm_per_pixel": 0.5}
        run = run_folder(done("train", "-c", write_config(Path("c.yml"), config)))
        shutil.copy(run / "model_best.pth", "m.pth")
        shutil.rmtree("saved")
    return folder


@pytest.fixture
def here(base, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(base, tmp_path / "here"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def found(base):
    model = sever.load(base / "m.pth", device="cpu")
    return {each.name: each for each in model(base / "data" / "test_images")}


def contents(*names):
    paths = [
        path for name in names for path in (Path(name).iterdir() if Path(name).is_dir() else [Path(name)])
    ]
    return {str(path): path.read_bytes() for path in paths}


def test_all_files_say_the_same(here, found):
    done("predict", "-r", "m.pth", *FILES, "--overlays", "o")
    runs = pd.read_csv("s.csv", keep_default_na=False).set_index("ImageId_ClassId")["EncodedPixels"]
    defects = pd.read_csv("d.csv", dtype={"class_id": str})
    assert list(defects.columns) == ["image", *next(iter(found.values())).defects.columns]
    for name, each in found.items():
        stem = Path(name).stem
        assert {class_id: runs[f"{name}_{class_id}"] for class_id in "1234"} == each.rle()
        values = cv2.imread(f"m/{stem}.png", cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(values != 0, each.masks.any(axis=0))
        for number, mask in enumerate(each.masks, start=1):
            assert mask[values == number].all()
        np.testing.assert_array_equal(np.load(f"p/{stem}.npy"), each.probabilities.astype(np.float16))
        own = defects[defects["image"] == name].drop(columns="image").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, each.defects, atol=1e-6, check_dtype=False)
    assert {path.stem for path in Path("o").iterdir()} == {Path(name).stem for name in found}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools under NumPy 2
def test_the_format_of_coco_is_read_by_its_own_tools(here, found):
    coco = pytest.importorskip("pycocotools.coco")
    mask_of = pytest.importorskip("pycocotools.mask")
    done("predict", "-r", "m.pth", "--coco", "c.json")
    read = coco.COCO("c.json")
    assert [c["name"] for c in read.loadCats(read.getCatIds())] == ["a", "b", "c", "d"]
    assert [image["file_name"] for image in read.loadImgs(read.getImgIds())] == list(found)
    for image in read.loadImgs(read.getImgIds()):
        masks = np.zeros_like(found[image["file_name"]].masks)
        annotations = read.loadAnns(read.getAnnIds(imgIds=image["id"]))
        for annotation in annotations:
            mask = read.annToMask(annotation)
            masks[annotation["category_id"] - 1] |= mask
            rle = mask_of.encode(np.asfortranarray(mask))
            assert (annotation["area"], annotation["bbox"]) == (
                mask_of.area(rle),
                mask_of.toBbox(rle).tolist(),
            )
        np.testing.assert_array_equal(masks, found[image["file_name"]].masks)
        assert len(annotations) == len(found[image["file_name"]].defects)


@pytest.mark.parametrize("seed", range(6))
def test_runs_of_coco_give_the_component_again(seed):
    rng = np.random.default_rng(seed)
    mask = (rng.random((7, 5)) > 0.4).astype(np.uint8)
    again = np.zeros_like(mask)
    for x, y, inside in components(mask):
        counts = coco_counts(inside, x, y, (7, 5))
        assert all(counts[1:-1])  # no empty run but at the ends
        again |= np.repeat(np.arange(len(counts)) % 2, counts).reshape(5, 7).T.astype(np.uint8)
    np.testing.assert_array_equal(again, mask)


@pytest.mark.slow
def test_json_and_csv_of_defects_are_the_same_table(here):
    done("predict", "-r", "m.pth", "--defects", "d.csv")
    done("predict", "-r", "m.pth", "--defects", "d.json")
    assert not Path("submission.csv").exists()
    table = pd.read_csv("d.csv", dtype={"class_id": str})
    pd.testing.assert_frame_equal(
        pd.DataFrame(json.loads(Path("d.json").read_text())), table, check_dtype=False
    )
    done("predict", "-r", "m.pth", "--defects", "d.json", "-s", "predict.threshold=0.999")
    assert json.loads(Path("d.json").read_text()) == []


@pytest.mark.slow
def test_probabilities_may_have_8_bits(here, found):
    done("predict", "-r", "m.pth", "--probabilities", "p", "--probability-type", "uint8")
    for name, each in found.items():
        values = np.load(f"p/{Path(name).stem}.npy")
        assert values.dtype == np.uint8
        np.testing.assert_allclose(values / 255, each.probabilities, atol=0.5 / 255 + 1e-6)


def test_images_come_as_a_file_a_pattern_or_a_list(here, found):
    names = sorted(found)
    Path("nested/deep").mkdir(parents=True)
    for name, folder in zip(names, ("nested", "nested/deep", "nested/deep", "nested"), strict=True):
        shutil.copy(Path("data/test_images", name), folder)
    Path("list.txt").write_text(f"nested/{names[0]}\n\nnested/deep/{names[1]}\n")
    expected = {
        f"data/test_images/{names[0]}": [names[0]],
        "data/test_images/*.jpg": names,
        "nested/**/*.jpg": [names[0], f"deep/{names[1]}", f"deep/{names[2]}", names[3]],
        "list.txt": [names[0], f"deep/{names[1]}"],
    }
    for given, images in expected.items():
        done("predict", "-r", "m.pth", "-i", given, "-o", "s.csv", "--masks", "m")
        runs = pd.read_csv("s.csv", keep_default_na=False).set_index("ImageId_ClassId")["EncodedPixels"]
        rows = {name: found[Path(name).name].rle() for name in images}
        assert runs.to_dict() == {f"{n}_{c}": text for n, of_n in rows.items() for c, text in of_n.items()}
    assert {path.stem for path in Path("m").iterdir()} == {Path(name).stem for name in names}


@pytest.mark.slow
def test_pictures_alone_stand_beside_the_submission(here):
    done("predict", "-r", "m.pth", "--overlays", "o")
    assert Path("submission.csv").is_file()


def test_what_is_there_already_is_left_out(here, found):
    names = sorted(found)
    done("predict", "-r", "m.pth", "--masks", "m", "--overlays", "o")
    before = contents("m", "o")
    assert "All images have their files already" in done(
        "predict", "-r", "m.pth", "--masks", "m", "--overlays", "o", "--skip-existing"
    )
    Path("m", f"{Path(names[1]).stem}.png").unlink()
    kept = Path("m", f"{Path(names[0]).stem}.png")
    kept.write_bytes(b"of an earlier run")
    assert "1 images" in done("predict", "-r", "m.pth", "--masks", "m", "--overlays", "o", "--skip-existing")
    assert contents("m", "o") == before | {str(kept): b"of an earlier run"}


@pytest.mark.slow
def test_images_of_one_stem_have_files_of_their_own_also_when_some_are_left_out(here):
    Path("odd").mkdir()
    sheet = next(Path("data/test_images").iterdir())
    for name in ("x.jpg", "x.png"):
        cv2.imwrite(f"odd/{name}", cv2.imread(str(sheet)))
    done("predict", "-r", "m.pth", "-i", "odd", "--masks", "m")
    assert sorted(os.listdir("m")) == ["x.jpg.png", "x.png.png"]
    Path("m/x.png.png").unlink()
    done("predict", "-r", "m.pth", "-i", "odd", "--masks", "m", "--skip-existing")
    assert sorted(os.listdir("m")) == ["x.jpg.png", "x.png.png"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--masks", "m", "-o", "s.csv", "--skip-existing"), "--skip-existing: is for --masks, --prob"),
        (("--skip-existing",), "leave it out"),
        (("-i", "nested/**/*.jpg", "--masks", "nested/a"), "--masks nested/a: is a folder that is read here"),
        (("-i", "nested/a/*.jpg", "--overlays", "nested/a"), "--overlays nested/a: is a folder that is"),
        (("-i", "list.txt", "--masks", "nested/a"), "--masks nested/a: is a folder that is read here"),
        (("-i", "one.jpg", "-o", "one.jpg"), "-o one.jpg: is one of the files that are read here"),
        (("--defects", "d.txt"), "--defects d.txt: expected a name that ends with .csv or .json"),
        (("--coco", "data/test.csv"), "--coco data/test.csv: is one of the files that are read here"),
        (("--masks", "data/test_images"), "--masks data/test_images: is a folder that is read here"),
        (("--masks", "m", "--probabilities", "m"), "choose another name for one of them"),
        (("-i", "none*.jpg"), "none*.jpg: no image there"),
        (("-i", "c.yml"), "not an image"),
        (("-i", "twice.txt"), ".jpg twice; take one of them out"),
        (("-i", "data/*/*.jpg", "--sample-submission", "data/sample_submission.csv"), "names the images"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_named(options, words, here):
    image = next(Path("data/test_images").iterdir())
    Path("twice.txt").write_text(f"{image}\n{image}\n")
    Path("nested/a").mkdir(parents=True)
    for copy in ("nested/x.jpg", "nested/a/y.jpg", "one.jpg"):
        shutil.copy(image, copy)
    Path("list.txt").write_text("nested/a/y.jpg\n")
    before = sorted(map(str, Path().rglob("*")))
    assert words in mistake("predict", "-r", "m.pth", *options)
    assert sorted(map(str, Path().rglob("*"))) == before


@pytest.mark.slow
def test_several_processes_write_the_same_files(here):
    done("predict", "-r", "m.pth", *FILES)
    names = ("s.csv", "m", "p", "d.csv", "c.json")
    expected = contents(*names)
    for name in names:
        shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
    command = ("-m", "sever", "predict", "-r", "m.pth", *FILES, "-d", "cpu,cpu")
    with started(*command, folder=here.parent) as running:
        assert running.status(PATIENCE) == 0, running.output
    assert contents(*names) == expected
