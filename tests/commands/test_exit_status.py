"""Mistakes that take more than one command or file to make; those of one input stand in test_bad_input."""

import errno
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import SIZE, done, mistake, run_folder, sever, steel_config, write_config

from sever.data_loader.image_files import scan_images


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors") / "data"
    done("synth", folder, "-n", "8", "--size", *map(str, SIZE))
    return folder


@pytest.fixture(scope="module")
def checkpoint(data_dir):
    config = write_config(data_dir.parent / "c.yml", steel_config(data_dir, data_dir.parent / "saved"))
    run = run_folder(done("train", "-c", config, "-s", "training.epochs=1", "-s", "training.verbose=1"))
    return run / "checkpoint_epoch_1.pth"


@pytest.fixture
def own_data(data_dir, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(data_dir, tmp_path / "data"))


def train_mistake(data_dir: Path, tmp_path: Path, *overrides: str) -> str:
    """Train with overrides that must be refused before a run folder is made."""
    config = write_config(tmp_path / "broken.yml", steel_config(data_dir, tmp_path / "saved"))
    message = mistake("train", "-c", config, *(f"-s{override}" for override in overrides))
    assert not (tmp_path / "saved").exists()
    return message


def test_all_mistakes_of_a_config_come_together(data_dir, tmp_path):
    options = [
        "loss.type=Los",
        "arch.args.clases=4",
        "metrics=[dise]",
        "optimizer.typ=x",
        "training.epochs=x",
    ]
    message = train_mistake(data_dir, tmp_path, *options)
    for part in (
        *("unknown key 'typ'", "training.epochs: expected", "'Los' is not a known loss"),
        *("Did you mean 'classes'?", "'dise' is not a known metric"),
    ):
        assert part in message


def test_the_first_of_several_configs_is_not_trained_when_the_second_is_wrong(data_dir, tmp_path):
    good = write_config(tmp_path / "good.yml", steel_config(data_dir, tmp_path / "saved"))
    bad = write_config(tmp_path / "bad.yml", steel_config(data_dir, tmp_path / "saved") | {"loss": "no"})
    assert "bad.yml: loss: 'no'" in mistake("train", "-c", good, "-c", bad)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_damaged_after_the_start_is_named_when_it_is_read(
    own_data, tmp_path, monkeypatch, workers
):
    image = sorted((own_data / "test_images").iterdir())[0]

    def damage_it(*args):
        found = scan_images(*args)
        image.write_bytes(image.read_bytes()[:900])
        return found

    monkeypatch.setattr("sever.data_loader.prediction_loader.scan_images", damage_it)
    config = write_config(tmp_path / "c.yml", steel_config(own_data, tmp_path / "saved"))
    run = run_folder(done("train", "-c", config, "-s", "training.epochs=1"))
    message = mistake(
        *("predict", "-r", run / "checkpoint_epoch_1.pth", "-o", tmp_path / "s.csv"),
        *("-s", f"predict.num_workers={workers}"),
    )
    assert f"{image}: is not an image, or is damaged" in message
    assert not list(tmp_path.glob("*s.csv*"))


def test_the_traceback_comes_with_debug_alone(data_dir, tmp_path):
    config = write_config(tmp_path / "c.yml", steel_config(data_dir, tmp_path))
    result = sever("--debug", "train", "-c", config, "-s", "loss=no")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "'no' is not a known loss" in result.stderr


# ------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_of_another_architecture_is_refused(checkpoint, data_dir, tmp_path):
    values = steel_config(data_dir, tmp_path)
    values["arch"]["args"]["decoder_channels"] = [32, 16, 8]
    config = write_config(tmp_path / "other.yml", values)
    message = mistake("test", "-r", checkpoint, "-c", config)
    assert "of another architecture" in message
    assert "expected shape" in message
    assert "of another architecture" in mistake("train", "-r", checkpoint, "-c", config)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    "override",
    ["seed=9", "optimizer.encoder.lr=1.0", "arch.type=FPN", "name=other", "loss.args.bce_weight=1.0"],
)
def test_a_run_that_goes_on_cannot_become_another_run(override, checkpoint):
    before = (checkpoint.parent / "config.yml").read_text()
    message = mistake("train", "-r", checkpoint, "-s", "training.epochs=3", "-s", override)
    assert override.partition("=")[0] in message
    assert f"-c {checkpoint.parent.resolve() / 'config.yml'} -r {checkpoint}" in message
    assert (checkpoint.parent / "config.yml").read_text() == before


