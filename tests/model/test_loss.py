"""Losses against numbers worked by hand, and how they are put together in a config."""

import math

import pytest
import torch

from sever.base import MasksAndLabels
from sever.config.build import build, check
from sever.config.registry import LOSSES
from sever.config.schema import Section
from sever.model.combined_loss import LossPart, Stage, SwitchedLoss, WeightedSum, output_faults
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
from sever.utils.errors import ConfigError

LN3 = math.log(3)  # the logit of 3/4
LN2 = math.log(2)  # the cross-entropy of 1/2


def value(loss, logits, masks):
    return loss(torch.as_tensor(logits), torch.as_tensor(masks))["loss"].item()


def built(node, **ready):
    return build(LOSSES, Section.model_validate(node), "x.yml: loss", **ready)


def faults(node):
    return "\n".join(check(LOSSES, Section.model_validate(node), "x.yml: loss"))


# ---------------------------------------------------------------------------------------- BCE + Dice


def test_bce_and_dice_are_weighted_as_worked_by_hand():
    # p = 1/2 on 4 pixels, of which 1 is true: BCE = ln 2, Dice = 2·(1/2) / (4·(1/2) + 1) = 1/3
    parts = BCEDiceLoss(0.6, 0.4)(torch.zeros(1, 1, 2, 2), torch.tensor([[[[1, 0], [0, 0]]]]))
    assert parts["bce_loss"].item() == pytest.approx(LN2)
    assert parts["dice_loss"].item() == pytest.approx(2 / 3)
    assert parts["loss"].item() == pytest.approx(0.6 * LN2 + 0.4 * 2 / 3)


def test_smoothed_labels_are_s_and_1_minus_s():
    # logits ±ln 3 are p = 3/4 and 1/4; labels 0.9 and 0.1 out of 1 and 0
    logits = torch.tensor([LN3, -LN3]).reshape(1, 1, 1, 2)
    masks = torch.tensor([1, 0], dtype=torch.uint8).reshape(1, 1, 1, 2)
    parts = BCEDiceLoss(0.5, 2.0, label_smoothing=0.1)(logits, masks)
    bce = -0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4)
    dice_of_labels = 2 * (0.9 * 3 / 4 + 0.1 * 1 / 4) / (1 + 1)
    assert parts["bce_loss"].item() == pytest.approx(bce)
    assert parts["dice_loss"].item() == pytest.approx(1 - dice_of_labels)
    assert parts["loss"].item() == pytest.approx(0.5 * bce + 2 * (1 - dice_of_labels))
    assert value(BCELoss(label_smoothing=0.1), logits, masks) == pytest.approx(bce)


def test_the_dice_of_the_loss_is_of_the_whole_batch_together():
    # Image 1 finds 1 of 2 pixels, image 2 is empty in both: 2·1 / (1 + 2), not the mean of 2/3 and 1.
    logits = torch.tensor([[[[99.0, -99.0]]], [[[-99.0, -99.0]]]])
    masks = torch.tensor([[[[1, 1]]], [[[0, 0]]]])
    assert BCEDiceLoss()(logits, masks)["dice_loss"].item() == pytest.approx(1 / 3, abs=1e-6)
    assert value(DiceLoss(), logits, masks) == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"bce_weight": -0.1}, "received -0.1 and 0.4"),
        ({"bce_weight": 0, "dice_weight": 0}, "not both 0"),
        ({"label_smoothing": 0.5}, "args.label_smoothing: expected less than 0.5, received 0.5"),
        ({"label_smoothing": -1e-6}, "received -1e-06"),
    ],
)
def test_weights_that_make_no_loss_are_refused(args, reason):
    with pytest.raises(ConfigError, match=reason):
        built({"type": "BCEDiceLoss", "args": args})


def test_nll_loss_is_the_mean_of_the_log_probabilities_of_the_targets():
    log_probs = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    expected = -(math.log(0.25) + math.log(0.8)) / 2
    assert nll_loss(log_probs, torch.tensor([1, 2])).item() == pytest.approx(expected)
    assert built({"type": "nll_loss"})(log_probs, torch.tensor([1, 2])).item() == pytest.approx(expected)


