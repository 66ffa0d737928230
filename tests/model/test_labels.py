"""Classifiers, and masks and labels in one model, through the command line."""

import json

import pytest
import torch
from runs import SIZE, done, mistake, run_folder, steel_config, write_config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steel") / "data"
    done("synth", folder, "-n", "16", "--size", *map(str, SIZE))
    return folder


@pytest.fixture
def config(data_dir, tmp_path):
    config = steel_config(data_dir, tmp_path / "saved")
    config["training"] = {"epochs": 1, "tensorboard": True, "monitor": "max val_label_f1_mean"}
    return config


@pytest.fixture
def classifier(config):
    config["arch"] = {
        "type": "Classifier",
        "args": {
            "encoder_name": "tu-mobilenetv3_small_050", "encoder_weights": None, "in_channels": "r",
            "classes": 4, "encoder_depth": 3,
        },
    }  # fmt: skip
    config["loss"] = "BCELoss"
    config["metrics"] = ["label_accuracy", "label_f1"]
    return config


@pytest.fixture
def two_heads(config):
    config["arch"]["args"]["aux_params"] = {"pooling": "avg", "dropout": 0.1}
    config["loss"] = {
        "type": "WeightedSum",
        "args": {
            "parts": {
                "masks": {"type": "BCEDiceLoss", "weight": 1.0},
                "labels": {"type": "BCELoss", "weight": 0.5, "on": "labels"},
            }
        },
    }
    config["metrics"] = ["dice", "label_f1"]
    return config


def test_a_classifier_is_trained_tested_and_loaded_again(classifier, tmp_path):
    run = run_folder(done("train", "-c", write_config(tmp_path / "test.yml", classifier)))
    log = torch.load(run / "model_best.pth", weights_only=True)["log"]
    assert {"val_loss", "val_label_accuracy_4", "val_label_f1_mean"} <= log.keys()
    done("test", "-r", run / "model_best.pth", "-o", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {"loss", "label_accuracy_1", "label_f1_mean", "images"} <= scores.keys()
    assert not any(name.startswith(("dice", "competition", "miou")) for name in scores)


def test_a_classifier_writes_no_submission(classifier, data_dir, tmp_path):
    run = run_folder(done("train", "-c", write_config(tmp_path / "test.yml", classifier)))
    message = mistake("predict", "-r", run / "model_best.pth", "-o", tmp_path / "submission.csv")
    assert "Classifier gives no masks" in message
    assert not (tmp_path / "submission.csv").exists()


def test_masks_and_labels_come_from_one_model(two_heads, tmp_path):
    run = run_folder(done("train", "-c", write_config(tmp_path / "test.yml", two_heads)))
    log = torch.load(run / "model_best.pth", weights_only=True)["log"]
    parts = log["masks_loss"] + 0.5 * log["labels_loss"]
    assert log["loss"] == pytest.approx(parts, rel=1e-5)
    assert {"val_dice_mean", "val_label_f1_1", "masks_bce_loss"} <= log.keys()
    done("test", "-r", run / "model_best.pth", "-o", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {"competition_dice", "miou", "dice_mean", "label_f1_mean"} <= scores.keys()
    done("predict", "-r", run / "model_best.pth", "-o", tmp_path / "submission.csv")
    assert (tmp_path / "submission.csv").read_text().startswith("ImageId_ClassId,EncodedPixels")


def test_the_label_head_learns(two_heads, tmp_path):
    two_heads["training"] |= {"epochs": 2, "monitor": "off"}
    run = run_folder(done("train", "-c", write_config(tmp_path / "test.yml", two_heads)))
    first, second = (
        torch.load(run / f"checkpoint_epoch_{n}.pth", weights_only=True)["state_dict"] for n in (1, 2)
    )
    heads = [key for key in first if "classification_head" in key]
    assert heads
    assert not any(torch.equal(first[key], second[key]) for key in heads)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "BCEDiceLoss"}, ["loss: ", "labels", "on: labels"]),
        ({"loss": {"type": "WeightedSum", "args": {"parts": {"masks": "BCEDiceLoss"}}}}, ["on: labels"]),
        ({"metrics": ["dice", "label_f2"]}, ["'label_f2'", "Did you mean 'label_f1'?"]),
    ],
)
def test_a_second_head_needs_its_part_of_the_loss(changes, words, two_heads, tmp_path):
    path = write_config(tmp_path / "test.yml", two_heads | changes)
    message = mistake("train", "-c", path, "--dry-run")
    for word in words:
        assert word in message


def test_losses_and_metrics_of_what_the_model_does_not_give_are_refused(classifier, tmp_path):
    path = write_config(tmp_path / "test.yml", classifier | {"metrics": ["dice"]})
    message = mistake("train", "-c", path, "-s", "training.monitor=off")
    assert "metrics: dice is a metric of masks, but Classifier gives labels" in message
    path = write_config(tmp_path / "test.yml", classifier | {"loss": "BCEDiceLoss"})
    assert "loss: BCEDiceLoss is a loss of masks, but the model gives labels" in mistake("train", "-c", path)


def test_label_metrics_need_a_model_of_labels(config, tmp_path):
    path = write_config(tmp_path / "test.yml", config | {"metrics": ["label_f1"]})
    message = mistake("train", "-c", path)
    assert "metrics: label_f1 is a metric of labels, but Unet gives masks" in message
    assert "aux_params" in message
