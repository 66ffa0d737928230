"""A batch that is divided over processes has the loss, the gradients and the BatchNorm of the whole one."""

from functools import partial

import pytest
import torch
from in_processes import in_processes
from runs import steel_config, write_config
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional as F

from sever.base import BaseModel, MasksAndLabels
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
from sever.parallel.batch import Part, named_losses, of_whole_batch, shared, whole_batch
from sever.parallel.batch_norm import SharedBatchNorm, synchronised
from sever.parallel.gradients import average_gradients

CPU = torch.device("cpu")


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
    part = Part.of(whole, world.rank, world.size)
    generator = torch.Generator().manual_seed(whole)
    images = torch.randn(whole, 1, 8, 8, generator=generator)
    masks = (torch.rand(whole, 4, 8, 8, generator=generator) > 0.7).byte()
    own = slice(part.first, part.first + max(part.images, 1)) if part.images else slice(0, 1)
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
        with shared(part):
            losses = named_losses(loss, model(images[own]), targets)
        (losses["loss"] * part.weight).backward()
        average_gradients(model.parameters())
        logged = of_whole_batch(losses, part)
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results[name] = ({key: value.item() for key, value in logged.items()}, gradients)
    return results


@pytest.mark.parametrize(("processes", "whole"), [(2, 5), (2, 1), (3, 5)])
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


class Normalised(BaseModel):
    """Images (N, 1, H, W) through one layer of normalisation."""

    def __init__(self, norm, flat=False):
        super().__init__()
        torch.manual_seed(2)
        self.flat = flat
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = norm()
        self.last = nn.Conv2d(3, 2, 3)
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter)

    def forward(self, images):
        values = self.first(images)
        normalised = self.norm(values.mean(3) if self.flat else values)
        return self.last(normalised[..., None].expand_as(values) if self.flat else normalised)


NORMS = {
    "plain": (partial(nn.BatchNorm2d, 3), False),
    "of all batches alike": (partial(nn.BatchNorm2d, 3, momentum=None), False),
    "without weights": (partial(nn.BatchNorm2d, 3, affine=False), False),
    "of signals": (partial(nn.BatchNorm1d, 3, momentum=0.3), True),
    "with an activation": (partial(BatchNormAct2d, 3, act_layer=nn.SiLU), False),
    "without statistics": (partial(nn.BatchNorm2d, 3, track_running_stats=False), False),
}


def normalised(wholes, precision=torch.float64):
    """After a step of each size of batch: whole outputs, gradients, state, and outputs in evaluation."""
    world = collectives.world()
    results = {}
    for name, (norm, flat) in NORMS.items():
        wide = torch.float64 if precision == torch.float64 else torch.float32
        model = Normalised(norm, flat).to(wide)
        if world.size > 1:
            synchronised(model, CPU)
            assert isinstance(model.norm, SharedBatchNorm)
        outputs = []
        for whole in wholes:
            images = 4 * torch.randn(whole, 1, 8, 8, generator=torch.Generator().manual_seed(whole)) + 9
            images = images.to(wide)
            part = Part.of(whole, world.rank, world.size)
            own = images[part.first : part.first + part.images] if part.images else images[:1]
            with shared(part):
                with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
                    logits = model(own)
                outputs.append(whole_batch(logits).detach())
            (logits.to(wide)[: part.images].square().sum() / whole * world.size).backward()
        average_gradients(model.parameters())
        results[name] = {f"output {number}": output for number, output in enumerate(outputs)}
        results[name] |= {f"gradient {key}": p.grad for key, p in model.named_parameters()}
        results[name] |= {f"state {key}": tensor.clone() for key, tensor in model.state_dict().items()}
        with shared(Part.of(4, world.rank, world.size)):
            results[name]["in evaluation"] = model.eval()(images).detach()
        results[name]["outside of a step"] = model.train()(images).detach()
    return results


@pytest.mark.parametrize(("processes", "wholes"), [(2, [5, 6, 1]), (3, [7, 2])])
def test_shared_batch_norm_is_that_of_the_whole_batch(processes, wholes):
    alone = normalised(wholes)
    for of_process in in_processes(processes, normalised, wholes):
        for name, tensors in alone.items():
            assert of_process[name].keys() == tensors.keys(), name
            for key, tensor in tensors.items():
                torch.testing.assert_close(
                    of_process[name][key], tensor, atol=1e-9, rtol=1e-9, msg=f"{name}: {key}"
                )


def test_shared_batch_norm_sums_in_float32_what_was_computed_in_bfloat16():
    half = torch.bfloat16
    alone, (first, _) = normalised([6], half), in_processes(2, normalised, [6], half)
    for name in NORMS:
        assert first[name]["output 0"].dtype == half
        for key in alone[name]:
            if key.startswith("state"):
                torch.testing.assert_close(first[name][key], alone[name][key], atol=1e-5, rtol=1e-5)


def test_synchronising_keeps_parameters_names_and_modes():
    model = Normalised(partial(nn.BatchNorm2d, 3)).eval()
    before = dict(model.state_dict(keep_vars=True))
    norm = synchronised(model, CPU).norm
    after = dict(model.state_dict(keep_vars=True))
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)
    assert not norm.training
    assert synchronised(model, CPU).norm is norm


@pytest.mark.parametrize(
    ("batch_size", "processes", "sync_bn", "expected"),
    [
        (15, 2, None, True),  # a part of 7
        (16, 2, None, False),
        (16, 3, None, True),
        (4, 1, None, False),
        (64, 2, True, True),
        (4, 2, False, False),
        (4, 1, True, False),
    ],
)
def test_batch_norm_is_shared_where_a_part_has_few_images(tmp_path, batch_size, processes, sync_bn, expected):
    config = steel_config(tmp_path, tmp_path)
    config["data_loader"]["args"]["batch_size"] = batch_size
    config["training"]["sync_bn"] = sync_bn
    loaded = load_config(write_config(tmp_path / "x.yml", config))
    assert synchronises(loaded, batch_size, processes) == expected