# ------------------------------------------------------------------------------------- of one kind

# Class 1: p = 3/4 on two pixels, of which the first is true: BCE (ln 4/3 + ln 4) / 2. Class 2: ln 2.
LOGITS = torch.tensor([[[[LN3, LN3]], [[0.0, 0.0]]]])
MASKS = torch.tensor([[[[1, 0]], [[0, 0]]]])
BCE_1 = (math.log(4 / 3) + math.log(4)) / 2


def test_class_weights_say_how_classes_compare():
    assert value(BCELoss(), LOGITS, MASKS) == pytest.approx((BCE_1 + LN2) / 2)
    assert value(BCELoss([1, 3]), LOGITS, MASKS) == pytest.approx((BCE_1 + 3 * LN2) / 4)
    assert value(BCELoss([2, 6]), LOGITS, MASKS) == pytest.approx((BCE_1 + 3 * LN2) / 4)
    assert value(BCELoss([1, 0]), LOGITS, MASKS) == pytest.approx(BCE_1)


def test_pos_weights_count_pixels_of_1_more():
    expected = ((5 * math.log(4 / 3) + math.log(4)) / 2 + LN2) / 2
    assert value(BCELoss(pos_weights=[5, 9]), LOGITS, MASKS) == pytest.approx(expected)


def test_focal_counts_a_pixel_by_what_it_lacks():
    # (1 - p)^2 of p = 3/4 right, 1/4 right, and 1/2
    class_1 = (1 / 16 * math.log(4 / 3) + 9 / 16 * math.log(4)) / 2
    class_2 = 1 / 4 * LN2
    assert value(FocalLoss(), LOGITS, MASKS) == pytest.approx((class_1 + class_2) / 2)
    assert value(FocalLoss(class_weights=[3, 1]), LOGITS, MASKS) == pytest.approx((3 * class_1 + class_2) / 4)
    assert value(FocalLoss(gamma=0), LOGITS, MASKS) == pytest.approx((BCE_1 + LN2) / 2)
    weighed = (0.2 * math.log(4 / 3) + 0.8 * math.log(4)) / 2
    assert value(FocalLoss(0, alpha=0.2, class_weights=[1, 0]), LOGITS, MASKS) == pytest.approx(weighed)


@pytest.mark.parametrize("make", [BCELoss, FocalLoss])
def test_labels_are_masks_of_one_pixel(make):
    logits, labels = torch.tensor([[LN3, 0.0], [-1.0, 2.0]]), torch.tensor([[1, 0], [0, 1]])
    loss = make(class_weights=[1, 2])
    as_masks = value(loss, logits[:, :, None, None], labels[:, :, None, None])
    assert value(loss, logits, labels) == pytest.approx(as_masks)
    assert value(make(class_weights=[1, 0]), logits[:1], labels[:1]) == pytest.approx(
        math.log(4 / 3) * (1 if make is BCELoss else 1 / 16)
    )


def test_labels_take_pos_weights():
    logits, labels = torch.tensor([[LN3, 0.0]]), torch.tensor([[1, 0]])
    expected = (5 * math.log(4 / 3) + LN2) / 2
    assert value(BCELoss(pos_weights=[5, 9]), logits, labels) == pytest.approx(expected)


# Image 1 has p = 1/2 everywhere, class 1 true on one pixel of two, class 2 nowhere; image 2 has p = 0
# everywhere and nothing true.
SOFT = torch.tensor([[[[0.0, 0.0]], [[0.0, 0.0]]], [[[-99.0, -99.0]], [[-99.0, -99.0]]]])
TRUTH = torch.tensor([[[[1, 0]], [[0, 0]]], [[[0, 0]], [[0, 0]]]])


