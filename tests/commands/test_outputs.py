"""Outputs take the place of nothing that is read, nor of anything but a file, nor of each other."""

import os
import shutil
from pathlib import Path

import pytest
from runs import done, mistake, run_folder, steel_config, synthetic_sheets, write_config

EASY = ("--agreement", "0", "--sure", "0", "--absent", "1")
PREDICT = ("predict", "-r", "m.pth")
PSEUDO = ("pseudo", "-r", "m.pth", *EASY)
IS_READ = "is one of the files that are read here; choose another name"
IS_READ_FOLDER = "is a folder that is read here"
IN_READ_FOLDER = "is a file in a folder that is read here; choose another name or folder, or remove it"
NOT_OURS = "is a file that this command did not write; choose another name, or remove it"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with data, a config that extends another, and a model."""
    folder = tmp_path_factory.mktemp("outputs") / "base"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        synthetic_sheets(Path("data"))
        names = sorted(path.name for path in Path("data/train_images").iterdir())
        Path("data/groups.csv").write_text(
            "\n".join(["ImageId,GroupId", *(f"{name},{name}" for name in names)]) + "\n"
        )
        config = steel_config(Path("data"), Path("saved"))
        config["training"] |= {"epochs": 1, "verbose": 1}
        config["data_loader"]["args"] |= {
            "validation_split": 0.5, "groups": "groups.csv", "pseudo": {"csv": "pseudo.csv", "share": 0.25}
        }  # fmt: skip
        write_config(Path("base.yml"), config)
        Path("c.yml").write_text("extends: base.yml\nname: small\n")
        run = run_folder(done("train", "-c", "c.yml"))
        shutil.copy(run / "model_best.pth", "m.pth")
        shutil.rmtree("saved")
        shutil.copy("m.pth", "checkpoint_epoch_1.pth")
        Path("data/coco.json").write_text("{}")
        done("tune", "-r", "m.pth", "-o", "tuned.yml")
    return folder


@pytest.fixture
def here(base, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(base, tmp_path / "here"))
    monkeypatch.chdir(folder)
    return folder


def everything():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def link(name, to):
    return lambda: Path(name).symlink_to(to)


def hard_link(name, to):
    return lambda: os.link(to, name)


def linked_folder(name, make, images="data/test_images"):
    """A folder that holds the images of another one under further names."""

    def spoil():
        if not Path(images).exists():
            shutil.copytree("data/test_images", images)
        Path(name).mkdir()
        for path in Path(images).resolve().iterdir():
            make(path, Path(name, path.name))

    return spoil


REFUSED = {
    "the images": ((*PREDICT, "-i", "data/test_images", "--overlays", "data/test_images"), IS_READ_FOLDER),
    "the images that the config names": ((*PREDICT, "--overlays", "data/test_images"), IS_READ_FOLDER),
    "training images": ((*PREDICT, "--overlays", "data/train_images"), IS_READ_FOLDER),
    "an image": ((*PREDICT, "-o", "data/train_images/x.tif"), "expected a name that ends with .csv"),
    "no suffix": ((*PREDICT, "-o", "submission"), "expected a name that ends with .csv"),
    "a CSV": ((*PREDICT, "-o", "data/test.csv"), IS_READ),
    "groups": ((*PREDICT, "-o", "data/groups.csv"), IS_READ),
    "pseudo-labels that the config names": ((*PSEUDO, "-o", "data/pseudo.csv"), IS_READ),
    "the sample": (
        (*PREDICT, "--sample-submission", "data/sample_submission.csv", "-o", "data/sample_submission.csv"),
        IS_READ,
    ),
    "a CSV beside those that are read": ((*PREDICT, "-o", "data/sample_submission.csv"), IN_READ_FOLDER),
    "pictures among the CSVs": ((*PREDICT, "--overlays", "data"), IS_READ_FOLDER),
    "a report beside the CSVs": (("verify", "-c", "c.yml", "--json", "data/coco.json"), IN_READ_FOLDER),
    "a CSV that is no pseudo-labels": ((*PSEUDO, "-o", "data/sample_submission.csv"), NOT_OURS),
    "the record over a config": ((*PSEUDO, "-o", "c.csv"), f"-o, whose record is c.yml: {NOT_OURS}"),
    "settings over a config": (("tune", "-r", "m.pth", "-o", "c.yml"), NOT_OURS),
    "an average over a run's checkpoint": (
        ("average", "-r", "m.pth", "-o", "checkpoint_epoch_1.pth"),
        NOT_OURS,
    ),
    "the record over settings": (
        (*PSEUDO, "--settings", "tuned.yml", "-o", "tuned.csv"),
        f"-o, whose record is tuned.yml: {IS_READ}",
    ),
    "a config that is extended": (("tune", "-r", "m.pth", "-c", "c.yml", "-o", "base.yml"), IS_READ),
    "settings as CSV": (("tune", "-r", "m.pth", "-o", "t.csv"), "a name that ends with .yml or .yaml"),
    "the checkpoint": (("average", "-r", "m.pth", "-o", "m.pth"), IS_READ),
    "a checkpoint without suffix": (("average", "-r", "m.pth", "-o", "m"), "a name that ends with .pth"),
    "a report without suffix": (("verify", "-c", "c.yml", "--json", "c.yml.new"), "ends with .json"),
    "the config": (("verify", "-c", "c.yml", "--json", "base.yml"), IS_READ),
    "the submission": (("check", "data/pseudo.csv", "--json", "data/pseudo.csv"), IS_READ),
    "scores without suffix": (("test", "-r", "m.pth", "-o", "scores"), "a name that ends with .json"),
    "a folder of pictures in the place of a file": ((*PREDICT, "--overlays", "m.pth"), "is not a folder"),
    "two outputs": ((*PREDICT, "-o", "s.csv", "--overlays", "s.csv"), "choose another name for one of them"),
    "an output in another": ((*PREDICT, "-o", "s.csv", "--overlays", "s.csv/x"), "-o s.csv is in its place"),
}
# A device is never named itself: were it replaced, all programs of the machine would suffer.
PREPARED = {
    "a link to a device": (
        link("s.csv", "/dev/null"),
        ("-o", "s.csv"),
        "is a device or a pipe, which a file",
    ),
    "a link to a CSV": (link("s.csv", "data/test.csv"), ("-o", "s.csv"), IS_READ),
    "a hard link to a CSV": (hard_link("s.csv", "data/groups.csv"), ("-o", "s.csv"), IS_READ),
    "a link to another file": (
        link("s.csv", "tuned.yml"),
        ("-o", "s.csv"),
        "is a link; give the name of its",
    ),
    "a link to nothing": (link("s.csv", "none.csv"), ("-o", "s.csv"), "is a link; give the name of its file"),
    "a pipe": (lambda: os.mkfifo("s.csv"), ("-o", "s.csv"), "is a device or a pipe"),
    "a link to the images": (link("new", "data/test_images"), ("--overlays", "new"), IS_READ_FOLDER),
    "links to images": (
        linked_folder("new", lambda path, other: other.symlink_to(path)),
        ("--overlays", "new"),
        "which is read here as data/test_images/",
    ),
    "hard links to images": (
        linked_folder("new", os.link),
        ("--overlays", "new"),
        "which is read here as data/test_images/",
    ),
    "images that are read by way of links": (
        linked_folder("some", lambda path, other: other.symlink_to(path), images="all"),
        ("-i", "some", "--overlays", "all"),
        "which is read here as some/",
    ),
}


@pytest.mark.parametrize(("args", "words"), REFUSED.values(), ids=REFUSED)
def test_an_output_replaces_nothing_that_is_read(args, words, here):
    before = everything()
    assert words in mistake(*args)
    assert everything() == before


@pytest.mark.parametrize(("prepare", "options", "words"), PREPARED.values(), ids=PREPARED)
def test_a_link_counts_as_what_it_leads_to(prepare, options, words, here):
    prepare()
    before = everything()
    assert words in mistake(*PREDICT, *options)
    assert everything() == before


OWN_LOADER = """
import json
import sever.data_loader.data_loaders as loaders

