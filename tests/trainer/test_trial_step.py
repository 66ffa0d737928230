"""What passes the dry run passes the first steps: a step is tried before a run has a folder."""

import sys

import pytest
import torch
from runs import done, mistake, run_folder, steel_config, synthetic_sheets, write_config
from runs import sever as command
from same_run import same

import sever.commands.train as train_command
from sever.engine.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def steel(tmp_path_factory):
    return synthetic_sheets(tmp_path_factory.mktemp("steel"))


@pytest.fixture
def config(steel, tmp_path):
    """A run of one epoch of 12 training sheets."""
    config = steel_config(steel, tmp_path / "saved")
    config["training"]["epochs"] = 1
    return config


def refused(config, tmp_path, *options):
    """The message of the dry run, which is that of the training, and neither leaves anything behind."""
    path = write_config(tmp_path / "c.yml", config)
    message = mistake("train", "-c", path, "--dry-run", *options)
    assert mistake("train", "-c", path, *options) == message
    assert not (tmp_path / "saved").exists()
    return message


@pytest.fixture
def one_value(config):
    """A last batch of one image, whose crop has one pixel where the encoder ends."""
    del config["arch"]["args"]["encoder_depth"], config["arch"]["args"]["decoder_channels"]
    config["augmentation"]["args"] = {"height": 32, "width": 32}
    config["data_loader"]["args"]["batch_size"] = 11
    return config


def test_a_last_batch_without_statistics_is_refused_before_the_first(one_value, tmp_path):
    message = refused(one_value, tmp_path)
    assert "data_loader.args: a batch of an epoch has 1 image" in message
    assert "drop_last: true" in message
    path = write_config(tmp_path / "c.yml", one_value)
    done("train", "-c", path, "-s", "data_loader.args.drop_last=true")


def test_the_dry_run_tries_the_shards_of_as_many_processes_as_there_will_be(one_value, tmp_path):
    one_value["data_loader"]["args"] |= {"batch_size": 2}
    path = write_config(tmp_path / "c.yml", one_value)
    done("train", "-c", path, "--dry-run")
    assert "1 image for each of 2 processes" in mistake("train", "-c", path, "--dry-run", "-d", "cpu,cpu")


@pytest.mark.parametrize(
    "schedule",
    [{"type": "StepLR", "args": {"step_size": 0}}, {"type": "CosineAnnealingLR", "args": {"T_max": 0}}],
)
def test_a_schedule_that_cannot_be_stepped_is_refused(config, tmp_path, schedule):
    config["lr_scheduler"] = schedule
    assert f"lr_scheduler: {schedule['type']} refuses its arguments: " in refused(config, tmp_path)


@pytest.mark.parametrize("start", [(), ("-r", "m.pth")], ids=["cold", "warm"])
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optimizer.decoder.betas=0.9", "optimizer.decoder.betas: expected"),
        ("lr_scheduler={type: StepLR, args: {step_size: 0}}", "lr_scheduler: StepLR refuses its arguments"),
    ],
)
def test_a_setting_that_no_step_can_be_taken_with_is_named(start, setting, words, config, tmp_path):
    path = write_config(tmp_path / "c.yml", config)
    if start:
        run = run_folder(done("train", "-c", path))
        start = ("-r", run / "model_best.pth", "-s", "training.epochs=2")
    assert words in mistake("train", "-c", path, "--dry-run", *start, "-s", setting)


OWN_MODEL = """
import threading
from torch import nn
from sever.base import BaseModel

class Net(BaseModel):
    def __init__(self, classes=4):
        super().__init__()
        self.layer = nn.Conv2d(1, classes, 1)
        self.lock = threading.Lock()

    def forward(self, images):
        return self.layer(images)
"""


@pytest.fixture
def own_model(config, tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    config |= {"arch": "own_models.Net", "optimizer": {"type": "SGD", "args": {"lr": 0.1}}}
    return config


def test_a_model_that_cannot_be_copied_is_trained_without_a_trial(own_model, tmp_path):
    path = write_config(tmp_path / "c.yml", own_model)
    assert "no step was tried" in done("train", "-c", path, "--dry-run")
    assert "epoch 1/1" in done("train", "-c", path)


def test_a_metric_of_ones_own_that_fails_in_validation_fails_before_the_run(config, tmp_path, monkeypatch):
    (tmp_path / "own_metric.py").write_text(
        "def on_crops(probs, masks):\n    return (probs - probs.new_zeros(48, 64)).mean().item()\n"
    )
    monkeypatch.chdir(tmp_path)
    config["metrics"] = ["own_metric.on_crops"]
    config["training"]["monitor"] = "off"
    path = write_config(tmp_path / "c.yml", config)
    for options in (("--dry-run",), ()):
        with pytest.raises(RuntimeError, match="size of tensor"):
            command("train", "-c", path, *options)
    assert not (tmp_path / "saved").exists()


def test_the_step_that_is_tried_leaves_no_trace_in_the_run(config, tmp_path, monkeypatch):
    config["arch"]["args"]["decoder_dropout"] = 0.3
    config["training"]["ema_decay"] = 0.9
    path = write_config(tmp_path / "c.yml", config)
    tried = run_folder(done("train", "-c", path))
    monkeypatch.setattr(train_command, "try_step", lambda *_: None)
    untried = run_folder(done("train", "-c", path, "-s", f"save_dir={tmp_path / 'other'}"))
    one, other = (load_checkpoint(run / "checkpoint_epoch_1.pth") for run in (tried, untried))
    assert isinstance(one["random_states"]["torch"], torch.Tensor)
    for key in one.keys() - {"config", "saved_at"}:
        assert same(one[key], other[key]), key
