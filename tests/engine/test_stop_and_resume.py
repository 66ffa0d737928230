"""A run that is stopped anywhere goes on as if it had not been."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest
import torch
from runs import done, mistake, run_folder, sever, steel_config, synthetic_sheets, write_config
from same_run import assert_same_course, same

from sever.base import BaseModel, BaseTrainer
from sever.config.schema import seconds_of
from sever.engine.checkpoint import load_checkpoint
from sever.engine.run_folder import RunFolder
from sever.engine.signals import StopSignals
from sever.trainer.trainer import Trainer
from sever.utils.errors import StorageError

RECIPES = {
    "plain": {"training.tensorboard": True},
    "everything": {
        "training.tensorboard": True,
        "training.ema_decay": 0.9, "training.accumulate": 2, "training.clip_grad_norm": 1.0,
        "training.unfreeze_encoder": 2, "training.keep_best": 2, "training.early_stop": 9,
        "lr_scheduler.interval": "step", "optimizer.lookahead.k": 3, "training.precision": "fp16",
        "data_loader.args.balance": "{alpha: 0.5, kind: random}",
        "data_loader.args.pseudo": "{csv: pseudo.csv, share: 0.25}",
    },
    "sgd": {"optimizer.type": "SGD", "optimizer.args": "{momentum: 0.9}", "lr_scheduler": "null"},
    "adamw": {"optimizer.type": "AdamW", "optimizer.args": "{amsgrad: true}", "training.save_period": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return synthetic_sheets(tmp_path_factory.mktemp("stopping") / "data")


@pytest.fixture
def config(data_dir, tmp_path):
    config = steel_config(data_dir, tmp_path / "saved")
    config["training"] |= {"epochs": 3}
    config["arch"]["args"]["decoder_dropout"] = 0.3  # draws from torch's global generator
    return config


@pytest.fixture
def signal_at(monkeypatch):
    """Sends this process a signal when a model gets its n-th batch, in training or validation."""
    left: list[int] = []
    targets = BaseModel.targets

    def counted(model, masks):
        # A model is tried on a batch before the run too, when a signal just ends the program.
        listens = isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), StopSignals)
        if left and listens:
            left[0] -= 1
            if not left[0]:
                left.clear()
                os.kill(os.getpid(), signal.SIGTERM)
        return targets(model, masks)

    monkeypatch.setattr(BaseModel, "targets", counted)
    return lambda batch: left.append(batch)


def finish(run, signal_at, stops, *options):
    """Go on from the last checkpoint until the run ends, with a signal after some batches each time."""
    for batches in [*stops, None]:
        if batches:
            signal_at(batches)
        result = sever("train", "-r", run / "checkpoint_last.pth", *options)
        if result.exit_code == 0:
            return
        assert result.exit_code == 143, result.output
    raise AssertionError("the run did not end")


def check_random_stops(recipe, runs, config, tmp_path, signal_at):
    path = write_config(tmp_path / "c.yml", config)
    options = [text for key, value in RECIPES[recipe].items() for text in ("-s", f"{key}={value}")]
    straight = run_folder(done("train", "-c", path, *options))
    drawn = np.random.default_rng(sum(map(ord, recipe)))
    for first in drawn.choice(np.arange(1, 13), runs, replace=False).tolist():
        signal_at(first)
        result = sever("train", "-c", path, *options)
        assert result.exit_code == 143, result.output
        assert "To go on: sever train -r" in result.output
        stopped = run_folder(result.output)
        finish(stopped, signal_at, drawn.integers(1, 6, 2).tolist())
        assert_same_course(straight, stopped)


def test_a_run_that_is_stopped_ends_as_one_that_was_not(config, tmp_path, signal_at):
    check_random_stops("everything", 1, config, tmp_path, signal_at)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_is_stopped_at_many_steps_ends_as_one_that_was_not(recipe, config, tmp_path, signal_at):
    check_random_stops(recipe, 12, config, tmp_path, signal_at)


@pytest.mark.parametrize("workers", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_the_number_of_workers_may_change_on_the_way(workers, config, tmp_path, signal_at):
    path = write_config(tmp_path / "c.yml", config)
    straight = run_folder(done("train", "-c", path))
    signal_at(2)
    stopped = run_folder(sever("train", "-c", path, "-s", f"data_loader.args.num_workers={workers}").output)
    finish(stopped, signal_at, [], "-s", f"data_loader.args.num_workers={2 - workers}")
    assert_same_course(straight, stopped)


def test_a_validation_that_was_stopped_is_done_again(config, tmp_path, signal_at):
    config["data_loader"]["args"]["validation_batch_size"] = 1
    config["training"] |= {"epochs": 2, "tensorboard": True}
    path = write_config(tmp_path / "c.yml", config)
    straight = run_folder(done("train", "-c", path))
    batches = -(-12 // 4)
    signal_at(batches + 2)
    result = sever("train", "-c", path)
    stopped = run_folder(result.output)
    state = torch.load(stopped / "checkpoint_last.pth", weights_only=True)
    assert state["epoch"] == 0
    assert state["position"]["batches"] == batches
    assert f"in epoch 1 after {batches} of {batches} batches" in result.output
    finish(stopped, signal_at, [])
    assert_same_course(straight, stopped, epochs=2)


def test_the_time_budget_stops_a_run_which_goes_on_by_itself(config, tmp_path):
    config["training"] |= {"epochs": 400, "tensorboard": False}
    path = write_config(tmp_path / "c.yml", config)
    begin = time.monotonic()
    result = sever("train", "-c", path, "-r", "auto", "-s", "training.max_time=1s")
    assert time.monotonic() - begin < 30
    assert result.exit_code == 0
    assert "stopped by training.max_time" in result.output
    run = run_folder(result.output)
    epoch = torch.load(run / "checkpoint_last.pth", weights_only=True)["epoch"]
    again = done("train", "-c", path, "-r", "auto", "-s", f"training.epochs={epoch + 1}")
    assert run_folder(again) == run
    assert (run / f"checkpoint_epoch_{epoch + 1}.pth").is_file()


def test_auto_starts_a_first_run_and_goes_on_with_the_latest(config, tmp_path, signal_at):
    path = write_config(tmp_path / "c.yml", config)
    signal_at(2)
    result = sever("train", "-c", path, "-r", "auto")
    assert result.exit_code == 143
    first = run_folder(result.output)
    assert run_folder(done("train", "-c", path, "-r", "auto")) == first
    assert "Nothing left to train" in done("train", "-c", path, "-r", "auto")
    message = mistake("train", "-c", path, "-r", "auto", "-s", "seed=5")
    assert f"the latest run, {first}, began with something else: seed" in message
    for spelling in (f"{tmp_path / 'saved'}/", f"{tmp_path}/./saved"):
        assert "Nothing left to train" in done(
            "train", "-c", path, "-r", "auto", "-s", f"save_dir={spelling}"
        )
    assert "-r auto needs -c FILE" in mistake("train", "-r", "auto")


@pytest.mark.parametrize("name", ["checkpoint_last.pth", "config.yml"])
def test_a_link_that_a_resumed_run_would_write_over_is_named_before_it_trains(name, config, tmp_path):
    run = run_folder(done("train", "-c", write_config(tmp_path / "c.yml", config), "-s", "training.epochs=1"))
    (run / name).rename(tmp_path / name)
    (run / name).symlink_to(tmp_path / name)
    resume = ("train", "-r", run / "checkpoint_epoch_1.pth", "-s", "training.epochs=2")
    for options in ((), ("--dry-run",)):
        assert f"{run / name}: is a link; give the name of its file" in mistake(*resume, *options)


def test_auto_takes_the_checkpoint_before_a_damaged_one(config, tmp_path):
    path = write_config(tmp_path / "c.yml", config)
    run = run_folder(done("train", "-c", path, "-s", "training.epochs=2"))
    for name in ("checkpoint_last.pth", "checkpoint_epoch_2.pth"):
        os.truncate(run / name, 1000)
    output = done("train", "-c", path, "-r", "auto")
    assert "is damaged" in output
    assert "Taking the checkpoint before it" in output
    assert (run / "checkpoint_epoch_3.pth").is_file()


def test_a_checkpoint_is_written_within_long_epochs(config, tmp_path, monkeypatch):
    config["training"] |= {"epochs": 1, "save_every": "0.001s"}
    seen = []
    write = sys.modules["sever.engine.checkpoint_keeper"].write_file

    def watched(path, data):
        state = torch.load(io.BytesIO(data), weights_only=True)
        seen.append((path.name, state["position"]["batches"]))
        write(path, data)

    monkeypatch.setattr("sever.engine.checkpoint_keeper.write_file", watched)
    done("train", "-c", write_config(tmp_path / "c.yml", config))
    assert seen == [
        *(("checkpoint_last.pth", batches) for batches in (1, 2, 3)),
        ("checkpoint_epoch_1.pth", 0),
    ]


def test_the_training_goes_on_while_a_checkpoint_is_written(config, tmp_path, monkeypatch):
    """The first epoch's is not written before the second epoch has begun, and holds the first one's state."""
    keeper = sys.modules["sever.engine.checkpoint_keeper"]
    write, begun = keeper.write_file, threading.Event()
    begin_epoch = Trainer._begin_epoch

    def begins(trainer, epoch):
        begin_epoch(trainer, epoch)
        if epoch == 2:
            begun.set()

    def waiting(path, data):
        assert begun.wait(60)
        write(path, data)

    path = write_config(tmp_path / "c.yml", config)
    plain = run_folder(done("train", "-c", path, "-s", "training.epochs=2", "-s", "name=plain"))
    monkeypatch.setattr(Trainer, "_begin_epoch", begins)
    monkeypatch.setattr(keeper, "write_file", waiting)
    run = run_folder(done("train", "-c", path, "-s", "training.epochs=2"))
    for name in ("checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth", "checkpoint_last.pth"):
        weights = [load_checkpoint(folder / name)["state_dict"] for folder in (plain, run)]
        assert same(*weights), name


def test_a_checkpoint_that_cannot_be_written_ends_the_training_at_a_step(config, tmp_path, monkeypatch):
    steps = []

    def refused(path, data):
        raise StorageError(f"{path}: cannot be written: No space left on device")

    def end_step(trainer, batches):
        if trainer.last_epoch:
            wait([trainer.checkpoints._writing])
            steps.append(batches)
        BaseTrainer._end_step(trainer, batches)

    monkeypatch.setattr("sever.engine.checkpoint_keeper.write_file", refused)
    monkeypatch.setattr(Trainer, "_end_step", end_step)
    result = sever("train", "-c", write_config(tmp_path / "c.yml", config))
    assert (result.exit_code, steps) == (1, [1])
    assert "checkpoint_epoch_1.pth: cannot be written: No space left" in result.stderr


def test_the_last_checkpoints_are_kept_with_the_best(config, tmp_path):
    config["training"] |= {"epochs": 6, "keep_last": 2, "keep_best": 1, "monitor": "min val_loss"}
    run = run_folder(done("train", "-c", write_config(tmp_path / "c.yml", config)))
    kept = {int(path.stem.rpartition("_")[2]) for path in run.glob("checkpoint_epoch_*.pth")}
    state = torch.load(run / "checkpoint_last.pth", weights_only=True)
    best = state["monitor"]["ranking"][0][1]
    assert kept == {5, 6, best}
    assert state["epoch"] == 6


def test_a_lost_terminal_stops_a_run_unless_it_is_to_be_ignored():
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, status in ((signal.SIG_DFL, 129), (signal.SIG_IGN, None)):
            signal.signal(signal.SIGHUP, handler)
            with StopSignals() as signals:
                os.kill(os.getpid(), signal.SIGHUP)
                assert getattr(signals.poll()[0], "status", None) == status
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_two_processes_do_not_train_in_one_folder(config, tmp_path, monkeypatch):
    config["training"] |= {"epochs": 1}
    path = write_config(tmp_path / "c.yml", config)
    run = run_folder(done("train", "-c", path))
    monkeypatch.setattr("sever.engine.run_folder._PATIENCE", 0.2)
    with RunFolder(run).held():
        message = mistake("train", "-r", run / "checkpoint_last.pth", "-s", "training.epochs=2")
        assert f"{run}: another process trains in this folder" in message
    done("train", "-r", run / "checkpoint_last.pth", "-s", "training.epochs=2")


def test_a_second_signal_ends_the_program_at_once():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        stop, _ = signals.poll()
        assert stop is not None
        assert stop.status == 143
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 143


def test_time_is_watched_from_the_start_that_is_given():
    now = [100.0]
    with StopSignals(60, 10, started=50.0, clock=lambda: now[0]) as signals:
        assert signals.poll() == (None, False)
        now[0] = 110
        stop, save_is_due = signals.poll()
        assert stop is not None
        assert stop.status == 0
        assert save_is_due
        signals.saved()
        assert not signals.poll()[1]


@pytest.mark.parametrize("text", ["", "8", "8 h", "h", "-1h", "0s", "1x", 90, None, "1h2"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(ValueError, match="expected a length of time"):
        seconds_of(text)


@pytest.mark.parametrize("key", ["max_time", "save_every"])
def test_a_length_of_time_is_checked_before_training(key, config, tmp_path):
    message = mistake("train", "-c", write_config(tmp_path / "c.yml", config), "-s", f"training.{key}=10")
    assert f"training.{key}" in message
    assert "8h50m" in message


@pytest.mark.slow
def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_step(config, tmp_path):
    config["training"] |= {"epochs": 1000, "tensorboard": False}
    config["data_loader"]["args"]["num_workers"] = 2
    path = write_config(tmp_path / "c.yml", config)
    command = [sys.executable, "-m", "sever", "train", "-c", str(path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    os.killpg(process.pid, signal.SIGTERM)
    output, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert stderr == "sever: stopping after this step; a second signal ends at once\n"
    assert "To go on" in output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left


def test_the_newest_checkpoint_is_known_by_what_it_holds_not_by_the_time_of_its_file(config, tmp_path):
    path = write_config(tmp_path / "c.yml", config)
    run = run_folder(done("train", "-c", path, "-s", "training.epochs=2"))
    os.utime(run / "checkpoint_epoch_1.pth", (2e9, 2e9))
    output = done("train", "-c", path, "-r", "auto")
    assert f"Going on from {run / 'checkpoint_last.pth'}" in output
    assert "epoch 2/3" not in output


def test_a_checkpoint_with_a_few_other_bytes_is_not_gone_on_from(config, tmp_path):
    path = write_config(tmp_path / "c.yml", config)
    run = run_folder(done("train", "-c", path, "-s", "training.epochs=1"))
    data = bytearray((run / "checkpoint_last.pth").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (run / "flipped.pth").write_bytes(data)
    assert "is not what was written" in mistake("train", "-r", run / "flipped.pth", "-s", "training.epochs=2")
