"""Metrics against numbers worked by hand."""

import numpy as np
import pytest
import torch

from sever.base import Metric
from sever.model.competition_metric import SubmissionScore
from sever.model.metric import FunctionMetric, dice, iou, label_accuracy, label_f1, my_metric, my_metric2
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


def of_masks(probs, label_probs):
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
    metric = SubmissionScore(IDS, lambda probs, _: postprocess(probs, threshold=0.5, min_area=2))
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


# Class 1 is predicted on images 1 2 3 and true on 2 3 4: 2 of 4 right, F1 2·2/(3 + 3); class 2 is true on
# image 1 alone and never predicted: 3 of 4 right, F1 0.
LABEL_PROBS = torch.tensor([[0.9, 0.5], [0.7, 0.1], [0.6, 0.0], [0.2, 0.3]])
LABELS = torch.tensor([[0, 1], [1, 0], [1, 0], [1, 0]], dtype=torch.float32)


def test_accuracy_and_f1_of_labels_are_counted_over_all_images():
    accuracy = {"label_accuracy_1": 2 / 4, "label_accuracy_2": 3 / 4, "label_accuracy_mean": 5 / 8}
    assert score(label_accuracy(IDS), LABEL_PROBS, LABELS) == pytest.approx(accuracy)
    f1 = {"label_f1_1": 4 / 6, "label_f1_2": 0, "label_f1_mean": 1 / 3}
    metric = label_f1(IDS)
    metric.update(LABEL_PROBS[:1], LABELS[:1])
    metric.update(LABEL_PROBS[1:], LABELS[1:])
    assert metric.compute() == pytest.approx(f1)


def test_a_label_counts_as_predicted_above_the_threshold():
    assert score(label_f1(IDS, threshold=0.4), LABEL_PROBS, LABELS)["label_f1_2"] == 1
    assert score(label_accuracy(IDS, threshold=0.65), LABEL_PROBS, LABELS)["label_accuracy_1"] == 1 / 4


def test_a_class_that_is_nowhere_and_never_predicted_has_an_f1_of_1():
    nothing = torch.zeros(3, 1)
    assert score(label_f1(["1"]), nothing, nothing)["label_f1_1"] == 1
    assert score(label_f1(["1"]), nothing + 1, nothing)["label_f1_1"] == 0


def test_metrics_say_what_they_are_a_metric_of():
    assert (dice.on, label_f1.on, label_accuracy.on) == ("masks", "labels", "labels")
    with pytest.raises(ConfigError, match=r"label_f1 is a metric of labels \(N, C\).*\(2, 2, 1, 4\)"):
        label_f1(IDS).update(PREDICTED, TRUTH)
    with pytest.raises(ConfigError, match=r"dice is a metric of masks \(N, C, H, W\).*\(4, 2\)"):
        dice(IDS).update(LABEL_PROBS, LABELS)
    with pytest.raises(ValueError, match="label_f1 needs a model of labels"):
        label_f1([])


def mean_of_first_column(probs, targets):
    return probs[:, 0].mean()


METRICS = {
    "dice": lambda: dice(IDS),
    "iou": lambda: iou(IDS),
    "submission": lambda: SubmissionScore(IDS, lambda probs, _: postprocess(probs, min_area=3)),
    "function": lambda: FunctionMetric(mean_of_first_column, "mean"),
    "label_accuracy": lambda: label_accuracy(IDS),
    "label_f1": lambda: label_f1(IDS),
}


def random_batches(count, on):
    generator = torch.Generator().manual_seed(1)
    for images in range(1, count + 1):
        probs = torch.rand(images, 2, 3, 4, generator=generator)
        truth = torch.rand(images, 2, 3, 4, generator=generator) < torch.tensor([0.3, 0.1])[:, None, None]
        truth = truth.to(torch.uint8)
        yield (probs, truth) if on != "labels" else (probs[..., 0, 0], truth[..., 0, 0])


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_two_halves_merged_equal_the_whole(make):
    whole, first, second = make(), make(), make()
    for index, batch in enumerate(random_batches(5, whole.on)):
        whole.update(*batch)
        (first if index < 2 else second).update(*batch)
    apart = second.compute()
    first.merge(second)
    assert first.compute() == pytest.approx(whole.compute(), nan_ok=True)
    assert second.compute() == pytest.approx(apart, rel=0, abs=0, nan_ok=True)
    assert first.compute() != pytest.approx(apart)


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_a_reset_metric_has_forgotten_everything(make):
    metric, fresh = make(), make()
    (first, second) = random_batches(2, metric.on)
    metric.update(*first)
    metric.reset()
    metric.update(*second)
    fresh.update(*second)
    assert metric.compute() == pytest.approx(fresh.compute(), rel=0, abs=0, nan_ok=True)


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


class Histogram(Metric):
    """Counts in an array of NumPy's."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.counts = np.zeros(3, dtype=np.int64)

    def update(self, probs, targets):
        self.counts += np.bincount(targets.flatten().numpy(), minlength=3)

    def merge(self, other):
        self.counts += other.counts

    def compute(self):
        return {"most": float(self.counts.argmax())}


def test_what_is_counted_in_arrays_goes_into_checkpoints_and_to_other_processes(tmp_path):
    metric, other = Histogram(), Histogram()
    metric.update(torch.zeros(4), torch.tensor([2, 2, 0, 2]))
    torch.save(metric.state_dict(), tmp_path / "state.pth")
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert other.counts.tolist() == [1, 0, 3]
    other.merge(metric)
    assert (metric.counts.tolist(), other.counts.tolist()) == ([1, 0, 3], [2, 0, 6])
