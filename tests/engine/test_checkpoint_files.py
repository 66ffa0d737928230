"""Files that are damaged, packed again or exchanged: refused, or read as they were written."""

import errno
import io
import os
import shutil
import struct
import zipfile

import pytest
import torch
from runs import done, mistake, run_folder, steel_config, synthetic_sheets, write_config

from sever.config.trust import Trust
from sever.engine.checkpoint import load_checkpoint, save_checkpoint
from sever.trained_models import TrainedModel
from sever.utils.errors import CheckpointError, DeviceError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint, and the submission that is predicted with it."""
    folder = tmp_path_factory.mktemp("files")
    config = steel_config(synthetic_sheets(folder / "data"), folder / "saved")
    run = run_folder(done("train", "-c", write_config(folder / "c.yml", config), "-s", "training.epochs=1"))
    return run / "checkpoint_epoch_1.pth", predicted(run / "checkpoint_epoch_1.pth", folder)


def predicted(checkpoint, folder):
    low = ("-s", "predict.threshold=0.3", "-s", "predict.min_area=0")
    done("predict", "-r", checkpoint, "-o", folder / "s.csv", *low)
    return (folder / "s.csv").read_text()


def entries(path):
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def packed(path, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents:
            archive.writestr(name, content)
    return path


def test_a_checkpoint_that_was_packed_again_without_compression_predicts_the_same(trained, tmp_path):
    checkpoint, submission = trained
    again = packed(tmp_path / "again.pth", entries(checkpoint))
    assert again.read_bytes() != checkpoint.read_bytes()
    assert predicted(again, tmp_path) == submission


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_checkpoint_that_was_compressed_is_refused(compression, trained, tmp_path):
    again = packed(tmp_path / "again.pth", entries(trained[0]), compression)
    for command in (("predict", "-o", tmp_path / "s.csv"), ("test",), ("average", "-o", tmp_path / "m.pth")):
        assert "was packed again: " in mistake(*command, "-r", again)


def test_a_file_in_the_older_form_of_torch_predicts_the_same(trained, tmp_path):
    checkpoint, submission = trained
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state, tmp_path / "older.pth", _use_new_zipfile_serialization=False)
    assert predicted(tmp_path / "older.pth", tmp_path) == submission


# ------------------------------------------------------------------------------------------ archives


@pytest.fixture
def small(tmp_path):
    """A checkpoint of a few kilobytes."""
    weights = {"a": torch.arange(4.0), "b": torch.arange(6.0) - 3}
    state = {"arch": "Unet", "epoch": 1, "config": {"name": "small"}, "state_dict": weights}
    save_checkpoint(state, tmp_path / "small.pth")
    return tmp_path / "small.pth"


def directory_entry(data, name):
    """Where the entry of a name begins in an archive's directory."""
    at = data.rindex(name)
    return data.rindex(b"PK\1\2", 0, at)


def twice(path):
    contents = entries(path)
    with pytest.warns(UserWarning, match="Duplicate name"):
        packed(path, [*contents, next(c for c in contents if c[0].endswith("data/0"))])


def twice_in_other_case(path):
    contents = entries(path)
    name, content = next(c for c in contents if c[0].endswith("data/0"))
    packed(path, [*contents, (name.upper(), content[::-1])])


def patched(change):
    """Changes the bytes of a file."""

    def spoil(path):
        data = bytearray(path.read_bytes())
        path.write_bytes(change(data) or data)

    return spoil


def encrypted(data):
    data[directory_entry(data, b"data/0") + 8] |= 1


def of_unknown_compression(data):
    data[directory_entry(data, b"data/0") + 10] = 99


def of_two_sizes(data):
    data[directory_entry(data, b"data/0") + 20] += 1


def called_a_folder(data):
    data[directory_entry(data, b"data/0") + 38] |= 0x10


def overlapping(data):
    one, other = (directory_entry(data, name) + 42 for name in (b"data/0", b"data/1"))
    data[one : one + 4] = data[other : other + 4]


def within_another(data):
    """The first entry is made to reach over all others."""
    at = directory_entry(data, b"data.pkl")
    (start,) = struct.unpack_from("<L", data, len(data) - 22 + 16)
    data[at + 20 : at + 28] = struct.pack("<LL", start, start)


def of_another_local_name(data):
    at = data.index(b"data/0")
    data[at : at + 6] = b"data/9"


def after_another_archive(data):
    other = io.BytesIO()
    packed(other, [("a", b"b")])
    return other.getvalue() + bytes(data)


TWO_READINGS = {
    twice: "two entries of one name",
    twice_in_other_case: "two entries of one name",
    patched(encrypted): "is compressed or encrypted",
    patched(of_unknown_compression): "is compressed or encrypted",
    patched(of_two_sizes): "has two sizes",
    patched(called_a_folder): "called a folder",
    patched(overlapping): "is damaged",
    patched(within_another): "reaches into another entry",
    patched(of_another_local_name): "is damaged",
    patched(after_another_archive): "is damaged",
}


