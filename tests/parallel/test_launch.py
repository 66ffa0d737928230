"""Commands by several processes on one machine, as users start and stop them."""

import os
import re
import signal

import pytest
import torch
from launched import started
from runs import SIZE, done, mistake, run_folder, sever, steel_config, synthetic_sheets, write_config
from same_run import LONG, assert_close, assert_same_course, events, weights_of, without_batch_norm

from sever.engine.checkpoint import load_checkpoint

SECONDS_TO_END = 20  # for what is left, when a process is killed
STOPPING = "sever: stopping after this step; a second signal ends at once\n"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return synthetic_sheets(tmp_path_factory.mktemp("devices") / "data")


@pytest.fixture
def config(data_dir, tmp_path):
    return steel_config(data_dir, tmp_path / "saved")


@pytest.fixture
def sever_on(tmp_path):
    """Starts a command in its own process, by default on two devices."""

    def start(command, *args, devices="cpu,cpu"):
        return started("-m", "sever", command, *args, "-d", devices, folder=tmp_path)

    return start


def finished(command):
    with command as running:
        return running.done()


def epoch_lines(run):
    """What the log file says of the epochs, without the times."""
    lines = (run / "logs" / "info.log").read_text().splitlines()
    return [line.partition(": ")[2] for line in lines if re.search(r": epoch \d+/\d+  \{?'?loss", line)]


def of_everything(config):
    """With batches that are divided into unequal shards, and all that is done with their gradients."""
    without_batch_norm(config)
    config["data_loader"]["args"] |= {
        "batch_size": 5,
        "balance": {"alpha": 0.5, "kind": "random"},
        "pseudo": {"csv": "pseudo.csv", "share": 0.25},
    }
    more = {"ema_decay": 0.9, "accumulate": 2, "clip_grad_norm": 1.0, "tensorboard": True, "epochs": 4}
    config["training"] |= more
    return config


@pytest.fixture(scope="module")
def on_two(data_dir, tmp_path_factory):
    """The folder of a run on two devices that nothing stopped, and what it printed."""
    folder = tmp_path_factory.mktemp("two")
    path = write_config(folder / "c.yml", of_everything(steel_config(data_dir, folder / "saved")))
    printed = finished(started("-m", "sever", "train", "-c", path, "-d", "cpu,cpu", folder=folder))
    return run_folder(printed), printed


def test_two_processes_train_as_one_does(config, on_two, tmp_path):
    two, printed = on_two
    path = write_config(tmp_path / "c.yml", of_everything(config))
    printed_by_one = done("train", "-c", path, "-d", "cpu")
    one = run_folder(printed_by_one)

    sharing = "processes      2; of a batch of 5 images each has 3 or 2; BatchNorm of each process by itself"
    assert sharing in printed.splitlines()
    assert len(printed.splitlines()) == len(printed_by_one.splitlines()) + 1
    states = [load_checkpoint(run / "checkpoint_last.pth") for run in (one, two)]
    for name in ("state_dict", "ema"):
        assert_close(*(state[name] for state in states))
    assert states[0]["log"] == pytest.approx(states[1]["log"], abs=1e-5)
    assert len(states[1]["other_processes"]) == 1

    assert [path.name for path in two.parent.iterdir()] == [two.name]
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert (one / "split.csv").read_text() == (two / "split.csv").read_text()
    written, expected = events(two), events(one)
    assert expected.keys() - written.keys() == {"sample_3/train"}  # the main process has three of the images
    for tag, values in written.items():
        assert [value[0] for value in values] == [value[0] for value in expected[tag]]
    assert len(list((two.parent.parent / "runs" / two.parent.name).rglob("events*"))) == 1


