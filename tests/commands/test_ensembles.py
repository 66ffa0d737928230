"""Ensembles, tuned thresholds and checked submissions, through the command line."""

import csv
import json
import os
import re
import shlex
import shutil
from hashlib import sha256

import numpy as np
import pytest
import torch
import yaml
from runs import ROOT, SIZE, done, mistake, run_folder, sever, steel_config, write_config

from sever.utils.rle import decode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    done("synth", folder / "data", "-n", "24", "--size", *map(str, SIZE))
    return folder


def train(folder, name, **changes):
    config = steel_config(folder / "data", folder / "saved")
    config["training"] |= {"epochs": 2}
    config["data_loader"]["args"]["validation_split"] = 10
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    return run_folder(done("train", "-c", write_config(folder / f"{name}.yml", config | {"name": name})))


@pytest.fixture(scope="module")
def one(folder):
    return train(folder, "one") / "checkpoint_epoch_2.pth"


@pytest.fixture(scope="module")
def other(folder):
    """Another architecture with another normalisation, validated on the same images."""
    fpn = {
        "type": "FPN",
        "args": {
            "encoder_name": "tu-test_resnet", "encoder_weights": None, "in_channels": "g", "classes": 4,
            "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32,
        },
    }  # fmt: skip
    light = {"type": "RandomCropTransforms", "args": {"height": 48, "width": 64, "mean": 0.4, "std": 0.3}}
    run = train(folder, "other", arch=fpn, augmentation=light)
    return run / "checkpoint_epoch_2.pth"


@pytest.fixture(scope="module")
def classifier(folder):
    changes = {"arch": CLASSIFIER, "loss": "BCELoss", "metrics": ["label_f1"], "training": {"monitor": "off"}}
    return train(folder, "classifier", **changes) / "checkpoint_epoch_2.pth"


def scores_of(tmp_path, *args):
    done("test", *args, "-o", tmp_path / "scores.json")
    return json.loads((tmp_path / "scores.json").read_text())


