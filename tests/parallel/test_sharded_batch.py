"""A batch that is sharded over processes has the loss and the gradients of the whole one."""

from functools import partial

import pytest
import torch
from in_processes import in_processes
from runs import steel_config, write_config
from torch import nn
from torch.nn import functional as F

from sever.base import MasksAndLabels
from sever.config.load import load_config
from sever.factory import synchronises
from sever.model.combined_loss import LossPart, Stage, SwitchedLoss, WeightedSum
from sever.model.loss import (
    BCEDiceLoss,
    BCELoss,
    DiceLoss,
    FocalLoss,
    IoULoss,
    LovaszHingeLoss,
    TverskyLoss,
    nll_loss,
)
from sever.parallel import collectives
from sever.parallel.gradients import average_gradients
from sever.parallel.sharded_batch import Shard, all_reduce_losses, named_losses, sharded_batch

# ----------------------------------------------------------------------------------------- the losses


class TwoHeads(nn.Module):
    """Images (N, 1, 8, 8) -> logits of masks (N, 4, 8, 8), of labels (N, 4) or both, or of one class."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.masks = nn.Conv2d(1, 4, 3, padding=1)
        self.labels = nn.Linear(64, 4)

    def forward(self, images):
        masks, labels = self.masks(images), self.labels(images.flatten(1))
        of_kinds = {"masks": masks, "labels": labels, "both": MasksAndLabels(masks, labels)}
        return of_kinds.get(self.kind, labels.log_softmax(1))


def squared_batch_mean(logits, masks):
    """A loss that is neither a mean over images nor computed of sums."""
    return (logits.sigmoid().mean() - masks.float().mean()).square() + logits.std()


def product_of_heads(outputs, targets):
    return {
        "loss": F.l1_loss(outputs.masks, targets.masks.float()) * outputs.labels.square().sum().sqrt(),
        "worst": (outputs.labels - targets.labels).abs().max(),
    }


class HardestPixels(BCEDiceLoss):
    """Inherits `takes_parts`, but overrides what is computed."""

    def _losses(self, logits, masks):
        pixels = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").flatten()
        return {"loss": pixels.topk(100).values.mean(), "bce_loss": pixels.mean(), "dice_loss": pixels.max()}


class ScaledBCE(BCELoss):
    """Overrides nothing that is computed of images, and says nothing of parts."""

    def _loss(self, logits, masks):
        return 3 * super()._loss(logits, masks)


class Wrapped(nn.Module):
    """A user's own loss, which calls one of the program's."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, logits, masks):
        return self.loss(logits, masks)


WEIGHTS = [1.0, 0.5, 0.0, 2.0]
LOSSES = {
    "bce and dice": BCEDiceLoss(0.6, 0.4, 0.01),
    "bce": BCELoss(),
    "weighted bce": BCELoss(WEIGHTS, [1.0, 2.0, 3.0, 0.5], 0.1),
    "focal": FocalLoss(),
    "weighted focal": FocalLoss(1.5, 0.25, WEIGHTS),
    **{
        f"{name} per {per}": make(per=per)
        for name, make in {
            "tversky": partial(TverskyLoss, 0.2, 0.9),
            "dice": DiceLoss,
            "iou": IoULoss,
            "lovasz": LovaszHingeLoss,
        }.items()
        for per in ("batch", "class", "image")
    },
    "a sum": WeightedSum(
        {
            "seg": LossPart(BCEDiceLoss(), 0.7),
            "hinge": LossPart(LovaszHingeLoss("batch"), 0.2),
            "own": LossPart(squared_batch_mean, 0.1),
            "logged": LossPart(DiceLoss("class"), 0.0),
        }
    ),
    "stages": SwitchedLoss([Stage(squared_batch_mean), Stage(BCEDiceLoss(), 2)]),
    "a function": squared_batch_mean,
    "a subclass that takes the hardest pixels": HardestPixels(),
    "a subclass of a mean": ScaledBCE(WEIGHTS),
    "an own one of sums": Wrapped(DiceLoss("class")),
    "an own one of parts": Wrapped(WeightedSum({"hinge": LossPart(LovaszHingeLoss("batch"))})),
}
OF_LABELS = {"bce": BCELoss(WEIGHTS), "focal": FocalLoss(), "a function": squared_batch_mean}
OF_BOTH = {
    "a sum": WeightedSum({"seg": LossPart(BCEDiceLoss()), "cls": LossPart(BCELoss(), 0.5, "labels")}),
    "a sum of own ones": WeightedSum(
        {"seg": LossPart(squared_batch_mean), "cls": LossPart(squared_batch_mean, 0.5, "labels")}
    ),
    "a function of both": product_of_heads,
}
KINDS = {"masks": LOSSES, "labels": OF_LABELS, "both": OF_BOTH, "classes": {"nll": nll_loss}}
CASES = [(f"{kind}: {name}", kind, loss) for kind, losses in KINDS.items() for name, loss in losses.items()]