def stop(command, number, *texts):
    """Stop a run by a signal to its launcher after some lines were printed; returns its folder."""
    with command as running:
        for text in texts:
            running.wait_for_line(text)
        assert running.listening_at() <= {"0100007F"}  # 127.0.0.1: nobody on the network can talk to them
        assert running.send(number).status() == 128 + number, running.output
        assert running.stderr == STOPPING
        folder = run_folder(running.stdout)
        (told,) = re.findall(r"^The run was stopped .*$", running.stdout, flags=re.MULTILINE)
        assert f"by {signal.Signals(number).name}" in told
        assert f"To go on: sever train -r {folder / 'checkpoint_last.pth'}" in told
        assert running.stdout.splitlines()[-1] == told
    return folder


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly_where_it_was(config, on_two, sever_on, tmp_path):
    straight, _ = on_two
    path = write_config(tmp_path / "c.yml", of_everything(config))
    stopped = stop(sever_on("train", "-c", path), signal.SIGTERM, "epoch 1/4")
    finished(sever_on("train", "-r", stopped / "checkpoint_last.pth"))
    assert_same_course(straight, stopped, epochs=4)
    assert epoch_lines(straight) == epoch_lines(stopped)


@pytest.mark.slow
def test_each_process_goes_on_with_its_own_random_numbers(config, sever_on, tmp_path):
    config["arch"]["args"]["decoder_dropout"] = 0.3
    config["data_loader"]["args"]["batch_size"] = 3
    config["training"] |= {"epochs": 4, "tensorboard": True}
    path = write_config(tmp_path / "c.yml", config)
    straight = run_folder(finished(sever_on("train", "-c", path)))
    stopped = stop(sever_on("train", "-c", path), signal.SIGINT, "run folder", "epoch")
    finished(sever_on("train", "-r", stopped / "checkpoint_last.pth"))
    assert_same_course(straight, stopped, epochs=4)


@pytest.mark.slow
def test_a_lost_terminal_stops_all_processes_and_the_number_of_them_may_change(config, sever_on, tmp_path):
    without_batch_norm(config)["training"] |= {"epochs": 5}
    path = write_config(tmp_path / "c.yml", config)
    straight = run_folder(done("train", "-c", path, "-d", "cpu", "-s", f"save_dir={tmp_path / 'one'}"))
    stopped = stop(sever_on("train", "-c", path), signal.SIGHUP, "epoch 1/5")
    last = stopped / "checkpoint_last.pth"
    done("train", "-r", last, "-d", "cpu", "-s", "training.epochs=4")
    finished(sever_on("train", "-r", last, "-s", "training.epochs=5"))
    # Each of the 15 steps makes more of a difference.
    assert_close(weights_of(straight), weights_of(stopped), rounding=3e-4)


@pytest.mark.slow
def test_a_signal_to_all_processes_stops_as_one_to_their_launcher(config, sever_on, tmp_path):
    config["training"] |= LONG | {"save_every": "1h"}
    with sever_on("train", "-c", write_config(tmp_path / "c.yml", config)) as running:
        running.wait_for_line("epoch 1/")
        for process in running.left:  # as systemd and SLURM send it
            os.kill(process, signal.SIGTERM)
        assert running.status() == 143
        assert running.stdout.count("The run was stopped by SIGTERM") == 1
        assert running.stderr == STOPPING
        assert_goes_on(run_folder(running.stdout))


@pytest.mark.slow
def test_a_second_signal_ends_all_processes_at_once(config, sever_on, tmp_path):
    config["training"] |= LONG
    with sever_on("train", "-c", write_config(tmp_path / "c.yml", config)) as running:
        running.wait_for_line("epoch 1/")
        os.kill(running.rank(1), signal.SIGSTOP)  # a run that cannot stop by itself any more
        running.send(signal.SIGTERM)
        with pytest.raises(AssertionError, match="hangs"):
            running.status(2)
        assert running.send(signal.SIGTERM).status(SECONDS_TO_END) == 143
        assert running.stderr.startswith(f"{STOPPING}sever: stopped. To go on: sever train -r ")


