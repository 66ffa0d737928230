"""What is left of a run when its process is killed, or when the disk is full."""

import os
import subprocess
import sys

import pytest
import torch
from runs import SIZE, done, run_folder, sever, steel_config, write_config

from sever.engine.checkpoint import load_checkpoint

# Starts a training again and again in a process of its own, and kills it after a random time. It is forked
# from one that has loaded torch already, which takes longer than all that is wanted of it.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import sever.commands.train
from sever.cli import cli

config, folder, kills, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
drawn = random.Random(seed)
reached = 0
for number in range(kills):
    process = os.fork()
    if not process:
        out = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        try:
            cli(["train", "-c", config, "-r", "auto"])
        finally:
            os._exit(7)
    time.sleep(drawn.uniform(0.05, 2.0))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status), (folder / "output.txt").read_text()
    for path in (folder / "saved").rglob("*.pth"):
        sever.commands.train.load_checkpoint(path)
    newest = (folder / "saved").rglob("checkpoint_last.pth")
    states = [sever.commands.train.load_checkpoint(path) for path in newest]
    place = max(((s["epoch"], s["position"]["batches"]) for s in states), default=(0, 0))
    assert place >= (reached or place), (place, reached)
    reached = place
print(*reached)
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killing") / "data"
    done("synth", folder, "-n", "16", "--size", *map(str, SIZE))
    return folder


@pytest.fixture
def config(data_dir, tmp_path):
    config = steel_config(data_dir, tmp_path / "saved")
    config["training"] = {"epochs": 100_000, "save_every": "0.001s", "keep_last": 3, "tensorboard": False}
    return config


def kill_often(kills, config, tmp_path):
    path = write_config(tmp_path / "c.yml", config)
    command = [sys.executable, "-c", KILLER, str(path), str(tmp_path), str(kills), "1"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    epoch = int(process.stdout.split()[-2]) + 1
    more = ("-s", f"training.epochs={epoch}")
    run = run_folder(done("train", "-c", path, "-r", "auto", *more))
    assert not list(run.glob(".*"))
    straight = run_folder(done("train", "-c", path, "-s", f"save_dir={tmp_path / 'straight'}", *more))
    one, other = (torch.load(r / f"checkpoint_epoch_{epoch}.pth", weights_only=True) for r in (run, straight))
    assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in one["state_dict"])


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_its_newest_checkpoint(config, tmp_path):
    kill_often(4, config, tmp_path)


@pytest.mark.slow
def test_a_run_that_is_killed_200_times_ends_as_one_that_was_not(config, tmp_path):
    kill_often(200, config, tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be made by root alone")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_ends_a_run_with_a_message_and_leaves_what_was_there(
    tensorboard, config, small_disk, tmp_path
):
    config |= {"save_dir": str(small_disk)}
    config["training"] |= {"epochs": 30, "tensorboard": tensorboard}
    del config["training"]["keep_last"]
    config["training"]["save_every"] = "1h"
    path = write_config(tmp_path / "c.yml", config)
    result = sever("train", "-c", path)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "Make room" in result.stderr
    run = run_folder(result.output)
    there = sorted(run.glob("*.pth"))
    assert len(there) > 2
    for checkpoint in there:
        load_checkpoint(checkpoint)
    assert not list(run.glob(".*"))
    there[0].unlink()
    there[1].unlink()
    epoch = load_checkpoint(run / "checkpoint_last.pth")["epoch"] + 1
    done("train", "-c", path, "-r", "auto", "-s", f"training.epochs={epoch}")
    assert load_checkpoint(run / "checkpoint_last.pth")["epoch"] == epoch