@pytest.mark.parametrize(
    ("per", "dice", "iou", "tversky"),
    [
        # TP 1/2, FP 3/2, FN 1/2
        ("batch", 0.5 / (0.5 + 1.0), 0.5 / 2.5, 0.5 / (0.5 + 0.2 * 1.5 + 0.8 * 0.5)),
        # With one pixel more above and below: class 1 of TP, FP, FN 1/2 each, class 2 of FP 1 alone.
        ("class", (1.5 / 2 + 1 / 1.5) / 2, (1.5 / 2.5 + 1 / 2) / 2, (1.5 / 2 + 1 / 1.2) / 2),
        # and the two pairs of image 2, which are perfect
        ("image", (1.5 / 2 + 1 / 1.5 + 2) / 4, (1.5 / 2.5 + 1 / 2 + 2) / 4, (1.5 / 2 + 1 / 1.2 + 2) / 4),
    ],
)
def test_overlaps_are_of_the_batch_or_of_each_class_or_of_each_class_of_each_image(per, dice, iou, tversky):
    assert value(DiceLoss(per), SOFT, TRUTH) == pytest.approx(1 - dice)
    assert value(IoULoss(per), SOFT, TRUTH) == pytest.approx(1 - iou)
    assert value(TverskyLoss(0.2, 0.8, per), SOFT, TRUTH) == pytest.approx(1 - tversky)


@pytest.mark.parametrize("make", [DiceLoss, IoULoss, lambda per: TverskyLoss(per=per)])
@pytest.mark.parametrize("per", ["class", "image"])
def test_false_alarms_on_an_absent_class_cost_and_their_gradient_removes_them(make, per):
    logits = torch.full((1, 2, 4, 4), -99.0)
    logits[0, 1] = 0
    logits.requires_grad_()
    masks = torch.zeros(1, 2, 4, 4)
    loss = make(per)(logits, masks)["loss"]
    loss.backward()
    assert loss.item() > 0.3
    assert (logits.grad[0, 1] > 0).all()
    assert value(make(per), torch.full((1, 2, 4, 4), -99.0), masks) == pytest.approx(0)


def test_the_lovasz_hinge_is_worked_by_hand():
    # Errors 1 - 0.5 and 1 + 0.5, of which the wrong 0 is the first: IoU falls by 1/2 with each.
    pair = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[1, 0]]]])
    assert value(LovaszHingeLoss(), *pair) == pytest.approx(0.5 * 1.5 + 0.5 * 0.5)
    # An empty one: its highest logit, -1/4, is 3/4 above -1.
    empty = torch.tensor([[[[-0.25, -3.0]]]]), torch.tensor([[[[0, 0]]]])
    assert value(LovaszHingeLoss(), *empty) == pytest.approx(0.75)
    logits, masks = torch.cat([pair[0], empty[0]]), torch.cat([pair[1], empty[1]])
    assert value(LovaszHingeLoss("image"), logits, masks) == pytest.approx((1 + 0.75) / 2)
    # All four pixels: errors 1.5, 0.75 on 0s, 0.5 on the 1, and none: IoU falls by 1/2, 1/6 and 1/3.
    together = 1.5 / 2 + 0.75 / 6 + 0.5 / 3
    assert value(LovaszHingeLoss("class"), logits, masks) == pytest.approx(together)
    assert value(LovaszHingeLoss("batch"), logits.transpose(0, 1), masks.transpose(0, 1)) == pytest.approx(
        together
    )
    assert value(LovaszHingeLoss("class"), logits.transpose(0, 1), masks.transpose(0, 1)) == pytest.approx(
        (1 + 0.75) / 2
    )


# ------------------------------------------------------------------------------ what all can stand

OF_MASKS = {
    "BCEDiceLoss": {},
    "BCELoss": {"class_weights": [1, 2], "pos_weights": [3, 1]},
    "DiceLoss": {"per": "batch"},
    "DiceLoss per class": {"per": "class"},
    "DiceLoss per image": {"per": "image"},
    "FocalLoss": {"gamma": 1, "alpha": 0.25},
    "IoULoss": {"per": "image"},
    "LovaszHingeLoss": {"per": "class"},
    "TverskyLoss": {"per": "class"},
}
ALL = pytest.mark.parametrize(
    "loss", [built({"type": name.split()[0], "args": args}) for name, args in OF_MASKS.items()], ids=OF_MASKS
)


