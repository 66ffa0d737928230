"""The way from sheets to a submission, through the command line."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from runs import SIZE, done, mistake, run_folder, sever, steel_config, write_config
from sheets import draw_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sever.utils.rle import decode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("steel")


@pytest.fixture(scope="module")
def data_dir(folder):
    done("synth", folder / "data", "-n", "16", "--size", *map(str, SIZE))
    return folder / "data"


@pytest.fixture(scope="module")
def config(folder, data_dir):
    return write_config(folder / "small.yml", steel_config(data_dir, folder / "saved"))


@pytest.fixture(scope="module")
def run(config):
    """A run of 4 epochs that wrote for TensorBoard too."""
    output = done("train", "-c", config, "-s", "training.epochs=4", "-s", "training.tensorboard=true")
    return run_folder(output)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_leaves_config_split_checkpoints_logs_and_events(run, data_dir):
    names = {path.name for path in run.iterdir()}
    checkpoints = {f"checkpoint_epoch_{epoch}.pth" for epoch in (1, 2, 3, 4)}
    others = {"config.yml", "split.csv", "data.csv", "model_best.pth", "checkpoint_last.pth", "logs"}
    assert names == checkpoints | others
    assert yaml.safe_load((run / "config.yml").read_text())["training"]["epochs"] == 4
    with (run / "split.csv").open() as file:
        halves = {row["image"]: row["split"] for row in csv.DictReader(file)}
    assert set(halves) == {path.name for path in (data_dir / "train_images").iterdir()}
    assert sorted(halves.values()) == ["training"] * 12 + ["validation"] * 4
    assert "epoch 4/4" in (run / "logs" / "info.log").read_text()
    assert list((run.parent.parent / "runs" / "small" / run.name).glob("events.*"))


def test_a_checkpoint_has_the_promised_keys_and_loads_without_pickled_code(run):
    state = torch.load(run / "checkpoint_epoch_3.pth", weights_only=True)
    assert {"arch", "epoch", "state_dict", "optimizer", "monitor_best", "config"} <= state.keys()
    assert state["arch"] == "Unet"
    assert state["epoch"] == 3
    assert state["config"]["optimizer"]["encoder"]["lr"] == 7e-4
    assert [group["name"] for group in state["optimizer"]["param_groups"]] == ["encoder", "decoder"]


def test_tensorboard_has_losses_metrics_rates_histograms_and_pictures(run):
    events = EventAccumulator(str(run.parent.parent / "runs" / "small" / run.name))
    events.Reload()
    tags = events.Tags()
    expected = {"loss/train", "bce_loss/train", "dice_4/train", "loss/valid", "dice_mean/valid"}
    assert expected | {"lr_encoder/train", "lr_decoder/train", "loss/step"} <= set(tags["scalars"])
    assert [round(e.value, 6) for e in events.Scalars("lr_encoder/train")][:2] == [7e-4, 7e-4]
    assert "network.segmentation_head.0.weight" in tags["histograms"]
    assert "input_truth_prediction_0/valid" in tags["images"]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_never_stopped(run, config, tmp_path, workers):
    other_workers = 2 - workers
    first = done(
        *("train", "-c", config, "-s", "training.epochs=4", "-s", f"save_dir={tmp_path}"),
        *("-s", f"data_loader.args.num_workers={workers}"),
    )
    stopped = run_folder(first)
    for epoch in (3, 4):
        (stopped / f"checkpoint_epoch_{epoch}.pth").unlink()
    (stopped / "model_best.pth").unlink()

    second = done(
        *("train", "-r", stopped / "checkpoint_epoch_2.pth"),
        *("-s", f"data_loader.args.num_workers={other_workers}"),
    )

    assert run_folder(second) == stopped.resolve()
    assert "epoch 2/4" not in second
    assert "epoch 3/4" in second
    assert_equal_weights(stopped / "checkpoint_epoch_4.pth", run / "checkpoint_epoch_4.pth")
    resumed = torch.load(stopped / "checkpoint_epoch_4.pth", weights_only=True)
    straight = torch.load(run / "checkpoint_epoch_4.pth", weights_only=True)
    for key in ("monitor", "monitor_best", "lr_scheduler", "split", "epoch"):
        assert resumed[key] == straight[key]


def test_the_same_config_gives_the_same_weights_again_and_another_seed_others(run, config, tmp_path):
    again = run_folder(done("train", "-c", config, "-s", f"save_dir={tmp_path}", "-s", "training.epochs=1"))
    assert_equal_weights(again / "checkpoint_epoch_1.pth", run / "checkpoint_epoch_1.pth")
    other = run_folder(
        done("train", "-c", config, "-s", f"save_dir={tmp_path}", "-s", "training.epochs=1", "-s", "seed=4")
    )
    key = "network.segmentation_head.0.weight"
    assert not torch.equal(
        weights(other / "checkpoint_epoch_1.pth")[key], weights(run / "checkpoint_epoch_1.pth")[key]
    )


def test_a_finished_run_says_so_and_goes_on_when_it_is_given_more_epochs(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "small" / run.name)
    assert "Nothing left to train" in done("train", "-r", copy / "checkpoint_epoch_4.pth")
    output = done("train", "-r", copy / "checkpoint_epoch_4.pth", "-s", "training.epochs=5")
    assert "epoch 5/5" in output
    assert (copy / "checkpoint_epoch_5.pth").is_file()


def test_a_checkpoint_under_another_config_starts_a_new_run_that_says_what_differs(run, folder, data_dir):
    values = steel_config(data_dir, folder / "other")
    values["training"]["epochs"] = 5
    values["optimizer"]["decoder"]["lr"] = 1e-3
    config = write_config(folder / "other.yml", values)
    output = done("train", "-c", config, "-r", run / "checkpoint_epoch_4.pth")
    assert "optimizer.decoder.lr: 0.003 -> 0.001" in output
    assert "epoch 4/5" not in output
    started = run_folder(output)
    assert started.parent == folder / "other" / "small"
    state = torch.load(started / "checkpoint_epoch_5.pth", weights_only=True)
    rates = {group["name"]: group["initial_lr"] for group in state["optimizer"]["param_groups"]}
    assert rates == {"encoder": 7e-4, "decoder": 1e-3}
    old = torch.load(run / "checkpoint_epoch_4.pth", weights_only=True)
    assert state["split"] == old["split"]


def test_several_configs_are_trained_in_turn(config, folder, data_dir, tmp_path):
    values = steel_config(data_dir, tmp_path) | {"name": "second"}
    second = write_config(tmp_path / "second.yml", values)
    options = ["-s", f"save_dir={tmp_path}", "-s", "training.epochs=1"]
    output = done("train", "-c", config, "-c", second, *options)
    assert output.count("epoch 1/1") == 2
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"small", "second"}


def test_a_dry_run_prints_the_plan_and_writes_nothing(config, tmp_path):
    output = done("train", "-c", config, "--dry-run", "-s", f"save_dir={tmp_path / 'none'}")
    for part in ("CPU", "Unet", "12 images", "4 images", "3 an epoch", "encoder 0.0007, decoder 0.003"):
        assert part in output
    assert not (tmp_path / "none").exists()


def test_the_plan_draws_the_rates_of_a_run_of_any_length(config):
    options = ["training.epochs=10000000", "lr_scheduler.args.anneal_epochs=10000000"]
    options += ["lr_scheduler.interval=step"]
    plan = done("train", "-c", config, "--dry-run", *(text for o in options for text in ("-s", o)))
    drawn = [line[15:] for line in plan.splitlines() if line[15:16] in ("│", "└")]
    assert drawn[0].startswith("│████")
    assert [len(line) for line in drawn] == sorted(len(line) for line in drawn)  # a fall, from left to right
    assert len(drawn[-1]) == 61
    assert "epoch 10000000" in plan


OWN_NET = """
from torch import nn
from sever.base import BaseModel