def masks_in(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {row["ImageId_ClassId"]: decode(row["EncodedPixels"], SIZE) for row in rows}


CLASSIFIER = {
    "type": "Classifier",
    "args": {"encoder_name": "tu-test_resnet", "encoder_weights": None, "in_channels": "r", "classes": 4},
}
LOW = ("-s", "predict.threshold=0.3")  # small models are unsure
EASY = ("--agreement", "0", "--sure", "0", "--sure-share", "0", "--absent", "1", *LOW)


def test_the_score_is_taken_apart_with_an_interval_and_the_worst_pairs(one, tmp_path):
    scores = scores_of(tmp_path, "-r", one, *LOW)
    lost = sum(scores[f"lost_to_{what}_mean"] for what in ("false_alarms", "missed_defects", "inexact_shape"))
    assert lost == pytest.approx(1 - scores["competition_dice"])
    assert scores["competition_dice_low"] <= scores["competition_dice"] <= scores["competition_dice_high"]
    assert {"pixel_iou_mean", "pixel_dice_1", "competition_dice_with_defect_mean"} <= scores.keys()
    assert {"image", "class_id", "dice", "kind"} <= scores["worst"][0].keys()
    assert scores["worst"][0]["dice"] == min(pair["dice"] for pair in scores["worst"])


def test_an_ensemble_of_one_model_twice_is_that_model(one, tmp_path):
    shutil.copy(one, tmp_path / "again.pth")
    alone = scores_of(tmp_path, "-r", one, *LOW)
    twice = scores_of(tmp_path, "-r", one, "-r", tmp_path / "again.pth", *LOW)
    for key in ("dice_mean", "competition_dice", "miou"):
        assert twice[key] == pytest.approx(alone[key], abs=1e-6)
    assert twice["loss"] == pytest.approx(alone["loss"], rel=1e-3)


def test_what_is_scored_is_what_would_be_submitted(one, other, folder, tmp_path):
    ensemble = ("-r", one, "-r", other, "--average", "geometric", "--weights", "1,2", "--tta", "hflip", *LOW)
    scores = scores_of(tmp_path, *ensemble)
    done("predict", *ensemble, "-o", tmp_path / "submission.csv")
    found = masks_in(tmp_path / "submission.csv")
    with (folder / "data" / "test.csv").open() as file:
        truth = {(row["ImageId"], row["ClassId"]): row["EncodedPixels"] for row in csv.DictReader(file)}
    dice = []
    for key, mask in found.items():
        image, _, class_id = key.rpartition("_")
        there = decode(truth.get((image, class_id), ""), SIZE)
        total = int(mask.sum()) + int(there.sum())
        dice.append(2 * int((mask & there).sum()) / total if total else 1.0)
    assert any(mask.any() for mask in found.values())
    assert np.mean(dice) == pytest.approx(scores["competition_dice"], abs=1e-6)


def test_one_model_at_a_time_writes_the_same_submission(one, other, tmp_path):
    ensemble = ("-r", one, "-r", other, *LOW)
    done("predict", *ensemble, "-o", tmp_path / "together.csv")
    done("predict", *ensemble, "-o", tmp_path / "alone.csv", "--one-at-a-time")
    assert (tmp_path / "together.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_a_weight_of_0_leaves_a_model_out(one, other, tmp_path):
    done("predict", "-r", one, "-o", tmp_path / "one.csv", *LOW)
    done("predict", "-r", one, "-r", other, "--weights", "1,0", "-o", tmp_path / "weighted.csv", *LOW)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "weighted.csv").read_bytes()


def test_tuned_values_are_written_and_score_on_validation_what_tune_says(one, tmp_path):
    output = done("tune", "-r", one, "-o", tmp_path / "tuned.yml")
    values = yaml.safe_load((tmp_path / "tuned.yml").read_text())
    assert set(values) == {"predict", "tuned_for"}
    assert {key: len(value) for key, value in values["predict"].items()} == {
        "threshold": 4, "label_threshold": 4, "min_area": 4
    }  # fmt: skip
    assert "10 images" in output
    said = float(next(line for line in output.splitlines() if "tuned" in line and "dice" in line).split()[-1])
    scores = scores_of(
        *(tmp_path, "-r", one, "--settings", tmp_path / "tuned.yml", "--out-of-fold")
    )  # of the run's own validation images
    assert scores["images"] == 10
    assert scores["competition_dice"] == pytest.approx(said, abs=1e-4)


def test_an_ensemble_is_tuned_on_the_images_that_all_its_models_were_validated_on(one, other, tmp_path):
    assert "10 images" in done("tune", "-r", one, "-r", other, "-o", tmp_path / "tuned.yml")


def test_thresholds_are_chosen_on_whole_groups_of_images(folder, tmp_path):
    """With few coils there are too few parts to choose on, however many images they have."""
    data = shutil.copytree(folder / "data", tmp_path / "data")
    names = sorted(path.name for path in (data / "train_images").iterdir())
    rows = [f"{name},{number % 4}" for number, name in enumerate(names)]
    (data / "groups.csv").write_text("\n".join(["ImageId,GroupId", *rows]) + "\n")
    loader = {
        "args": {"data_dir": str(data), "batch_size": 4, "validation_split": 12, "groups": "groups.csv"}
    }
    checkpoint = train(tmp_path, "grouped", data_loader=loader) / "checkpoint_epoch_2.pth"
    message = mistake("tune", "-r", checkpoint, "-o", tmp_path / "tuned.yml")
    assert "groups of images" in message


@pytest.fixture(scope="module")
def folds(folder):
    config = steel_config(folder / "data", folder / "saved")
    del config["data_loader"]["args"]["validation_split"]
    del config["testing"]
    config["data_loader"]["args"]["folds"] = 2
    config["training"] |= {"epochs": 1}
    done("train", "-c", write_config(folder / "folds.yml", config | {"name": "folds"}), "--all-folds")
    return [
        next((folder / "saved" / f"folds-fold{fold}").iterdir()) / "checkpoint_epoch_1.pth" for fold in (1, 2)
    ]


def test_out_of_fold_each_image_is_scored_by_the_model_that_did_not_see_it(folds, tmp_path):
    both = scores_of(tmp_path, "-r", folds[0], "-r", folds[1], "--out-of-fold")
    apart = [scores_of(tmp_path, "-r", fold, "--out-of-fold") for fold in folds]
    assert both["images"] == sum(fold["images"] for fold in apart) == 24
    for key in ("loss", "competition_dice", "dice_3"):
        mean = sum(fold[key] * fold["images"] for fold in apart) / 24
        assert both[key] == pytest.approx(mean, rel=1e-5)
    assert "24 images" in done(
        "tune", "-r", folds[0], "-r", folds[1], "--out-of-fold", "-o", tmp_path / "t.yml"
    )
    message = mistake("tune", "-r", folds[0], "-r", folds[1], "-o", tmp_path / "t.yml")
    assert "validated on the same images" in message


def of_fold(folder, fold):
    args = {"data_dir": str(folder / "data"), "batch_size": 4, "folds": 2, "fold": fold}
    return {"data_loader": {"args": args}}


@pytest.fixture(scope="module")
def labels_of_fold_1(folder):
    changes = {"arch": CLASSIFIER, "loss": "BCELoss", "metrics": [], "training": {"monitor": "off"}}
    return train(folder, "labels-of-fold-1", **changes, **of_fold(folder, 1)) / "checkpoint_epoch_2.pth"


@pytest.fixture(scope="module")
def both_of_fold_2(folder):
    """A model of masks and labels."""
    arch = {"args": steel_config(folder, folder)["arch"]["args"] | {"aux_params": {}}}
    parts = {"masks": "BCEDiceLoss", "labels": {"type": "BCELoss", "on": "labels"}}
    loss = {"type": "WeightedSum", "args": {"parts": parts}}
    changes = {"arch": arch, "loss": loss, "training": {"monitor": "off"}}
    return train(folder, "both-of-fold-2", **changes, **of_fold(folder, 2)) / "checkpoint_epoch_2.pth"


@pytest.mark.slow
def test_models_of_one_fold_predict_it_together(folds, folder, tmp_path):
    again = train(folder, "again", seed=9, **of_fold(folder, 1)) / "checkpoint_epoch_2.pth"
    split = torch.load(folds[0], weights_only=True)["split"]
    state = torch.load(again, weights_only=True) | {"split": split}  # another seed deals other folds
    torch.save(state, tmp_path / "again.pth")
    models = ("-r", folds[0], "-r", folds[1], "-r", tmp_path / "again.pth")
    apart = scores_of(tmp_path, "-r", folds[0], "-r", folds[1], "--out-of-fold")
    without = scores_of(tmp_path, *models, "--weights", "1,1,0", "--out-of-fold")
    together = scores_of(tmp_path, *models, "--weights", "1,1,3", "--out-of-fold")
    assert together["images"] == 24
    assert without["dice_mean"] == pytest.approx(apart["dice_mean"], abs=1e-6)
    assert abs(together["dice_mean"] - apart["dice_mean"]) > 1e-4


def test_a_loss_of_masks_and_labels_gets_each_from_the_models_that_give_it(
    folds, labels_of_fold_1, both_of_fold_2, tmp_path
):
    models = ("-r", both_of_fold_2, "-r", folds[0], "-r", labels_of_fold_1)
    scores = scores_of(tmp_path, *models, "--out-of-fold")
    one = scores_of(tmp_path, "-r", labels_of_fold_1, "--out-of-fold")
    other = scores_of(tmp_path, "-r", both_of_fold_2, "--out-of-fold")
    mean = (one["loss"] * one["images"] + other["labels_loss"] * other["images"]) / scores["images"]
    assert scores["labels_loss"] == pytest.approx(mean, rel=1e-4)


def test_a_classifier_gates_the_masks_of_its_fold(one, classifier, tmp_path):
    closed = ("--out-of-fold", *LOW, "-s", "predict.gate_threshold=1.0")
    scores = scores_of(tmp_path, "-r", one, "-r", classifier, *closed)
    assert scores["images"] == 10
    assert scores["competition_dice"] == scores["competition_dice_of_nothing"]


def test_folds_that_overlap_or_lack_a_kind_of_model_are_refused(one, folds, labels_of_fold_1):
    message = mistake("test", "-r", folds[0], "-r", one, "--out-of-fold")
    assert "were validation images of both" in message
    models = ("-r", folds[0], "-r", folds[1])
    message = mistake("test", *models, "-r", labels_of_fold_1, "--out-of-fold")
    assert "expected models of the same kinds for each fold" in message
    message = mistake("test", *models, "--weights", "1,0", "--out-of-fold")
    assert f"--weights: expected one above 0 among the models that share a fold with {folds[1]}" in message


def test_a_classifier_gates_the_masks(one, classifier, tmp_path):
    done("predict", "-r", one, "-o", tmp_path / "free.csv", *LOW)
    closed = ("-s", "predict.gate_threshold=1.0")
    done("predict", "-r", one, "-r", classifier, "-o", tmp_path / "closed.csv", *LOW, *closed)
    assert any(mask.any() for mask in masks_in(tmp_path / "free.csv").values())
    assert not any(mask.any() for mask in masks_in(tmp_path / "closed.csv").values())
    scores = scores_of(tmp_path, "-r", one, "-r", classifier, *LOW, *closed)
    assert scores["competition_dice"] == scores["competition_dice_of_nothing"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--average", "median"], ["--average", "'median'", "mean"]),
        (["--tta", "flip"], ["--tta", "'flip'"]),
        (["--weights", "1,2"], ["--weights", "expected 1", "received 2"]),
        (["--weights", "a"], ["expected numbers separated by commas"]),
        (["--weights", "2"], ["--weights: is for several models"]),
        (["--average", "vote"], ["--average vote: is for several models"]),
        (["--settings", "nowhere.yml"], ["--settings nowhere.yml", "no such file"]),
        (["-s", "predict.gate_threshold=0.5"], ["gate_threshold", "model of labels"]),
        (
            ["-s", "predict.label_threshold=[0.5, 0.6]"],
            ["predict.label_threshold", "4 classes", "received 2"],
        ),
        (["-s", "predict.overlap=both"], ["predict.overlap", "'highest', 'dominant' or 'keep'"]),
        (["-s", "predict.gate_factor=0.5"], ["predict.gate_factor", "greater than or equal to 1"]),
        (["-s", "predict.dilate=-1"], ["predict.dilate"]),
    ],
)
def test_mistakes_in_the_options_of_an_ensemble_are_named(args, words, one, tmp_path):
    message = mistake("predict", "-r", one, "-o", tmp_path / "s.csv", *args)
    for word in words:
        assert word in message
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("command", ["predict", "test", "tune", "pseudo"])
def test_without_a_checkpoint_the_newest_is_named(command, folder, tmp_path, monkeypatch):
    for number, name in enumerate(("b/1231_235959", "a/0101_000000", "b/0102_000000")):
        run = tmp_path / "saved" / name
        run.mkdir(parents=True)
        for checkpoint in ("checkpoint_epoch_1.pth", "checkpoint_last.pth"):
            (run / checkpoint).touch()
            os.utime(run / checkpoint, (number, number))
    monkeypatch.chdir(tmp_path)
    assert "give -r CKPT; the newest is saved/b/0102_000000/checkpoint_last.pth" in mistake(command)
    (run / "model_best.pth").touch()
    assert "give -r CKPT; the newest is saved/b/0102_000000/model_best.pth" in mistake(command)
    config = steel_config(folder / "data", "saved") | {"name": "a"}
    path = write_config(tmp_path / "a.yml", config)
    assert "give -r CKPT; the newest is saved/a/0101_000000/checkpoint_last.pth" in mistake(
        command, "-c", path
    )
    assert "no run in elsewhere/a yet" in mistake(command, "-c", path, "-s", "save_dir=elsewhere")


