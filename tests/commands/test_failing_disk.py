"""Each command on a disk that refuses any one of its calls: one message, nothing lost or half-written."""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch
from faults import FailingDisk
from runs import SIZE, done, run_folder, sever, steel_config, synthetic_sheets, write_config

from sever.engine.checkpoint import load_checkpoint
from sever.engine.run_folder import RunFolder

EARLIER = b"checkpoints: what an earlier command wrote\ntuned_for: it\n"


@dataclass(frozen=True)
class Command:
    """A command with the names of its outputs, under which earlier ones are there; a training has none."""

    args: tuple[str, ...]
    outputs: tuple[str, ...] = ()

    @property
    def trains(self):
        return self.args[0] == "train"

    @property
    def run(self):
        """The newest run of its name, in the current folder."""
        return RunFolder.newest("saved", "new" if "name=new" in self.args else "small")


def training(*args):
    return Command(("train", "-c", "c.yml", "-r", "auto", *args))


COMMANDS = {
    "train": training("-s", "name=new"),
    "train with events": training("-s", "name=new", "-s", "training.tensorboard=true"),
    "resume": training("-s", "training.epochs=3", "-s", "training.keep_last=1"),
    "predict": Command(("predict", "-r", "m.pth", "-o", "s.csv", "--overlays", "new/pictures"), ("s.csv",)),
    "pseudo": Command(
        ("pseudo", "-r", "m.pth", "-o", "p.csv", "--agreement", "0", "--sure", "0", "--absent", "1"),
        ("p.csv", "p.yml"),
    ),
    "tune": Command(("tune", "-r", "m.pth", "-o", "t.yml"), ("t.yml",)),
    "test": Command(("test", "-r", "m.pth", "-o", "t.json"), ("t.json",)),
    "average": Command(("average", "-r", "m.pth", "-o", "a.pth"), ("a.pth",)),
    "verify": Command(("verify", "-c", "c.yml", "--json", "v.json"), ("v.json",)),
    "check": Command(("check", "good.csv", "--size", *map(str, SIZE), "--json", "c.json"), ("c.json",)),
    "synth": Command(("synth", "drawn/new", "-n", "8", "--size", *map(str, SIZE))),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with data, a config, a run of an epoch, its model, a submission, and earlier outputs."""
    folder = tmp_path_factory.mktemp("disk") / "base"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        synthetic_sheets(Path("data"))
        config = steel_config(Path("data"), Path("saved"))
        config["data_loader"]["args"]["validation_split"] = 0.5
        config["training"] |= {"epochs": 1, "verbose": 1}
        del config["testing"]
        write_config(Path("c.yml"), config)
        run = run_folder(done("train", "-c", "c.yml"))
        shutil.copy(run / "model_best.pth", "m.pth")
        done("predict", "-r", "m.pth", "-o", "good.csv")
        for command in COMMANDS.values():
            for name in command.outputs:
                Path(name).write_bytes(EARLIER)
    return folder


@pytest.fixture
def fails_at(base, tmp_path, monkeypatch):
    """Runs a command on a whole disk, then on others that fail at one call each; returns how many failed.

    The numbers of these calls are given, or a call with the name of its file, such as `replace s.csv`.
    """

    def run_on_each(name: str, numbers: Iterable[int] | str, lasting: bool = False) -> int:
        command = COMMANDS[name]
        folder = shutil.copytree(base, tmp_path / "whole")
        monkeypatch.chdir(folder)
        with FailingDisk(folder).mounted() as whole_disk:
            done(*command.args)
        expected = contents(), weights(command)
        if isinstance(numbers, str):
            calls = [f"{what} {Path(path).name}" for what, path in whole_disk.calls]
            numbers = [1 + calls.index(numbers)]
        for failed, number in enumerate(numbers):
            folder = shutil.copytree(base, tmp_path / "disk", dirs_exist_ok=True)
            monkeypatch.chdir(folder)
            disk = FailingDisk(folder, number, lasting=lasting)
            with disk.mounted():
                result = sever(*command.args)
            if disk.failed is None:
                assert result.exit_code == 0, result.output
                return failed
            try:
                check_message(disk, result, command)
                check_files(disk, command, contents(base), *expected)
            except AssertionError as error:
                said = f"call {number}, {disk.failed}: {disk.reason}\n{result.output}"
                raise AssertionError(said) from error
            shutil.rmtree(folder)
        return failed + 1

    return run_on_each


def contents(folder=None):
    folder = folder or Path.cwd()
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(command):
    """The weights at the end of a training."""
    return load_checkpoint(command.run.newest_first[0])["state_dict"] if command.trains else {}


def check_message(disk, result, command):
    """One message with place, reason and, for a training, the way to go on."""
    messages = re.findall(r"^sever: (.*)$", result.stderr, re.MULTILINE)
    if result.exit_code == 0:  # a second name becomes a copy, and a log is not worth a training
        assert disk.is_log or disk.failed[0] == "link"
        assert messages == []
        told = rf"^/?[^ :]+: .*{re.escape(disk.reason)}. The training goes on without them.$"
        assert re.search(told, result.output, re.MULTILINE) or not disk.is_log
        return
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output
    (message,) = messages
    assert disk.reason in message
    place = re.match(r"(?:save_dir: the folder )?([^\s:]+)", message)[1]
    assert Path(place).absolute().is_relative_to(disk.folder)
    assert not place.endswith(".partial")
    if "\nrun folder" in result.output and command.run:
        assert re.search(r"^To go on: sever train -r \S+\.pth$", result.output, re.MULTILINE)


def check_files(disk, command, before, whole, trained):
    """Inputs as they were, outputs that are whole or as they were, and a training that can be finished."""
    after = contents()
    for path, content in before.items():
        if path.name in command.outputs and path.suffix != ".pth":
            assert after[path] in (content, whole[path]), path
        elif path.name not in command.outputs and not (command.trains and path.parts[0] == "saved"):
            assert after[path] == content, path
    for path in after.keys() - before.keys():
        assert disk.lasting or not path.name.endswith(".partial")
        if not command.trains and not path.name.endswith(".partial"):
            assert after[path] == whole[path], path
    for path, content in after.items():
        if path.suffix == ".pth" and content != EARLIER:
            load_checkpoint(path)
    if disk.lasting or (command.trains and not disk.is_log):
        done(*command.args)
        written = command.run.path if command.trains else disk.folder
        assert not list(written.rglob(".sever-*"))
    found = {} if disk.is_log else weights(command)
    assert all(torch.equal(found[key], trained[key]) for key in found)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("predict", "mkdir pictures"),
        ("predict", "replace s.csv"),
        pytest.param("pseudo", "replace p.yml", marks=pytest.mark.slow),
        ("average", "replace a.pth"),
        pytest.param("check", "replace c.json", marks=pytest.mark.slow),
        ("synth", "mkdir test_images"),
        pytest.param("train", "mkdir logs", marks=pytest.mark.slow),
        ("train", "write info.log"),
        pytest.param("train", "replace split.csv", marks=pytest.mark.slow),
        ("train", "replace checkpoint_epoch_1.pth"),
        pytest.param("resume", "unlink checkpoint_epoch_1.pth", marks=pytest.mark.slow),
    ],
)
def test_a_disk_fails_while_a_command_writes(name, call, fails_at):
    assert fails_at(name, call) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_any_call_of_any_command_may_fail(name, fails_at):
    assert fails_at(name, count(1)) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_may_be_gone_from_any_call_on(name, fails_at):
    assert fails_at(name, count(1, 7), lasting=True) > 0
