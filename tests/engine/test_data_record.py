"""A run that is resumed says what changed in its data since it began."""

import shutil
from pathlib import Path

import cv2
import pytest
import torch
from runs import done, mistake, run_folder, steel_config, synthetic_sheets, write_config

from sever.data_loader import table_record
from sever.data_loader.annotations import read_table
from sever.engine.data_record import read_record

SAME = "the data are not those that the run began with"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of an epoch, with pseudo-labels."""
    folder = tmp_path_factory.mktemp("begun")
    config = steel_config(synthetic_sheets(folder / "data"), folder / "saved")
    config["data_loader"]["args"]["pseudo"] = {"csv": "pseudo.csv", "share": 0.25}
    config["training"] |= {"epochs": 1, "tensorboard": False}
    run_folder(done("train", "-c", write_config(folder / "c.yml", config)))
    return folder


@pytest.fixture
def resume(begun, tmp_path):
    """Copies the run, and its data to another place with other times, where a test may change them.

    Returns the folders of both, and the command that resumes the run.
    """
    (run,) = (begun / "saved" / "small").iterdir()
    run = Path(shutil.copytree(run, tmp_path / "run"))
    data = Path(shutil.copytree(begun / "data", tmp_path / "data", copy_function=shutil.copyfile))
    where = f"data_loader.args.data_dir={data}"
    return data, run, ("train", "-r", run / "checkpoint_last.pth", "-s", where)


def first_image(data, folder="train_images"):
    return min((data / folder).iterdir())


def another_size(data):
    shutil.copyfile(max((data / "train_images").iterdir()), first_image(data))
    return f"1 labelled image with another file: {first_image(data).name}"


def other_pixels(data):
    changed = []
    for path in sorted((data / "train_images").iterdir())[:4]:
        content = bytearray(path.read_bytes())
        content[-30] ^= 1  # in the compressed pixels, and not in the size of the file
        path.write_bytes(content)
        changed.append(path.name)
    return f"4 labelled images with another file: {', '.join(changed[:3])} and 1 more"


def pseudo_pixels(data):
    path = first_image(data, "test_images")
    cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    return f"1 pseudo image with another file: {path.name}"


def rows_of(data, name="train.csv"):
    return (data / name).read_text().splitlines()


def another_mask(data):
    header, row, *rows = rows_of(data)
    image, class_id, _ = row.split(",")
    (data / "train.csv").write_text("\n".join([header, f"{image},{class_id},1 7", *rows]) + "\n")
    return f"1 labelled image with other masks: {image}"


def no_pseudo_label(data):
    *rows, last = rows_of(data, "pseudo.csv")
    (data / "pseudo.csv").write_text("\n".join(rows) + "\n")
    return f"1 pseudo image gone: {last.partition(',')[0]}"


@pytest.mark.parametrize(
    "change",
    [
        other_pixels,
        another_mask,
        *(pytest.param(of, marks=pytest.mark.slow) for of in (another_size, pseudo_pixels, no_pseudo_label)),
    ],
)
def test_what_changed_is_named_and_with_strict_data_refused(change, resume):
    data, run, command = resume
    expected = change(data)
    before = (run / "data.csv").read_text()
    message = mistake(*command, "--strict-data", "-s", "training.epochs=2")
    assert f"{run / 'data.csv'}: {SAME}:\n  {expected}\n" in message
    assert "resume without --strict-data" in message
    assert f"{SAME}:\n  {expected}\n" in done(*command)
    assert (run / "data.csv").read_text() == before


def test_a_copy_of_the_data_with_its_rows_in_another_order_is_the_same(resume):
    data, _, command = resume
    header, *rows = rows_of(data)
    (data / "train.csv").write_text("\r\n".join([header, *reversed(rows)]) + "\r\n")
    assert SAME not in done(*command, "--strict-data", "--dry-run")


def test_a_run_of_an_earlier_version_gets_its_record_when_it_is_resumed(resume):
    _, run, command = resume
    before = (run / "data.csv").read_text()
    (run / "data.csv").unlink()
    message = mistake(*command, "--strict-data")
    assert f"--strict-data: the data cannot be compared: {run / 'data.csv'} is not there" in message
    assert SAME not in done(*command)
    assert (run / "data.csv").read_text() == before


@pytest.mark.parametrize(
    "content", [b"\xff\x00", b"", b"part,name\n", b"part,image,bytes,content,masks\nlabelled,a.jpg,9\n"]
)
def test_a_record_that_is_damaged_is_named(content, resume):
    _, run, command = resume
    (run / "data.csv").write_bytes(content)
    assert f"{run / 'data.csv'}: cannot be read as the record of a run's data" in mistake(*command)


def test_of_large_data_some_files_are_read_whole(begun, monkeypatch):
    (record,) = begun.glob("saved/small/*/data.csv")
    assert all(values["content"] for values in read_record(record).values())
    files = sorted((begun / "data" / "train_images").iterdir())
    size = sum(path.stat().st_size for path in files)
    monkeypatch.setattr(table_record, "_READ_AT_MOST", size // 3 + 1)
    again = run_folder(done("train", "-c", begun / "c.yml", "-s", f"save_dir={begun / 'again'}"))
    rows = [row.split(",") for row in rows_of(again, "data.csv")[1:] if row.startswith("labelled")]
    read = {name for _, name, _, content, _ in rows if content}
    assert 0 < len(read) < 16
    monkeypatch.setattr(table_record, "_READ_AT_MOST", size // 9 + 1)  # as of data that have grown
    table = read_table(begun / "data", "train.csv", "train_images", classes=4)
    record = table_record.record_of(table, "labelled")
    now = {name for (_, name), values in record.items() if values["content"]}
    assert now <= read


def test_strict_data_is_for_a_run_that_is_resumed(begun):
    for options in ((), ("-r", "x.pth")):
        message = mistake("train", "-c", begun / "c.yml", "--strict-data", *options)
        assert "--strict-data is for runs that are resumed" in message


def test_a_loader_of_ones_own_has_no_record(begun, tmp_path, monkeypatch):
    (tmp_path / "own_sheets.py").write_text(
        "from sever.data_loader.data_loaders import SteelSegDataLoader\n"
        "class Sheets(SteelSegDataLoader):\n    data_record = {}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("-s", "data_loader.type=own_sheets.Sheets", "-s", f"save_dir={tmp_path / 'own'}")
    run = run_folder(done("train", "-c", begun / "c.yml", *own))
    assert not (run / "data.csv").exists()
    done("train", "-r", run / "checkpoint_last.pth", "--trust")
    message = mistake("train", "-r", run / "checkpoint_last.pth", "--trust", "--strict-data")
    assert "the data cannot be compared: the data loader has no data_record" in message


def test_a_split_with_an_image_on_both_sides_is_refused(resume):
    _, run, command = resume
    state = torch.load(run / "checkpoint_last.pth", weights_only=True)
    name = state["split"]["validation"][0]
    state["split"]["training"].append(name)
    torch.save(state, run / "checkpoint_last.pth")
    message = mistake(*command)
    assert f"the run's split names for training and for validation: {name}; take" in message