def test_a_model_is_given_once(one, tmp_path):
    assert "is given twice; --weights" in mistake("predict", "-r", one, "-r", one, "-o", tmp_path / "s.csv")


def test_settings_say_what_they_were_tuned_for(one, other, tmp_path):
    settings = tmp_path / "tuned.yml"
    done("tune", "-r", one, "-o", settings)
    assert "was tuned for" not in done("test", "-r", one, "--settings", settings)
    assert "was tuned for other tta" in done("test", "-r", one, "--settings", settings, "--tta", "hflip")
    assert "was tuned for other checkpoints" in done("test", "-r", other, "--settings", settings)


def readme_commands():
    """The lines of the README that use the models A and B, and what they write."""
    text = (ROOT / "README.rst").read_text(encoding="utf-8").replace("\\\n", "")
    lines = re.findall(
        r"^  sever ((?:tune|test|predict|pseudo) -r A\.pth .*|check submission.*)$", text, re.M
    )
    return [shlex.split(line, comments=True) for line in lines]


def test_the_command_lines_of_the_readme_go_together(one, other, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "data", "data/severstal")
    shutil.copy(one, "A.pth")
    shutil.copy(other, "B.pth")
    done("predict", "-r", "A.pth", "-o", "last_submission.csv")
    commands = readme_commands()
    assert [args[0] for args in commands] == ["tune", "test", "predict", "check", "predict", "pseudo"]
    for args in commands:
        assert "was tuned for" not in done(*args, *(EASY[:-2] if args[0] == "pseudo" else ()))


