"""Precision, accumulation, clipping, averages, freezing and schedules, through the command line."""

import json
import math
import shutil

import pytest
import torch
from runs import SIZE, done, mistake, run_folder, steel_config, write_config

from sever.model.model import Unet

# One convolution and no BatchNorm, so that a batch in two halves gives the gradients of the whole.
ONE_LAYER = """
import torch
from sever.base import BaseModel

class OneLayer(BaseModel):
    def __init__(self, classes: int = 4):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, classes, 3, padding=1)

    def forward(self, images):
        return self.layer(images)
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steel") / "data"
    done("synth", folder, "-n", "16", "--size", *map(str, SIZE))
    return folder


@pytest.fixture
def config(data_dir, tmp_path):
    return steel_config(data_dir, tmp_path / "saved")


@pytest.fixture
def one_layer(config, tmp_path, monkeypatch):
    """An experiment of one convolution under plain gradient descent."""
    (tmp_path / "one_layer.py").write_text(ONE_LAYER)
    monkeypatch.syspath_prepend(tmp_path)
    config["arch"] = {"type": "one_layer.OneLayer", "args": {"classes": 4}}
    config["augmentation"] = "LightTransforms"
    config["loss"] = {"type": "BCELoss"}
    config["optimizer"] = {"type": "SGD", "args": {"lr": 1.0}}
    del config["lr_scheduler"]
    config["training"] = {"epochs": 1, "tensorboard": False}
    return config


def trained(config, tmp_path, *options, epoch=None):
    """The checkpoint of a run's last epoch."""
    output = done("train", "-c", write_config(tmp_path / "test.yml", config), *options)
    epoch = epoch or config["training"]["epochs"]
    return torch.load(run_folder(output) / f"checkpoint_epoch_{epoch}.pth", weights_only=True)


def assert_close(one, other):
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key])


def test_accumulated_batches_give_the_step_of_one_large_batch(one_layer, tmp_path):
    # 12 training sheets: 3 steps of 4, or of 2 times 2
    large = trained(one_layer, tmp_path, "-s", "data_loader.args.batch_size=4")
    halves = ("-s", "data_loader.args.batch_size=2", "-s", "training.accumulate=2")
    small = trained(one_layer, tmp_path, *halves)
    assert_close(large["state_dict"], small["state_dict"])
    assert (large["steps"], small["steps"]) == (3, 3)


def test_the_last_step_averages_the_batches_that_are_left(one_layer, tmp_path):
    # 12 sheets in batches of 4: a step of two batches and one of the third alone
    third = trained(
        *(one_layer, tmp_path, "-s", "data_loader.args.batch_size=4"), "-s", "training.accumulate=2"
    )
    assert third["steps"] == 2
    last_alone = trained(one_layer, tmp_path, "-s", "data_loader.args.batch_size=8")  # 8 and 4
    assert_close(third["state_dict"], last_alone["state_dict"])


def test_clipping_bounds_how_far_a_step_goes(one_layer, tmp_path):
    one_layer["data_loader"]["args"]["batch_size"] = 12  # one step
    one_layer["optimizer"]["args"]["lr"] = 0.5
    start = trained(one_layer, tmp_path, "-s", "optimizer.args.lr=0")["state_dict"]
    free = trained(one_layer, tmp_path)["state_dict"]
    cut = trained(one_layer, tmp_path, "-s", "training.clip_grad_norm=0.01")["state_dict"]
    assert distance(start, cut) == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert distance(start, free) > 0.05
    direction = [(cut[key] - start[key]) / 0.005 for key in start]
    expected = [(free[key] - start[key]) / distance(start, free) for key in start]
    for one, other in zip(direction, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)


def distance(one, other):
    return math.sqrt(sum(float((one[key] - other[key]).square().sum()) for key in one))


