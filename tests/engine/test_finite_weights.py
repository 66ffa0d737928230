"""Weights and statistics that are not finite: never saved, never the best, and refused by every command."""

import re
import shutil
import sys

import pytest
import torch
from runs import done, mistake, run_folder, steel_config, synthetic_sheets, write_config
from torch import nn

from sever.base import BaseModel
from sever.config.schema import Training
from sever.engine.checkpoint import load_checkpoint
from sever.engine.monitor import Monitor
from sever.trainer.step import Stepper

OWN = """
import torch
from torch import nn
from sever.base import BaseModel

class Sick(torch.optim.SGD):
    def __init__(self, params, lr=0.001, at=1):
        super().__init__(params, lr)
        self.at = at

    def step(self, closure=None):
        super().step(closure)
        self.at -= 1
        if not self.at:
            self.param_groups[0]["params"][0].data.fill_(torch.inf)

class Overflowing(BaseModel):
    def __init__(self, classes=4):
        super().__init__()
        self.head = nn.Conv2d(1, classes, 1)

    def forward(self, images):
        return self.head(images) * (1 if self.training else torch.inf)

class Masked(BaseModel):
    def __init__(self, classes=4):
        super().__init__()
        self.head = nn.Conv2d(1, classes, 1)
        self.register_buffer("unseen", torch.full((4,), -torch.inf))

    def forward(self, images):
        return self.head(images)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, a config and the folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("finite")
    config = steel_config(synthetic_sheets(folder / "data"), folder / "saved")
    config["training"] |= {"epochs": 1, "ema_decay": 0.9}
    run_folder(done("train", "-c", write_config(folder / "c.yml", config))).rename(folder / "run")
    return folder


@pytest.fixture
def config(folder, tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    config = steel_config(folder / "data", tmp_path / "saved")
    config["training"] = {"epochs": 2, "monitor": "min val_loss", "tensorboard": False}
    return config


def is_finite(path):
    state = load_checkpoint(path)
    return all(t.isfinite().all() for key in ("state_dict", "ema") for t in (state[key] or {}).values())


# ----------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    "what", ["bn1.running_var", pytest.param("conv_stem.weight", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "command",
    [
        ("predict", "-o", "s.csv"),
        ("predict", "-o", "s.csv", "--one-at-a-time"),
        ("test",),
        ("tune", "-o", "t.yml"),
        ("pseudo", "-o", "p.csv"),
        ("average", "-o", "m.pth"),
        ("average", "-o", "m.pth", "--recompute-batch-norm"),
        ("train",),
        ("train", "-s", "save_dir=elsewhere", "-c"),
    ],
    ids=" ".join,
)
def test_a_model_that_is_not_finite_is_refused_by_the_name_of_the_tensor(
    what, command, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(folder / "run", tmp_path / "run")
    state = torch.load(run / "model_best.pth", weights_only=True)
    name = next(name for name in state["ema"] if name.endswith(what))
    for key in ("state_dict", "ema"):
        state[key][name].view(-1)[-1] = torch.nan if what.endswith("weight") else torch.inf
    torch.save(state, run / "model_best.pth")
    command += (folder / "c.yml",) if command[-1] == "-c" else ()
    message = mistake(*command, "-r", run / "model_best.pth")
    assert f"{run / 'model_best.pth'}: expected finite weights and statistics" in message
    assert f"not: {name}. Take another checkpoint of its run" in message
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize(
    ("weight", "precision"), [(3e38, "fp32"), pytest.param(6e4, "fp16", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "command",
    [
        ("predict", "-o", "s.csv"),
        ("predict", "-o", "s.csv", "--one-at-a-time", "-r", "run/checkpoint_last.pth", "--average", "max"),
        ("test",),
        ("test", "--tta", "hflip"),
        ("tune", "-o", "t.yml"),
        ("pseudo", "-o", "p.csv"),
    ],
    ids=" ".join,
)
def test_outputs_that_are_not_finite_are_an_error_with_image_and_model(
    weight, precision, command, folder, tmp_path, monkeypatch
):
    """Finite weights may give them: infinite logits would be probabilities of 0 and 1, NaN no mask."""
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(folder / "run", tmp_path / "run")
    state = torch.load(run / "model_best.pth", weights_only=True)
    for key in ("state_dict", "ema"):
        name = [name for name in state[key] if name.endswith("weight")][-1]
        state[key][name].sign_().mul_(weight)
    torch.save(state, run / "model_best.pth")
    message = mistake(*command, "-r", "run/model_best.pth", "--precision", precision)
    assert re.search(r"run/model_best.pth: its outputs are not finite for \w+\.jpg", message)
    assert "Take another checkpoint; with --precision fp16" in message
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_the_averaged_weights_of_a_resumed_run_must_be_finite_too(folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    state = torch.load(run / "checkpoint_last.pth", weights_only=True)
    name = next(iter(state["ema"]))
    state["ema"][name] = torch.full_like(state["ema"][name], torch.inf)
    torch.save(state, run / "checkpoint_last.pth")
    message = mistake("train", "-r", run / "checkpoint_last.pth", "-s", "training.epochs=2")
    assert (
        f"checkpoint_last.pth: ema: expected finite weights and statistics, which these are not: {name}"
        in (message)
    )


def test_what_is_infinite_from_the_start_may_stay_so(config, tmp_path):
    """As in a buffer with a mask of attention."""
    config |= {"arch": {"type": "own_parts.Masked"}, "optimizer": {"type": "SGD", "args": {"lr": 0.1}}}
    run = run_folder(done("train", "-c", write_config(tmp_path / "c.yml", config)))
    assert load_checkpoint(run / "model_best.pth")["skipped"] == 0
    assert not is_finite(run / "model_best.pth")
    done("train", "-r", run / "checkpoint_last.pth", "--trust", "-s", "training.epochs=3")
    done("test", "-r", run / "model_best.pth", "--trust")
    done("average", "-r", run, "-o", tmp_path / "mean.pth")
    done("test", "-r", tmp_path / "mean.pth", "--trust")


# ----------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("loss", ["BCEDiceLoss", "DiceLoss"])
def test_an_epoch_whose_outputs_are_not_finite_is_not_the_best(loss, config, tmp_path):
    """A model that finds nothing would score well where most images have no defect."""
    config |= {"arch": {"type": "own_parts.Overflowing"}, "optimizer": {"type": "SGD", "args": {"lr": 0.1}}}
    config |= {"loss": {"type": loss}}
    config["training"] |= {"monitor": "max val_dice_mean", "epochs": 1}
    output = done("train", "-c", write_config(tmp_path / "c.yml", config))
    assert "val_loss nan" in output
    assert "best so far" not in output
    assert not (run_folder(output) / "model_best.pth").exists()


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("ema", [None, pytest.param(0.9, marks=pytest.mark.slow)])
def test_a_run_whose_weights_are_not_finite_ends_and_saves_none_of_them(step, ema, config, tmp_path):
    config["optimizer"] = {"type": "own_parts.Sick", "args": {"at": step}}
    config["training"]["ema_decay"] = ema
    message = mistake("train", "-c", write_config(tmp_path / "c.yml", config))
    (run,) = (tmp_path / "saved" / "small").iterdir()
    epoch = 1 + step // 4
    assert (
        f"after epoch {epoch}: weights or statistics of the model are not finite any more: network."
        in message
    )
    cure = f"start from {run / 'checkpoint_last.pth'} with -c FILE -r" if epoch > 1 else "start anew"
    assert cure in message
    saved = sorted(run.glob("*.pth"))
    assert [path.name for path in saved] == (
        ["checkpoint_epoch_1.pth", "checkpoint_last.pth", "model_best.pth"] if epoch > 1 else []
    )
    assert all(map(is_finite, saved))


def test_a_step_that_makes_a_statistic_infinite_is_skipped(config, tmp_path, monkeypatch):
    """The variance of huge grey levels overflows, but not the loss: normalised by it, they are 0."""
    forward = sys.modules["sever.trainer.trainer"].forward
    calls = []

    def spoilt(model, inputs, precision):
        calls.append(model.training)
        return forward(model, inputs * (1e30 if len(calls) == 2 else 1), precision)

    monkeypatch.setattr("sever.trainer.trainer.forward", spoilt)
    output = done("train", "-c", write_config(tmp_path / "c.yml", config))
    assert "epoch 1, batch 2: not finite: statistics of BatchNorm (loss " in output
    run = run_folder(output)
    assert all(map(is_finite, run.glob("*.pth")))
    assert load_checkpoint(run / "checkpoint_last.pth")["skipped"] == 1


class Counting(BaseModel):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))
        self.register_buffer("largest", torch.zeros(1))

    def forward(self, images):
        self.largest.copy_(images.max() * 1e20)
        return self.slope * images


def test_the_statistics_of_a_skipped_step_are_those_from_before_it():
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    stepper = Stepper(model, optimizer, torch.device("cpu"), Training(epochs=1))
    for grey, (slope, largest, skipped) in {
        1.0: (0, 1e20, 0),
        1e30: (0, 1e20, 1),
        2.0: (-2, 2e20, 1),
    }.items():
        stepper.backward(model(torch.full((1,), grey)).sum(), 0, 1)
        assert (model.slope.item(), model.largest.item(), stepper.skipped) == (
            slope,
            pytest.approx(largest),
            skipped,
        )


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_that_is_not_finite_is_never_the_best(mode):
    monitor = Monitor(f"{mode} val_loss", early_stop=0, remember=3)
    values = [torch.nan, torch.inf, -torch.inf, 1.0, torch.inf, -torch.inf]
    improved = [monitor.update({"val_loss": value}, epoch) for epoch, value in enumerate(values, start=1)]
    assert improved == [False, False, False, True, False, False]
    assert monitor.best_epochs == [4]
    assert monitor.best == 1
    assert not monitor.update({"val_loss": torch.nan, "val_dice": 1.0}, 7)
    other = Monitor("max val_dice", early_stop=0, remember=3)
    assert not other.update({"val_loss": torch.nan, "val_dice": 1.0}, 1)
    assert other.update({"val_loss": 3.0, "val_dice": 0.1}, 2)