def test_a_new_run_from_a_checkpoint_must_have_epochs_left(checkpoint, tmp_path):
    config = checkpoint.parent / "config.yml"
    message = mistake("train", "-c", config, "-r", checkpoint, f"-ssave_dir={tmp_path / 'saved'}")
    assert "training.epochs: is 1" in message
    assert "at epoch 1 already" in message
    assert not (tmp_path / "saved").exists()


def test_a_run_is_not_continued_on_other_images(own_data, tmp_path):
    config = write_config(tmp_path / "c.yml", steel_config(own_data, tmp_path / "saved"))
    run = run_folder(done("train", "-c", config, "-s", "training.epochs=1"))
    image = sorted((own_data / "train_images").iterdir())[0]
    shutil.copy(image, image.with_name("new.jpg"))
    more = ["-s", "training.epochs=2"]
    message = mistake("train", "-r", run / "checkpoint_epoch_1.pth", *more)
    assert "does not name: new.jpg" in message
    image.with_name("new.jpg").unlink()
    (own_data / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n")
    image.unlink()
    assert f"split names: {image.name}" in mistake("train", "-r", run / "checkpoint_epoch_1.pth", *more)


# ----------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_with_its_status_and_whole_files(number, status, data_dir, tmp_path):
    config = write_config(tmp_path / "c.yml", steel_config(data_dir, tmp_path))
    options = ["-s", "training.epochs=1000", "-s", "data_loader.args.num_workers=1"]
    command = [sys.executable, "-m", "sever", "train", "-c", str(config), *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)  # the worker gets it too, as from a terminal
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert stderr == "sever: stopping after this step; a second signal ends at once\n"
    run = next((tmp_path / "small").iterdir())
    assert not list(run.glob(".*"))
    for checkpoint in run.glob("*.pth"):
        assert torch.load(checkpoint, weights_only=True)["epoch"] >= 1


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGHUP, 129), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_command_without_a_half_written_file(number, status, tmp_path):
    command = [sys.executable, "-m", "sever", "synth", str(tmp_path / "drawn"), "-n", "100000"]
    command += ["--size", "64", "128"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("drawn/*/*.jpg"))) < 20 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (status, "sever: stopped\n")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".jpg"]


@pytest.mark.slow
def test_a_training_whose_terminal_is_closed_is_saved(data_dir, tmp_path):
    config = write_config(tmp_path / "c.yml", steel_config(data_dir, tmp_path))
    command = [sys.executable, "-m", "sever", "train", "-c", str(config), "-s", "training.epochs=1000"]
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, command)
    try:
        shown = b""
        while b"epoch 2/" not in shown:
            shown += os.read(terminal, 4096)
    finally:
        os.close(terminal)  # nothing can be printed from here on
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    (log,) = tmp_path.glob("small/*/logs/info.log")
    assert re.search(r"The run was stopped by SIGHUP .* To go on: sever train -r \S+", log.read_text())


UNREACHABLE = """
import errno, os
from pathlib import Path
from sever.model.loss import BCEDiceLoss

class Unreachable(BCEDiceLoss):
    def forward(self, logits, masks):
        if any(Path(__file__).parent.rglob("checkpoint_last.pth")):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "weights of classes.txt")
        return super().forward(logits, masks)
"""


def test_an_error_of_the_system_ends_a_training_with_the_way_to_go_on(data_dir, tmp_path, monkeypatch):
    (tmp_path / "unreachable.py").write_text(UNREACHABLE)
    monkeypatch.syspath_prepend(tmp_path)
    values = steel_config(data_dir, tmp_path / "saved") | {"loss": "unreachable.Unreachable"}
    result = sever("train", "-c", write_config(tmp_path / "c.yml", values))
    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"sever: weights of classes.txt: {os.strerror(errno.ESTALE)}. The program"
    )
    assert result.stderr.count("\n") == 1
    assert re.search(
        r"^To go on: sever train -r \S+checkpoint_last.pth --trust$", result.stdout, re.MULTILINE
    )
