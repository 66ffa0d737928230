"""Crops, flips and filters, on sheets whose grey levels tell where each pixel was."""

import cv2
import numpy as np
import pytest
import torch
from augmented import differ, numbered_sheet, one_pixel, sample, spans_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sever.config.registry import AUGMENTATIONS
from sever.data_loader.annotations import NO_SPANS, read_table
from sever.data_loader.augmentation.pipelines import (
    Augmentation,
    HeavyCropTransforms,
    LightTransforms,
    crop_sheet,
)
from sever.data_loader.datasets import SteelDataset


def random_masks(shape, seed):
    """Three masks, one of them sparse and one of them full."""
    numbers = np.random.default_rng(seed).random((2, *shape))
    return (numbers[0] < 0.5).astype(np.uint8), (numbers[1] < 0.1).astype(np.uint8), np.ones(shape, np.uint8)


# ------------------------------------------------------------------------------------------- crops


@settings(deadline=None, max_examples=100, derandomize=True)
@given(*[st.integers(1, 16) for _ in range(4)], st.integers(0, 10**6))
def test_a_crop_equals_the_crop_of_the_sheet_and_its_whole_masks(height, width, rows, columns, seed):
    image, masks = numbered_sheet(height, width), random_masks((height, width), seed)
    present = [mask for mask in masks if mask.any()]
    window, cut = crop_sheet(image, spans_of(*present), (rows, columns), sample(seed))
    assert window.shape == (rows, columns)
    for whole, part in zip(present, cut, strict=True):
        np.testing.assert_array_equal(part, whole.ravel()[window])  # pixel by pixel, where it came from


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(1, 16), st.integers(1, 16), st.data())
def test_a_crop_is_one_window_of_the_sheet(height, width, data):
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    image = numbered_sheet(height, width)
    window, _ = crop_sheet(image, [], size, sample(data.draw(st.integers(0, 10**6))))
    top, left = divmod(int(window[0, 0]), width)
    np.testing.assert_array_equal(window, image[top : top + size[0], left : left + size[1]])