@pytest.mark.slow
def test_the_time_budget_and_periodic_checkpoints_hold_for_all_processes(config, sever_on, tmp_path):
    config["training"] |= LONG | {"max_time": "25s", "monitor": "off"}
    path = write_config(tmp_path / "c.yml", config)
    with sever_on("train", "-c", path) as running:
        running.wait_for(lambda: list(tmp_path.glob("saved/small/*/checkpoint_last.pth")))
        assert "epoch 2/" not in running.stdout  # within the first epoch
        assert running.status() == 0
        assert "stopped by training.max_time" in running.stdout
        assert running.stderr == ""


@pytest.mark.slow
def test_a_stop_within_validation(config, sever_on, tmp_path):
    data = tmp_path / "data"
    done("synth", data, "-n", "40", "--size", *map(str, SIZE))
    args = {"data_dir": str(data), "validation_split": 38, "validation_batch_size": 1, "batch_size": 2}
    config["data_loader"]["args"] |= args
    config["training"] |= {"epochs": 40}
    path = write_config(tmp_path / "c.yml", config)
    with sever_on("train", "-c", path) as running:
        running.wait_for_line("epoch 1/40")
        stopped = run_folder(running.stdout)
        running.wait_for(lambda: "epoch 2/40  step 0/1" in (stopped / "logs" / "info.log").read_text())
        assert running.send(signal.SIGTERM).status() == 143
        assert "in epoch 2 after 1 of 1 batches" in running.stdout
    assert load_checkpoint(stopped / "checkpoint_last.pth")["position"]["log"] is not None
    more = ("-s", "training.epochs=2")
    finished(sever_on("train", "-r", stopped / "checkpoint_last.pth", *more))
    straight = finished(sever_on("train", "-c", path, "-s", f"save_dir={tmp_path / 'straight'}", *more))
    assert epoch_lines(run_folder(straight))[-1] == epoch_lines(stopped)[-1].replace("2/40", "2/2")


def kill(rank, running):
    """Kill a process of a long run with SIGKILL; returns the run's folder."""
    running.wait_for_line("epoch 2/")
    os.kill(running.rank(rank), signal.SIGKILL)
    assert running.status(SECONDS_TO_END) == 1, running.output
    folder = run_folder(running.stdout)
    assert running.stderr == (
        f"sever: process {rank} of 2 (CPU) was ended by SIGKILL, which the system does where memory runs "
        f"out. The others were stopped. To go on: sever train -r {folder / 'checkpoint_last.pth'}\n"
    )
    assert "Traceback" not in running.stdout
    return folder


def assert_goes_on(folder):
    last = folder / "checkpoint_last.pth"
    epoch = load_checkpoint(last)["epoch"]
    assert epoch >= 1
    done("train", "-r", last, "-d", "cpu", "-s", f"training.epochs={epoch + 1}")
    assert load_checkpoint(last)["epoch"] == epoch + 1
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_run_with_a_message(rank, config, sever_on, tmp_path):
    config["training"] |= LONG
    with sever_on("train", "-c", write_config(tmp_path / "c.yml", config)) as running:
        assert_goes_on(kill(rank, running))


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_save_and_end(config, sever_on, tmp_path):
    config["training"] |= LONG | {"save_every": "1h"}
    with sever_on("train", "-c", write_config(tmp_path / "c.yml", config)) as running:
        running.wait_for_line("epoch 2/")
        running.send(signal.SIGKILL).ended(SECONDS_TO_END)
        assert "The run was stopped by SIGTERM" in running.stdout
        assert running.stderr == ""
        assert_goes_on(run_folder(running.stdout))


def test_a_mistake_is_told_before_processes_start(config, tmp_path):
    path = write_config(tmp_path / "c.yml", config)
    assert "expected GPUs alone or the CPU alone" in mistake("train", "-c", path, "-d", "cpu,0")
    assert "names GPU 1 twice" in mistake("train", "-c", path, "-d", "1,1")
    assert "received 'gpu'" in mistake("train", "-c", path, "-d", "cpu,gpu")


