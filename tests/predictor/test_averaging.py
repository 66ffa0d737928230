"""Averages of predictions and flips, worked by hand."""

import numpy as np
import pytest
import torch

from sever.base import BaseModel
from sever.predictor.ensemble import AveragedModel, Member, RunningAverage, check_weights


def average(probs, how="mean", weights=None):
    running = RunningAverage(how)
    for part, weight in zip(probs, check_weights(weights, len(probs)), strict=True):
        running.add(torch.as_tensor(part), weight)
    return running.result().numpy()


AVERAGES = ["mean", "rms", "geometric", "max", "vote"]
THREE = [np.array([0.2, 1.0, 0.0]), np.array([0.3, 1.0, 0.5]), np.array([0.7, 1.0, 0.5])]


@pytest.mark.parametrize(
    ("how", "weights", "expected"),
    [
        ("mean", None, [0.4, 1.0, 1 / 3]),
        ("mean", [2, 1, 1], [0.35, 1.0, 0.25]),  # (0.4 + 0.3 + 0.7) / 4
        ("rms", None, [0.45461, 1.0, 0.40825]),  # the root of (0.04 + 0.09 + 0.49) / 3; of 0.5 / 3
        ("rms", [2, 1, 1], [0.40620, 1.0, 0.35355]),  # the root of 0.66 / 4; of 0.5 / 4
        ("geometric", None, [0.34760, 1.0, 0.0]),  # the cube root of 0.042
        ("geometric", [2, 1, 1], [0.30274, 1.0, 0.0]),  # the fourth root of 0.0084
        ("geometric", [0, 1, 1], [0.45826, 1.0, 0.5]),  # the root of 0.21; the 0 is left out
        ("max", None, [0.7, 1.0, 0.5]),
        ("max", [0.1, 5, 0], [0.3, 1.0, 0.5]),
        ("vote", None, [1 / 3, 1.0, 0.0]),  # 0.5 is no vote for a defect
        ("vote", [2, 1, 1], [0.25, 1.0, 0.0]),
        ("vote", [1, 0, 1], [0.5, 1.0, 0.0]),  # a tie
    ],
)
def test_averages_worked_by_hand(how, weights, expected):
    averaged = average(THREE, how, weights)
    assert averaged.dtype == np.float32
    np.testing.assert_allclose(averaged, expected, atol=6e-6)


def test_the_seeds_root_mean_square():
    assert round(float(average([np.array(p) for p in (0.2, 0.3, 0.7)], "rms")), 2) == 0.45


@pytest.mark.parametrize("weights", [[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], [0.7, 0.6, 0.1]])
def test_a_tie_is_no_majority_whatever_the_rounding_of_the_weights(weights):
    heaviest = int(np.argmax(weights))
    for side in (0.9, 0.1):  # the heaviest weighs as much as the two others together
        probs = [np.array([side if place == heaviest else 1 - side]) for place in range(3)]
        assert not (average(probs, "vote", weights) > 0.5).any()


@pytest.mark.parametrize("how", AVERAGES)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_number_stays_none(how, place):
    probs = [np.full(1, np.nan if number == place else 0.9) for number in range(3)]
    assert np.isnan(average(probs, how))


@pytest.mark.parametrize("how", AVERAGES)
def test_no_average_leaves_the_range_of_probabilities(how):
    ones = [np.ones(3)] * 3
    assert average(ones, how, [0.1, 0.1, 0.1]).tolist() == [1, 1, 1]
    assert average([0 * one for one in ones], how, [0.1, 0.1, 0.1]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("how", ["mean", "rms", "geometric", "max"])
def test_a_single_prediction_is_its_own_average_to_the_bit(how):
    probs = np.random.default_rng(0).random(100, dtype=np.float32)
    np.testing.assert_array_equal(average([probs], how, [0.3]), probs)


@pytest.mark.parametrize("how", AVERAGES)
def test_averages_are_float32_and_predictions_stay_as_they_are(how):
    halves = [torch.tensor(part, dtype=torch.float16) for part in THREE]
    averaged = average(halves, how)
    assert averaged.dtype == np.float32
    np.testing.assert_allclose(averaged, average(THREE, how), atol=1e-3)
    np.testing.assert_array_equal(halves, torch.tensor(np.array(THREE), dtype=torch.float16))


def test_a_running_average_can_be_read_at_any_time():
    running = RunningAverage("rms")
    read = []
    for part in (0.2, 0.3, 0.7):
        running.add(torch.tensor([part]))
        read.append(round(running.result().item(), 4))
    assert read == [0.2, 0.255, 0.4546]  # the root of 0.065


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([1, 2], "--weights: expected 3, one for each model, received 2"),
        ([1, -1, 1], "--weights: expected numbers of at least 0, not all of them 0, received 1, -1, 1"),
        ([0, 0, 0], "--weights: expected numbers of at least 0, not all of them 0, received 0, 0, 0"),
        ([1, float("nan"), 1], "--weights: expected numbers .* received 1, nan, 1"),
    ],
)
def test_weights_are_one_for_each_model_and_not_below_zero(weights, reason):
    with pytest.raises(ValueError, match=reason):
        average(THREE, "mean", weights)


def test_without_weights_all_models_weigh_the_same():
    assert check_weights(None, 3) == (1.0, 1.0, 1.0)


class Constant(BaseModel):
    """Gives one logit everywhere."""

    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, images):
        return torch.full((len(images), 2, *images.shape[2:]), self.logit)


def test_an_average_of_models_is_scored_by_the_very_numbers_that_are_predicted():
    members = [Member(Constant(logit), lambda images: images) for logit in (3.0, -3.0)]
    model = AveragedModel(members, (3.0, 5.0), "vote")
    images = torch.zeros(1, 1, 4, 4)
    outputs = model(images)
    assert model.probabilities(outputs).unique().tolist() == [0.375]  # not above a threshold of 0.375
    torch.testing.assert_close(model.logits(outputs).sigmoid(), outputs)