def batch(height=8, width=6):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 2, height, width, generator=generator)
    masks = torch.rand(2, 2, height, width, generator=generator) < 0.3
    masks[1, 1] = False
    return logits, masks


@ALL
def test_what_a_mask_is_stored_as_changes_nothing(loss):
    logits, masks = batch()
    expected = value(loss, logits, masks.float())
    for form in (masks, masks.to(torch.uint8), masks.float().to(memory_format=torch.channels_last)):
        assert value(loss, logits, form) == pytest.approx(expected)
    assert value(loss, logits.to(memory_format=torch.channels_last), masks) == pytest.approx(expected)


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_computed_with_in_float32(loss, dtype):
    logits, masks = batch(200, 210)  # sums of its pixels overflow float16
    logits = (logits + 2).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        low = loss(logits, masks)["loss"]
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(value(loss, logits.float(), masks), rel=1e-6)


@ALL
@pytest.mark.parametrize("logit", [-50.0, 50.0])
@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_gradients_are_finite_at_logits_of_50_and_for_empty_masks(loss, logit, truth):
    logits = torch.full((2, 2, 4, 4), logit, requires_grad=True)
    result = loss(logits, torch.full((2, 2, 4, 4), truth))["loss"]
    result.backward()
    assert torch.isfinite(result)
    assert torch.isfinite(logits.grad).all()


@ALL
def test_descending_a_loss_finds_the_masks(loss):
    logits, masks = batch()
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(40):
        optimizer.zero_grad()
        loss(logits, masks)["loss"].backward()
        optimizer.step()
    assert torch.equal(logits > 0, masks)


@ALL
def test_masks_of_another_shape_are_a_mistake(loss):
    with pytest.raises(ConfigError, match=r"\(2, 2, 8, 6\), received a tensor \(2, 1, 8, 6\)"):
        loss(batch()[0], batch()[1][:, :1])


def test_a_loss_of_masks_is_none_of_labels():
    with pytest.raises(ConfigError, match=r"DiceLoss expected logits \(N, C, H, W\).*\(3, 2\)"):
        DiceLoss()(torch.zeros(3, 2), torch.zeros(3, 2))
    both = MasksAndLabels(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2))
    with pytest.raises(
        ConfigError, match=r"BCEDiceLoss expected logits.*received MasksAndLabels.*WeightedSum"
    ):
        BCEDiceLoss()(both, both)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({"type": "BCELoss", "args": {"class_weights": [1, -1]}}, r"at least 0 for each class.*\[1, -1\]"),
        ({"type": "BCELoss", "args": {"class_weights": [0, 0]}}, "not all 0"),
        (
            {"type": "BCELoss", "args": {"pos_weights": [0, 1]}},
            r"pos_weights: expected numbers above 0.*\[0, 1",
        ),
        ({"type": "BCELoss", "args": {"label_smoothing": 0.7}}, "received 0.7"),
        ({"type": "FocalLoss", "args": {"gamma": 0.5}}, "gamma: expected 0 or a number of at least 1.*0.5"),
        (
            {"type": "FocalLoss", "args": {"alpha": 2}},
            "args.alpha: expected less than or equal to 1, received 2",
        ),
        (
            {"type": "DiceLoss", "args": {"per": "pixel"}},
            "args.per: expected 'batch', 'class' or 'image', received 'pixel'",
        ),
        ({"type": "TverskyLoss", "args": {"alpha": -1}}, "alpha and beta.*received -1 and 0.7"),
        ({"type": "TverskyLoss", "args": {"alpha": 0, "beta": 0}}, "not both 0"),
    ],
)
def test_settings_that_make_no_loss_are_a_mistake_of_the_config(node, reason):
    with pytest.raises(ConfigError, match=f"(?s)x.yml: loss.*{reason}"):
        built(node)