@pytest.mark.parametrize(("spoil", "words"), TWO_READINGS.items())
@pytest.mark.parametrize("lazily", [False, True])
def test_an_archive_that_can_be_read_in_two_ways_is_refused(spoil, words, lazily, small):
    spoil(small)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(small, lazily)


def check_flips(path, places, bits):
    """Load a file with one bit changed at each place: it is refused, or holds what was written."""
    data, right = path.read_bytes(), torch.load(path, weights_only=True)
    refused = 0
    for place in places:
        for bit in bits(place):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            try:
                found = load_checkpoint(path)
            except CheckpointError:
                refused += 1
                continue
            assert found.keys() == right.keys()
            assert found["config"] == right["config"]
            assert all(torch.equal(found["state_dict"][key], right["state_dict"][key]) for key in "ab")
    return refused


def test_a_flipped_bit_of_a_file_changes_nothing_or_is_refused(small):
    size = small.stat().st_size
    directory = small.read_bytes().index(b"PK\1\2")
    places = [*range(0, directory, 31), *range(directory, size, 7)]
    assert check_flips(small, places, lambda place: [place % 8]) > len(places) / 4


@pytest.mark.slow
def test_each_flipped_bit_of_a_file_changes_nothing_or_is_refused(small):
    assert check_flips(small, range(small.stat().st_size), lambda _: range(8))


@pytest.mark.parametrize("size", [1, 3, 30, 200, -22, -1])
def test_a_file_that_was_cut_off_is_refused(size, small):
    os.truncate(small, size if size > 0 else small.stat().st_size + size)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(small)


# --------------------------------------------------------------------------------- between two readings


def exchanged(path, other):
    os.replace(other, path)


def written_over(path, other):
    path.write_bytes(other.read_bytes())
    os.utime(path, (2e9, 2e9))


@pytest.mark.parametrize("change", [exchanged, written_over])
def test_weights_are_not_taken_from_another_file_than_was_checked(change, trained, tmp_path):
    path = shutil.copy(trained[0], tmp_path / "model.pth")
    other = shutil.copy(trained[0], tmp_path / "other.pth")
    model = TrainedModel.read(path, Trust(), ())
    model.model()
    change(path, other)
    with pytest.raises(CheckpointError, match="was changed or replaced while it was in use"):
        model.model()


def test_plain_values_can_be_read_without_the_weights(trained):
    state = load_checkpoint(trained[0], lazily=True)
    assert all(tensor.is_meta for tensor in state["state_dict"].values())
    assert state["config"] == load_checkpoint(trained[0])["config"]


# -------------------------------------------------------------------------------- what the system says


@pytest.mark.parametrize("call", ["stat", "open"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_a_fault_of_the_system_is_not_called_damage(call, number, small, monkeypatch):
    def failing(path, *args, **options):
        if path == small:
            raise OSError(number, os.strerror(number))
        return original(path, *args, **options)

    original = getattr(type(small), call)
    monkeypatch.setattr(type(small), call, failing)
    with pytest.raises(CheckpointError, match=f"cannot be read: {os.strerror(number)}"):
        load_checkpoint(small)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_lack_of_memory_is_not_called_damage(error, small, monkeypatch):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", failing)
    with pytest.raises(DeviceError, match="There is too little memory"):
        load_checkpoint(small)


def test_a_buffer_that_was_expanded_is_saved_whole(tmp_path):
    state = {"arch": "x", "epoch": 1, "config": {}, "optimizer": None}
    save_checkpoint({**state, "state_dict": {"mean": torch.tensor([0.5]).expand(3)}}, tmp_path / "m.pth")
    assert load_checkpoint(tmp_path / "m.pth")["state_dict"]["mean"].tolist() == [0.5] * 3


# -------------------------------------------------------------------------------------------- links


def test_one_checkpoint_to_keep_leaves_another_file_to_go_on_from(trained, tmp_path):
    """The newest checkpoints may be names of one file, so what damages it damages all of them."""
    config = load_checkpoint(trained[0], lazily=True)["config"] | {"save_dir": str(tmp_path / "saved")}
    config["training"] |= {"epochs": 2, "keep_last": 1, "monitor": "off"}
    path = write_config(tmp_path / "c.yml", config)
    run = run_folder(done("train", "-c", path))
    newest = run / "checkpoint_last.pth"
    with newest.open("r+b") as file:
        file.seek(newest.stat().st_size // 2)
        file.write(b"damage")
    output = done("train", "-c", path, "-r", "auto")
    assert f"Going on from {run / 'checkpoint_epoch_1.pth'}" in output