def test_configs_that_want_different_devices_are_not_trained_together(config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    paths = [write_config(tmp_path / f"{n}.yml", config | {"n_gpu": n}) for n in (1, 2)]
    result = sever("train", "-c", paths[0], "-c", paths[1])
    assert result.exit_code == 2
    expected = f"n_gpu: expected the same number of devices for all configs, received 1 for {paths[0]}, 2 for"
    assert f"{expected} {paths[1]}" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["-s", "loss.type=BCEDicLoss"], "Did you mean 'BCEDiceLoss'?"),
        (["-s", "data_loader.args.batch_size=1"], "expected at least 2, an image for each of 2 processes"),
    ],
)
def test_a_mistake_is_told_once(options, part, config, sever_on, tmp_path):
    with sever_on("train", "-c", write_config(tmp_path / "c.yml", config), *options) as running:
        assert running.status() == 2, running.output
        assert part in running.stderr
        assert running.stderr.count("sever:") == 1
        assert "Traceback" not in running.output
    assert not (tmp_path / "saved").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_told_once_and_the_run_goes_on_when_it_is_mended(
    workers, config, sever_on, tmp_path
):
    data = tmp_path / "data"
    done("synth", data, "-n", "16", "--size", *map(str, SIZE))
    config["data_loader"]["args"] |= {"data_dir": str(data), "num_workers": workers}
    config["training"] |= LONG
    with sever_on("train", "-c", write_config(tmp_path / "c.yml", config)) as running:
        running.wait_for_line("epoch 1/")
        split = (run_folder(running.stdout) / "split.csv").read_text().splitlines()
        broken = data / "train_images" / next(n.split(",")[0] for n in split if n.endswith("training"))
        whole = broken.read_bytes()
        (tmp_path / "new.jpg").write_bytes(b"no image")
        (tmp_path / "new.jpg").replace(broken)
        assert running.status(SECONDS_TO_END) == 2, running.output
        assert running.stderr.count("sever:") == 1
        assert broken.name in running.stderr
        assert "Traceback" not in running.output
        folder = run_folder(running.stdout)
        assert running.stderr.count("The state before that is saved. To go on: sever train -r") == 1
    broken.write_bytes(whole)
    last = folder / "checkpoint_last.pth"
    epoch = load_checkpoint(last)["epoch"]
    finished(sever_on("train", "-r", last, "-s", f"training.epochs={epoch + 1}"))
    assert load_checkpoint(last)["epoch"] == epoch + 1


@pytest.fixture(scope="module")
def models(data_dir, tmp_path_factory):
    """The checkpoints of two small models."""
    folder = tmp_path_factory.mktemp("models")
    config = steel_config(data_dir, folder / "saved")
    config["data_loader"]["args"]["validation_split"] = 7  # two batches for tune
    path = write_config(folder / "c.yml", config)
    runs = [run_folder(done("train", "-c", path, "-s", f"name=m{n}", "-s", f"seed={n}")) for n in (1, 2)]
    return [run / "checkpoint_last.pth" for run in runs]


ALL_ARE_SURE = ("--agreement", "0", "--sure", "0", "--sure-share", "0", "--absent", "1")


