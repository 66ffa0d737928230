"""`sever verify` finds every sort of fault, all at once; `sever train` stops at the same ones."""

import json
import re
import shutil
import threading

import cv2
import numpy as np
import pytest
import torch
from runs import ROOT, done, mistake, sever, steel_config, write_config
from sheets import OF_2019, TODAY

from sever.config.load import LoadedConfig, load_config
from sever.data_loader.annotations import scan_table
from sever.data_loader.data_faults import ERRORS, WARNINGS
from sever.data_loader.data_loaders import SteelSegDataLoader
from sever.data_loader.verify.copies import copies
from sever.data_loader.verify.images_and_masks import inspect_sheets
from sever.data_loader.verify.near_duplicates import ALIKE, POSITIONS, fingerprint, moved, nearest
from sever.factory import training_loader
from sever.parallel.threads import in_threads
from sever.utils.errors import DataError

SIZE = (40, 60)
NAMES = [f"{index:02d}.png" for index in range(12)]
ROWS = [f"{name},{index % 4 + 1},{3 * index + 1} 5" for index, name in enumerate(NAMES)]


def texture(seed, size=SIZE):
    """Steel of its own: smooth random grey levels with some noise, (H, W) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(120, 30, (9, 12)).astype(np.float32)
    noise = rng.normal(0, 3, size)
    return np.clip(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC) + noise, 0, 255).astype(
        np.uint8
    )


def write_csv(path, rows, head=TODAY):
    path.write_text(head + "".join(f"{row}\n" for row in rows))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A data set without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    for number, half in enumerate(("train_images", "test_images")):
        (folder / half).mkdir()
        for index, name in enumerate(NAMES[: 12 - 9 * number]):
            cv2.imwrite(str(folder / half / name), texture(100 * number + index))
    write_csv(folder / "train.csv", ROWS)
    return folder


@pytest.fixture
def data_dir(whole, tmp_path):
    """A copy of it to spoil."""
    return shutil.copytree(whole, tmp_path / "data")


class Verified:
    """What `sever verify` says of a data set."""

    def __init__(self, data_dir, sections=None, args=None):
        config = steel_config(data_dir, data_dir.parent / "saved")
        del config["testing"]
        config["data_loader"]["args"] |= args or {}
        path = write_config(data_dir.parent / "small.yml", config | (sections or {}))
        output = data_dir.parent / "verified.json"
        before = sorted(data_dir.parent.rglob("*"))
        result = sever("verify", "-c", path, "--json", output)
        assert sorted(data_dir.parent.rglob("*")) == sorted({*before, output})
        self.path, self.text, self.status = path, result.stdout, result.exit_code
        self.json = json.loads(output.read_text())

    @property
    def found(self):
        """(half, sort) -> the faults of that sort."""
        found = {}
        for fault in self.json["faults"]:
            found.setdefault((fault["half"], fault["sort"]), []).append(fault)
        return found


def test_data_without_a_fault_can_be_trained_on(data_dir):
    verified = Verified(data_dir)
    assert verified.status == 0
    assert verified.json["faults"] == []
    assert verified.json["compared"]
    assert verified.text.endswith("small.yml: can be trained on; 0 errors, 0 warnings\n")
    assert "training  12 images" in verified.text
    assert "40 x 60 px; masks of class 1: 3, class 2: 3, class 3: 3, class 4: 3; 0 not in" in verified.text


def test_images_that_the_csv_does_not_name_are_counted_as_clean(data_dir):
    write_csv(data_dir / "train.csv", ROWS[:9])
    verified = Verified(data_dir)
    assert verified.json["faults"] == []
    assert verified.json["halves"][0]["not_named"] == 3


def with_rows(*rows):
    return lambda folder: write_csv(folder / "train.csv", [*ROWS, *rows])


def with_row_1(row):
    return lambda folder: write_csv(folder / "train.csv", [ROWS[0], row, *ROWS[2:]])


def with_file(content, name="01.png"):
    """Replace an image by bytes, or by what becomes of its own."""

    def change(folder):
        path = folder / "train_images" / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return change


def with_image(make, name="01.png"):
    """Replace an image by what becomes of its grey levels."""

    def change(folder):
        path = folder / "train_images" / name
        cv2.imwrite(str(path), make(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)))

    return change


# What is changed -> its sort, the row or None, what the message says.
SPOILT = {
    "missing image": (with_rows("gone.png,1,1 2"), "no_image", 14, "'gone.png' is not in .* Put it there"),
    "path": (with_rows("../00.png,1,1 2"), "bad_name", 14, r"file name of an image in .* '\.\./00\.png'"),
    "absolute path": (with_rows("/etc/x.png,1,1 2"), "bad_name", 14, "received '/etc/x.png'"),
    "folder": (with_rows("a/00.png,1,1 2"), "bad_name", 14, "write its name alone"),
    "backslash": (with_rows("..\\00.png,1,1 2"), "bad_name", 14, "expected the file name"),
    "no name": (with_rows(",1,1 2"), "bad_name", 14, "received ''"),
    "class": (with_rows("00.png,5,1 2"), "class_id", 14, "ClassId from 1 to 4, received '5'; correct it"),
    "twice": (with_rows("00.png,1,1 2"), "twice", 14, r"in an earlier row already \(row 2\); join the two"),
    "words": (with_row_1("01.png,2,1 x"), "runs_text", 3, "expected numbers .* received 'x'"),
    "odd": (with_row_1("01.png,2,1 2 3"), "runs_odd", 3, "expected pairs 'start length', received 3 numbers"),
    "start": (with_row_1("01.png,2,0 2"), "runs_start", 3, "'0 2' starts at 0: .* first pixel as 1"),
    "no length": (
        with_row_1("01.png,2,5 0"),
        "runs_empty",
        3,
        "'5 0' has no length: .* or take the run away",
    ),
    "other folder": (
        lambda folder: write_csv(folder / "train.csv", [f"x{n}.png,1,1 2" for n in range(9)]),
        "other_folder",
        None,
        "it names 9 images, of which none is in .* the CSV of another folder",
    ),
    "outside": (with_row_1("01.png,2,2400 2"), "runs_outside", 3, "'2400 2' leaves the image: .*40 x 60"),
    "overlapping": (with_row_1("01.png,2,1 5 3 5"), "runs_overlap", 3, "'3 5' overlaps another run"),
    "empty file": (with_file(b""), "empty_file", None, r"empty \(0 bytes\)\. Put a whole copy in its place"),
    "text file": (with_file(b"not a picture"), "not_an_image", None, "not an image, or damaged"),
    "cut off": (with_file(lambda png: png[: len(png) // 2]), "truncated", None, "can be decoded whole"),
    "size": (with_image(lambda g: g[:30]), "other_size", None, "40 x 60 pixels .* 11 of 12 .* 30 x 60"),
    "colour": (
        with_image(lambda g: np.dstack([g, g, np.clip(g, 40, 255) - 7])),
        "colour",
        None,
        "differ by up to 7 grey levels",
    ),
    "16 bits": (
        with_image(lambda g: g.astype(np.uint16) * 200),
        "sixteen_bits",
        None,
        "8 bits .* received 16",
    ),
    "unsorted": (with_row_1("01.png,2,9 2 1 2"), "runs_unsorted", 3, "expected runs sorted by start"),
    "two classes": (
        with_rows("01.png,3,8 9"),
        "classes_overlap",
        14,
        r"received 1 px of class 3 that class 2 \(row 3\) has too",
    ),
    "whole image": (with_row_1("01.png,2,1 2400"), "covers_all", 3, "covers all of 40 x 60 pixels"),
    "empty row": (with_rows("01.png,3,"), "empty_row", 14, "expected runs, received none"),
    "no class 4": (
        lambda folder: write_csv(folder / "train.csv", [row for row in ROWS if ",4," not in row]),
        "class_without_mask",
        None,
        "none of class 4",
    ),
}


@pytest.mark.parametrize(("spoil", "sort", "row", "message"), SPOILT.values(), ids=SPOILT)
def test_each_sort_is_found_with_its_file_and_row(data_dir, spoil, sort, row, message):
    spoil(data_dir)
    verified = Verified(data_dir)
    ((fault,),) = verified.found.values()
    assert (fault["half"], fault["sort"], fault["row"]) == ("training", sort, row)
    assert fault["error"] == (sort in ERRORS)
    assert verified.status == (2 if sort in ERRORS else 0)
    assert re.search(message, fault["message"]), fault["message"]
    named = "train.csv" if row or sort in ("class_without_mask", "other_folder") else "01.png"
    assert fault["file"].endswith(named)
    assert f"{fault['file']}{f', row {row}' if row else ''}: {fault['message']}" in verified.text
    assert verified.json["counts"] == {sort: {"training": 1}}


def jpeg_cut_off(_):
    jpeg = cv2.imencode(".jpg", texture(1))[1].tobytes()
    return jpeg[: len(jpeg) * 2 // 3]


def jpeg_damaged(_):
    jpeg = cv2.imencode(".jpg", texture(1), [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    return jpeg[:1000] + jpeg[1500:]


@pytest.mark.parametrize("damage", [jpeg_cut_off, jpeg_damaged])
@pytest.mark.parametrize("folder", ["train_images", "test_images"])
def test_a_jpeg_that_is_cut_off_or_damaged_is_found(data_dir, damage, folder):
    (data_dir / folder / "01.png").write_bytes(damage(b""))
    half = "training" if folder == "train_images" else "predict"
    assert list(Verified(data_dir).found) == [(half, "truncated")]


def test_colour_that_is_grey_is_no_fault(data_dir):
    with_image(lambda g: np.dstack([g, g, g]))(data_dir)
    with_image(lambda g: np.dstack([g, g, g, 0 * g + 90]), "02.png")(data_dir)  # with an alpha channel
    assert Verified(data_dir).json["faults"] == []


def test_a_2019_csv_has_empty_rows(data_dir):
    masks = {tuple(row.split(",")[:2]): row.split(",")[2] for row in ROWS}
    rows = [f"{name}_{c},{masks.get((name, str(c)), '')}" for name in NAMES for c in (1, 2, 3, 4)]
    write_csv(data_dir / "train.csv", rows, OF_2019)
    assert Verified(data_dir).json["faults"] == []


def test_all_faults_come_at_once_with_a_table_of_counts(data_dir):
    with_rows("gone.png,1,1 2", "00.png,9,1 2", *(f"q{index}.png,1,1 1" for index in range(14)))(data_dir)
    with_file(b"")(data_dir)
    with_file(jpeg_cut_off, "02.png")(data_dir)
    with_image(lambda g: g[:30], "03.png")(data_dir)
    (data_dir / "test_images" / "00.png").write_bytes(b"")
    verified = Verified(data_dir)
    assert verified.status == 2
    counts = {"class_id": 1, "empty_file": 1, "truncated": 1, "no_image": 15, "other_size": 1}
    assert {sort: of["training"] for sort, of in verified.json["counts"].items()} == counts
    assert verified.json["counts"]["empty_file"] == {"training": 1, "predict": 1}
    assert verified.text.count("' is not in") == 10
    assert "  (and 5 more)\n" in verified.text
    assert re.search(r"^ +training +predict\nerrors +18 +1\n", verified.text, re.MULTILINE)
    assert re.search(r"^  image file: empty +1 +1\n", verified.text, re.MULTILINE)
    assert "validation images were not compared" in verified.text
    assert verified.text.endswith(
        "small.yml: sever train and sever predict would fail; 19 errors, 1 warning\n"
    )


@pytest.mark.parametrize("gone", ["train.csv", "train_images"])
def test_a_csv_or_folder_that_is_not_there_is_one_fault(data_dir, gone):
    (data_dir / gone).rename(data_dir / "elsewhere")
    verified = Verified(data_dir)
    assert verified.status == 2
    assert list(verified.found) == [("training", "no_csv" if gone == "train.csv" else "no_folder")]


def test_training_stops_at_the_same_faults_and_points_to_verify(data_dir):
    with_rows("../x.png,1,1 2", "00.png,9,1 2", *(f"q{index}.png,1,1 1" for index in range(14)))(data_dir)
    with_file(b"")(data_dir)
    write_csv(data_dir / "groups.csv", ["gone.png,a"], "ImageId,GroupId\n")
    write_csv(data_dir / "pseudo.csv", ["00.png,7,1 1"])
    args = {"groups": "groups.csv", "pseudo": {"csv": "pseudo.csv"}}
    verified = Verified(data_dir, args=args)
    message = mistake("train", "-c", verified.path, "--dry-run")
    sorts = ["empty_file", "bad_name", "class_id", "no_image", "group"]
    assert [sort for half, sort in verified.found if half == "training"] == [*sorts]
    assert list(verified.found)[-1] == ("pseudo", "class_id")
    for fault in (faults[0] for faults in verified.found.values()):
        assert fault["message"].partition(". Did")[0] in message
    assert message.count("is not in") == 11  # ten of the images, and the group's
    assert "(and 4 more)" in message
    assert message.endswith(f"For all faults, run sever verify -c {verified.path}\n")
    message = mistake("train", "-c", verified.path, "--dry-run", "-s", "seed=5")
    assert message.endswith(f"For all faults, run sever verify -c {verified.path} with the same -s\n")
    assert not (data_dir.parent / "saved").exists()


def test_faults_in_a_resumed_run_name_the_config_in_its_folder(data_dir):
    write_csv(data_dir / "train.csv", [*ROWS, "00.png,7,1 1"])
    written = load_config(write_config(data_dir / "config.yml", steel_config(data_dir, data_dir)))
    stored = LoadedConfig(written.values, f"{data_dir / 'model_best.pth'} (its config)")
    command = re.escape(f"For all faults, run sever verify -c {data_dir / 'config.yml'}")
    with pytest.raises(DataError, match=f"{command}$"):
        training_loader(stored, torch.device("cpu"))
    with pytest.raises(DataError, match=f"{command} with the same -s$"):
        training_loader(stored.override(["seed=5"]), torch.device("cpu"))


def test_an_image_that_is_damaged_during_training_is_named(data_dir):
    loader = SteelSegDataLoader(str(data_dir))
    with_file(jpeg_cut_off)(data_dir)
    with pytest.raises(DataError, match=r"01\.png: is not an image, or is damaged"):
        loader.dataset[1]


def test_a_path_in_a_groups_csv_is_refused(data_dir):
    write_csv(
        data_dir / "groups.csv", ["../00.png,a", "01.png,", "02.png,b", "02.png,b"], "ImageId,GroupId\n"
    )
    faults = Verified(data_dir, args={"groups": "groups.csv"}).found["training", "group"]
    assert [fault["row"] for fault in faults] == [2, 3, 5]


# ------------------------------------------------------------------------------------------ sizes, split

WHOLE_SHEETS = {"augmentation": {"type": "LightTransforms"}}


def test_sizes_that_make_no_batch_are_an_error_without_a_crop(data_dir):
    with_image(lambda g: g[:30])(data_dir)
    verified = Verified(data_dir, WHOLE_SHEETS)
    assert verified.status == 2
    assert verified.json["counts"] == {"batches": {"training": 1}, "other_size": {"training": 1}}
    assert "Choose an augmentation with a crop" in verified.text
    assert Verified(data_dir, WHOLE_SHEETS, {"batch_size": 1}).status == 0


def test_images_that_are_meant_to_differ_in_size_are_no_fault(data_dir):
    for index, name in enumerate(NAMES):
        cv2.imwrite(str(data_dir / "train_images" / name), texture(index, (40 + index, 60)))
    assert Verified(data_dir).json["faults"] == []


def test_a_split_that_cannot_be_made_is_an_error(data_dir):
    verified = Verified(data_dir, args={"validation_split": 12})
    ((fault,),) = verified.found.values()
    assert (verified.status, fault["sort"]) == (2, "loader")
    assert "validation_split: 12 of 12 samples leaves none for training" in fault["message"]


def names_of_split(data_dir, args=None):
    """The names of the images that the config of `Verified` trains and validates on."""
    path = Verified(data_dir, args=args).path
    loader = training_loader(load_config(path), torch.device("cpu"))
    loader.split_validation()
    return loader.split["training"], loader.split["validation"]


ALTERED = {
    "brighter": lambda g: np.clip(1.2 * g, 0, 255).astype(np.uint8),
    "noisy": lambda g: cv2.add(g, np.random.default_rng(0).integers(0, 9, g.shape).astype(np.uint8)),
    "mirrored left to right": lambda g: g[:, ::-1],
    "mirrored top to bottom": lambda g: g[::-1],
    "turned by 180 degrees": lambda g: g[::-1, ::-1],
}


@pytest.mark.parametrize(
    ("how", "args"),
    [*((how, {}) for how in ALTERED), ("noisy", {"validation_split": None, "folds": 3, "fold": 2})],
)
def test_a_validation_image_like_a_training_image_is_found(data_dir, how, args):
    training, validation = names_of_split(data_dir, args)
    source = cv2.imread(str(data_dir / "train_images" / training[4]), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(data_dir / "train_images" / validation[1]), ALTERED[how](source))
    verified = Verified(data_dir, args=args)
    ((fault,),) = verified.found.values()
    assert (verified.status, fault["sort"], fault["image"]) == (0, "validation_copy", validation[1])
    assert f"shows the steel of '{training[4]}' (similarity " in fault["message"]
    assert how in fault["message"] or "as it is" in fault["message"]
    # In one group they are on one side of the split, and the model learns nothing of what it is tested on.
    write_csv(data_dir / "groups.csv", [f"{training[4]},a", f"{validation[1]},a"], "ImageId,GroupId\n")
    assert Verified(data_dir, args=args | {"groups": "groups.csv"}).json["faults"] == []


def test_a_pair_on_one_side_of_the_split_is_no_leak(data_dir):
    training, _ = names_of_split(data_dir)
    source = cv2.imread(str(data_dir / "train_images" / training[0]), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(data_dir / "train_images" / training[1]), source[::-1])
    assert Verified(data_dir).json["faults"] == []


def test_copies_are_found_with_the_same_masks_and_with_others(data_dir):
    folder = data_dir / "train_images"
    training, validation = names_of_split(data_dir)
    shutil.copy(folder / training[0], folder / "other.png")
    shutil.copy(folder / training[1], folder / training[2])
    number = NAMES.index(training[0])
    with_rows(ROWS[number].replace(training[0], "other.png"))(data_dir)
    args = {"validation_split": 0}
    found = Verified(data_dir, args=args).found
    (same,), (other,) = found["training", "copy"], found["training", "copy_other_masks"]
    assert {same["image"], training[0]} <= {"other.png", *NAMES}
    assert "has the pixels and the masks of" in same["message"]
    assert other["row"] == NAMES.index(training[2]) + 2
    assert "5 px here, 0 px there" in other["message"]

    black = np.zeros(SIZE, np.uint8)  # has no features to be alike in, but the same pixels
    for name in (training[3], validation[0]):
        cv2.imwrite(str(folder / name), black)
    (folder / "other.png").unlink()
    write_csv(data_dir / "train.csv", ROWS)
    (leak,) = Verified(data_dir).found["training", "validation_copy"]
    assert (leak["image"], "the same pixels" in leak["message"]) == (validation[0], True)


def test_test_images_and_pseudo_labelled_ones_are_checked_too(data_dir):
    write_csv(data_dir / "test.csv", ["00.png,1,1 3", "01.png,2,1 99999", "gone.png,1,1 2"])
    write_csv(data_dir / "pseudo.csv", ["00.png,1,1 2", "01.png,2,"])
    shutil.copytree(data_dir / "test_images", data_dir / "unlabelled")
    cv2.imwrite(str(data_dir / "unlabelled" / "00.png"), texture(77))
    turned = np.rot90(cv2.imread(str(data_dir / "train_images" / "05.png"), cv2.IMREAD_GRAYSCALE))
    cv2.imwrite(str(data_dir / "test_images" / "02.png"), turned)
    pseudo = {"csv": "pseudo.csv", "images": "unlabelled", "share": 0.5}
    verified = Verified(data_dir, {"testing": {"csv": "test.csv"}}, {"pseudo": pseudo})
    found = verified.found
    assert [fault["row"] for fault in found["testing", "runs_outside"]] == [3]
    assert [fault["row"] for fault in found["testing", "no_image"]] == [4]
    leaking = {fault["image"]: fault["message"] for fault in found["testing", "testing_copy"]}
    assert set(leaking) == {"01.png", "02.png"}  # pseudo-labels of 01.png are trained on
    assert "turned by 90 degrees" in leaking["02.png"]
    assert "unlabelled/01.png' (the same pixels)" in leaking["01.png"]
    assert {half for half, _ in found} == {"testing"}, found
    assert [half["name"] for half in verified.json["halves"]] == ["training", "pseudo", "testing"]
    assert verified.status == 2
    assert "sever test would fail; 2 errors" in verified.text


@pytest.mark.parametrize(
    ("sections", "half", "sort"),
    [
        ({"testing": {"num_workers": 0}}, "testing", "not_there"),
        ({"testing": {"csv": "test.csv"}}, "testing", "no_csv"),
        ({}, "predict", "not_there"),
        ({"predict": {"threshold": 0.4}}, "predict", "not_there"),
        ({"predict": {"images": "others"}}, "predict", "no_folder"),
    ],
)
def test_what_only_later_commands_need_is_an_error_where_the_config_names_it(data_dir, sections, half, sort):
    if half == "predict":
        shutil.rmtree(data_dir / "test_images")
    verified = Verified(data_dir, sections)
    ((fault,),) = verified.found.values()
    assert (fault["half"], fault["sort"]) == (half, sort)
    assert verified.status == (2 if sort in ERRORS else 0)


# ------------------------------------------------------------------------------------------- the command


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_read(data_dir):
    path = Verified(data_dir).path
    assert "--json" in mistake("verify", "-c", path, "--json", data_dir)


def test_mistakes_of_the_config_are_told_as_ever(data_dir):
    path = Verified(data_dir).path
    assert "Did you mean 'SteelSegDataLoader'?" in mistake(
        *("verify", "-c", path, "-s", "data_loader.type=SteelSegDataLoder")
    )
    assert "csv: expected a valid string, received 3" in mistake(
        *("verify", "-c", path, "-s", "data_loader.args.csv=3")
    )
    assert "expected SteelSegDataLoader" in mistake("verify", "-c", ROOT / "experiments" / "config.yml")
    assert "no such file" in mistake("verify", "-c", "gone.yml").lower()


def test_overrides_choose_other_data(data_dir, whole):
    with_file(b"")(data_dir)
    verified = Verified(data_dir)
    assert verified.status == 2
    assert "0 errors" in done("verify", "-c", verified.path, "-s", f"data_loader.args.data_dir={whole}")


def test_work_that_is_left_early_is_not_gone_through(tmp_path):
    begun = []
    wait = threading.Event()

    def work(item):
        begun.append(item)
        if item:
            wait.wait(5)
        return item

    results = in_threads(work, range(1000))
    assert next(results) == 0
    wait.set()
    results.close()
    assert len(begun) < 1000
    assert list(in_threads(lambda item: 2 * item, range(50))) == list(range(0, 100, 2))


# --------------------------------------------------------------------------------------- near-duplicates

MOVED = {
    "as it is": lambda g: g,
    "mirrored left to right": np.fliplr,
    "mirrored top to bottom": np.flipud,
    "turned by 180 degrees": lambda g: np.rot90(g, 2),
    "turned by 90 degrees to the left": np.rot90,
    "turned by 90 degrees to the right": lambda g: np.rot90(g, -1),
    "mirrored along its diagonal": np.transpose,
    "mirrored along its other diagonal": lambda g: np.rot90(g, 2).T,
}


@pytest.mark.parametrize("size", [(64, 64), (40, 61), (20, 200)])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_fingerprint_of_a_moved_picture_is_its_own_moved(position, size):
    image = texture(5, size)
    expected = fingerprint(np.ascontiguousarray(MOVED[position](image)))
    own = moved(fingerprint(image)[None], position)[0]
    assert np.abs(expected.astype(int) - own.astype(int)).max() <= 1


def test_a_picture_is_most_like_itself_whatever_its_light_and_size():
    prints = np.stack([fingerprint(texture(seed)) for seed in range(30)])
    lit = [np.clip(0.7 * texture(seed) + 20, 0, 255).astype(np.uint8) for seed in range(30)]
    larger = [cv2.resize(image, (180, 120), interpolation=cv2.INTER_LINEAR) for image in lit]
    found = nearest(np.stack([fingerprint(image) for image in larger]), prints, tuple(POSITIONS))
    assert [near.number for near in found] == list(range(30))
    assert {near.position for near in found} == {"as it is"}
    assert min(near.similarity for near in found) > 0.9


def test_other_pictures_are_not_alike_and_those_of_one_grey_level_like_none():
    prints = np.stack([fingerprint(texture(seed)) for seed in range(40)])
    assert max(near.similarity for near in nearest(prints[:20], prints[20:], tuple(POSITIONS))) < 0.6
    flat = fingerprint(np.full(SIZE, 7, np.uint8))
    assert not flat.any()
    assert nearest(flat[None], np.stack([flat, prints[0]]))[0].similarity == 0


def test_pictures_are_compared_in_blocks(monkeypatch):
    prints = np.stack([fingerprint(texture(seed)) for seed in range(23)])
    whole = nearest(prints[:9], prints[9:])
    monkeypatch.setattr("sever.data_loader.verify.near_duplicates._BLOCK", 4)
    assert [near.number for near in nearest(prints[:9], prints[9:])] == [near.number for near in whole]


def test_every_sort_has_a_title_and_a_test():
    assert not set(ERRORS) & set(WARNINGS)
    assert max(map(len, (*ERRORS.values(), *WARNINGS.values()))) <= 44


def test_real_sheets_have_no_faults_and_are_not_like_each_other(shared_data, tmp_path):
    folder = shared_data / "severstal-sample"
    config = write_config(tmp_path / "real.yml", steel_config(folder, tmp_path) | {"testing": None})
    assert "can be trained on; 0 errors, 0 warnings" in done("verify", "-c", config)
    scan = scan_table(folder, "train.csv", "train_images", 4)
    seen, _ = inspect_sheets(scan, "")
    found = [
        nearest(seen.fingerprints[[at]], np.delete(seen.fingerprints, at, axis=0))[0].similarity
        for at in range(len(seen.digests))
    ]
    assert max(found) < ALIKE - 0.1


def test_a_real_copy_with_other_masks_is_found(shared_data):
    seen, faults = inspect_sheets(scan_table(shared_data / "neu-seg", "test.csv", "test_images", 3), "")
    assert faults == []
    ((copy,),) = copies([seen])
    assert (copy.sort, copy.image) == ("copy_other_masks", "000305.jpg")
    assert "'000301.jpg', but other masks (class 2: 8,511 px here, 8,729 px there)" in copy.message
