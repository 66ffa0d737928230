"""A user's mistake is one message that names the place and the cure; exit status 2, nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import SIZE, done, mistake, run_folder, sever, steel_config, write_config


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


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("traning.epochs=3", ["unknown key 'traning'", "Did you mean 'training'?"]),
        ("data_dir=x", ["the config has no key 'data_dir'", "Did you mean 'data_loader.args.data_dir'?"]),
        ("training.epoch=3", ["training: unknown key 'epoch'", "Did you mean 'epochs'?"]),
        ("training.epochs=many", ["training.epochs: expected a valid integer", "'many'"]),
        ("training.epochs=0", ["training.epochs", "greater than or equal to 1"]),
        ("training.monitor=best val_loss", ["training.monitor", "'max val_dice_mean'"]),
        (
            "training.monitor=max val_dice_men",
            ["training.monitor: 'val_dice_men'", "Did you mean 'val_dice_mean'?"],
        ),
        ("training.verbose=7", ["training.verbose", "7"]),
        ("arch.type=Unett", ["arch: 'Unett' is not a known arch", "Did you mean 'Unet'?"]),
        (
            "arch.args.encodername=resnet18",
            ["Unet does not take 'encodername'", "Did you mean 'encoder_name'?"],
        ),
        (
            "arch.args.encoder_name=resnet81",
            ["'resnet81' is not a known encoder", "Did you mean 'resnet18'?"],
        ),
        ("arch.args.encoder_name=tu-nonet", ["'tu-nonet' is not a known encoder"]),
        ("arch.args.encoder_weights=imagnet", ["'imagnet' is not known", "Did you mean 'imagenet'?"]),
        ("arch.args.encoder_weights=lite0.safetensors", ["'lite0.safetensors' is no file"]),
        ("arch.args.in_channels=x", ["in_channels", "letters out of r, g, b", "'x'"]),
        ("arch.args.in_channels=0", ["in_channels", "letters out of r, g, b", "1 or 3"]),
        ("arch.args.classes=0", ["arch.args.classes: expected at least 1"]),
        ("arch.args.classes=four", ["arch.args.classes: expected a valid integer"]),
        ("arch.args.encoder_depth=9", ["arch", "Unet refuses its arguments"]),
        ("augmentation.type=HeavyCrop", ["Did you mean 'HeavyCropTransforms'?"]),
        ("augmentation.args.heigth=4", ["does not take 'heigth'", "Did you mean 'height'?"]),
        ("augmentation.args.std=0", ["augmentation", "std must be above 0"]),
        ("data_loader.type=SteelDataLoader", ["Did you mean 'SteelSegDataLoader'?"]),
        ("data_loader.args.bach_size=4", ["Did you mean 'batch_size'?"]),
        ("data_loader.args.batch_size=0", ["data_loader", "batch_size must be at least 1"]),
        ("data_loader.args.validation_split=1.5", ["validation_split must be a share in [0, 1)"]),
        ("data_loader.args.classes=4", ["'classes' of SteelSegDataLoader is set by the program"]),
        ("data_loader.args.csv=trian.csv", ["trian.csv: no such CSV", "Did you mean 'train.csv'"]),
        ("data_loader.args.images=images", ["images: no such folder of images", "train_images"]),
        ("data_loader.args.data_dir=nowhere", ["nowhere", "no such folder"]),
        ("loss.type=BCEDicLoss", ["'BCEDicLoss' is not a known loss", "Did you mean 'BCEDiceLoss'?"]),
        ("loss.type=no_such_module.Loss", ["cannot be imported"]),
        ("loss.type=sever.model.loss.Los", ["sever.model.loss has no 'Los'"]),
        ("loss.args.dice_weight=-1", ["loss", "at least 0"]),
        ("metrics=[dcie]", ["metrics: 'dcie' is not a known metric", "Did you mean 'dice'?"]),
        ("metrics=dice", ["metrics: expected a valid list"]),
        ("optimizer.type=RAdamm", ["Did you mean 'RAdam'?"]),
        ("optimizer.encoder.lr=fast", ["optimizer.encoder.lr", "'fast'"]),
        ("optimizer.encoder.lrr=1", ["optimizer.encoder: unknown key 'lrr'", "Did you mean 'lr'?"]),
        ("optimizer.decoder=null", ["optimizer", "needs both 'encoder:' and 'decoder:'"]),
        ("lr_scheduler.type=FlatCosine", ["Did you mean 'FlatCosineLR'?"]),
        ("lr_scheduler.args.anneal_epochs=0", ["lr_scheduler", "anneal_epochs at least 1"]),
        ("predict.min_area=[600, 600]", ["predict.min_area", "4 classes, received 2"]),
        ("predict.threshold=2", ["predict.threshold", "less than or equal to 1"]),
        ("testing.batchsize=2", ["testing", "Did you mean 'batch_size'?"]),
        ("testing.shuffle=true", ["testing: 'shuffle' is for training alone"]),
        (
            "lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1, total_steps: 1}}",
            ["lr_scheduler: ends before"],
        ),
        ("data_loader.args={data_dir: DATA, batch_size: 99, drop_last: true}", ["make no full batch"]),
        ("name=a/b", ["name", "slash"]),
        ("seed=-1", ["seed", "greater than or equal to 0"]),
        ("training=5", ["training: expected a valid mapping"]),
        ("training.epochs.more=5", ["-s training.epochs.more=5", "has no keys in it"]),
        ("training", ["-s training: expected KEY=VALUE"]),
        ("training.epochs=[", ["-s training.epochs=[", "not valid YAML"]),
    ],
)
def test_a_mistake_in_the_config_names_its_place_and_the_nearest_name(override, parts, data_dir, tmp_path):
    message = train_mistake(data_dir, tmp_path, override.replace("DATA", str(data_dir)))
    assert [part for part in parts if part not in message] == [], message


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


def append(path: Path, row: str) -> int:
    """Add a row to a CSV; its number is returned."""
    with path.open("a") as file:
        file.write(row + "\n")
    return len(path.read_text().splitlines())


def test_a_run_out_of_bounds_is_named_with_file_and_row(own_data, tmp_path):
    clean = sorted(path.name for path in (own_data / "train_images").iterdir())
    named = {line.split(",")[0] for line in (own_data / "train.csv").read_text().splitlines()}
    name = next(image for image in clean if image not in named)
    row = append(own_data / "train.csv", f"{name},1,8190 5")
    message = train_mistake(own_data, tmp_path)
    assert f"train.csv, row {row}: image '{name}', class 1: run '8190 5' leaves the image" in message
    assert "64 x 128" in message


def test_an_image_that_only_the_csv_knows_is_named_with_its_row(own_data, tmp_path):
    row = append(own_data / "train.csv", "gone.jpg,1,1 5")
    message = train_mistake(own_data, tmp_path)
    assert f"train.csv, row {row}: image 'gone.jpg' is not in {own_data / 'train_images'}" in message


def test_a_csv_without_its_columns_is_refused_with_those_that_it_has(own_data, tmp_path):
    (own_data / "train.csv").write_text("image,mask\na.jpg,1 5\n")
    message = train_mistake(own_data, tmp_path)
    assert "expected the columns ImageId,ClassId,EncodedPixels or ImageId_ClassId,EncodedPixels" in message
    assert "received image,mask" in message


@pytest.mark.parametrize("content", [b"", b"this is no image"])
def test_an_unreadable_image_is_named_before_the_run(own_data, tmp_path, content):
    image = sorted((own_data / "train_images").iterdir())[0]
    image.write_bytes(content)
    assert str(image) in train_mistake(own_data, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_off_is_named_when_it_is_read(own_data, tmp_path, workers):
    from PIL import Image

    image = sorted((own_data / "test_images").iterdir())[0].with_suffix(".png")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(image)
    image.write_bytes(image.read_bytes()[:60])
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
    ("content", "part"),
    [
        (None, "no such checkpoint file"),
        (b"", "is empty (0 bytes)"),
        (b"text", "is damaged"),
    ],
)
@pytest.mark.parametrize("command", ["train", "test", "predict"])
def test_a_file_that_is_no_checkpoint_is_refused(content, part, command, tmp_path):
    path = tmp_path / "model.pth"
    if content is not None:
        path.write_bytes(content)
    message = mistake(command, "-r", path)
    assert str(path) in message
    assert part in message


def test_weights_of_another_program_are_refused_with_a_hint(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "weights.pth")
    message = mistake("test", "-r", tmp_path / "weights.pth")
    assert "it lacks arch, epoch, config" in message
    assert "encoder_weights" in message


class RunsCode:
    """What a malicious checkpoint holds."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": RunsCode()}, tmp_path / "evil.pth")
    assert "more than tensors and plain values" in mistake("test", "-r", "evil.pth")
    assert not Path("executed").exists()