def files_in(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def assert_same_files(sever_on, tmp_path, command, *args, devices="cpu,cpu"):
    """Give a command an `OUT` folder, with one process and with several; what it writes must be the same."""
    written = []
    for on in ("cpu", devices):
        folder = tmp_path / "out"
        folder.mkdir()
        given = [str(arg).replace("OUT", str(folder)) for arg in args]
        if on == "cpu":
            printed = done(command, *given, "-d", on)
        else:
            assert finished(sever_on(command, *given, devices=on)) == printed
        written.append(files_in(folder))
        folder.rename(tmp_path / f"out-{on}")
    assert written[0]
    assert written[0] == written[1]


SAMPLE = ["--sample-submission", "DATA/sample_submission.csv", "-o", "OUT/s.csv"]
UNLABELLED = ["-o", "OUT/pseudo.csv", "-i", "DATA/train_images", *ALL_ARE_SURE]


@pytest.mark.slow
def test_several_processes_predict_as_one_does(models, data_dir, sever_on, tmp_path):
    images = ("-i", data_dir / "train_images", "-s", "predict.batch_size=3", "--overlays", "OUT/overlays")
    ensemble = ("-r", models[0], "-r", models[1])
    assert_same_files(sever_on, tmp_path, "predict", *ensemble, *images, "-o", "OUT/submission.csv")


@pytest.mark.parametrize(
    ("command", "args"),
    [
        pytest.param("test", ["-o", "OUT/scores.json"], marks=pytest.mark.slow),
        pytest.param("tune", ["-o", "OUT/tuned.yml"], marks=pytest.mark.slow),
        pytest.param("predict", SAMPLE, marks=pytest.mark.slow),
        pytest.param("pseudo", UNLABELLED, marks=pytest.mark.slow),
    ],
)
def test_several_processes_write_what_one_writes(command, args, models, data_dir, sever_on, tmp_path):
    args = [arg.replace("DATA", str(data_dir)) for arg in args]
    devices = "cpu,cpu,cpu" if command in ("tune", "predict") else "cpu,cpu"  # more than there are batches
    checkpoints = ("-r", models[0], "-r", models[1]) if command == "pseudo" else ("-r", models[0])
    assert_same_files(sever_on, tmp_path, command, *checkpoints, *args, devices=devices)


@pytest.mark.slow
def test_several_processes_verify_as_one_does(config, sever_on, tmp_path):
    data = tmp_path / "data"
    done("synth", data, "-n", "70", "--size", *map(str, SIZE))  # more than a process takes at a time
    config["data_loader"]["args"]["data_dir"] = config["testing"]["data_dir"] = str(data)
    path = write_config(tmp_path / "c.yml", config)
    assert_same_files(sever_on, tmp_path, "verify", "-c", path, "--json", "OUT/faults.json")
    names = sorted((data / "train_images").iterdir())
    names[3].write_bytes(b"no image")
    names[-1].write_bytes(b"no image")
    told = sever("verify", "-c", path, "-d", "cpu")
    assert told.exit_code == 2
    with sever_on("verify", "-c", path) as running:
        assert running.status() == 2
        assert running.stdout == told.stdout
        assert running.stderr == told.stderr


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_two_gpus_train_and_predict_as_one_does(config, sever_on, tmp_path):
    config["training"] |= {"ema_decay": 0.9, "accumulate": 2}
    path = write_config(tmp_path / "c.yml", config)
    one = run_folder(
        finished(sever_on("train", "-c", path, "-s", f"save_dir={tmp_path / 'one'}", devices="0"))
    )
    two = run_folder(finished(sever_on("train", "-c", path, devices="0,1")))
    weights, expected = weights_of(two), weights_of(one)
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-2, atol=1e-3, msg=name)
    stopped = stop(sever_on("train", "-c", path, devices="0,1"), signal.SIGTERM, "epoch 1/2")
    finished(sever_on("train", "-r", stopped / "checkpoint_last.pth", devices="0,1"))
    for devices in ("0", "0,1"):
        output = tmp_path / f"{devices}.csv"
        finished(sever_on("predict", "-r", one / "model_best.pth", "-o", output, devices=devices))
    assert (tmp_path / "0.csv").read_text() == (tmp_path / "0,1.csv").read_text()


@pytest.mark.slow
def test_two_signals_at_once_are_one_stop(config, sever_on, tmp_path):
    config["training"] |= LONG
    path = write_config(tmp_path / "c.yml", config)
    with sever_on("train", "-c", path) as running:
        running.wait_for_line("epoch 1/")
        running.send(signal.SIGTERM).send(signal.SIGHUP)
        assert running.status() in (128 + signal.SIGTERM, 128 + signal.SIGHUP)  # whichever Python sees first
        assert "Traceback" not in running.output
        assert "To go on: sever train -r" in running.output
