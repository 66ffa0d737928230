"""Code that a checkpoint names is not run unless somebody vouches for it, and nothing reaches the network."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import done, mistake, run_folder, steel_config, write_config
from sheets import draw_data, draw_images, numbered

OWN = """
from pathlib import Path
from torch import nn
from sever.model.loss import BCEDiceLoss

Path("imported").touch()

class MyLoss(BCEDiceLoss):
    pass

def own_metric(probs, masks):
    return probs.mean().item()
"""
EVERYWHERE = {
    "arch": {"type": "evil.Net", "args": {"classes": 4}},
    "augmentation": {
        "type": "Pipeline",
        "args": {
            "transforms": ["evil.Flip", {"type": "OneOf", "args": {"transforms": [{"type": "evil.Blur"}]}}]
        },
    },
    "data_loader": {"type": "evil.Loader", "args": {"data_dir": "data"}},
    "loss": {
        "type": "WeightedSum",
        "args": {
            "parts": {"a": {"type": "subprocess.Popen", "args": {"args": ["touch", "ran"]}}, "b": "evil.Loss"}
        },
    },
    "metrics": ["dice", "evil.metric"],
    "optimizer": {"type": "evil.Optimizer", "args": {"lr": 0.1}},
    "lr_scheduler": {"type": "SequentialLR", "args": {"schedulers": ["evil.Rate"], "milestones": []}},
    "trainer": "evil.Trainer",
}
OF_MODEL = [
    "arch.type: 'evil.Net' would run code of evil",
    "augmentation.args.transforms.0.type: 'evil.Flip' would run code of evil",
    "augmentation.args.transforms.1.args.transforms.0.type: 'evil.Blur'",
]
OF_DATA = ["data_loader.type: 'evil.Loader'"]
OF_TEST = [
    "loss.args.parts.a.type: 'subprocess.Popen' would run code of subprocess",
    "loss.args.parts.b.type: 'evil.Loss'",
    "metrics.1.type: 'evil.metric'",
]
OF_TRAINING = [
    "optimizer.type: 'evil.Optimizer'",
    "lr_scheduler.args.schedulers.0.type: 'evil.Rate'",
    "trainer.type: 'evil.Trainer'",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The working folder of a run with a loss and a metric of one's own: data and saved."""
    folder = tmp_path_factory.mktemp("trained")
    draw_data(folder / "data", numbered([(4, [1, 3]), (4, [2])]))
    draw_images(folder / "data" / "test_images", ["t.png"])
    config = steel_config(Path("data"), Path("saved"))
    config |= {"loss": "vouched_parts.MyLoss", "metrics": ["dice", "vouched_parts.own_metric"]}
    config["testing"] = {"csv": "train.csv", "images": "train_images"}
    config["training"] |= {"epochs": 1, "verbose": 0}
    write_config(folder / "c.yml", config)
    (folder / "vouched_parts.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        run_folder(done("train", "-c", "c.yml", "-s", "training.verbose=1"))
    return folder


@pytest.fixture
def checkpoint(trained, tmp_path, monkeypatch):
    """A checkpoint of a copy of it, from which nothing is imported yet."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    (tmp_path / "imported").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "vouched_parts", raising=False)
    return next(Path("saved").glob("*/*/checkpoint_epoch_1.pth"))


@pytest.mark.parametrize(
    ("command", "listed"),
    [
        (("train",), OF_MODEL + OF_DATA + OF_TEST + OF_TRAINING),
        (("average", "--recompute-batch-norm", "-o", "m.pth"), OF_MODEL + OF_DATA + OF_TEST + OF_TRAINING),
        (("test",), OF_MODEL + OF_DATA + OF_TEST),
        (("tune",), OF_MODEL + OF_DATA),
        (("predict",), OF_MODEL + OF_DATA),
        (("pseudo",), OF_MODEL + OF_DATA),
    ],
    ids=lambda part: part[0] if isinstance(part, tuple) else "",
)
def test_all_code_that_a_checkpoint_names_is_asked_for_and_none_is_run(command, listed, checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    state["config"] |= EVERYWHERE
    torch.save(state, checkpoint)
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    message = mistake(*command, "-r", checkpoint)
    assert f"{checkpoint} (its config): names code that is not the program's own" in message
    assert [line.strip().partition(" would")[0] for line in message.splitlines() if line[:2] == "  "] == [
        text.partition(" would")[0] for text in listed
    ]
    assert [text for text in listed if text not in message] == []
    assert "add --trust; or name the same import path in a -c FILE or -s" in message
    assert "evil" not in sys.modules
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "vouching",
    [
        ("--trust",),
        ("-c", "c.yml"),
        ("-s", "loss=vouched_parts.MyLoss", "-s", "metrics=[dice, vouched_parts.own_metric]"),
    ],
    ids=["--trust", "-c", "-s"],
)
def test_own_code_that_is_vouched_for_is_run(checkpoint, vouching):
    assert "'vouched_parts.MyLoss' would run code of vouched_parts" in mistake("test", "-r", checkpoint)
    assert not Path("imported").exists()
    assert "own_metric" in done("test", "-r", checkpoint, *vouching)
    assert Path("imported").exists()


def test_vouching_for_one_path_is_not_vouching_for_another(checkpoint):
    message = mistake("test", "-r", checkpoint, "-s", "loss=vouched_parts.MyLoss")
    assert "own_metric" in message
    assert "MyLoss" not in message


def test_what_a_command_does_not_use_is_not_asked_for(checkpoint):
    done("predict", "-r", checkpoint, "-o", "s.csv")
    assert not Path("imported").exists()


def test_a_run_goes_on_with_own_code_if_it_is_vouched_for(checkpoint):
    more = ("-s", "training.epochs=2")
    assert "loss.type: 'vouched_parts.MyLoss'" in mistake("train", "-r", checkpoint, *more)
    done("train", "-r", checkpoint, *more, "--trust")
    done("train", "-c", "c.yml", "-r", "auto", "-s", "training.epochs=3")
    assert (checkpoint.parent / "checkpoint_epoch_3.pth").is_file()


def test_a_path_in_the_users_own_file_needs_no_trust(checkpoint):
    done("train", "-c", "c.yml", "--dry-run")
    assert Path("imported").exists()


# Raises where a socket to another machine is made or a name is looked up.
GUARD = """
import sys
from pathlib import Path

def guard(event, args):
    if event == "socket.__new__" and int(args[1]) != 1 or event in ("socket.connect", "socket.getaddrinfo"):
        Path("network").touch()
        raise OSError(f"the network was used: {event} {args}")

sys.addaudithook(guard)
"""
LIFE = """
from sever.cli import cli

def run(*args):
    status = cli(args, standalone_mode=False)
    assert not status, args

run("train", "-c", "c.yml", "-s", "training.tensorboard=true", "-s", "metrics=[dice]", "-s", "loss=DiceLoss")
model = str(max(Path("saved").glob("*/*/model_best.pth"), key=lambda path: path.stat().st_mtime))
run("test", "-r", model)
run("predict", "-r", model, "-o", "s.csv", "--overlays", "overlays")
run("verify", "-c", "c.yml")
run("check", "s.csv", "-i", "data/test_images")
"""


@pytest.mark.slow
def test_nothing_reaches_the_network(checkpoint):
    result = subprocess.run([sys.executable, "-c", GUARD + LIFE], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert Path("s.csv").is_file()
    assert not Path("network").exists()


def test_the_guard_sees_the_network(tmp_path):
    ask = GUARD + "import socket\nsocket.create_connection(('localhost', 9))\n"
    result = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, cwd=tmp_path)
    assert "the network was used" in result.stderr
    assert (tmp_path / "network").exists()
