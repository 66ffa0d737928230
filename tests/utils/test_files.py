"""Files are written whole, under names that nobody can foresee, and in the place of nothing but files."""

import logging
import os
import secrets
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from faults import FailingDisk
from runs import mistake, sever

from sever.utils.errors import StorageError
from sever.utils.files import atomic_write, link_file, write_file
from sever.utils.tensorboard_writer import TensorboardWriter


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_a_file_has_the_mode_of_the_umask_or_of_the_file_that_it_replaces(tmp_path):
    path = tmp_path / "scores.json"
    write_file(path, "1")
    assert mode_of(path) == 0o640
    path.chmod(0o604)
    with atomic_write(path) as file:
        (partial,) = tmp_path.glob(".*")
        assert mode_of(partial) == 0o604  # others must not read meanwhile what they may not read later
        file.write(b"2")
    assert (mode_of(path), path.read_text()) == (0o604, "2")


def test_a_name_may_have_as_many_bytes_as_the_system_allows(tmp_path):
    most = os.pathconf(tmp_path, "PC_NAME_MAX")
    path = tmp_path / f"{'s' * (most - 4)}.csv"
    write_file(path, "rows")
    link_file(path, path.with_name("t" * most))
    assert {p.read_text() for p in tmp_path.iterdir()} == {"rows"}


def test_a_link_under_a_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = tmp_path / "s.csv"
    (tmp_path / f".s.csv.{os.getpid()}.partial").symlink_to(victim)
    write_file(path, "rows")
    monkeypatch.setattr(secrets, "token_hex", lambda count: "0" * 2 * count)  # as if it had been foreseen
    (tmp_path / f".sever-{'0' * 16}.partial").symlink_to(victim)
    with pytest.raises(StorageError, match="File exists"):
        write_file(path, "others")
    with pytest.raises(StorageError, match="File exists"):
        link_file(path, tmp_path / "t.csv")
    assert (victim.read_text(), path.read_text()) == ("mine", "rows")


def planted(kind, path, other):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_nothing_but_a_regular_file_is_replaced(kind, moment, tmp_path):
    other, path = tmp_path / "other", tmp_path / "s.csv"
    other.write_text("mine")
    write_file(tmp_path / "good.csv", "good")
    if moment == "before":
        planted(kind, path, other)
    before = sorted(tmp_path.iterdir())

    def write():
        with atomic_write(path) as file:
            if moment == "meanwhile":
                planted(kind, path, other)
            file.write(b"rows")

    with pytest.raises(StorageError, match=r"s\.csv: is a (link|device|folder)"):
        write()
    with pytest.raises(StorageError, match=r"s\.csv: is a (link|device|folder)"):
        link_file(tmp_path / "good.csv", path)
    assert other.read_text() == "mine"
    assert not path.is_file() or path.is_symlink()
    assert sorted(tmp_path.iterdir()) == sorted({*before, path})


def test_a_file_with_two_names_is_replaced_under_one(tmp_path):
    path, other = tmp_path / "s.csv", tmp_path / "kept.csv"
    path.write_text("mine")
    os.link(path, other)
    write_file(path, "rows")
    assert (path.read_text(), other.read_text()) == ("rows", "mine")


WRITER = """
import os, sys, time
from sever.utils.files import atomic_write
with atomic_write("s.csv") as file:
    forked, runs = os.pipe()
    if not os.fork():  # such as a process that reads images, and outlives this one
        os.close(1)
        os.write(runs, b"x")
        time.sleep(60)
    os.read(forked, 1)
    print("writes", os.getpid(), flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_once_it_is_dead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = [tmp_path / name for name in (".sever-1.partial", f"sever-{'0' * 16}.partial", ".s.csv.1.partial")]
    kept.append(tmp_path / f".sever-{'1' * 16}.partial")
    for path in kept[:3]:
        path.write_text("mine")
    kept[3].symlink_to(kept[0])
    Path("submission.csv").write_text("ImageId_ClassId,EncodedPixels\n")
    check = ("check", "submission.csv", "--json", "report.json")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout.readline().startswith("writes")
            (partial,) = set(tmp_path.glob(".sever-*")) - set(kept)
            sever(*check)
            assert partial.exists()
            process.kill()
            process.wait()
            sever(*check)
            assert not partial.exists()
        finally:
            os.killpg(process.pid, 9)  # the forked one
    assert all(path.is_symlink() or path.read_text() == "mine" for path in kept)


@pytest.mark.parametrize("failing", [1, 2, 3, 5, 6])
def test_events_that_cannot_be_written_are_one_warning(failing, tmp_path, caplog):
    disk = FailingDisk(tmp_path, failing, lasting=True)
    with disk.mounted(), caplog.at_level(logging.WARNING):
        writer = TensorboardWriter(tmp_path / "runs")
        for value in (1.0, 2.0, 3.0):
            writer.add_scalar("loss", value)
        writer.close()
    assert disk.failed is not None
    (record,) = caplog.records
    told = f"{tmp_path / 'runs'}: TensorBoard's events cannot be written: {disk.reason}."
    assert record.getMessage().startswith(told)


def test_a_path_that_is_too_long_is_a_mistake(tmp_path):
    message = mistake("check", "s.csv", "--json", tmp_path / f"{'s' * 300}.json")
    assert "File name too long; choose another name" in message
