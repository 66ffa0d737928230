"""A batch that is divided over processes: its loss, its gradients and its BatchNorm are those of the whole."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from together import in_processes
from torch import nn
from torch.nn import functional as F

from sever.base import BaseModel, MasksAndLabels
from sever.base.gradients import average_gradients
from sever.base.outputs import named_losses
from sever.model.batch_norm import SharedBatchNorm, synchronised
from sever.model.loss import (
    BCEDiceLoss,
    BCELoss,
    DiceLoss,
    FocalLoss,
    IoULoss,
    LovaszHingeLoss,
    Stage,
    SwitchedLoss,
    TverskyLoss,
    WeightedSum,
)
from sever.model.loss import Part as LossPart
from sever.trainer.trainer import of_whole_batch
from sever.utils import distributed
from sever.utils.shared_batch import Part, shared, whole_batch

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------ the parts


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 200), st.integers(1, 40))
def test_the_parts_of_a_batch_lie_side_by_side_and_differ_by_one_image_at_most(whole, processes):
    parts = [Part.of(whole, rank, processes) for rank in range(processes)]
    end = 0
    for part in parts:
        assert (part.first, part.whole) == (end, whole)
        end += part.images
    assert end == whole
    sizes = [part.images for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_five_images_on_two_processes_are_three_and_two():
    assert [Part.of(5, rank, 2) for rank in (0, 1)] == [Part(0, 3, 5), Part(3, 2, 5)]
    assert [Part.of(1, rank, 2).images for rank in (0, 1)] == [1, 0]
    assert Part.of(5, 0, 1).weight == 1


def weights_of_parts(whole):
    return Part.of(whole, distributed.place().rank, distributed.processes()).weight


def test_the_weights_of_the_parts_are_one_on_average():
    assert in_processes(2, weights_of_parts, 5) == [pytest.approx(6 / 5), pytest.approx(4 / 5)]
    assert in_processes(3, weights_of_parts, 2) == [1.5, 1.5, 0]


# ----------------------------------------------------------------------------------------- the losses


class TwoHeads(nn.Module):
    """Images (N, 1, H, W) -> logits of masks (N, 4, H, W), of labels (N, 4), or both."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.masks = nn.Conv2d(1, 4, 3, padding=1)
        self.labels = nn.Linear(64, 4)

    def forward(self, images):
        masks, labels = self.masks(images), self.labels(images.flatten(1))
        return {"masks": masks, "labels": labels, "both": MasksAndLabels(masks, labels)}[self.kind]


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
}
OF_LABELS = {"bce": BCELoss(WEIGHTS), "focal": FocalLoss(), "a function": squared_batch_mean}
OF_BOTH = {
    "a sum": WeightedSum(
        {"seg": LossPart(BCEDiceLoss()), "cls": LossPart(BCELoss(), 0.5, "labels")}
    ),
    "a sum of own ones": WeightedSum(
        {"seg": LossPart(squared_batch_mean), "cls": LossPart(squared_batch_mean, 0.5, "labels")}
    ),
    "a function of both": product_of_heads,
}
CASES = [
    (f"{kind}: {name}", kind, loss)
    for kind, losses in {"masks": LOSSES, "labels": OF_LABELS, "both": OF_BOTH}.items()
    for name, loss in losses.items()
]


def losses_and_gradients(whole):
    """Of a batch of so many images: by the name of each case what is logged, and the gradients."""
    place = distributed.place()
    part = Part.of(whole, place.rank, place.processes)
    generator = torch.Generator().manual_seed(whole)
    images = torch.randn(whole, 1, 8, 8, generator=generator)
    masks = (torch.rand(whole, 4, 8, 8, generator=generator) > 0.7).byte()
    own = slice(part.first, part.first + max(part.images, 1)) if part.images else slice(0, 1)
    results = {}
    for name, kind, loss in CASES:
        torch.manual_seed(1)
        model = TwoHeads(kind)
        labels = masks[own].flatten(2).any(2).float()
        targets = {"masks": masks[own], "labels": labels, "both": MasksAndLabels(masks[own], labels)}[kind]
        with shared(part):
            losses = named_losses(loss, model(images[own]), targets)
        (losses["loss"] * part.weight).backward()
        average_gradients(model.parameters())
        logged = of_whole_batch(losses, part)
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results[name] = ({key: value.item() for key, value in logged.items()}, gradients)
    return results


@pytest.mark.parametrize(("processes", "whole"), [(2, 5), (2, 1), (3, 5), (3, 2)])
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
