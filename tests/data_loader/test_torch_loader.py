"""A plain torch DataLoader of the user's own, named by its import path, through the command line."""

import csv
import json
import shutil
import sys
import textwrap

import pytest
import torch
from in_processes import in_processes
from launched import started
from runs import done, mistake, run_folder, steel_config, write_config
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from sever.data_loader.torch_loader import TorchDataLoader
from sever.parallel import collectives
from sever.utils.errors import ConfigError

CODE = """
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


def stripes(count, classes):
    draw = torch.Generator().manual_seed(0)
    masks = (torch.rand(count, classes, 1, 32, generator=draw) < 0.5).float().expand(-1, -1, 32, -1)
    return TensorDataset(masks.sum(dim=1, keepdim=True) - 1, masks)


class Stripes(DataLoader):
    def __init__(self, count: int = 12, batch_size: int = 4, num_workers: int = 0, classes: int = 4):
        super().__init__(stripes(count, classes), batch_size, shuffle=True, num_workers=num_workers)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(stripes(8, 4))


class Stream(DataLoader):
    def __init__(self, data_dir: str = ""):
        super().__init__(Endless(), 4)


class Digits(DataLoader):
    def __init__(self, batch_size: int = 8):
        draw = torch.Generator().manual_seed(1)
        digits = TensorDataset(torch.rand(32, 1, 28, 28, generator=draw), torch.arange(32) % 10)
        super().__init__(digits, batch_size, shuffle=True)
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A steel experiment on drawn stripes, and the code of its loader in the current folder."""
    (tmp_path / "my_data.py").write_text(textwrap.dedent(CODE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("my_data", None)
    values = steel_config(tmp_path, tmp_path / "saved")
    values["data_loader"] = {"type": "my_data.Stripes", "args": {"count": 12, "batch_size": 4}}
    values["testing"] = {"count": 5}
    values["training"] |= {"monitor": "min loss"}
    return write_config(tmp_path / "own.yml", values)


def weights_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_it_is_planned_trained_resumed_and_scored(config, tmp_path):
    plan = done("train", "-c", config, "--dry-run")
    assert "\ntraining       12 images\nvalidation     none\n" in plan
    assert "nothing is validated: my_data.Stripes is a plain torch DataLoader" in plan
    run = run_folder(done("train", "-c", config))
    stopped = shutil.copytree(run, tmp_path / "stopped" / run.name)
    (stopped / "checkpoint_epoch_2.pth").unlink()
    resumed = done(
        "train", "-r", stopped / "checkpoint_epoch_1.pth", "--trust", "-sdata_loader.args.num_workers=1"
    )
    assert "epoch 2/2" in resumed
    first, second = weights_of(run / "checkpoint_epoch_2.pth"), weights_of(stopped / "checkpoint_epoch_2.pth")
    assert all(torch.equal(first[key], second[key]) for key in first)
    done("test", "-r", run / "model_best.pth", "--trust", "-o", tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 5
    with (run / "split.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == []


def test_class_indices_are_targets_too(config):
    settings = ["arch={type: MnistModel, args: {num_classes: 10}}", "loss=nll_loss", "metrics=[my_metric]"]
    settings += ["augmentation=null", "optimizer={type: Adam, args: {lr: 1e-3}}", "lr_scheduler=null"]
    settings += [
        "data_loader={type: my_data.Digits, args: {}}",
        "testing={batch_size: 16}",
        "training.epochs=1",
    ]
    run = run_folder(done("train", "-c", config, *(f"-s{setting}" for setting in settings)))
    assert "my_metric" in done("test", "-r", run / "model_best.pth", "--trust")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (
            "data_loader.type=my_data.Stream",
            "Stream: expected a torch.utils.data.DataLoader that reads batches",
        ),
        ("data_loader.args={counts: 3}", "my_data.Stripes does not take 'counts'. Did you mean 'count'?"),
        ("training.monitor=min val_loss", "'val_loss' will not be logged"),
        ("data_loader.type=my_data.Endless", "expected a class derived from torch.utils.data"),
    ],
)
def test_a_mistake_is_one_message(config, setting, expected):
    own = ["-sdata_loader.args={}", "-stesting=null"] if "type" in setting else []
    assert expected in mistake("train", "-c", config, "--dry-run", *own, "-s", setting)


@pytest.mark.slow
def test_several_processes_train_to_the_weights_of_one(config, tmp_path):
    # Without BatchNorm's statistics, which each process takes of its own shard.
    epoch = ["-straining.epochs=1", "-straining.unfreeze_encoder=9", "-sarch.args.decoder_use_norm=false"]
    alone = weights_of(run_folder(done("train", "-c", config, *epoch)) / "checkpoint_epoch_1.pth")
    args = ["train", "-c", config, *epoch, "-s", f"save_dir={tmp_path}/two", "-d", "cpu,cpu"]
    with started("-m", "sever", *args, folder=tmp_path) as command:
        shared = weights_of(run_folder(command.done()) / "checkpoint_epoch_1.pth")
    for key, weights in alone.items():
        torch.testing.assert_close(shared[key], weights, rtol=1e-2, atol=1e-4)


# ----------------------------------------------------------------------------------------- its batches


class Numbers(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return index


class Halves(Numbers):
    def __getitem__(self, index):
        return torch.tensor(index / 2)


def loader_of(**args):
    return TorchDataLoader(DataLoader(Numbers(), 6, **{"shuffle": True} | args), seed=3)


def read(loader, epoch, skip=0):
    loader.set_epoch(epoch, skip)
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"generator": torch.Generator().manual_seed(7)},
        {"shuffle": False, "sampler": WeightedRandomSampler([1.0] * 20, 20)},
    ],
    ids=["global generator", "own generator", "sampler"],
)
def test_an_epoch_is_another_one_but_always_the_same(args):
    loader = loader_of(**args)
    first, second = read(loader, 1), read(loader, 2)
    assert first != second
    torch.rand(3)
    assert read(loader, 1) == first
    assert read(loader, 2, skip=2) == second[2:]


def test_what_draws_elsewhere_is_not_disturbed():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    read(loader_of(), 1)
    assert torch.equal(torch.rand(1), expected)


def test_processes_share_its_batches():
    def of_process():
        loader = loader_of()
        loader.shard_batches(collectives.world())
        return read(loader, 1)

    first, second = in_processes(2, of_process)
    assert [one + other for one, other in zip(first, second, strict=True)] == read(loader_of(), 1)


def mark(_):
    torch.set_default_dtype(torch.float64)


def test_settings_of_the_plain_loader_are_kept():
    settings = {"collate_fn": list, "drop_last": True, "num_workers": 1, "worker_init_fn": mark}
    loader = TorchDataLoader(DataLoader(Halves(), 6, **settings), 0)
    assert [len(batch) for batch in loader] == [6, 6, 6]
    assert {sample.dtype for batch in loader for sample in batch} == {torch.float64}
    assert loader.split_validation() is None


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ConfigError, match="reads batches by index"):
        TorchDataLoader(DataLoader(Numbers(), batch_size=None), 0)