def test_outputs_replace_nothing_that_is_read(one, folder, tmp_path):
    settings = tmp_path / "tuned.yml"
    done("tune", "-r", one, "-o", settings)
    before = settings.read_bytes()
    message = mistake("pseudo", "-r", one, "--settings", settings, "-o", tmp_path / "tuned.csv")
    assert "tuned.yml: is one of the files that are read here" in message
    assert settings.read_bytes() == before
    assert "expected a name that ends with .csv" in mistake("predict", "-r", one, "-o", tmp_path / "x.pth")
    assert "is one of the files that are read here" in mistake("predict", "-r", one, "-o", one)
    assert "expected a name that ends with .json" in mistake("test", "-r", one, "-o", tmp_path / "x.csv")
    truth = folder / "data" / "test.csv"
    before = truth.read_bytes()
    assert "is one of the files that are read here" in mistake("predict", "-r", one, "-o", truth)
    assert truth.read_bytes() == before


def test_the_images_that_a_model_was_not_trained_on_cannot_be_chosen_anew(one, tmp_path):
    message = mistake(
        "tune", "-r", one, "-o", tmp_path / "t.yml", "-s", "data_loader.args.validation_split=0"
    )
    assert "-s data_loader.args.validation_split=0: the checkpoint says" in message


def test_models_of_different_classes_make_no_ensemble(one, folder, tmp_path):
    arch = {
        "type": "FPN",
        "args": {
            "encoder_name": "tu-test_resnet", "encoder_weights": None, "in_channels": "r", "classes": 5,
            "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32,
        },
    }  # fmt: skip
    five = train(folder, "five", arch=arch) / "checkpoint_epoch_2.pth"
    message = mistake("predict", "-r", one, "-r", five, "-o", tmp_path / "s.csv")
    assert "must have the same classes" in message
    assert f"{five} has 1, 2, 3, 4, 5" in message