def test_weights_are_one_for_each_class():
    with pytest.raises(ConfigError, match=r"class_weights.*each of 4 classes.*received \[1, 2\]"):
        built({"type": "BCELoss", "args": {"class_weights": [1, 2]}}, classes=4)
    with pytest.raises(ConfigError, match="pos_weights: expected one for each of 2 classes, received 3"):
        value(BCELoss(pos_weights=[1, 2, 3]), LOGITS, MASKS)


# ------------------------------------------------------------------------------------ put together

SUM = {
    "type": "WeightedSum",
    "args": {
        "parts": {
            "bce": {"type": "BCELoss", "args": {"class_weights": [1, 3]}, "weight": 0.6},
            "dice": {"type": "DiceLoss", "weight": 2},
        }
    },
}


def test_a_weighted_sum_adds_its_parts_and_logs_them_unweighted():
    losses = built(SUM)(LOGITS, MASKS)
    bce = (BCE_1 + 3 * LN2) / 4
    dice = 1 - 2 * 0.75 / (2 * 0.75 + 2 * 0.5 + 1)
    assert losses.pop("loss").item() == pytest.approx(0.6 * bce + 2 * dice)
    assert {name: part.item() for name, part in losses.items()} == pytest.approx(
        {"bce_loss": bce, "dice_loss": dice}
    )


def test_the_seeds_loss_can_be_written_as_a_sum():
    parts = {"bce": {"type": "BCELoss", "weight": 0.6}, "dice": {"type": "DiceLoss", "weight": 0.4}}
    logits, masks = batch()
    summed = built({"type": "WeightedSum", "args": {"parts": parts}})
    assert value(summed, logits, masks) == pytest.approx(value(BCEDiceLoss(), logits, masks))


def test_parts_are_on_masks_or_on_labels():
    parts = {
        "masks": "DiceLoss",
        "labels": {"type": "BCELoss", "weight": 0.5, "on": "labels"},
    }
    loss = built({"type": "WeightedSum", "args": {"parts": parts}})
    outputs = MasksAndLabels(LOGITS, torch.tensor([[LN3, 0.0]]))
    losses = loss(outputs, MasksAndLabels(MASKS, torch.tensor([[1, 0]])))
    labels = (math.log(4 / 3) + LN2) / 2
    dice = 1 - 2 * 0.75 / (2 * 0.75 + 2 * 0.5 + 1)
    assert losses["labels_loss"].item() == pytest.approx(labels)
    assert losses["masks_loss"].item() == pytest.approx(dice)
    assert losses["loss"].item() == pytest.approx(dice + 0.5 * labels)


