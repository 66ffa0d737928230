"""Which predictions are confident enough for pseudo-labels, worked by hand on rows of pixels."""

import numpy as np

from sever.commands.pseudo import pseudo_table
from sever.predictor.pseudo_labels import Rules, rejection

LINE = Rules(agreement=0.8, sure=0.8, sure_share=0.75, edge=0, absent=0.5)


def masks(*classes):
    return np.array(classes, dtype=np.uint8)[:, None, :]


def probs(*classes):
    return np.array(classes, dtype=np.float32)[:, None, :]


SURE = probs([0.9, 0.9, 0.9, 0.7, 0.1], [0.4, 0.1, 0.1, 0.1, 0.1])
FOUND = masks([1, 1, 1, 1, 0], [0, 0, 0, 0, 0])


def test_masks_that_all_models_share_confidently_are_labels():
    assert rejection(SURE, FOUND, [FOUND, FOUND], LINE) is None


def test_each_model_must_agree_with_all_together():
    # Dice 2·3/(3 + 4) = 0.857, then 2·2/(2 + 4) = 0.667
    three, two = masks([1, 1, 1, 0, 0], [0] * 5), masks([1, 1, 0, 0, 0], [0] * 5)
    assert rejection(SURE, FOUND, [FOUND, three], LINE) is None
    assert rejection(SURE, FOUND, [FOUND, two], LINE) == "the models disagree"
    one_more = masks([1, 1, 1, 1, 0], [0, 0, 0, 0, 1])  # of a class that all together do not see
    assert rejection(SURE, FOUND, [FOUND, one_more], LINE) == "the models disagree"


def test_enough_of_a_mask_must_be_confident():
    # 3 of 4 pixels reach 0.8
    assert rejection(SURE, FOUND, [FOUND], Rules(0.8, 0.8, 0.76, 0, 0.5)) == "a mask is unsure"
    assert rejection(SURE, FOUND, [FOUND], Rules(0.8, 0.7, 1.0, 0, 0.5)) is None


def test_a_class_without_a_mask_must_be_absent():
    assert rejection(SURE, FOUND, [FOUND], Rules(0.8, 0.8, 0.75, 0, 0.4)) == "a defect may be missed"


def test_the_edge_of_a_mask_need_not_be_confident():
    mask = np.zeros((1, 9, 9), np.uint8)
    mask[0, 2:7, 2:7] = 1
    unsure_edge = np.where(mask, 0.6, 0.1).astype(np.float32)
    unsure_edge[0, 3:6, 3:6] = 0.95
    assert rejection(unsure_edge, mask, [mask], Rules(edge=0)) == "a mask is unsure"
    assert rejection(unsure_edge, mask, [mask], Rules(edge=1)) is None


def test_a_mask_that_is_all_edge_is_judged_as_it_is():
    mask = masks([0, 1, 0])
    assert rejection(probs([0.1, 0.9, 0.1]), mask, [mask], Rules(edge=3)) is None
    assert rejection(probs([0.1, 0.6, 0.1]), mask, [mask], Rules(edge=3)) == "a mask is unsure"


MADE = {"kept": 8, "left out": {"the models disagree": 32}, "masks": {"1": 2, "2": 0}}


def test_pseudo_labels_stand_beside_the_training_images_with_counts_and_shares():
    first, head, *rows = pseudo_table(MADE, {"1": 1500, "2": 1000}, training_images=2000)
    assert first == "8 of 40 images kept; the models disagree: 32"
    assert head.split() == ["images", "with", "pseudo-labels", "training", "images"]
    assert [row.split() for row in rows] == [
        ["class", "1", "2", "25.00%", "1,500", "75.00%"],
        ["class", "2", "0", "0.00%", "1,000", "50.00%"],
    ]
    assert len({len(line) for line in (head, *rows)}) == 1


def test_it_is_said_where_the_training_images_are_not_known():
    _, head, *rows, last = pseudo_table(MADE, {}, 0)
    assert "training" not in head
    assert [row.split() for row in rows] == [["class", "1", "2", "25.00%"], ["class", "2", "0", "0.00%"]]
    assert "training images have each class is not known" in last