def losses_and_gradients(whole):
    """Of a batch of so many images: by the name of each case what is logged, and the gradients."""
    world = collectives.world()
    shard = Shard.of(whole, world.rank, world.size)
    generator = torch.Generator().manual_seed(whole)
    images = torch.randn(whole, 1, 8, 8, generator=generator)
    masks = (torch.rand(whole, 4, 8, 8, generator=generator) > 0.7).byte()
    own = slice(shard.first, shard.first + shard.images)
    results = {}
    for name, kind, loss in CASES:
        torch.manual_seed(1)
        model = TwoHeads(kind)
        labels = masks[own].flatten(2).any(2).float()
        targets = {
            "masks": masks[own],
            "labels": labels,
            "both": MasksAndLabels(masks[own].bool(), labels),
            "classes": torch.arange(whole)[own] % 4,
        }[kind]
        with sharded_batch(shard):
            losses = named_losses(loss, model(images[own]), targets)
        (losses["loss"] * shard.weight).backward()
        average_gradients(model.parameters())
        logged = all_reduce_losses(losses, shard)
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results[name] = ({key: value.item() for key, value in logged.items()}, gradients)
    return results


@pytest.mark.parametrize(("processes", "whole"), [(2, 5), (2, 2), (3, 5)])
def test_each_loss_and_its_gradients_are_those_of_the_whole_batch(processes, whole):
    alone = losses_and_gradients(whole)
    for of_process in in_processes(processes, losses_and_gradients, whole):
        for name, (logged, gradients) in alone.items():
            others, other_gradients = of_process[name]
            assert others == pytest.approx(logged, abs=1e-6, rel=1e-6), name
            assert other_gradients.keys() == gradients.keys(), name
            for key, gradient in gradients.items():
                difference = (other_gradients[key] - gradient).abs().max().item()
                assert difference < 1e-6, (name, key, difference)


# ------------------------------------------------------------------------------------------ BatchNorm


@pytest.mark.parametrize(
    ("device", "batch_size", "processes", "sync_bn", "expected"),
    [
        ("cuda", 15, 2, None, True),  # a shard of 7
        ("cuda", 16, 2, None, False),
        ("cuda", 16, 3, None, True),
        ("cuda", 4, 1, None, False),
        ("cuda", 64, 2, True, True),
        ("cuda", 4, 2, False, False),
        ("cuda", 4, 1, True, False),
        ("cpu", 4, 2, None, False),  # torch's SyncBatchNorm computes on GPUs alone
        ("cpu", 4, 2, True, False),
    ],
)
def test_batch_norm_is_synchronised_on_gpus_where_a_shard_has_few_images(
    tmp_path, device, batch_size, processes, sync_bn, expected
):
    config = steel_config(tmp_path, tmp_path)
    config["data_loader"]["args"]["batch_size"] = batch_size
    config["training"]["sync_bn"] = sync_bn
    loaded = load_config(write_config(tmp_path / "x.yml", config))
    assert synchronises(loaded, batch_size, processes, torch.device(device)) == expected