def test_a_submission_is_checked_against_the_sample_and_another_one(one, other, folder, tmp_path):
    sample = folder / "data" / "sample_submission.csv"
    for name, checkpoint in (("one", one), ("other", other)):
        done("predict", "-r", checkpoint, "-o", tmp_path / f"{name}.csv", "--sample-submission", sample, *LOW)
    images = ("-i", folder / "data" / "test_images", "--sample-submission", sample)
    output = done(
        *("check", tmp_path / "one.csv", *images, "--against", tmp_path / "other.csv"),
        *("--json", tmp_path / "report.json"),
    )
    assert "other.csv" in output
    assert json.loads((tmp_path / "report.json").read_text())["faults"] == []
    lines = (tmp_path / "one.csv").read_text().splitlines()
    (tmp_path / "short.csv").write_text("\n".join(lines[:-1]) + "\n")
    result = sever("check", tmp_path / "short.csv", *images)
    assert result.exit_code == 2
    assert lines[-1].partition(",")[0].partition("_")[0] in result.output


def test_pseudo_labels_are_made_and_trained_on(one, other, folder, tmp_path):
    models = ("-r", one, "-r", other)
    output = done("pseudo", *models, "-o", tmp_path / "pseudo.csv", *EASY)
    images = len(list((folder / "data" / "test_images").iterdir()))
    assert f"{images} of {images} images kept" in output
    assert "training images" in output
    done("predict", *models, "-o", tmp_path / "predicted.csv", *LOW)
    assert sorted((tmp_path / "pseudo.csv").read_text().split()) == sorted(
        (tmp_path / "predicted.csv").read_text().split()
    )
    made = yaml.safe_load((tmp_path / "pseudo.yml").read_text())
    digests = {str(path): f"sha256 {sha256(path.read_bytes()).hexdigest()}" for path in (one, other)}
    assert made["checkpoints"] == digests
    assert made["predict"]["threshold"] == 0.3
    assert made["rules"]["agreement"] == 0
    assert len(made["names"]) == made["kept"] == images
    config = steel_config(folder / "data", tmp_path / "saved")
    config["data_loader"]["args"]["pseudo"] = {"csv": str(tmp_path / "pseudo.csv"), "share": 0.25}
    config["training"] |= {"epochs": 1}
    plan = done("train", "-c", write_config(tmp_path / "again.yml", config))
    assert ", pseudo: " in plan