@pytest.mark.parametrize("shape", [(5, 7), (2, 3), (1, 1), (1, 9)])
def test_a_sheet_smaller_than_the_crop_is_reflected_at_its_edges(shape):
    image, mask = numbered_sheet(*shape), one_pixel(shape, (-1, 0))
    window, (cut,) = crop_sheet(image, spans_of(mask), (9, 10), sample(1))
    pads = [(extra // 2, extra - extra // 2) for extra in (9 - shape[0], 10 - shape[1])]
    np.testing.assert_array_equal(window, np.pad(image, pads, mode="reflect"))
    np.testing.assert_array_equal(cut, np.pad(mask, pads, mode="reflect"))


@pytest.mark.parametrize(("shape", "at"), [((16, 16), (0, 0)), ((16, 16), (9, 15)), ((3, 40), (2, 39))])
def test_a_crop_on_a_defect_holds_it(shape, at):
    image, spans = np.zeros(shape, np.uint8), spans_of(one_pixel(shape, at))
    for index in range(100):
        _, (cut,) = crop_sheet(image, spans, (5, 4), sample(index), on_defect=1)
        assert cut.any()


def test_every_pixel_of_the_defects_may_be_the_one_that_is_held():
    image = numbered_sheet(12, 20)
    masks = one_pixel(image.shape, (5, 5)) | one_pixel(image.shape, (6, 5)), one_pixel(image.shape, (11, 19))
    held = [
        crop_sheet(image, spans_of(*masks), (1, 1), sample(index), on_defect=1)[0].item()
        for index in range(900)
    ]
    numbers, counts = np.unique(held, return_counts=True)
    assert numbers.tolist() == [105, 125, 239]  # row * 20 + column
    np.testing.assert_allclose(counts / 900, 1 / 3, atol=0.06)  # 4 standard deviations


def test_half_of_the_crops_are_on_a_defect_where_there_is_one():
    image, spans = np.zeros((40, 40), np.uint8), spans_of(one_pixel((40, 40), (20, 20)))
    held = [crop_sheet(image, spans, (2, 2), sample(index))[1][0].any() for index in range(2000)]
    # 4 of the 39 x 39 windows hold the pixel by chance: 1/2 + 1/2 · 4/1521
    assert np.mean(held) == pytest.approx(0.5013, abs=0.045)


def test_a_clean_sheet_is_cropped_anywhere():
    image = numbered_sheet(4, 5)
    corners = {crop_sheet(image, [], (3, 3), sample(index))[0][0, 0].item() for index in range(200)}
    assert corners == {0, 1, 2, 5, 6, 7}  # 2 x 3 places


# ------------------------------------------------------------------------------------------- flips


def test_masks_are_flipped_with_their_sheet():
    image, masks = numbered_sheet(12, 20), random_masks((12, 20), seed=1)
    for index in range(40):
        changed, flipped = LightTransforms()(image, [*spans_of(*masks), NO_SPANS], sample(index))
        assert changed.shape == image.shape
        for whole, part in zip(masks, flipped[:3], strict=True):
            np.testing.assert_array_equal(part, whole.ravel()[changed])
        assert not flipped[3].any()


def flip_shares(augmentation, draws):
    """How often each corner is where the top left pixel of a 6 x 8 sheet comes to lie."""
    image, spans = numbered_sheet(6, 8), spans_of(one_pixel((6, 8), (0, 0)))
    corners = [np.flatnonzero(augmentation(image, spans, sample(i))[1]).item() for i in range(draws)]
    assert set(corners) <= {0, 7, 40, 47}
    return [corners.count(corner) / draws for corner in (0, 7, 40, 47)]


def test_the_four_positions_of_the_light_transforms_are_equally_frequent():
    # 4 standard deviations of 2000 draws: 4 · sqrt(1/4 · 3/4 / 2000) = 0.039
    np.testing.assert_allclose(flip_shares(LightTransforms(), 2000), [1 / 4] * 4, atol=0.039)


def test_half_of_the_heavy_crops_are_not_flipped_and_the_rest_in_one_of_three_ways():
    shares = flip_shares(HeavyCropTransforms(6, 8), 2500)
    # 4 standard deviations of 2500 draws: 0.04 of a half, 0.03 of a sixth
    assert shares[0] == pytest.approx(1 / 2, abs=0.04)
    np.testing.assert_allclose(shares[1:], [1 / 6] * 3, atol=0.03)


# ------------------------------------------------------------------------------- the seed's pipeline


def test_masks_stay_on_their_defects_through_the_heavy_pipeline():
    image, mask = np.full((64, 200), 60, np.uint8), np.zeros((64, 200), np.uint8)
    mask[10:40, 30:70] = mask[25:60, 90:110] = mask[5:15, 120:190] = 1
    image[mask == 1] = 190
    for index in range(60):
        changed, masks = HeavyCropTransforms(48, 96)(image, [NO_SPANS, *spans_of(mask)], sample(index))
        assert changed.shape == (48, 96)
        assert changed.dtype == masks.dtype == np.uint8
        assert masks.shape == (2, 48, 96)
        assert not masks[0].any()
        np.testing.assert_array_equal(masks[1], changed > 125)


def filtered(darkest, brightest):
    """A noisy sheet of 32 x 40, and what the heavy pipeline makes of it 300 times, flipped back."""
    sheet = np.random.default_rng(0).integers(darkest, brightest + 1, (32, 40), dtype=np.uint8)
    spans = spans_of(one_pixel(sheet.shape, (0, 0)))
    results = []
    for index in range(300):
        image, masks = HeavyCropTransforms(*sheet.shape)(sheet, spans, sample(index))
        row, column = np.argwhere(masks[0])[0]
        results.append(image[:: -1 if row else 1, :: -1 if column else 1])
    return sheet, results


def is_blurred(sheet, image):
    """Whether it is what `GaussianBlur(3)` of 2019 gave: `cv2.GaussianBlur(sheet, (3, 3), 0)`."""
    return np.abs(cv2.GaussianBlur(sheet, (3, 3), 0).astype(int) - image).max() <= 1


def sharpening(sheet, image):
    """The alpha and lightness with which `IAASharpen` gives the image, or None where none do.

    It blends the sheet with a 3 x 3 filter, (1 - alpha) · sheet + alpha · filtered, whose centre is
    8 + lightness and whose other weights are -1:
    https://github.com/aleju/imgaug/blob/0.3.0/imgaug/augmenters/convolutional.py
    """
    grey = sheet.astype(np.float64)
    around = cv2.boxFilter(grey, -1, (3, 3), normalize=False) - grey
    inner = np.s_[1:-1, 1:-1]
    design = np.stack([grey[inner].ravel(), around[inner].ravel()], axis=1)
    target = image[inner].ravel().astype(np.float64)
    (centre, other), *_ = np.linalg.lstsq(design, target, rcond=None)
    if np.abs(design @ [centre, other] - target).max() > 1:
        return None
    alpha = -other
    return alpha, (centre - (1 - alpha)) / alpha - 8


def test_the_blur_is_the_one_of_the_seed():
    sheet, results = filtered(0, 255)
    share = np.mean([is_blurred(sheet, image) for image in results])
    # weights 0.5, 0.3 and 0.3: the blur is 3 of 11; 4 standard deviations of 300 draws are 0.103
    assert share == pytest.approx(3 / 11, abs=0.103)


def test_the_sharpening_is_the_one_of_the_seed():
    sheet, results = filtered(90, 120)  # so little contrast that nothing is cut off at black or white
    found = [setting for image in results if (setting := sharpening(sheet, image)) and setting[0] > 0]
    assert len(found) / len(results) == pytest.approx(3 / 11, abs=0.103)
    alphas, lightnesses = np.array(found).T
    assert 0.199 < alphas.min() < 0.21 < 0.29 < alphas.max() < 0.301
    assert 0.49 < lightnesses.min() < 0.55 < 0.95 < lightnesses.max() < 1.01


def test_one_filter_is_always_applied():
    sheet, results = filtered(90, 120)
    assert all((image != sheet).any() for image in results)


# ------------------------------------------------------------------------------- the same again


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three copies of one sheet with a defect."""
    folder = tmp_path_factory.mktemp("sheets")
    (folder / "train_images").mkdir()
    sheet = np.random.default_rng(0).integers(60, 120, (32, 80), dtype=np.uint8)
    for name in "abc":
        cv2.imwrite(str(folder / "train_images" / f"{name}.png"), sheet)
    rows = [f"{name}.png,1,900 40\n" for name in "abc"]
    (folder / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n" + "".join(rows))
    return read_table(folder, "train.csv", "train_images", classes=2)


def drawn(table, seed=7, epoch=3, indices=(0, 1, 2)):
    dataset = SteelDataset(table, HeavyCropTransforms(24, 40), seed)
    dataset.set_epoch(epoch)
    return {index: [part.numpy() for part in dataset[index]] for index in indices}


def test_a_sample_is_the_same_for_the_same_seed_epoch_and_index(table):
    in_order, backwards = drawn(table), drawn(table, indices=(2, 1, 0, 2))
    for index in range(3):
        np.testing.assert_array_equal(in_order[index][0], backwards[index][0])
        np.testing.assert_array_equal(in_order[index][1], backwards[index][1])
        assert in_order[index][0].shape == (1, 24, 40)
        assert in_order[index][1].shape == (2, 24, 40)


def test_a_sample_differs_for_another_seed_epoch_or_index(table):
    first = drawn(table)
    assert differ(first[0], drawn(table, seed=8)[0])
    assert differ(first[0], drawn(table, epoch=4)[0])
    assert differ(first[0], first[1])
    assert differ(first[1], first[2])


# ------------------------------------------------------------------------------------ grey levels


def test_grey_levels_are_normalised_as_worked_by_hand():
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8)  # 0, 0.2 and 1 of white
    normal = Augmentation([], mean=0.25, std=0.5).normalize(levels)
    assert normal.dtype == torch.float32
    assert normal.tolist() == pytest.approx([-0.5, -0.1, 1.5], abs=1e-6)
    assert levels.tolist() == [0, 51, 255]


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_the_default_is_the_mean_and_the_deviation_of_the_severstal_sheets(name):
    augmentation = AUGMENTATIONS.find(name, "augmentation")()
    levels = augmentation.normalize(torch.tensor([0, 255], dtype=torch.uint8))
    # (0 - 0.3439) / 0.1957 and (1 - 0.3439) / 0.1957
    assert levels.tolist() == pytest.approx([-1.757281, 3.352580], abs=1e-5)


def test_a_sheet_that_is_not_cropped_or_changed_stays_as_it_is():
    image, masks = numbered_sheet(9, 14), random_masks((9, 14), seed=2)
    changed, kept = Augmentation([])(image, spans_of(*masks), sample(0))
    np.testing.assert_array_equal(changed, image)
    np.testing.assert_array_equal(kept, masks)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: LightTransforms(std=0), "std must be above 0, received 0"),
        (lambda: LightTransforms(std=float("nan")), "std must be above 0, received nan"),
        (lambda: HeavyCropTransforms(height=0), "height and width must be at least 1, received 0 and 416"),
        (lambda: HeavyCropTransforms(width=-8), "received 256 and -8"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()
