"""Metrics, losses, the schedule and the optimizer's groups, against numbers worked by hand."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sever.base import BaseModel
from sever.model.loss import LOSSES, BCEDiceLoss, nll_loss
from sever.model.metric import FunctionMetric, SubmissionScore, dice, iou, my_metric, my_metric2
from sever.model.model import MnistModel, Unet
from sever.model.optimizer import OPTIMIZERS, RAdam, parameter_groups
from sever.model.scheduler import FlatCosineLR
from sever.predictor.postprocess import postprocess
from sever.utils.errors import ConfigError

IDS = ["1", "2"]


def rows(*images):
    """Images of classes of 0s and 1s in one row of pixels -> (N, C, 1, W) float."""
    return torch.tensor(images, dtype=torch.float32)[:, :, None, :]


# Image 1: class 1 predicted on pixels 0 1, true on 1 2: dice 2·1/4, iou 1/3; class 2 empty in both: 1.
# Image 2: class 1 predicted on pixel 3, true nowhere: 0; class 2 on 0 1 2, true on all 4: 6/7 and 3/4.
PREDICTED = rows([[1, 1, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 1], [1, 1, 1, 0]])
TRUTH = rows([[0, 1, 1, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [1, 1, 1, 1]]).to(torch.uint8)
DICE = {"dice_1": (1 / 2 + 0) / 2, "dice_2": (1 + 6 / 7) / 2, "dice_mean": 33 / 56}
IOU = {"iou_1": (1 / 3 + 0) / 2, "iou_2": (1 + 3 / 4) / 2, "iou_mean": 25 / 48}


def of_masks(probs):
    """Probabilities that are masks already."""
    return (probs > 0.5).astype(np.uint8)


def score(metric, probs, truth):
    metric.update(probs, truth)
    return metric.compute()


@pytest.mark.parametrize(("kind", "expected"), [(dice, DICE), (iou, IOU)])
def test_dice_and_iou_are_means_over_images_of_each_class(kind, expected):
    assert score(kind(IDS), PREDICTED, TRUTH) == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "expected"), [(dice, DICE), (iou, IOU)])
def test_batches_of_any_size_and_shape_add_up(kind, expected):
    metric = kind(IDS)
    metric.update(PREDICTED[:1].reshape(1, 2, 2, 2), TRUTH[:1].reshape(1, 2, 2, 2))
    metric.update(PREDICTED[1:], TRUTH[1:])
    assert metric.compute() == pytest.approx(expected)


def test_names_in_the_log_are_those_of_the_classes():
    assert list(score(dice(["7", "x"]), PREDICTED, TRUTH)) == ["dice_7", "dice_x", "dice_mean"]


def test_a_pixel_counts_as_predicted_above_the_threshold_only():
    probs, truth = torch.tensor([0.5, 0.5001]).reshape(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    assert score(dice(["1"]), probs, truth)["dice_mean"] == pytest.approx(2 / 3)
    assert score(dice(["1"], threshold=0.6), probs, truth)["dice_mean"] == 0
    assert score(dice(["1"], threshold=0.4), probs, truth)["dice_mean"] == 1


@pytest.mark.parametrize(
    ("metric", "key"),
    [(dice(["1"]), "dice_1"), (iou(["1"]), "iou_1"), (SubmissionScore(["1"], of_masks), "competition_dice")],
    ids=["dice", "iou", "competition"],
)
def test_an_empty_pair_scores_1_and_one_false_pixel_on_it_0(metric, key):
    empty, one_pixel = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    one_pixel[0, 0, 3, 4] = 1
    for predicted, truth, expected in [(empty, empty, 1), (one_pixel, empty, 0), (empty, one_pixel, 0)]:
        metric.reset()
        assert score(metric, predicted, truth)[key] == expected


def test_the_competition_metric_is_the_mean_over_pairs():
    scores = score(SubmissionScore(IDS, of_masks), PREDICTED, TRUTH)
    assert scores["competition_dice"] == pytest.approx(33 / 56)
    assert scores["competition_dice_1"] == pytest.approx(DICE["dice_1"])
    assert scores["competition_dice_2"] == pytest.approx(DICE["dice_2"])


def test_predicting_nothing_scores_the_share_of_empty_pairs():
    scores = score(SubmissionScore(IDS, of_masks), torch.zeros_like(PREDICTED), TRUTH)
    assert scores["competition_dice"] == 2 / 4
    assert scores["competition_dice_of_nothing"] == 2 / 4
    assert score(SubmissionScore(IDS, of_masks), PREDICTED, TRUTH)["competition_dice_of_nothing"] == 2 / 4


def test_the_submission_is_scored_after_thresholds_one_class_per_pixel_and_minimum_areas():
    # Class 1 loses pixel 1 to class 2 and then has 1 pixel, too few; class 2 keeps pixels 1 and 2.
    probs = torch.tensor([[[[0.9, 0.6, 0.1, 0.1]], [[0.2, 0.8, 0.7, 0.3]]]])
    truth = rows([[1, 0, 0, 0], [0, 1, 1, 0]])
    metric = SubmissionScore(IDS, partial(postprocess, threshold=0.5, min_area=2))
    scores = score(metric, probs, truth)
    assert scores["competition_dice_1"] == 0
    assert scores["competition_dice_2"] == 1


def masks_of(labels):
    """A label map (H, W), 0 the background, as masks (1, 3, H, W)."""
    labels = torch.tensor(labels)
    return torch.stack([labels == class_id for class_id in (1, 2, 3)]).float()[None]


def test_miou_is_the_mean_over_background_and_classes_of_all_pixels_of_all_images():
    metric = SubmissionScore(["1", "2", "3"], of_masks)
    metric.update(masks_of([[0, 1, 1], [2, 2, 0]]), masks_of([[0, 1, 1], [0, 2, 0]]))
    # Background 2 of 3 pixels, class 1 all, class 2 1 of 2; class 3 is nowhere and has no IoU.
    assert metric.compute()["miou"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    metric.update(masks_of([[0, 1, 1], [1, 1, 0]]), masks_of([[0, 1, 0], [0, 0, 0]]))
    # Pixels of both: background 4 of 8, class 1 3 of 6, class 2 1 of 2.
    assert metric.compute()["miou"] == pytest.approx((4 / 8 + 3 / 6 + 1 / 2) / 3)


def test_miou_counts_a_class_that_is_only_predicted_or_only_true_as_0():
    metric = SubmissionScore(["1", "2", "3"], of_masks)
    metric.update(masks_of([[0, 1], [0, 0]]), masks_of([[0, 3], [0, 0]]))
    assert metric.compute()["miou"] == pytest.approx((1 + 0 + 0) / 3)


def mean_of_first_column(probs, targets):
    return probs[:, 0].mean()


METRICS = {
    "dice": lambda: dice(IDS),
    "iou": lambda: iou(IDS),
    "submission": lambda: SubmissionScore(IDS, partial(postprocess, min_area=3)),
    "function": lambda: FunctionMetric(mean_of_first_column, "mean"),
}


def random_batches(count):
    generator = torch.Generator().manual_seed(1)
    for images in range(1, count + 1):
        probs = torch.rand(images, 2, 3, 4, generator=generator)
        truth = torch.rand(images, 2, 3, 4, generator=generator) < torch.tensor([0.3, 0.1])[:, None, None]
        yield probs, truth.to(torch.uint8)


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_two_halves_merged_equal_the_whole(make):
    whole, first, second = make(), make(), make()
    for index, batch in enumerate(random_batches(5)):
        whole.update(*batch)
        (first if index < 2 else second).update(*batch)
    apart = second.compute()
    first.merge(second)
    assert first.compute() == pytest.approx(whole.compute())
    assert second.compute() == apart
    assert first.compute() != pytest.approx(apart)


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_a_reset_metric_has_forgotten_everything(make):
    metric, fresh = make(), make()
    (first, second) = random_batches(2)
    metric.update(*first)
    metric.reset()
    metric.update(*second)
    fresh.update(*second)
    assert metric.compute() == fresh.compute()


def test_a_function_is_averaged_over_images_not_over_batches():
    metric = FunctionMetric(my_metric, "accuracy")
    metric.update(torch.eye(3), torch.tensor([0, 1, 2]))  # 3 of 3
    metric.update(torch.eye(3)[:1], torch.tensor([1]))  # 0 of 1
    assert metric.compute() == {"accuracy": 3 / 4}


def test_my_metric_is_the_share_of_highest_classes_and_my_metric2_of_the_three_highest():
    output = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).repeat(4, 1)
    target = torch.tensor([0, 1, 2, 3])
    assert my_metric(output, target) == 1 / 4
    assert my_metric2(output, target) == 3 / 4
    assert my_metric2(output, target, k=2) == 2 / 4


# -------------------------------------------------------------------------------------------- loss


def test_bce_and_dice_are_weighted_as_worked_by_hand():
    # p = 1/2 on 4 pixels, of which 1 is true: BCE = ln 2, Dice = 2·(1/2) / (4·(1/2) + 1) = 1/3
    parts = BCEDiceLoss(0.6, 0.4)(torch.zeros(1, 1, 2, 2), torch.tensor([[[[1, 0], [0, 0]]]]))
    assert parts["bce_loss"].item() == pytest.approx(math.log(2))
    assert parts["dice_loss"].item() == pytest.approx(2 / 3)
    assert parts["loss"].item() == pytest.approx(0.6 * math.log(2) + 0.4 * 2 / 3)


def test_smoothed_labels_are_s_and_1_minus_s():
    # logits ±ln 3 are p = 3/4 and 1/4; labels 0.9 and 0.1 out of 1 and 0
    logits = torch.tensor([math.log(3), -math.log(3)]).reshape(1, 1, 1, 2)
    masks = torch.tensor([1, 0], dtype=torch.uint8).reshape(1, 1, 1, 2)
    parts = BCEDiceLoss(0.5, 2.0, label_smoothing=0.1)(logits, masks)
    bce = -0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4)
    dice_of_labels = 2 * (0.9 * 3 / 4 + 0.1 * 1 / 4) / (1 + 1)
    assert parts["bce_loss"].item() == pytest.approx(bce)
    assert parts["dice_loss"].item() == pytest.approx(1 - dice_of_labels)
    assert parts["loss"].item() == pytest.approx(0.5 * bce + 2 * (1 - dice_of_labels))


def test_the_dice_of_the_loss_is_of_the_whole_batch_together():
    # Image 1 finds 1 of 2 pixels, image 2 is empty in both: 2·1 / (1 + 2), not the mean of 2/3 and 1.
    logits = torch.tensor([[[[99.0, -99.0]]], [[[-99.0, -99.0]]]])
    masks = torch.tensor([[[[1, 1]]], [[[0, 0]]]])
    assert BCEDiceLoss()(logits, masks)["dice_loss"].item() == pytest.approx(1 / 3, abs=1e-6)


def test_the_loss_of_an_empty_batch_is_finite_and_can_be_descended():
    logits = torch.full((1, 4, 4, 4), -200.0, requires_grad=True)
    loss = BCEDiceLoss(label_smoothing=1e-6)(logits, torch.zeros(1, 4, 4, 4))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"bce_weight": -0.1}, "received -0.1 and 0.4"),
        ({"bce_weight": 0, "dice_weight": 0}, "not both 0"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\), received 0.5"),
        ({"label_smoothing": -1e-6}, "received -1e-06"),
    ],
)
def test_weights_that_make_no_loss_are_refused(args, reason):
    with pytest.raises(ValueError, match=reason):
        BCEDiceLoss(**args)


def test_nll_loss_is_the_mean_of_the_log_probabilities_of_the_targets():
    log_probs = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    expected = -(math.log(0.25) + math.log(0.8)) / 2
    assert nll_loss(log_probs, torch.tensor([1, 2])).item() == pytest.approx(expected)
    assert LOSSES.find("nll_loss", "loss") is nll_loss


# --------------------------------------------------------------------------- schedule and optimizer


def test_the_rate_is_flat_for_30_epochs_and_falls_by_half_a_cosine_over_220():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (7e-5, 3e-3)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = FlatCosineLR(optimizer)
    factors = []
    for _ in range(301):
        factors.append(schedule.get_last_lr()[1] / 3e-3)
        assert schedule.get_last_lr()[0] == pytest.approx(7e-5 * factors[-1])
        optimizer.step()
        schedule.step()
    quarter = math.sqrt(1 / 2) / 2  # cos 45° / 2
    by_hand = {0: 1, 29: 1, 30: 1, 85: 0.5 + quarter, 140: 0.5, 195: 0.5 - quarter, 250: 0, 251: 0, 300: 0}
    assert {epoch: factors[epoch] for epoch in by_hand} == pytest.approx(by_hand, abs=1e-12)
    assert factors[31] < 1
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))


@pytest.mark.parametrize("args", [{"flat_epochs": -1}, {"anneal_epochs": 0}])
def test_a_schedule_without_epochs_is_refused(args):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=f"received.*{next(iter(args.values()))}"):
        FlatCosineLR(optimizer, **args)


@pytest.fixture(scope="module")
def unet():
    return Unet(
        encoder_name="tu-mobilenetv3_small_050",
        encoder_weights=None,
        in_channels="r",
        encoder_depth=3,
        decoder_channels=(16, 8, 4),
    )


SETTINGS = {"encoder": {"lr": 7e-5, "weight_decay": 3e-5}, "decoder": {"lr": 3e-3}}


def test_every_parameter_is_in_exactly_one_group(unet):
    groups = parameter_groups(unet, SETTINGS)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in unet.parameters()}


def test_the_encoder_has_its_own_rate_and_decoder_and_head_have_the_other(unet):
    encoder, decoder = parameter_groups(unet, SETTINGS)
    assert (encoder["name"], encoder["lr"], encoder["weight_decay"]) == ("encoder", 7e-5, 3e-5)
    assert (decoder["name"], decoder["lr"]) == ("decoder", 3e-3)
    parts = {name: {id(p) for p in part.parameters()} for name, part in unet.network.named_children()}
    assert {id(p) for p in encoder["params"]} == parts["encoder"]
    assert parts["segmentation_head"]
    assert parts["segmentation_head"] | parts["decoder"] == {id(p) for p in decoder["params"]}


def test_one_rate_for_all_needs_no_groups(unet):
    (group,) = parameter_groups(unet, {})
    assert len(group["params"]) == len(list(unet.parameters()))


class Pair(BaseModel):
    """Two parameters and the groups that a test gives it."""

    def __init__(self, groups):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.groups = groups

    def forward(self, images):
        return images * self.first * self.second

    def parameter_groups(self):
        return {name: [getattr(self, member) for member in names] for name, names in self.groups.items()}


def test_a_frozen_parameter_is_left_out():
    model = Pair({"encoder": ["first"], "decoder": ["second"]})
    model.first.requires_grad_(False)
    encoder, decoder = parameter_groups(model, SETTINGS)
    assert encoder["params"] == []
    assert [id(parameter) for parameter in decoder["params"]] == [id(model.second)]


@pytest.mark.parametrize(
    ("groups", "named"),
    [
        ({"encoder": ["first"], "decoder": []}, "second"),
        ({"encoder": ["first"], "decoder": ["first", "second"]}, "first"),
    ],
    ids=["forgotten", "twice"],
)
def test_a_model_that_forgets_or_repeats_a_parameter_is_refused(groups, named):
    with pytest.raises(ConfigError, match=f"Pair.parameter_groups.*{named}"):
        parameter_groups(Pair(groups), SETTINGS)


def test_groups_that_the_model_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="encoder, decoder, but MnistModel has all"):
        parameter_groups(MnistModel(), SETTINGS)


def test_the_decay_of_radam_is_decoupled_by_default():
    assert OPTIMIZERS.find("RAdam", "optimizer") is RAdam
    weight = nn.Parameter(torch.ones(1))
    optimizer = RAdam([weight], lr=0.1, weight_decay=0.5)
    for _ in range(10):
        weight.grad = torch.zeros(1)
        optimizer.step()
    assert weight.item() == pytest.approx((1 - 0.1 * 0.5) ** 10)  # the decay alone, and no momentum of it
