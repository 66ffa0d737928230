"""Steps that several processes take together leave the weights that one process would have."""

import pytest
import torch
from in_processes import in_processes
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import Dataset

from sever.base import BaseDataLoader, BaseModel, BaseTrainer
from sever.config.schema import Training
from sever.engine.run_folder import RunFolder
from sever.model.loss import BCEDiceLoss, BCELoss
from sever.model.optimizer import with_lookahead
from sever.parallel import collectives
from sever.parallel.sharded_batch import Shard, named_losses, sharded_batch
from sever.trainer.step import Stepper
from sever.trainer.trainer import Trainer
from sever.utils.errors import ConfigError

CPU = torch.device("cpu")
SIZES = [5, 6, 4, 7, 3]  # images of the batches of an epoch
MARK = 9.0  # an image whose first pixel is above it goes through `rare` too
BAD_BATCH = 2  # of the second epoch, where images spoil it


def norm_of_image(channels):
    """BatchNorm's statistics would be those of a shard."""
    return nn.GroupNorm(1, channels)


class Branches(BaseModel):
    """An encoder with normalisation, a branch for few images, and one that no image takes."""

    def __init__(self, norm=norm_of_image):
        super().__init__()
        torch.manual_seed(4)
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm(4), nn.ReLU())
        self.decoder = nn.Conv2d(4, 2, 3, padding=1)
        self.rare = nn.Conv2d(4, 2, 1)
        self.never = nn.Linear(2, 2)

    def forward(self, images):
        features = self.encoder(images)
        masks = self.decoder(features)
        marked = images[:, 0, 0, 0] > MARK
        if marked.any():
            masks = masks + marked[:, None, None, None] * self.rare(features)
        return masks

    def parameter_groups(self):
        encoder = list(self.encoder.parameters())
        rest = [self.decoder, self.rare, self.never]
        return {"encoder": encoder, "decoder": [p for part in rest for p in part.parameters()]}


def batch_of(epoch, number, bad):
    """A batch as one process has it: images (N, 1, 8, 8) and masks (N, 2, 8, 8)."""
    generator = torch.Generator().manual_seed(100 * epoch + number)
    images = torch.randn(SIZES[number], 1, 8, 8, generator=generator)
    masks = (torch.rand(SIZES[number], 2, 8, 8, generator=generator) > 0.7).byte()
    images[0, 0, 0, 0] = MARK + 1  # always in the first process
    if bad and (epoch, number) == (2, BAD_BATCH):
        images[-1, 0, 3, 3] = torch.nan  # always in the last one
    return images, masks


RECIPES = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "clipped": {"clip_grad_norm": 0.05},
    "averaged": {"ema_decay": 0.6},
    "spoilt": {"norm": nn.Identity, "bad": True},
    "spoilt in one of two batches": {"bad": True, "accumulate": 2},
    "scaled": {"precision": "fp16", "bad": True},
    "thawed": {"frozen": [True, False, True]},
    "exchanged before the step": {"calls_model": True},
    "exchanged before two batches' step": {
        "calls_model": True, "accumulate": 2, "norm": nn.Identity, "bad": True
    },
    "all": {
        "accumulate": 3, "clip_grad_norm": 0.2, "ema_decay": 0.6, "by_step": True, "bad": True,
        "frozen": [True, False, False],
    },
}  # fmt: skip


def trained(
    norm=norm_of_image,
    bad=False,
    frozen=(False,) * 3,
    calls_model=False,
    by_step=False,
    precision="fp32",
    **recipe,
):
    """What is left of three epochs in one of the processes."""
    world = collectives.world()
    model = Branches(norm)
    optimizer = SGD(model.parameters(), lr=0.3, momentum=0.5, weight_decay=0.01)
    schedule = ExponentialLR(optimizer, 0.9) if by_step else None
    training = Training(epochs=3, precision=precision, **recipe)
    stepper = Stepper(model, optimizer, CPU, training, lr_scheduler=schedule)
    loss, skipped = BCEDiceLoss(0.6, 0.4), []
    for epoch, is_frozen in enumerate(frozen, start=1):
        model.freeze_encoder(is_frozen)
        model.train()
        for number, size in enumerate(SIZES):
            images, masks = batch_of(epoch, number, bad)
            shard = Shard.of(size, world.rank, world.size)
            own = slice(shard.first, shard.first + shard.images)
            with sharded_batch(shard):
                called = model if calls_model else stepper.model_for(number, len(SIZES))
                losses = named_losses(loss, called(images[own]), masks[own])
            over = stepper.backward(losses["loss"], number, len(SIZES), shard.weight)
            if over and stepper.skipped_in_a_row:
                skipped.append((epoch, number))
    return {
        "weights": model.state_dict(),
        "averaged": stepper.averaged_model.state_dict(),
        "momentum": {str(key): s["momentum_buffer"] for key, s in optimizer.state_dict()["state"].items()},
        "counts": (stepper.steps, stepper.skipped, stepper.skipped_in_a_row, optimizer.param_groups[0]["lr"]),
        "skipped": skipped,
        "scaler": stepper.state_dict()["scaler"],
    }


def all_trained(names):
    return {name: trained(**RECIPES[name]) for name in names}


@pytest.fixture(scope="module")
def alone():
    return all_trained(RECIPES)