def test_the_moving_average_follows_the_weights(one_layer, tmp_path):
    one_layer["data_loader"]["args"]["batch_size"] = 12  # a step an epoch
    one_layer["training"]["epochs"] = 3
    output = done(
        *("train", "-c", write_config(tmp_path / "test.yml", one_layer)), "-s", "training.ema_decay=0.5"
    )
    states = [
        torch.load(run_folder(output) / f"checkpoint_epoch_{epoch}.pth", weights_only=True)
        for epoch in (1, 2, 3)
    ]
    # The decay rises as 1 - (1 + step)^(-2/3) from 0 at the first step: 0, 0.370, then 0.519, cut to 0.5
    average = states[0]["state_dict"]["layer.weight"]
    torch.testing.assert_close(states[0]["ema"]["layer.weight"], average)
    for state, decay in zip(states[1:], (1 - 2 ** (-2 / 3), 0.5), strict=True):
        average = decay * average + (1 - decay) * state["state_dict"]["layer.weight"]
        torch.testing.assert_close(state["ema"]["layer.weight"], average)


def test_averaged_weights_are_what_is_validated_tested_and_predicted(config, tmp_path):
    config["training"] |= {"epochs": 2, "ema_decay": 0.9, "monitor": "min val_loss"}
    del config["testing"]  # the run's own validation images
    output = done("train", "-c", write_config(tmp_path / "test.yml", config))
    run = run_folder(output)
    state = torch.load(run / "checkpoint_epoch_2.pth", weights_only=True)
    done("test", "-r", run / "checkpoint_epoch_2.pth", "-o", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["loss"] == pytest.approx(state["log"]["val_loss"], rel=1e-5)
    key = "network.segmentation_head.0.weight"
    assert not torch.equal(state["ema"][key], state["state_dict"][key])


def test_a_frozen_encoder_moves_neither_weights_nor_statistics_until_its_epoch(config, tmp_path):
    encoder = Unet(**{**config["arch"]["args"], "in_channels": "rgb"}).network.encoder
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    config["arch"]["args"] |= {"encoder_weights": str(tmp_path / "encoder.pth"), "in_channels": "rgb"}
    config["training"] |= {"epochs": 3, "unfreeze_encoder": 3, "monitor": "off"}
    output = done("train", "-c", write_config(tmp_path / "test.yml", config))
    states = [
        torch.load(run_folder(output) / f"checkpoint_epoch_{epoch}.pth", weights_only=True)["state_dict"]
        for epoch in (1, 2, 3)
    ]
    for key, tensor in encoder.state_dict().items():
        assert torch.equal(states[0][f"network.encoder.{key}"], tensor), key
        assert torch.equal(states[1][f"network.encoder.{key}"], tensor), key
    moved = [
        key
        for key, tensor in encoder.state_dict().items()
        if not torch.equal(states[2][f"network.encoder.{key}"], tensor)
    ]
    assert any("running_mean" in key for key in moved)
    assert any(key.endswith("weight") for key in moved)
    head = "network.segmentation_head.0.weight"
    assert not torch.equal(states[0][head], states[1][head])


def rates(state):
    return [group["lr"] for group in state["optimizer"]["param_groups"]]


def test_a_schedule_by_step_reaches_its_end_with_the_last_step(config, tmp_path):
    config["lr_scheduler"] = {
        "type": "FlatCosineLR",
        "interval": "step",
        "args": {"flat_epochs": 1, "anneal_epochs": 2},
    }
    config["training"] |= {"epochs": 3, "monitor": "off"}
    output = done("train", "-c", write_config(tmp_path / "test.yml", config))
    run = run_folder(output)
    states = [torch.load(run / f"checkpoint_epoch_{n}.pth", weights_only=True) for n in (1, 2, 3)]
    assert rates(states[0]) == pytest.approx([7e-4, 3e-3])
    assert rates(states[1]) == pytest.approx([7e-4 / 2, 3e-3 / 2])  # half of the cosine
    assert rates(states[2]) == pytest.approx([0, 0], abs=1e-12)


def test_warm_up_lowers_the_first_rates_and_the_schedule_ends_where_it_would(config, tmp_path):
    # 3 steps an epoch, 6 of warm-up; the schedule is flat for 1 epoch and takes 4 to 0
    config["lr_scheduler"] |= {"interval": "step", "warmup": {"length": 6, "start_factor": 0.4}}
    config["training"] |= {"epochs": 3, "monitor": "off"}
    output = done("train", "-c", write_config(tmp_path / "test.yml", config))
    run = run_folder(output)
    states = [torch.load(run / f"checkpoint_epoch_{n}.pth", weights_only=True) for n in (1, 2, 3)]
    assert rates(states[0]) == pytest.approx([0.7 * 7e-4, 0.7 * 3e-3])  # half the way from 0.4 to 1
    quarter = (1 + math.cos(math.pi / 4)) / 2
    assert rates(states[1]) == pytest.approx([quarter * 7e-4, quarter * 3e-3])
    assert rates(states[2]) == pytest.approx([7e-4 / 2, 3e-3 / 2])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_train_float32_weights(precision, config, tmp_path):
    state = trained(config, tmp_path, "-s", f"training.precision={precision}", "-s", "training.epochs=2")
    assert all(t.dtype in (torch.float32, torch.int64) for t in state["state_dict"].values())
    assert all(math.isfinite(value) for value in state["log"].values())
    assert bool(state["scaler"]) == (precision == "fp16")


RECIPE = {
    "training.ema_decay": 0.9, "training.accumulate": 2, "training.clip_grad_norm": 1.0,
    "training.unfreeze_encoder": 3, "training.keep_best": 2, "lr_scheduler.interval": "step",
    "lr_scheduler.warmup.length": 4, "optimizer.lookahead.k": 3, "optimizer.decay_biases_and_norms": "false",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_whole_recipe_resumes_bit_by_bit(precision, config, tmp_path):
    config["loss"] = {
        "type": "SwitchedLoss",
        "args": {"stages": ["BCEDiceLoss", {"type": "LovaszHingeLoss", "from_epoch": 4}]},
    }
    config["training"] |= {"epochs": 4, "precision": precision}
    options = [text for key, value in RECIPE.items() for text in ("-s", f"{key}={value}")]
    path = write_config(tmp_path / "test.yml", config)
    straight = run_folder(done("train", "-c", path, *options))
    stopped = run_folder(done("train", "-c", path, *options, "-s", "training.epochs=2"))
    done("train", "-r", stopped / "checkpoint_epoch_2.pth", "-s", "training.epochs=4")
    one, other = (
        torch.load(run / "checkpoint_epoch_4.pth", weights_only=True) for run in (straight, stopped)
    )
    for part in ("state_dict", "ema"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])
    for key in ("monitor", "lr_scheduler", "steps", "scaler", "log"):
        assert one[key] == other[key], key


def test_the_best_epochs_keep_their_checkpoints(config, tmp_path):
    config["training"] |= {"epochs": 6, "save_period": 4, "keep_best": 2, "monitor": "max val_dice_mean"}
    run = run_folder(done("train", "-c", write_config(tmp_path / "test.yml", config)))
    log = (run / "logs" / "info.log").read_text()
    values = {
        int(line.split("epoch ")[1].split("/")[0]): float(line.split("val_dice_mean': '")[1].split("'")[0])
        for line in log.splitlines()
        if "val_dice_mean': '" in line
    }
    best = sorted(values, key=lambda epoch: -values[epoch])[:2]
    kept = {int(path.stem.rpartition("_")[2]) for path in run.glob("checkpoint_epoch_*.pth")}
    assert len(values) == 6
    assert kept == {*best, 4, 6}


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """A run of three epochs."""
    folder = tmp_path_factory.mktemp("finished")
    config = steel_config(data_dir, folder / "saved")
    config["training"] |= {"epochs": 3, "monitor": "min val_loss"}
    config["lr_scheduler"]["args"]["anneal_epochs"] = 9
    return run_folder(done("train", "-c", write_config(folder / "test.yml", config)))


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_an_average_holds_the_mean_of_the_weights_and_is_scored_like_any_checkpoint(run, tmp_path):
    paths = [run / f"checkpoint_epoch_{epoch}.pth" for epoch in (1, 3)]
    done("average", "-r", paths[0], "-r", paths[1], "-o", tmp_path / "mean.pth")
    one, other = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
    mean = torch.load(tmp_path / "mean.pth", weights_only=True)
    assert mean["averaged"] == [str(path) for path in paths]
    for key, tensor in mean["state_dict"].items():
        expected = (one[key] + other[key]) / 2 if tensor.is_floating_point() else other[key]
        torch.testing.assert_close(tensor, expected)
    assert "competition_dice" in done("test", "-r", tmp_path / "mean.pth")


def test_the_best_of_a_run_are_averaged_by_what_it_monitored(run):
    output = done("average", "-r", run, "--best", "2")
    losses = {
        epoch: torch.load(run / f"checkpoint_epoch_{epoch}.pth", weights_only=True)["log"]["val_loss"]
        for epoch in (1, 2, 3)
    }
    best = sorted(losses, key=lambda epoch: losses[epoch])[:2]
    mean = torch.load(run / "model_average.pth", weights_only=True)
    assert mean["averaged"] == [str(run / f"checkpoint_epoch_{epoch}.pth") for epoch in best]
    assert f"{losses[best[0]]:.4f}" in output


def test_batch_norm_statistics_can_be_taken_from_the_data(run, tmp_path):
    done("average", "-r", run, "-o", tmp_path / "plain.pth")
    done("average", "-r", run, "-o", tmp_path / "new.pth", "--recompute-batch-norm")
    plain, new = (
        torch.load(tmp_path / name, weights_only=True)["state_dict"] for name in ("plain.pth", "new.pth")
    )
    moved = {key for key in plain if not torch.equal(plain[key], new[key])}
    assert {key.rpartition(".")[2] for key in moved} == {
        "running_mean", "running_var", "num_batches_tracked"
    }  # fmt: skip


def test_no_run_goes_on_from_an_average_but_a_new_one_can_start_there(run, tmp_path):
    done("average", "-r", run)
    message = mistake("train", "-r", run / "model_average.pth")
    assert "mean of 3 checkpoints" in message
    assert "-c FILE -r" in message
    output = done(
        *("train", "-c", run / "config.yml", "-r", run / "model_average.pth"), "-s", "training.epochs=4"
    )
    assert "holds no optimizer" in output
    assert (run_folder(output) / "checkpoint_epoch_4.pth").is_file()


def test_mistakes_of_an_average(run, tmp_path):
    assert "only 3 checkpoints" in mistake("average", "-r", run, "--best", "4")
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint_epoch_*.pth" in mistake("average", "-r", tmp_path / "empty")
    assert "--recompute-batch-norm" in mistake("average", "-r", run, "-s", "seed=1")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.precision=fp8", ["training.precision", "'fp32', 'bf16' or 'fp16'", "'fp8'"]),
        ("training.accumulate=0", ["training.accumulate", "greater than or equal to 1", "0"]),
        ("training.clip_grad_norm=0", ["training.clip_grad_norm", "greater than 0"]),
        ("training.ema_decay=1.0", ["training.ema_decay", "less than 1", "1.0"]),
        ("training.unfreeze_encoder=0", ["training.unfreeze_encoder", "greater than or equal to 1"]),
        ("training.keep_best=-1", ["training.keep_best"]),
        ("training.emadecay=0.9", ["unknown key 'emadecay'", "Did you mean 'ema_decay'?"]),
        ("lr_scheduler.interval=batch", ["lr_scheduler.interval", "'epoch' or 'step'", "'batch'"]),
        ("lr_scheduler.warmup.start_factor=2", ["lr_scheduler.warmup.start_factor", "less than or"]),
        ("lr_scheduler.warmup.start_factor=0.5", ["'lr_scheduler.warmup.length' is missing"]),
        ("optimizer.lookahead.k=0", ["optimizer.lookahead.k", "greater than or equal to 1"]),
        ("optimizer.lookahead.kk=2", ["optimizer.lookahead", "unknown key 'kk'", "Did you mean 'k'?"]),
        ("optimizer.decay_biases_and_norms=3", ["optimizer.decay_biases_and_norms", "boolean"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_key_of_the_recipe_is_named(setting, words, config, tmp_path):
    message = mistake("train", "-c", write_config(tmp_path / "test.yml", config), "-s", setting)
    for word in words:
        assert word in message


def test_settings_that_need_each_other(one_layer, tmp_path):
    path = write_config(tmp_path / "test.yml", one_layer)
    message = mistake("train", "-c", path, "-s", "training.unfreeze_encoder=2")
    assert "training.unfreeze_encoder" in message
    assert "OneLayer" in message
    assert "training.monitor, which is off" in mistake("train", "-c", path, "-s", "training.keep_best=2")


def test_a_trainer_of_ones_own_does_not_pass_over_a_setting(one_layer, tmp_path):
    (tmp_path / "own_trainer.py").write_text(
        "from sever.base import BaseTrainer\n"
        "class Own(BaseTrainer):\n"
        "    def _train_epoch(self, epoch):\n"
        "        return {'loss': 1.0}\n"
    )
    one_layer["trainer"] = "own_trainer.Own"
    path = write_config(tmp_path / "test.yml", one_layer)
    message = mistake("train", "-c", path, "-s", "training.accumulate=2")
    assert "training.accumulate: own_trainer.Own does not take it" in message


def test_a_trainer_of_ones_own_adds_to_the_log(one_layer, tmp_path):
    (tmp_path / "own_log.py").write_text(
        "from sever.trainer.trainer import Trainer\n"
        "class Own(Trainer):\n"
        "    def _train_epoch(self, epoch):\n"
        "        return {**super()._train_epoch(epoch), 'twice': 2.0 * epoch}\n"
    )
    one_layer["trainer"] = "own_log.Own"
    one_layer["training"] |= {"epochs": 2, "monitor": "max twice"}
    state = trained(one_layer, tmp_path)
    assert (state["log"]["twice"], state["monitor_best"]) == (4.0, 4.0)
    assert state["log"]["loss"] > 0


def test_a_training_loop_of_ones_own_does_not_pass_over_a_setting(one_layer, tmp_path):
    (tmp_path / "own_loop.py").write_text(
        "from sever.trainer.trainer import Trainer\n"
        "class Own(Trainer):\n"
        "    def _train_epoch(self, epoch):\n"
        "        return {'loss': 1.0}\n"
    )
    one_layer["trainer"] = "own_loop.Own"
    path = write_config(tmp_path / "test.yml", one_layer)
    message = mistake("train", "-c", path, "-s", "training.ema_decay=0.9")
    assert "Own._train_epoch steps the optimizer by itself" in message
    assert "self.stepper.backward" in message


def test_a_schedule_by_step_needs_a_trainer_that_steps_it(one_layer, tmp_path):
    (tmp_path / "no_steps.py").write_text(
        "from sever.base import BaseTrainer\n"
        "class Own(BaseTrainer):\n"
        "    def _train_epoch(self, epoch):\n"
        "        return {'loss': 1.0}\n"
    )
    one_layer["trainer"] = "no_steps.Own"
    one_layer["lr_scheduler"] = {"type": "FlatCosineLR", "interval": "step"}
    message = mistake("train", "-c", write_config(tmp_path / "test.yml", one_layer))
    assert "lr_scheduler.interval: no_steps.Own does not say that it steps schedules" in message


@pytest.mark.parametrize(
    "change",
    [
        "training.accumulate=2", "training.ema_decay=0.9", "training.precision=bf16",
        "training.unfreeze_encoder=3", "data_loader.args.batch_size=2", "data_loader.args.drop_last=true",
        "data_loader.args.balance={alpha: 0.5, kind: random}", "augmentation.args.width=32",
    ],
)  # fmt: skip
def test_a_run_goes_on_only_as_it_began(change, run):
    message = mistake("train", "-r", run / "checkpoint_epoch_2.pth", "-s", change, "-s", "training.epochs=9")
    assert "cannot change" in message
    assert change.partition("=")[0].rpartition(".")[2] in message


def test_going_back_to_an_earlier_epoch_says_what_becomes_of_the_later_ones(run):
    output = done("train", "-r", run / "checkpoint_epoch_1.pth", "--dry-run")
    assert "holds 2 checkpoints of later epochs" in output


def test_a_checkpoint_that_was_the_last_of_a_leg_stays(config, tmp_path):
    config["training"] |= {"epochs": 2, "save_period": 10, "keep_best": 1, "monitor": "min val_loss"}
    run = run_folder(done("train", "-c", write_config(tmp_path / "test.yml", config)))
    done("train", "-r", run / "checkpoint_epoch_2.pth", "-s", "training.epochs=6")
    assert {"checkpoint_epoch_2.pth", "checkpoint_epoch_6.pth"} <= {path.name for path in run.glob("*.pth")}


def test_an_average_over_different_validation_images_is_not_scored_on_them(config, tmp_path):
    del config["testing"]
    config["data_loader"]["args"]["folds"] = 2
    del config["data_loader"]["args"]["validation_split"]
    config["training"] |= {"epochs": 1}
    done("train", "-c", write_config(tmp_path / "test.yml", config), "--all-folds")
    runs = [next((tmp_path / "saved" / f"small-fold{fold}").iterdir()) for fold in (1, 2)]
    done("average", "-r", runs[0], "-r", runs[1], "-o", tmp_path / "mean.pth")
    message = mistake("test", "-r", tmp_path / "mean.pth")
    assert "the averaged runs validated different images" in message


def test_an_average_is_of_the_newest_epoch_and_does_not_replace_what_it_is_made_of(run, tmp_path):
    done("average", "-r", run, "--best", "3", "-o", tmp_path / "mean.pth")
    assert torch.load(tmp_path / "mean.pth", weights_only=True)["epoch"] == 3
    one = run / "checkpoint_epoch_1.pth"
    assert "is one of the files that are read here" in mistake("average", "-r", run, "-o", one)
    done("average", "-r", run, "-r", one, "-o", tmp_path / "once.pth")
    assert len(torch.load(tmp_path / "once.pth", weights_only=True)["averaged"]) == 3
    message = mistake("average", "-r", tmp_path / "mean.pth", "-r", one, "--best", "1")
    assert "is of no run with a monitor" in message


def test_a_new_run_starts_from_the_averaged_weights(config, tmp_path):
    config["training"] |= {"epochs": 1, "ema_decay": 0.9, "monitor": "off"}
    run = run_folder(done("train", "-c", write_config(tmp_path / "test.yml", config)))
    options = ("-s", "training.epochs=2", "-s", "training.ema_decay=null")
    no_steps = ("-s", "optimizer.encoder.lr=0", "-s", "optimizer.decoder.lr=0")
    output = done(
        "train", "-c", tmp_path / "test.yml", "-r", run / "checkpoint_epoch_1.pth", *options, *no_steps
    )
    before = torch.load(run / "checkpoint_epoch_1.pth", weights_only=True)["ema"]
    after = torch.load(run_folder(output) / "checkpoint_epoch_2.pth", weights_only=True)["state_dict"]
    assert torch.equal(
        before["network.segmentation_head.0.weight"], after["network.segmentation_head.0.weight"]
    )


def test_the_plan_notes_what_is_hardly_meant(config, tmp_path):
    path = write_config(tmp_path / "test.yml", config)
    plan = done("train", "-c", path, "--dry-run", "-s", "training.epochs=8", "-s", "training.precision=bf16")
    assert "the learning rates are 0 from epoch 6 on" in plan
    assert "bf16 is much slower than fp32 on most CPUs" in plan
    unfreeze, off = ("-s", "training.unfreeze_encoder=5"), ("-s", "training.monitor=off")
    plan = done("train", "-c", path, "--dry-run", *unfreeze, *off, "-s", "training.early_stop=3")
    assert "the encoder is never trained" in plan
    assert "training.early_stop follows training.monitor, which is off" in plan
    folds = ("-s", "data_loader.args.folds=4", "-s", "data_loader.args.validation_split=null")
    assert "validation     fold 1 of 4: 4 images" in done("train", "-c", path, "--dry-run", *folds)


def test_verbose_0_reports_warnings_alone(config, tmp_path):
    output = done("train", "-c", write_config(tmp_path / "test.yml", config), "-s", "training.verbose=0")
    assert "epoch 1/2" not in output


def test_an_override_reaches_into_lists(config, tmp_path):
    stages = ["BCEDiceLoss", {"type": "LovaszHingeLoss", "from_epoch": 2}]
    config["loss"] = {"type": "SwitchedLoss", "args": {"stages": stages}}
    path = write_config(tmp_path / "test.yml", config)
    state = trained(config, tmp_path, "-s", "loss.args.stages.1.from_epoch=9")
    assert state["config"]["loss"]["args"]["stages"][1]["from_epoch"] == 9
    message = mistake("train", "-c", path, "-s", "loss.args.stages.2.from_epoch=9")
    assert "expected a place from 0 to 1 in the list, received '2'" in message


def test_a_loss_that_is_switched_is_not_monitored(config, tmp_path):
    stages = ["BCEDiceLoss", {"type": "LovaszHingeLoss", "from_epoch": 2}]
    config["loss"] = {"type": "SwitchedLoss", "args": {"stages": stages}}
    path = write_config(tmp_path / "test.yml", config)
    message = mistake("train", "-c", path, "-s", "training.monitor=min val_loss")
    assert "training.monitor: 'loss' is of another loss in later epochs" in message
    done("train", "-c", path, "-s", "training.monitor=max val_dice_mean", "--dry-run")
