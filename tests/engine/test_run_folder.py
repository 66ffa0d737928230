"""Each run has a folder of its own, and one process at a time trains in it."""

import errno
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
import yaml
from launched import started
from runs import done, mistake, run_folder, sever, steel_config, synthetic_sheets, write_config

from sever.base import BaseModel
from sever.engine.checkpoint import load_checkpoint
from sever.engine.run_folder import RunFolder
from sever.utils.errors import StorageError

NOON = datetime(2024, 2, 29, 12, 0, 0)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return synthetic_sheets(tmp_path_factory.mktemp("folders") / "data")


@pytest.fixture
def path(data_dir, tmp_path):
    config = steel_config(data_dir, tmp_path / "saved")
    config["training"]["epochs"] = 1
    return write_config(tmp_path / "c.yml", config)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    times = {"now": NOON}

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return times["now"]

    monkeypatch.setattr("sever.engine.run_folder.datetime", Clock)
    return times


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("sever.engine.run_folder._PATIENCE", 0.2)


def runs_in(folder):
    return sorted(folder.iterdir()) if folder.is_dir() else []


# --------------------------------------------------------------------------------------- new folders


def test_runs_that_start_in_one_second_have_a_folder_each(path, tmp_path, clock):
    first, second = (run_folder(done("train", "-c", path, "-s", f"seed={seed}")) for seed in (1, 2))
    assert [run.name for run in (first, second)] == ["0229_120000", "0229_120001"]
    assert [yaml.safe_load((run / "config.yml").read_text())["seed"] for run in (first, second)] == [1, 2]
    clock["now"] -= timedelta(hours=1)
    assert run_folder(done("train", "-c", path)).name == "0229_110000"


def test_threads_that_make_a_folder_at_once_have_one_each(tmp_path, clock):
    runs = [RunFolder.planned(str(tmp_path / "saved"), "a") for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(RunFolder.make, runs))
    names = [(NOON + timedelta(seconds=second)).strftime("%m%d_%H%M%S") for second in range(40)]
    assert (
        sorted(run.path.name for run in runs) == names == [run.name for run in runs_in(runs[0].path.parent)]
    )


MAKERS = """
import os, sys
from datetime import datetime
import sever.engine.run_folder as run_folder

class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime(2024, 12, 31, 23, 59, 58)

run_folder.datetime = Clock
children = []
for _ in range(8):
    child = os.fork()
    if not child:
        for _ in range(5):
            run_folder.RunFolder.planned(sys.argv[1], "a").make()
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_processes_that_make_a_folder_at_once_have_one_each(tmp_path):
    with started("-c", MAKERS, tmp_path / "saved", folder=tmp_path) as command:
        command.done()
    names = [run.name for run in runs_in(tmp_path / "saved" / "a")]
    assert len(names) == 40
    assert names[0] == "0101_000000"  # the seconds after the last of the year
    assert names[-2:] == ["1231_235958", "1231_235959"]


def no_folder(place):
    place.symlink_to(place.with_name("nowhere"))


def a_loop(place):
    place.symlink_to(place)


def a_file(place):
    place.write_text("")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (no_folder, "is a link that leads to no folder"),
        (a_loop, "is a link that leads to no folder"),
        (a_file, "is a file"),
        (os.mkfifo, "is a file"),
    ],
)
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_place_that_can_hold_no_run_is_refused_before_work(make, what, below, path, tmp_path):
    make(tmp_path / "place")
    message = mistake("train", "-c", path, "--dry-run", "-s", f"save_dir={tmp_path / 'place' / below}")
    assert "save_dir: the folder " in message
    assert f"{tmp_path / 'place'} {what}" in message
    assert "Choose one that you may write to" in message


def test_a_place_that_may_not_be_written_to_is_refused_before_work(path, tmp_path):
    place = tmp_path / "place"
    place.mkdir(mode=0o555)
    if os.access(place, os.W_OK):
        pytest.skip("root may write everywhere")
    message = mistake("train", "-c", path, "--dry-run", "-s", f"save_dir={place}")
    assert f"you may not write to {place}" in message


def test_a_folder_named_by_way_of_its_parent_is_made(path, tmp_path):
    run = run_folder(done("train", "-c", path, "-s", f"save_dir={tmp_path}/a/../b"))
    assert (tmp_path / "b" / "small" / run.name / "config.yml").is_file()


# ----------------------------------------------------------------------------- a folder that is moved


@pytest.fixture
def moved_in_epoch_2(monkeypatch, tmp_path):
    """Calls a function with the run's folder while its second epoch is trained."""
    acts = []
    targets = BaseModel.targets

    def watched(model, masks):
        (run,) = runs_in(tmp_path / "saved" / "small") or [None]
        if acts and run and (run / "checkpoint_epoch_1.pth").is_file():
            acts.pop()(run)
        return targets(model, masks)

    monkeypatch.setattr(BaseModel, "targets", watched)
    return acts.append


