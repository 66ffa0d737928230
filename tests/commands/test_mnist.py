"""The template's own example: its config unchanged, on real IDX files made of scikit-learn's digits."""

import json
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from in_processes import in_processes
from runs import ROOT, done, mistake, run_folder
from sklearn.datasets import load_digits

from sever.config.load import load_config
from sever.factory import training_loader

CONFIG = ROOT / "experiments" / "config.yml"


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write uint8 as an IDX file, http://yann.lecun.com/exdb/mnist/."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def data_dir(tmp_path):
    """1,797 real handwritten digits, 8 x 8 made 28 x 28, under MNIST's file names."""
    digits = load_digits()
    images = np.kron(digits.images, np.ones((3, 3))) * (255 / 16)
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, part in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
        write_idx(raw / f"{name}-images-idx3-ubyte", images[part])
        write_idx(raw / f"{name}-labels-idx1-ubyte", digits.target[part])
    return tmp_path / "data"


def test_the_seeds_config_trains_on_digits_to_over_90_percent(data_dir, tmp_path):
    here = [f"-sdata_loader.args.data_dir={data_dir}", f"-stesting.data_dir={data_dir}"]
    here += [f"-ssave_dir={tmp_path}", "-sdata_loader.args.batch_size=16", "-straining.epochs=8"]
    here += ["-stesting.num_workers=0", "-sdata_loader.args.num_workers=0"]
    output = done("train", "-c", CONFIG, *here)
    run = run_folder(output)
    assert run.parent.name == "Mnist_LeNet"
    assert "val_my_metric2" in output
    done("test", "-r", run / "model_best.pth", "-o", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["images"] == 297
    assert scores["my_metric"] > 0.9
    assert scores["my_metric2"] > 0.95


def test_missing_digits_are_an_error_that_says_where_to_put_them(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", no_network)
    message = mistake("train", "-c", CONFIG, f"-sdata_loader.args.data_dir={tmp_path}")
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "train-images-idx3-ubyte" in message


def test_a_model_without_masks_cannot_predict_a_submission(data_dir, tmp_path):
    here = [f"-sdata_loader.args.data_dir={data_dir}", f"-ssave_dir={tmp_path}", "-straining.epochs=1"]
    run = run_folder(done("train", "-c", CONFIG, *here))
    message = mistake("predict", "-r", run / "checkpoint_epoch_1.pth", "-o", tmp_path / "s.csv")
    assert "MnistModel gives no masks" in message


def test_of_several_processes_one_downloads(data_dir, tmp_path, monkeypatch):
    target = tmp_path / "elsewhere"
    log = tmp_path / "downloads.txt"

    def download(digits):
        if not digits._check_exists():
            with log.open("a") as file:
                file.write("begun\n")
            time.sleep(0.5)
            shutil.copytree(data_dir, target, dirs_exist_ok=True)

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    config = load_config(CONFIG, [f"data_loader.args.data_dir={target}", "data_loader.args.num_workers=0"])

    def digits():
        return len(training_loader(config, torch.device("cpu")).dataset)

    assert in_processes(2, digits) == [1500, 1500]
    assert log.read_text() == "begun\n"


def test_the_plan_advises_only_keys_that_the_loader_takes(data_dir):
    assert "validation_batch_size" not in done(
        *("train", "-c", CONFIG, "-d", "cpu,cpu", "--dry-run", f"-sdata_loader.args.data_dir={data_dir}")
    )