def test_a_classifiers_labels_are_taken_as_they_are():
    part = {"type": "FocalLoss", "args": {"gamma": 0}, "on": "labels"}
    loss = built({"type": "WeightedSum", "args": {"parts": {"focal": part}}})
    logits, labels = torch.tensor([[LN3, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert value(loss, logits, labels) == pytest.approx((math.log(4 / 3) + LN2) / 2)


# A function of the user's own, by its import path.
def own_loss(logits, masks, scale=1.0):
    return scale * (logits - masks).abs().mean()


def test_a_function_of_the_users_own_can_be_a_part():
    loss = built(
        {
            "type": "WeightedSum",
            "args": {"parts": {"own": {"type": f"{__name__}.own_loss", "args": {"scale": 3.0}}}},
        }
    )
    assert value(loss, torch.full((1, 1, 2, 2), 2.0), torch.ones(1, 1, 2, 2)) == 3
    assert loss.part_names is None  # what it logs is not known before it is called
    assert built({"type": f"{__name__}.own_loss"})(torch.ones(1), torch.zeros(1)) == 1


def test_a_part_of_weight_0_is_only_logged():
    loss = WeightedSum(
        {"a": LossPart(lambda logits, masks: torch.tensor(math.inf), 0.0), "b": LossPart(DiceLoss())}
    )
    losses = loss(LOGITS, MASKS)
    assert losses["a_loss"] == math.inf
    assert losses["loss"] == losses["b_loss"]


def test_the_names_in_the_log_are_known_beforehand():
    inner = {"type": "WeightedSum", "args": {"parts": {"focal": "FocalLoss"}}}
    loss = built({"type": "WeightedSum", "args": {"parts": {"seg": "BCEDiceLoss", "in": inner}}})
    expected = {"seg_loss", "seg_bce_loss", "seg_dice_loss", "in_loss", "in_focal_loss"}
    assert set(loss.part_names) == expected
    assert set(loss(LOGITS, MASKS)) == expected | {"loss"}


def test_weights_of_classes_move_with_the_sum_that_holds_them():
    moved = built(SUM).to(torch.float64)
    assert moved.parts["bce"].loss.class_weights.dtype == torch.float64


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({}, "at least one weight above 0, received {}"),
        ({"a": {"type": "DiceLoss", "weight": 0}}, "at least one weight above 0, received {'a': 0"),
        (["DiceLoss"], "expected a mapping of names to losses"),
        ("DiceLoss", "expected a mapping of names to losses"),
        ({"val": "DiceLoss"}, "does not start with 'val_', received 'val'"),
        ({"val_x": "DiceLoss"}, "received 'val_x'"),
        ({"seg": "BCEDiceLoss", "seg_bce": "BCELoss"}, "would have seg_bce_loss twice"),
        (
            {"a": {"type": "LovaszHingeLoss", "on": "labels"}},
            "parts.a.on: LovaszHingeLoss is a loss of masks",
        ),
    ],
)
def test_parts_that_make_no_sum_are_a_mistake(parts, reason):
    with pytest.raises(ConfigError, match=f"x.yml: loss: WeightedSum.*{reason}"):
        built({"type": "WeightedSum", "args": {"parts": parts}})


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "BCELos"}, "loss.args.parts.a: 'BCELos' is not a known loss. Did you mean 'BCELoss'?"),
        (
            {"type": "BCELoss", "args": {"weights": [1]}},
            "loss.args.parts.a.args: BCELoss does not take 'weights'",
        ),
        ({"type": "BCELoss", "wieght": 1}, "parts.a: unknown key 'wieght'. Did you mean 'weight'?"),
        ({"type": "BCELoss", "weight": -1}, "loss.args.parts.a.weight: expected greater than or equal to 0"),
        ({"type": "BCELoss", "weight": math.inf}, "loss.args.parts.a.weight: expected a finite number"),
        ({"type": "BCELoss", "weight": "1"}, "loss.args.parts.a.weight: expected a valid number"),
        ({"type": "BCELoss", "on": "images"}, "loss.args.parts.a.on: expected 'masks' or 'labels'"),
    ],
)
def test_mistakes_in_a_part_are_found_before_anything_is_built(part, expected):
    assert expected in faults({"type": "WeightedSum", "args": {"parts": {"a": part}}})


# --------------------------------------------------------------------------------------- switched

STAGES = [
    {"type": "BCEDiceLoss", "args": {"bce_weight": 1.0, "dice_weight": 1.0}},
    {"type": "WeightedSum", "args": {"parts": {"dice": "DiceLoss"}}, "from_epoch": 3},
    {"type": "LovaszHingeLoss", "from_epoch": 31},
]
SWITCHED = {"type": "SwitchedLoss", "args": {"stages": STAGES}}


def test_the_loss_of_an_epoch_depends_on_the_epoch_alone():
    loss = built(SWITCHED)
    names = {1: {"bce_loss", "dice_loss"}, 2: {"bce_loss", "dice_loss"}, 3: {"dice_loss"}, 30: {"dice_loss"}}
    assert set(loss(LOGITS, MASKS)) == {"loss"} | names[1]  # before it is told of any epoch
    for epoch in (1, 2, 3, 30, 31, 500, 2):
        loss.set_epoch(epoch)
        assert set(loss(LOGITS, MASKS)) == {"loss"} | names.get(epoch, set())
    loss.set_epoch(31)
    assert value(loss, LOGITS, MASKS) == value(LovaszHingeLoss(), LOGITS, MASKS)