def test_a_checkpoint_away_from_its_run_is_not_continued_there(checkpoint, tmp_path):
    shutil.copy(checkpoint, tmp_path / "model.pth")
    assert "is not in the folder of its run" in mistake("train", "-r", tmp_path / "model.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


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
    assert "holds 'new.jpg'" in message
    image.with_name("new.jpg").unlink()
    (own_data / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n")
    image.unlink()
    assert f"names '{image.name}'" in mistake("train", "-r", run / "checkpoint_epoch_1.pth", *more)


@pytest.mark.parametrize(
    "override", ["training.monitor=max val_dice_men", "data_loader.args.data_dir=nowhere"]
)
def test_a_dry_run_finds_what_the_run_would(override, data_dir, tmp_path):
    config = write_config(tmp_path / "c.yml", steel_config(data_dir, tmp_path / "saved"))
    assert override.rpartition(" ")[2].rpartition("=")[2] in mistake(
        "train", "-c", config, "--dry-run", "-s", override
    )


# ----------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("output", [".", "file.txt/s.csv"])
def test_an_output_that_cannot_be_written_is_refused_before_work(output, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file.txt").touch()
    assert f"-o {output}" in mistake("predict", "-r", checkpoint, "-o", output)
    assert f"-o {output}" in mistake("test", "-r", checkpoint, "-o", output)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["train"], ["-c FILE", "-r CKPT"]),
        (["train", "-c", "none.yml"], ["none.yml: cannot be read: No such file"]),
        (["trian"], ["No such command 'trian'"]),
        (["test"], ["Missing option '-r'"]),
    ],
)
def test_a_wrong_command_line_is_explained(args, parts):
    message = mistake(*args)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("device", "parts"),
    [
        ("tpu", ["--device tpu", "expected auto, cpu or the number of a GPU", "'tpu'"]),
        ("99", ["there is no GPU 99", "GPUs that are there"]),
        ("0,0x1", ["'0x1'"]),
        ("cpu,cpu", ["one process on one device"]),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, parts, checkpoint):
    message = mistake("test", "-r", checkpoint, "-d", device)
    assert [part for part in parts if part not in message] == [], message


def test_a_sample_submission_without_its_columns_is_refused(checkpoint, tmp_path):
    (tmp_path / "sample.csv").write_text("a,b\n1,2\n")
    message = mistake(
        *("predict", "-r", checkpoint, "-o", tmp_path / "s.csv"),
        *("--sample-submission", tmp_path / "sample.csv"),
    )
    assert "expected the columns ImageId,EncodedPixels,ClassId or ImageId_ClassId,EncodedPixels" in message


def test_an_image_of_the_sample_submission_that_is_not_there_is_named(checkpoint, tmp_path):
    (tmp_path / "sample.csv").write_text("ImageId,EncodedPixels,ClassId\ngone.jpg,1 1,0\n")
    message = mistake(
        *("predict", "-r", checkpoint, "-o", tmp_path / "s.csv"),
        *("--sample-submission", tmp_path / "sample.csv"),
    )
    assert "image 'gone.jpg' is not there" in message
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # the worker gets it too, as from a terminal
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in stderr
    run = next((tmp_path / "small").iterdir())
    assert not list(run.glob(".*"))
    for checkpoint in run.glob("*.pth"):
        assert torch.load(checkpoint, weights_only=True)["epoch"] >= 1