@pytest.mark.parametrize(
    ("processes", "names"), [(2, list(RECIPES)), (3, ["spoilt", "exchanged before the step", "all"])]
)
def test_steps_of_several_processes_are_those_of_one(alone, processes, names):
    for of_process in in_processes(processes, all_trained, names):
        for name, found in of_process.items():
            expected = alone[name]
            for what in ("skipped", "scaler"):
                assert found[what] == expected[what], (name, what)
            assert found["counts"] == pytest.approx(expected["counts"]), name
            for what in ("weights", "averaged", "momentum"):
                assert found[what].keys() == expected[what].keys(), (name, what)
                for key, tensor in expected[what].items():
                    other = found[what][key]
                    assert torch.allclose(other, tensor, atol=2e-5, rtol=1e-4), (name, what, key)


def test_the_recipes_do_what_they_are_named_for(alone):
    assert [alone[name]["counts"][0] for name in ("plain", "accumulated", "all")] == [15, 9, 6]
    assert alone["spoilt"]["skipped"] == [(2, BAD_BATCH)]
    assert alone["spoilt in one of two batches"]["skipped"] == [(2, BAD_BATCH + 1)]  # the step of two batches
    assert alone["plain"]["skipped"] == []
    start = Branches().state_dict()
    for name in RECIPES:
        weights = alone[name]["weights"]
        assert all(tensor.isfinite().all() for tensor in weights.values())
        assert torch.equal(weights["never.weight"], start["never.weight"])
        assert not torch.equal(weights["rare.weight"], start["rare.weight"])
    averaged = alone["averaged"]
    assert not torch.equal(averaged["averaged"]["decoder.weight"], averaged["weights"]["decoder.weight"])


# --------------------------------------------------------------------------------------- whole trainers


class Sheets(Dataset):
    def __init__(self, bad=()):
        self.bad = bad

    def __len__(self):
        return 16

    def __getitem__(self, index):
        noise = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
        if index == 3:
            noise[0, 0, 0] = MARK + 1
        if index in self.bad:
            noise[0] = torch.nan
        return noise[:1], (noise[1:] > 0.6).byte()


class PlainLoop(BaseTrainer):
    """What a user writes who knows nothing of processes."""

    def _train_epoch(self, epoch):
        for images, masks in self.data_loader:
            self.optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(self.model(images), masks.float())
            loss.backward()
            self.optimizer.step()
        return {"loss": loss.item(), "own": collectives.world().rank}


class OwnSteps(Trainer):
    """Passes over what several processes need."""

    _train_epoch = PlainLoop._train_epoch


def trainer_of(kind, folder, batch_size, bad=(), **args):
    loader = BaseDataLoader(Sheets(bad), batch_size, shuffle=True, seed=1)
    if collectives.world_size() > 1:
        loader.shard_batches(collectives.world())
        loader.lockstep = True
    model = Branches(nn.Identity)
    ready = {"run_folder": RunFolder(folder), "device": CPU, "config": {"seed": 0}}
    ready["training"] = Training(epochs=2, verbose=0)
    optimizer = with_lookahead(SGD(model.parameters(), lr=0.3, momentum=0.5), k=2)
    return kind(model, optimizer, loader, **ready, **args)


def run(kind, folder, batch_size, **args):
    """The weights after a run, and the log of its last epoch."""
    trainer = trainer_of(kind, folder, batch_size, **args)
    trainer.train()
    return trainer.model.state_dict(), trainer.state_dict()["log"]


@pytest.fixture
def folder(tmp_path):
    RunFolder(tmp_path / "run").make()
    return tmp_path / "run"


def test_a_loop_that_knows_nothing_of_processes_keeps_their_weights_equal(folder):
    (weights, log), *others = in_processes(3, run, PlainLoop, folder, 5)  # shards of 2, 2 and 1
    assert log["own"] == 0  # the main process's log is that of all
    for other_weights, other_log in others:
        assert other_log == log
        assert all(torch.equal(other_weights[key], weights[key]) for key in weights)
    saved = torch.load(folder / "checkpoint_epoch_2.pth", weights_only=True)
    assert all(torch.equal(saved["state_dict"][key], weights[key]) for key in weights)
    assert len(saved["other_processes"]) == 2


def test_with_equal_shards_such_a_loop_ends_where_one_process_does(folder):
    alone, _ = run(PlainLoop, folder, 8)
    (weights, _), _ = in_processes(2, run, PlainLoop, folder, 8)
    assert any(
        not torch.equal(tensor, Branches(nn.Identity).state_dict()[key]) for key, tensor in alone.items()
    )
    for key, tensor in alone.items():
        torch.testing.assert_close(weights[key], tensor, atol=1e-6, rtol=1e-5)


def run_with_a_bad_image(folder):
    return run(Trainer, folder, 6, bad=[11], loss=BCELoss())


def test_a_batch_that_is_not_finite_in_one_process_is_left_out_of_the_log_of_all(folder):
    alone, expected = run_with_a_bad_image(folder)
    for weights, log in in_processes(2, run_with_a_bad_image, folder):
        assert log == pytest.approx(expected, rel=1e-6)
        for key, tensor in alone.items():
            torch.testing.assert_close(weights[key], tensor, atol=1e-6, rtol=1e-5)


def test_a_trainer_that_passes_over_the_stepper_is_refused(folder):
    def refused():
        with pytest.raises(ConfigError, match=r"several devices.*self\.stepper\.backward"):
            run(OwnSteps, folder, 8, loss=BCELoss())

    in_processes(2, refused)