def test_a_switched_loss_names_the_parts_of_all_stages_and_cannot_be_compared():
    loss = built(SWITCHED)
    assert set(loss.part_names) == {"bce_loss", "dice_loss"}
    assert not loss.comparable_between_epochs


def test_a_switch_inside_a_sum_is_told_the_epoch():
    inner = {"type": "SwitchedLoss", "args": {"stages": ["BCELoss", {"type": "DiceLoss", "from_epoch": 2}]}}
    loss = built({"type": "WeightedSum", "args": {"parts": {"seg": inner}}})
    outer = SwitchedLoss([Stage(loss)])
    assert value(outer, LOGITS, MASKS) == pytest.approx(value(BCELoss(), LOGITS, MASKS))
    outer.set_epoch(2)
    assert value(outer, LOGITS, MASKS) == pytest.approx(value(DiceLoss(), LOGITS, MASKS))
    assert not loss.comparable_between_epochs
    assert built(SUM).comparable_between_epochs


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ([{"type": "BCELoss", "from_epoch": 2}], r"to start with 1 and to rise, received \[2\]"),
        (["BCELoss", "DiceLoss"], r"received \[1, 1\]"),
        (
            ["BCELoss", {"type": "DiceLoss", "from_epoch": 5}, {"type": "IoULoss", "from_epoch": 4}],
            r"\[1, 5, 4\]",
        ),
        ([], r"received \[\]"),
        ({"a": "BCELoss"}, "expected a list of losses"),
        ("BCELoss", "expected a list of losses"),
    ],
)
def test_stages_that_do_not_follow_each_other_are_a_mistake(stages, reason):
    with pytest.raises(ConfigError, match=f"x.yml: loss: SwitchedLoss.*{reason}"):
        built({"type": "SwitchedLoss", "args": {"stages": stages}})


def test_mistakes_in_a_stage_are_found_before_anything_is_built():
    found = faults(
        {
            "type": "SwitchedLoss",
            "args": {
                "stages": [{"type": "BCELoss", "from_epoch": 0}, {"type": "DiceLoss", "args": {"pre": 1}}]
            },
        }
    )
    assert "loss.args.stages.0.from_epoch: expected greater than or equal to 1, received 0" in found
    assert "loss.args.stages.1.args: DiceLoss does not take 'pre'. Did you mean 'per'?" in found


# ------------------------------------------------------------------------- what the model must give


@pytest.mark.parametrize(
    ("node", "kinds", "expected"),
    [
        ({"type": "BCEDiceLoss"}, ("masks",), []),
        ({"type": "BCELoss"}, ("labels",), []),
        ({"type": "nll_loss"}, ("masks",), []),
        (
            {"type": "BCEDiceLoss"},
            ("labels",),
            ["loss: BCEDiceLoss is a loss of masks, but the model gives labels"],
        ),
        (
            {"type": "BCELoss"},
            ("masks", "labels"),
            ["loss: the model gives masks and labels, and BCELoss takes one"],
        ),
        (SUM, ("masks", "labels"), []),
        (SUM, ("masks",), []),
        (
            SUM,
            ("labels",),
            [
                "loss.args.parts.bce.on: the model gives labels: expected 'labels', received 'masks'",
                "loss.args.parts.dice.on: the model gives labels",
            ],
        ),
        (SWITCHED, ("masks",), []),
        (
            SWITCHED,
            ("masks", "labels"),
            ["loss.args.stages.0: the model gives masks and labels", "loss.args.stages.2: the model gives"],
        ),
    ],
)
def test_a_loss_that_does_not_fit_the_model_is_found_before_training(node, kinds, expected):
    found = output_faults(built(node), kinds, "x.yml: loss")
    assert len(found) == len(expected)
    for fault, start in zip(found, expected, strict=True):
        assert fault.startswith(f"x.yml: {start}")