def test_images_on_which_models_are_not_sure_are_left_out(one, other, tmp_path):
    strict = ("--agreement", "1", "--sure", "1", "--absent", "0")
    message = mistake("pseudo", "-r", one, "-r", other, "-o", tmp_path / "pseudo.csv", *strict)
    assert "no image is sure enough" in message
    assert "lower --agreement" in message
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_gates_pseudo_labels_and_makes_none_alone(one, classifier, tmp_path):
    models = ("-r", one, "-r", classifier, "-o", tmp_path / "pseudo.csv")
    done("pseudo", *models, *EASY)
    assert any(yaml.safe_load((tmp_path / "pseudo.yml").read_text())["masks"].values())
    done("pseudo", *models, *EASY, "-s", "predict.gate_threshold=1.0")
    assert not any(yaml.safe_load((tmp_path / "pseudo.yml").read_text())["masks"].values())
    message = mistake("pseudo", "-r", classifier, "-o", tmp_path / "alone.csv")
    assert "need a model that gives masks" in message


@pytest.mark.parametrize("weights", [pytest.param("1,0", marks=pytest.mark.slow), "0.25,0.75"])
def test_pseudo_labels_are_those_of_the_weighted_ensemble(weights, one, other, tmp_path):
    ensemble = ("-r", one, "-r", other, "--weights", weights, "--average", "rms", "--tta", "hflip")
    done("pseudo", *ensemble, *EASY, "-o", tmp_path / "pseudo.csv")
    done("predict", *ensemble, *LOW, "-o", tmp_path / "predicted.csv")
    assert sorted((tmp_path / "pseudo.csv").read_text().split()) == sorted(
        (tmp_path / "predicted.csv").read_text().split()
    )


SLOW = [pytest.param(command, marks=pytest.mark.slow) for command in ("tune", "pseudo")]


@pytest.mark.parametrize("command", ["test", "predict", *SLOW])
def test_sixteen_bits_are_computed_in(command, one, tmp_path):
    outputs = []
    for precision in ("fp32", "bf16"):
        suffix = {"test": "json", "tune": "yml"}.get(command, "csv")
        path = tmp_path / f"{precision}.{suffix}"
        options = EASY if command == "pseudo" else LOW
        done(command, "-r", one, "-o", path, "--precision", precision, *options)
        outputs.append(path.read_text())
    if command == "test":
        scores = [json.loads(output) for output in outputs]
        assert scores[0]["loss"] != scores[1]["loss"]
        assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=0.02)
    elif command == "predict":
        assert outputs[0] != outputs[1]


def test_an_ensemble_is_not_scored_on_images_that_one_of_its_models_was_trained_on(folds):
    message = mistake("test", "-r", folds[0], "-r", folds[1])
    assert "validated on the same images" in message


def test_a_weight_of_0_for_all_that_give_masks_is_refused(one, classifier, tmp_path):
    models = ("-r", one, "-r", classifier)
    message = mistake("predict", *models, "--weights", "0,1", "-o", tmp_path / "s.csv")
    assert "--weights: expected one above 0 among the models that give masks" in message