class Truth(loaders.SteelSegDataLoader):
    def __init__(self, data_dir, annotations=None, more=(), **args):
        for path in filter(None, (annotations, *more)):
            json.load(open(path))
        super().__init__(data_dir, **args)
"""


@pytest.mark.parametrize("given", ["annotations=truth.json", "more=[truth.json]"])
def test_what_a_loader_of_ones_own_reads_is_an_input(given, here, monkeypatch):
    Path("own_truth.py").write_text(OWN_LOADER)
    Path("truth.json").write_text("{}")
    monkeypatch.syspath_prepend(str(here))
    own = ("-s", "data_loader.type=own_truth.Truth", "-s", f"data_loader.args.{given}")
    message = mistake("test", "-r", "m.pth", "-s", "testing=null", *own, "-o", "truth.json", "--trust")
    assert f"-o truth.json: {IS_READ}" in message
    assert Path("truth.json").read_text() == "{}"


@pytest.mark.parametrize("length", [251, 255])
def test_an_image_with_the_longest_name_has_a_picture(length, here):
    folder = Path("odd")
    folder.mkdir()
    sheet = next(Path("data/test_images").iterdir())
    for suffix in (".jpg", ".png"):
        shutil.copy(sheet, folder / ("a" * (length - 4) + suffix))
    done(*PREDICT, "-i", "odd", "--overlays", "pictures", "-o", "s.csv")
    assert len(list(Path("pictures").iterdir())) == 2


def test_a_submission_may_lie_beside_the_images_but_replaces_none_there(here, monkeypatch):
    monkeypatch.chdir("data/test_images")
    command = ("predict", "-r", "../../m.pth", "-i", ".", "-o", "submission.csv", "--overlays", "pictures")
    before = everything()
    done(*command)
    assert f"-o submission.csv: {IN_READ_FOLDER}" in mistake(*command)
    after = everything()
    assert {path: after[path] for path in before} == before
    assert sorted({str(path.parent) for path in after.keys() - before}) == [".", "pictures"]


def test_what_a_command_wrote_before_is_replaced(here):
    done(*PSEUDO, "-o", "data/p.csv")
    done(*PREDICT, "-o", "s.csv")
    before = everything()
    for name in ("data/p.csv", "s.csv"):
        Path(name).write_text("")
    done(*PSEUDO, "-o", "data/p.csv")
    done(*PREDICT, "-o", "s.csv")
    done("tune", "-r", "m.pth", "-o", "tuned.yml")
    assert everything() == before
    for _ in range(2):
        done("average", "-r", "m.pth", "-o", "mean.pth")


def test_each_image_has_a_picture_of_its_own(here):
    folder = Path("odd")
    folder.mkdir()
    sheet = next(Path("data/test_images").iterdir())
    for name in ("x.jpg", "x.png", "x.jpg.png"):
        shutil.copy(sheet, folder / name)
    done(*PREDICT, "-i", "odd", "--overlays", "pictures", "-o", "s.csv")
    names = sorted(path.name for path in Path("pictures").iterdir())
    assert names == ["x.jpg.jpg", "x.jpg.png.jpg", "x.png.jpg"]