class Net(BaseModel):
    def __init__(self, classes: int = 4):
        super().__init__()
        self.layer = nn.Conv2d(1, classes, 3, padding=1)

    def forward(self, images):
        return self.layer(images)
"""


@pytest.mark.parametrize("given_in", ["-s", "extends"])
def test_a_model_without_an_encoder_says_how_to_leave_the_groups_out(given_in, config, tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(OWN_NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = f"extends: {config}\narch: own_nets.Net\noptimizer: {{type: Adam, args: {{lr: 1e-3}}}}\n"
    Path("own.yml").write_text(own)
    message = mistake("train", "-c", "own.yml", "--dry-run")
    assert "has the groups encoder, decoder, but Net has all" in message
    nulls = ["-s", "optimizer.encoder=null", "-s", "optimizer.decoder=null"]
    assert " ".join(nulls) in message
    if given_in == "extends":
        Path("own.yml").write_text(own.replace("optimizer: {", "optimizer: {encoder: null, decoder: null, "))
        nulls = []
    assert "learning rate  at most all 0.001\n" in done("train", "-c", "own.yml", "--dry-run", *nulls)


def test_the_plan_tells_the_memory_of_a_step(config, tmp_path, monkeypatch):
    wide = OWN_NET.replace("1, classes, 3, padding=1", "1, 1024, 1").replace(
        "self.layer(images)", "self.layer(images).exp()[:, :4].contiguous()"
    )
    (tmp_path / "wide_nets.py").write_text(wide)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "wide.yml"
    path.write_text(f"extends: {config}\narch: wide_nets.Net\noptimizer: {{encoder: null, decoder: null}}\n")
    # For each of 48 x 64 pixels 1024 numbers of 4 bytes, which `exp` keeps; the rest is less than 1 % of it.
    for batch_size, size in ((4, "51 MB"), (12, "0.15 GB")):
        plan = done("train", "-c", path, "--dry-run", "-s", f"data_loader.args.batch_size={batch_size}")
        told = f"roughly {size} for a training step of {batch_size} x 48 x 64 ({size} of it for the batch)"
        assert told in plan


def test_a_disk_without_room_for_two_checkpoints_is_refused(config, tmp_path, monkeypatch):
    command = ("train", "-c", config, "-s", f"save_dir={tmp_path / 'saved'}", "-s", "training.epochs=1")
    told = re.search(r"checkpoints +([\d.]+) MB each, .* are free in", done(*command, "--dry-run"))
    run = run_folder(done(*command))
    assert float(told[1]) == pytest.approx((run / "checkpoint_last.pth").stat().st_size / 1e6, rel=0.1)
    shutil.rmtree(tmp_path / "saved")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    for options in ((), ("--dry-run",)):
        message = mistake(*command, *options)
        assert re.search(r"save_dir: two checkpoints take [\d,]+ bytes, and 1,000,000 are free in", message)
    assert not (tmp_path / "saved").exists()


def test_a_profile_of_some_steps_is_written_beside_the_events(config, folder, tmp_path):
    options = ("-s", f"save_dir={tmp_path}", "-s", "training.epochs=2", "--profile", "2")
    output = done("train", "-c", config, *options)
    run = run_folder(output)
    (trace,) = (tmp_path / "runs" / "small" / run.name).glob("*.pt.trace.json")
    assert f"Profile of 2 steps: {trace.parent}" in output
    steps = {e["name"] for e in json.loads(trace.read_text())["traceEvents"] if "ProfilerStep" in e["name"]}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3"}


def test_early_stopping_ends_a_run_that_does_not_improve(config, tmp_path):
    still = ["optimizer.encoder={lr: 0.0}", "optimizer.decoder={lr: 0.0}"]
    options = [f"-s{s}" for s in still]
    output = done(
        *("train", "-c", config, "-s", f"save_dir={tmp_path}", *options, "-s", "training.epochs=9"),
        *("-s", "training.early_stop=2", "-s", "training.monitor=max val_iou_mean"),
        *("-s", "training.save_period=5"),
    )
    run = run_folder(output)
    assert "Stopped early" in output
    # BatchNorm's statistics still move, so the score may move with them; it must stop all the same.
    saved = sorted(int(path.stem.rpartition("_")[2]) for path in run.glob("checkpoint_epoch_*.pth"))
    last = torch.load(run / f"checkpoint_epoch_{saved[-1]}.pth", weights_only=True)
    assert last["monitor"]["without_improvement"] == 2
    assert last["epoch"] < 9
    assert torch.load(run / "model_best.pth", weights_only=True)["epoch"] == last["epoch"] - 2


def test_no_progress_bar_is_drawn_where_nobody_watches(config, tmp_path):
    result = sever("train", "-c", config, "-s", f"save_dir={tmp_path}", "-s", "training.epochs=1")
    assert result.stderr == ""


# ------------------------------------------------------------------------------- scores, submission


def submitted_masks(path: Path) -> dict[tuple[str, str], np.ndarray]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    split = [
        (*row["ImageId_ClassId"].rsplit("_", 1), row["EncodedPixels"])
        if "ImageId_ClassId" in row
        else (row["ImageId"], row["ClassId"], row["EncodedPixels"])
        for row in rows
    ]
    return {(image, class_id): decode(runs, SIZE) for image, class_id, runs in split}


def test_the_competition_score_is_that_of_the_submission_that_predict_writes(run, data_dir, tmp_path):
    settings = ["-s", "predict.threshold=0.3", "-s", "predict.min_area=[20, 0, 60, 100]"]
    done("test", "-r", run / "model_best.pth", "-o", tmp_path / "scores.json", *settings)
    scores = json.loads((tmp_path / "scores.json").read_text())
    done("predict", "-r", run / "model_best.pth", "-o", tmp_path / "submission.csv", *settings)

    predicted = submitted_masks(tmp_path / "submission.csv")
    truth = {key: np.zeros(SIZE, np.uint8) for key in predicted}
    with (data_dir / "test.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            truth[row["ImageId"], row["ClassId"]] = decode(row["EncodedPixels"], SIZE)
    dices = {
        key: 2 * (mask & truth[key]).sum() / (mask.sum() + truth[key].sum())
        if mask.any() or truth[key].any()
        else 1.0
        for key, mask in predicted.items()
    }
    assert any(mask.any() for mask in predicted.values())
    assert scores["competition_dice"] == pytest.approx(np.mean(list(dices.values())))
    of_class_3 = [dice for (_, class_id), dice in dices.items() if class_id == "3"]
    assert scores["competition_dice_3"] == pytest.approx(np.mean(of_class_3))
    assert scores["competition_dice_of_nothing"] == pytest.approx(
        np.mean([not mask.any() for mask in truth.values()])
    )
    assert scores["images"] == 4
    promised = {"loss", "dice_mean", "dice_1", "dice_2", "dice_3", "dice_4", "miou"}
    assert promised <= scores.keys()


def test_scores_of_the_validation_images_are_those_of_the_log(run, tmp_path):
    state = torch.load(run / "model_best.pth", weights_only=True)
    done("test", "-r", run / "model_best.pth", "-s", "testing=null", "-o", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["images"] == 4
    assert scores["dice_mean"] == state["monitor_best"]


def test_predict_writes_a_row_per_image_and_class_in_either_layout(run, data_dir, tmp_path):
    done("predict", "-r", run / "model_best.pth", "-o", tmp_path / "plain.csv")
    with (tmp_path / "plain.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    names = sorted(path.name for path in (data_dir / "test_images").iterdir())
    assert rows[0] == ["ImageId_ClassId", "EncodedPixels"]
    assert [row[0] for row in rows[1:]] == [f"{name}_{c}" for name in names for c in (1, 2, 3, 4)]

    sample = tmp_path / "sample.csv"
    chosen = [names[2], names[0]]
    sample.write_text("ImageId,EncodedPixels,ClassId\n" + "".join(f"{name},1 8192,0\n" for name in chosen))
    done(
        *("predict", "-r", run / "model_best.pth", "-o", tmp_path / "today.csv"),
        *("--sample-submission", sample, "-i", data_dir / "test_images"),
    )
    with (tmp_path / "today.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["ImageId", "EncodedPixels", "ClassId"]
    assert [(row[0], row[2]) for row in rows[1:]] == [(name, c) for name in chosen for c in "1234"]
    both = submitted_masks(tmp_path / "plain.csv"), submitted_masks(tmp_path / "today.csv")
    assert all((both[0][key] == mask).all() for key, mask in both[1].items())


def test_a_sample_of_other_classes_is_refused_before_anything_is_predicted(run, data_dir, tmp_path):
    sample = tmp_path / "sample.csv"
    sample.write_text(
        "ImageId_ClassId,EncodedPixels\n" + "".join(f"nowhere.jpg_{c},1 1\n" for c in range(1, 6))
    )
    message = mistake(
        *("predict", "-r", run / "model_best.pth", "-o", tmp_path / "s.csv", "--sample-submission", sample)
    )
    assert f"{sample}: asks for the classes 1, 2, 3, 4, 5, but the model has 1, 2, 3, 4" in message
    assert list(tmp_path.iterdir()) == [sample]


def test_a_submission_without_one_of_the_classes_of_the_training_csv_is_refused(run, data_dir, tmp_path):
    done("predict", "-r", run / "model_best.pth", "-o", tmp_path / "s.csv")
    rows = (tmp_path / "s.csv").read_text().splitlines(keepends=True)
    (tmp_path / "short.csv").write_text("".join(row for row in rows if "_4," not in row))
    sizes = ("--size", *map(str, SIZE))
    output = done("check", tmp_path / "short.csv", *sizes)
    assert "classes  3, guessed from the submission alone" in output
    result = sever("check", tmp_path / "short.csv", *sizes, "--reference", data_dir / "train.csv")
    assert result.exit_code == 2
    assert "no row of class 4: expected 4 classes, those of the reference" in result.output


def test_a_high_minimum_area_leaves_an_empty_submission(run, tmp_path):
    done("predict", "-r", run / "model_best.pth", "-o", tmp_path / "s.csv", "-s", "predict.min_area=100000")
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 4
    assert all(line.endswith(",") for line in lines[1:])


def test_overlays_show_sheet_truth_and_prediction(run, data_dir, tmp_path):
    done(
        "predict", "-r", run / "model_best.pth", "-o", tmp_path / "s.csv", "--overlays", tmp_path / "pictures"
    )
    pictures = sorted((tmp_path / "pictures").iterdir())
    names = sorted(path.name for path in (data_dir / "test_images").iterdir())
    assert [path.name for path in pictures] == names
    with (data_dir / "test.csv").open(newline="") as file:
        defective = {row["ImageId"] for row in csv.DictReader(file)}
    page = cv2.imread(str(tmp_path / "pictures" / sorted(defective)[0]))
    # Title, then three bands of a line of text and a sheet; the second sheet is the truth, in colour.
    line = (len(page) - 3 * SIZE[0]) // 4
    truth = page[2 * line + SIZE[0] + line :][: SIZE[0], : SIZE[1]].astype(int)
    assert (truth.max(axis=2) - truth.min(axis=2)).max() > 60


def test_a_picture_too_large_for_a_jpeg_is_a_png_and_one_too_large_for_both_is_left_out(
    run, tmp_path, monkeypatch
):
    folder, pictures = tmp_path / "images", tmp_path / "pictures"
    draw_images(folder, ["wide.png"], (8, 66_000))
    draw_images(folder, ["tall.png"], (33_000, 8))
    draw_images(folder, ["small.png"])
    draw_images(folder, ["lost.png"], (8, 500))
    encode = cv2.imencode

    def of_any_but_500_pixels(suffix, picture):  # those that no format holds need gigabytes
        return (False, None) if picture.shape[1] == 500 else encode(suffix, picture)

    monkeypatch.setattr("cv2.imencode", of_any_but_500_pixels)
    args = ("-r", run / "model_best.pth", "-i", folder, "-o", tmp_path / "s.csv", "--overlays", pictures)
    output = done("predict", *args)
    assert f"--overlays {pictures}: no picture of lost.png: a .jpg cannot hold" in output
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 4 * 4
    assert sorted(path.name for path in pictures.iterdir()) == ["small.jpg", "tall.png", "wide.png"]
    assert cv2.imread(str(pictures / "wide.png")).shape[1] == 66_000


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("Unet", (50, 70)),
        pytest.param("FPN", (50, 70), marks=pytest.mark.slow),
        pytest.param("FPN", (33, 20), marks=pytest.mark.slow),
    ],
)
def test_sheets_of_any_size_are_trained_tested_and_predicted(arch, size, tmp_path):
    done("synth", tmp_path / "data", "-n", "8", "--size", *map(str, size))
    values = steel_config(tmp_path / "data", tmp_path / "saved")
    values["arch"]["type"] = arch
    if arch == "FPN":
        values["arch"]["args"] = {
            **{"encoder_name": "resnet18", "encoder_weights": None, "in_channels": "g", "classes": 4},
            **{"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
        }
    values["augmentation"]["args"] = {"height": 45, "width": 51}
    values["training"]["epochs"] = 1
    run = run_folder(done("train", "-c", write_config(tmp_path / "c.yml", values)))
    output = done("test", "-r", run / "checkpoint_epoch_1.pth")
    assert "competition_dice" in output
    done("predict", "-r", run / "checkpoint_epoch_1.pth", "-o", tmp_path / "s.csv")
    masks = [decode(line.split(",")[1], size) for line in (tmp_path / "s.csv").read_text().splitlines()[1:]]
    assert len(masks) == 4 * 4


def test_images_of_different_sizes_are_tested_and_predicted_together(run, data_dir, tmp_path):
    mixed = tmp_path / "test_images"
    shutil.copytree(data_dir / "test_images", mixed)
    names = sorted(path.name for path in mixed.iterdir())
    small = cv2.imread(str(mixed / names[1]), cv2.IMREAD_GRAYSCALE)[:40, :100]
    cv2.imwrite(str(mixed / names[1]), small)
    done("predict", "-r", run / "model_best.pth", "-o", tmp_path / "mixed.csv", "-i", mixed)
    done("predict", "-r", run / "model_best.pth", "-o", tmp_path / "equal.csv")
    mixed_rows = (tmp_path / "mixed.csv").read_text().splitlines()
    equal_rows = (tmp_path / "equal.csv").read_text().splitlines()
    assert len(mixed_rows) == len(equal_rows)
    others = [i for i, row in enumerate(equal_rows) if not row.startswith(names[1])]
    assert [mixed_rows[i] for i in others] == [equal_rows[i] for i in others]


def test_the_2019_layout_trains_to_the_same_weights(config, run, tmp_path):
    done("synth", tmp_path / "data", "-n", "16", "--size", *map(str, SIZE), "--layout", "2019")
    output = done(
        *("train", "-c", config, "-s", f"save_dir={tmp_path}", "-s", "training.epochs=1"),
        *("-s", f"data_loader.args.data_dir={tmp_path / 'data'}"),
    )
    assert_equal_weights(run_folder(output) / "checkpoint_epoch_1.pth", run / "checkpoint_epoch_1.pth")


@pytest.mark.slow
def test_real_severstal_sheets_lead_to_a_submission(shared_data, tmp_path):
    sample = shared_data / "severstal-sample"
    values = steel_config(sample, tmp_path)
    values["training"]["epochs"] = 1
    del values["testing"]
    run = run_folder(done("train", "-c", write_config(tmp_path / "c.yml", values)))
    done(
        *("predict", "-r", run / "model_best.pth", "-o", tmp_path / "s.csv"),
        *("--sample-submission", sample / "sample_submission_2019.csv"),
    )
    expected = (sample / "sample_submission_2019.csv").read_text().splitlines()
    written = (tmp_path / "s.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in written] == [row.split(",")[0] for row in expected]


def test_a_run_goes_on_from_its_best_checkpoint(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "small" / run.name)
    best = torch.load(copy / "model_best.pth", weights_only=True)["epoch"]
    output = done("train", "-r", copy / "model_best.pth", "-s", "training.epochs=5")
    assert f"epoch {best + 1}/5" in output
    assert f"epoch {best}/5" not in output
    assert (copy / "checkpoint_epoch_5.pth").is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_trains_resumes_tests_and_predicts(config, tmp_path):
    here = ["-d", "0", "-s", f"save_dir={tmp_path}", "-s", "data_loader.args.num_workers=2"]
    run = run_folder(done("train", "-c", config, *here))
    best = run / "model_best.pth"
    assert "epoch 3/3" in done(
        "train", "-r", run / "checkpoint_epoch_2.pth", "-d", "0", "-s", "training.epochs=3"
    )
    assert "competition_dice" in done("test", "-r", best, "-d", "0")
    done("predict", "-r", best, "-d", "0", "-o", tmp_path / "gpu.csv")
    done("predict", "-r", best, "-d", "cpu", "-o", tmp_path / "cpu.csv")
    on_gpu, on_cpu = (submitted_masks(tmp_path / name) for name in ("gpu.csv", "cpu.csv"))
    differing = sum((on_gpu[key] != on_cpu[key]).sum() for key in on_cpu)
    assert differing < 0.01 * len(on_cpu) * SIZE[0] * SIZE[1]
