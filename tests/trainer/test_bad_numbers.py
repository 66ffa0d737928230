"""Losses and gradients that are not finite, memory that is not there, and workers that die."""

import os
import shutil
import signal
import sys

import pytest
import torch
from runs import SIZE, done, mistake, run_folder, sever, steel_config, write_config
from torch import nn

from sever.base import BaseModel, BaseTrainer
from sever.config.schema import Training
from sever.trainer.step import Stepper
from sever.trainer.trainer import Trainer

# A loss that is not finite for some batches of a run, as its arguments say, and everything else as usual.
OWN_LOSS = """
import torch
from sever.model.loss import BCEDiceLoss

class Sometimes(BCEDiceLoss):
    def __init__(self, bad=(), value="nan"):
        super().__init__()
        self.bad, self.value, self.calls = set(bad), value, -1  # it is tried once before the run

    def forward(self, logits, masks):
        losses = super().forward(logits, masks)
        self.calls += self.training and logits.requires_grad
        if not logits.requires_grad or self.calls not in self.bad:
            return losses
        if self.value == "root":  # the derivative of the root at 0 is infinite
            return losses | {"loss": losses["loss"] + (0 * logits.sum()).sqrt()}
        return {name: loss if name == "bce_loss" else loss * float("nan") for name, loss in losses.items()}
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers") / "data"
    done("synth", folder, "-n", "16", "--size", *map(str, SIZE))
    return folder


@pytest.fixture
def config(data_dir, tmp_path, monkeypatch):
    (tmp_path / "own_loss.py").write_text(OWN_LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    config = steel_config(data_dir, tmp_path / "saved")
    config["training"] = {"epochs": 2, "monitor": "min val_loss", "tensorboard": False}
    config["loss"] = {"type": "own_loss.Sometimes", "args": {"bad": []}}
    return config


def finite(state):
    return all(tensor.isfinite().all() for tensor in state["state_dict"].values())


def test_a_step_whose_loss_is_not_finite_is_skipped_and_counted(config, tmp_path):
    config["loss"]["args"]["bad"] = [2, 5]
    output = done("train", "-c", write_config(tmp_path / "c.yml", config))
    assert "epoch 1, batch 2: not finite: loss nan, dice_loss nan. Step skipped. Images:" in output
    assert "epoch 2, batch 2: not finite" in output
    state = torch.load(run_folder(output) / "checkpoint_last.pth", weights_only=True)
    assert (state["steps"], state["skipped"]) == (6, 2)
    assert finite(state)
    assert state["log"]["loss"] == pytest.approx(0.8, abs=0.2)  # the mean of the batches that count


def test_a_skipped_step_leaves_weights_statistics_and_moments_as_they_were(config, tmp_path, monkeypatch):
    """One step on a batch of infinite grey levels, which reach BatchNorm before the loss."""
    config["training"]["epochs"] = 1
    before, after = [], []
    forward = sys.modules["sever.trainer.trainer"].forward

    def spoilt(model, inputs, precision):
        if model.training and len(before) == 1:
            inputs = inputs * float("inf")
        return forward(model, inputs, precision)

    step = sys.modules["sever.trainer.step"].Stepper._step

    def watched(stepper):
        step(stepper)
        states = (stepper.model.state_dict(), stepper.optimizer.state_dict()["state"])
        (before if not before else after).append(copied(states))

    monkeypatch.setattr("sever.trainer.trainer.forward", spoilt)
    monkeypatch.setattr("sever.trainer.step.Stepper._step", watched)
    done("train", "-c", write_config(tmp_path / "c.yml", config))
    counters = ("num_batches_tracked",)
    for key, tensor in before[0][0].items():
        if not key.endswith(counters):
            assert torch.equal(tensor, after[0][0][key]), key
    for number, moments in before[0][1].items():
        assert all(torch.equal(moments[key], after[0][1][number][key]) for key in moments)


def test_a_skipped_first_step_of_a_warm_start_leaves_what_the_checkpoint_holds(config, tmp_path):
    path = write_config(tmp_path / "c.yml", config)
    first = run_folder(done("train", "-c", path, "-s", "training.epochs=1")) / "checkpoint_epoch_1.pth"
    config["loss"]["args"]["bad"] = list(range(1, 100))  # every step is skipped
    config["training"] |= {"skip_limit": 100, "ema_decay": 0.9}
    warm = run_folder(done("train", "-c", write_config(path, config), "-r", first))
    before, after = (torch.load(file, weights_only=True) for file in (first, warm / "checkpoint_epoch_2.pth"))
    for key, tensor in before["state_dict"].items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(tensor, after["state_dict"][key]), key
            assert torch.equal(tensor, after["ema"][key]), key


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return self.slope * images


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_infinite_loss_with_finite_gradients_changes_nothing(precision):
    model, cpu = Line(), torch.device("cpu")
    training = Training(epochs=1, precision=precision)
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=1.0), cpu, training)
    stepper.backward(model(torch.ones(1)).sum() + torch.inf, 0, 1)
    assert (model.slope.item(), stepper.skipped) == (1.0, 1)
    stepper.backward(model(torch.full((1,), 0.25)).sum(), 0, 1)
    assert (model.slope.item(), stepper.skipped) == (0.75, 1)


def copied(states):
    weights, moments = states
    return (
        {key: tensor.clone() for key, tensor in weights.items()},
        {n: {k: torch.as_tensor(v).clone() for k, v in m.items()} for n, m in moments.items()},
    )


@pytest.mark.parametrize("accumulate", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_that_only_skips_stops_with_the_state_from_before(accumulate, config, tmp_path):
    config["loss"]["args"]["bad"] = list(range(3, 100))
    config["training"] |= {"epochs": 9, "skip_limit": 3, "accumulate": accumulate}
    path = write_config(tmp_path / "c.yml", config)
    result = sever("train", "-c", path)
    assert result.exit_code == 2
    assert "steps in a row" in result.stderr
    for words in ("dice_loss nan", ".jpg", "encoder 0.0007", "checkpoint_last.pth holds the weights"):
        assert words in result.stderr
    run = run_folder(result.output)
    state = torch.load(run / "checkpoint_last.pth", weights_only=True)
    assert finite(state)
    assert (state["epoch"], state["position"]["batches"]) == (1, 0)
    config["loss"]["args"]["bad"] = []
    assert "epoch 2/2" in done(
        "train", "-c", path, "-r", run / "checkpoint_last.pth", "-s", "training.epochs=2"
    )


def test_gradients_that_are_not_finite_are_named(config, tmp_path):
    config["loss"]["args"] = {"bad": [2, 3], "value": "root"}
    config["training"]["skip_limit"] = 2
    message = mistake("train", "-c", write_config(tmp_path / "c.yml", config))
    assert "epoch 1, batch 3: not finite: gradients (loss 0." in message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_too_little_memory_names_the_keys_that_help(error, config, tmp_path, monkeypatch):
    def too_large(*_):
        raise error

    monkeypatch.setattr("sever.trainer.trainer.forward", too_large)
    message = mistake("train", "-c", write_config(tmp_path / "c.yml", config))
    for key in ("data_loader.args.batch_size", "training.precision", "training.accumulate", "crop"):
        assert key in message
    assert "Traceback" not in message


def test_an_error_of_torch_that_has_no_message_of_its_own_comes_through(config, tmp_path, monkeypatch):
    def mismatched(*_):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr("sever.trainer.trainer.forward", mismatched)
    with pytest.raises(RuntimeError, match="The size of tensor a"):
        sever("train", "-c", write_config(tmp_path / "c.yml", config))


@pytest.fixture
def in_second_epoch(monkeypatch):
    """Has a function called with the trainer after the first step of the second epoch."""

    def call(function):
        def end_step(trainer, batches):
            if (trainer.last_epoch, batches) == (1, 1):
                function(trainer)
            BaseTrainer._end_step(trainer, batches)

        monkeypatch.setattr(Trainer, "_end_step", end_step)

    return call


def test_a_worker_that_is_killed_is_reported_with_what_it_read(config, tmp_path, in_second_epoch):
    def kill(trainer):
        os.kill(trainer.data_loader.worker_status.pids[0].item(), signal.SIGKILL)

    in_second_epoch(kill)
    config["training"]["epochs"] = 100
    config["data_loader"]["args"]["num_workers"] = 2
    result = sever("train", "-c", write_config(tmp_path / "c.yml", config))
    assert result.exit_code == 1, result.output
    for words in ("was ended", "while it read", ".jpg", "num_workers"):  # torch may not tell by which signal
        assert words in result.stderr
    assert "To go on: sever train -r" in result.output


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_image_that_is_gone_is_named(workers, config, data_dir, tmp_path, in_second_epoch):
    data = shutil.copytree(data_dir, tmp_path / "data")

    def empty_all(_):
        for path in (data / "train_images").iterdir():
            path.write_bytes(b"")

    in_second_epoch(empty_all)
    config["training"]["epochs"] = 100
    config["data_loader"]["args"] |= {"data_dir": str(data), "num_workers": workers}
    message = mistake("train", "-c", write_config(tmp_path / "c.yml", config))
    assert "is empty (0 bytes)" in message
    assert str(data / "train_images") in message


def test_a_transform_that_fails_names_the_image(config, tmp_path, monkeypatch):
    (tmp_path / "own_transform.py").write_text(
        "import albumentations as A\n"
        "class Late(A.ImageOnlyTransform):\n"
        "    calls = 0\n"
        "    def apply(self, img, **_):\n"
        "        Late.calls += 1\n"
        "        if Late.calls > 20:\n"
        "            raise ZeroDivisionError('by design')\n"
        "        return img\n"
    )
    late = {"type": "own_transform.Late", "args": {"p": 1}}
    config["augmentation"] = {
        "type": "Pipeline",
        "args": {"transforms": [late], "crop": {"height": 48, "width": 64}},
    }
    message = mistake("train", "-c", write_config(tmp_path / "c.yml", config), "-s", "training.epochs=50")
    assert ".jpg: augmentation: ZeroDivisionError: by design" in message
