"""Sixteen bits reach what thirty-two reach, on real strips."""

import shutil

import pandas as pd
import pytest
import torch
from runs import done, run_folder, steel_config, write_config

STRIPS = 36


@pytest.fixture(scope="module")
def strips(shared_data, tmp_path_factory):
    """The first strips of NEU-Seg that have a defect."""
    source = shared_data / "neu-seg"
    rows = pd.read_csv(source / "train.csv", dtype=str, keep_default_na=False)
    images = rows["ImageId_ClassId"].str.rpartition("_")[0]
    chosen = sorted(set(images[rows["EncodedPixels"] != ""]))[:STRIPS]
    folder = tmp_path_factory.mktemp("strips")
    (folder / "train_images").mkdir()
    for name in chosen:
        shutil.copyfile(source / "train_images" / name, folder / "train_images" / name)
    rows[images.isin(chosen)].to_csv(folder / "train.csv", index=False)
    return folder


def final_losses(strips, folder, precision):
    config = steel_config(strips, folder)
    config["arch"] = {
        "type": "FPN",
        "args": {
            "encoder_name": "tu-test_resnet", "encoder_weights": None, "in_channels": "r", "classes": 3,
            "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32, "decoder_dropout": 0.0,
        },
    }  # fmt: skip
    config["augmentation"] = {"type": "RandomCropTransforms", "args": {"height": 64, "width": 64}}
    config["data_loader"]["args"] |= {"batch_size": 10, "validation_split": 6}
    config["optimizer"] = {"type": "AdamW", "args": {"lr": 3e-3}}
    del config["lr_scheduler"]
    config["training"] = {
        "epochs": 8, "precision": precision, "tensorboard": False, "save_period": 8, "verbose": 1
    }  # fmt: skip
    run = run_folder(done("train", "-c", write_config(folder / "strips.yml", config)))
    log = torch.load(run / "checkpoint_epoch_8.pth", weights_only=True)["log"]
    return log["loss"], log["val_loss"]


@pytest.mark.slow
def test_bf16_reaches_the_loss_of_fp32(strips, tmp_path):
    full = final_losses(strips, tmp_path, "fp32")
    half = final_losses(strips, tmp_path, "bf16")
    assert full != half
    assert half[0] == pytest.approx(full[0], rel=0.05)
    assert half[1] == pytest.approx(full[1], rel=0.1)