@pytest.mark.parametrize("new_one", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_whose_folder_is_moved_stops_and_can_be_resumed_there(
    new_one, path, tmp_path, moved_in_epoch_2
):
    def move(run):
        run.rename(tmp_path / "elsewhere")
        if new_one:
            run.mkdir()

    moved_in_epoch_2(move)
    result = sever("train", "-c", path, "-s", "training.epochs=2")
    assert result.exit_code == 1
    run = run_folder(result.output)
    assert f"{run}: the folder of the run was moved, renamed or removed" in result.stderr
    assert runs_in(run) == []
    assert run.exists() == new_one
    done("train", "-r", tmp_path / "elsewhere" / "checkpoint_last.pth")
    assert (tmp_path / "elsewhere" / "checkpoint_epoch_2.pth").is_file()


# --------------------------------------------------------------------------- one process at a time


def test_auto_never_begins_anew_beside_checkpoints_that_cannot_be_read(path, tmp_path):
    run = run_folder(done("train", "-c", path))
    for checkpoint in run.glob("checkpoint*.pth"):
        os.truncate(checkpoint, 1000)
    for options in ((), ("--dry-run",)):
        message = mistake("train", "-c", path, "-r", "auto", *options)
        assert f"the latest run, {run}, has no checkpoint that can be read" in message
        for name in ("checkpoint_last.pth", "checkpoint_epoch_1.pth"):
            assert f"{run / name}: is damaged" in message
        assert "move that folder away or train without -r auto" in message
    assert runs_in(run.parent) == [run]
    run.rename(tmp_path / "away")
    assert "epoch 1/" in done("train", "-c", path, "-r", "auto")


def test_auto_goes_on_with_a_run_that_was_saved_after_one_that_cannot_be_read(path, clock):
    unreadable, run = (run_folder(done("train", "-c", path)) for _ in range(2))
    for checkpoint in unreadable.glob("checkpoint*.pth"):
        os.truncate(checkpoint, 1000)
    os.utime(unreadable, (1e9, 1e9))
    assert run_folder(done("train", "-c", path, "-r", "auto", "-s", "training.epochs=2")) == run


def test_auto_goes_on_from_the_best_checkpoint_where_a_run_has_no_other(path, tmp_path):
    run = run_folder(done("train", "-c", path))
    for checkpoint in run.glob("checkpoint*.pth"):
        checkpoint.unlink()
    output = done("train", "-c", path, "-r", "auto", "-s", "training.epochs=2")
    assert f"Going on from {run / 'model_best.pth'}" in output
    assert "epoch 2/2" in output


def test_a_lost_drive_does_not_hide_what_was_lost(path, monkeypatch):
    listdir = os.listdir

    def lost(folder="."):
        if started:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return listdir(folder)

    def refused(path, data):
        started.append(path)
        raise StorageError(f"{path}: cannot be written: Stale file handle")

    started = []
    monkeypatch.setattr("sever.engine.checkpoint_keeper.write_file", refused)
    monkeypatch.setattr(os, "listdir", lost)
    result = sever("train", "-c", path)
    assert result.exit_code == 1
    assert "checkpoint_epoch_1.pth: cannot be written: Stale file handle" in result.stderr


def test_a_run_that_cannot_be_looked_at_is_not_begun_anew(path, monkeypatch):
    run = run_folder(done("train", "-c", path))
    stat = type(run).stat

    def lost(folder, **options):
        if folder == run:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(folder, **options)

    monkeypatch.setattr(type(run), "stat", lost)
    assert f"{run}: cannot be read: Input/output error" in mistake("train", "-c", path, "-r", "auto")


def test_a_link_to_nothing_does_not_hide_the_runs_to_name(path, tmp_path):
    run = run_folder(done("train", "-c", path))
    (run / "checkpoint_last.pth").unlink()
    (run / "checkpoint_last.pth").symlink_to(tmp_path / "none.pth")
    assert RunFolder.newest(str(tmp_path / "saved")) == RunFolder(run)


@pytest.mark.parametrize("what", ["the run", "a checkpoint"])
def test_auto_names_what_it_may_not_read(what, path):
    run = run_folder(done("train", "-c", path))
    closed = run if what == "the run" else run / "checkpoint_last.pth"
    if closed != run:
        (run / "checkpoint_epoch_1.pth").unlink()
    closed.chmod(0)
    try:
        if os.access(closed, os.R_OK):
            pytest.skip("root may read everything")
        message = mistake("train", "-c", path, "-r", "auto")
    finally:
        closed.chmod(0o755)
    assert f"{closed}: " in message
    assert closed != run or "cannot be read: Permission denied. Make it readable, or move it away" in message
    assert runs_in(run.parent) == [run]


def test_a_command_gives_up_where_another_holds_the_first_run(path, tmp_path, impatient):
    first = RunFolder.planned(str(tmp_path / "saved"), "small")
    with first.name_held():
        message = mistake("train", "-c", path, "-r", "auto")
    assert f"{tmp_path / 'saved' / 'small'}: another process trains in this folder" in message
    assert runs_in(tmp_path / "saved" / "small") == []
    done("train", "-c", path, "-r", "auto")


def after(monkeypatch, lock, act):
    """Let `act` happen once while a command waits for one of its locks."""
    acts = [act]
    held = getattr(RunFolder, lock)

    @contextmanager
    def waiting(run):
        if acts:
            acts.pop()()
        with held(run):
            yield

    monkeypatch.setattr(RunFolder, lock, waiting)


def test_a_command_that_waited_goes_on_with_the_first_run_of_the_other(path, tmp_path, monkeypatch):
    other = []
    after(monkeypatch, "name_held", lambda: other.append(done("train", "-c", path, "-r", "auto")))
    output = done("train", "-c", path, "-r", "auto")
    assert "Nothing left to train" in output
    assert run_folder(output) == run_folder(other[0])
    assert runs_in(tmp_path / "saved" / "small") == [run_folder(output)]


@pytest.mark.parametrize("named", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_command_that_waited_goes_on_from_the_newest_state(named, path, monkeypatch):
    run = run_folder(done("train", "-c", path))
    resume = ("-r", run / "checkpoint_last.pth") if named else ("-c", path, "-r", "auto")
    after(monkeypatch, "held", lambda: done("train", *resume, "-s", "training.epochs=2"))
    output = done("train", *resume, "-s", "training.epochs=3")
    assert "epoch 2/3" not in output
    assert "epoch 3/3" in output
    assert load_checkpoint(run / "checkpoint_last.pth")["epoch"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_of_two_commands_started_together_one_trains_and_the_other_goes_on_with_its_run(
    device, path, tmp_path
):
    args = ("-m", "sever", "train", "-c", path, "-r", "auto", "-d", device, "-s", "training.epochs=3")
    with started(*args, folder=tmp_path) as one, started(*args, folder=tmp_path) as other:
        status = max(one.status(), other.status())
        printed = one.output + other.output
    assert status == (2 if "another process trains in this folder" in printed else 0), (
        printed
    )  # if it is slow
    (run,) = runs_in(tmp_path / "saved" / "small")
    assert set(re.findall(r"^run folder +(\S+)$", printed, flags=re.MULTILINE)) == {str(run)}
    assert printed.count("epoch 2/3") == 1


def test_auto_tells_the_runs_of_several_configs_apart_by_their_names(path, tmp_path):
    other = tmp_path / "other.yml"
    shutil.copy(path, other)
    message = mistake("train", "-c", path, "-c", other, "-r", "auto")
    assert f"{path} and {other}: expected another name in each" in message
    assert "received 'small' in both" in message


@pytest.mark.slow
def test_each_fold_goes_on_with_its_own_run(path, tmp_path):
    folds = ("train", "-c", path, "-r", "auto", "--all-folds", "-s", "data_loader.args.folds=2")
    done(*folds)
    done(*folds, "-s", "training.epochs=2")
    for fold in (1, 2):
        (run,) = runs_in(tmp_path / "saved" / f"small-fold{fold}")
        assert load_checkpoint(run / "checkpoint_last.pth")["epoch"] == 2
        assert yaml.safe_load((run / "config.yml").read_text())["data_loader"]["args"]["fold"] == fold
