"""Crops that avoid the black edge, the blackout of defects, and the named pipelines beside the seed's."""

import cv2
import numpy as np
import pytest
from augmented import numbered_sheet, one_pixel, pipeline, sample, spans_of

from sever.config.registry import AUGMENTATIONS
from sever.data_loader.annotations import NO_SPANS
from sever.data_loader.augmentation.crop import crop_sheet
from sever.data_loader.augmentation.pipelines import Augmentation
from sever.data_loader.augmentation.transforms import TRANSFORMS
from sever.utils.errors import ConfigError

# ------------------------------------------------------------------------------- the black edge


def edged_sheet(left=0, right=0, top=0, bottom=0, shape=(40, 100)):
    """A sheet of grey level 90 with black margins of so many pixels, as noisy as JPEG leaves them."""
    sheet = np.random.default_rng(0).integers(0, 12, shape, dtype=np.uint8)
    sheet[top : shape[0] - bottom, left : shape[1] - right] = 90
    return sheet


@pytest.mark.parametrize(
    "edge", [{"left": 60}, {"right": 60}, {"left": 20, "right": 30, "top": 9, "bottom": 11}]
)
@pytest.mark.parametrize("on_defect", [0, 1])
def test_a_crop_that_avoids_black_lies_where_the_sheet_is_not(edge, on_defect):
    sheet = edged_sheet(**edge)
    lit = np.argwhere(sheet == 90)
    mask = one_pixel(sheet.shape, tuple(lit[0])) | one_pixel(sheet.shape, tuple(lit[-1]))
    starts = set()
    for index in range(200):
        window, (cut,) = crop_sheet(sheet, spans_of(mask), (20, 30), sample(index), on_defect, True)
        assert (window == 90).all()
        assert cut.any() or not on_defect
        starts.add(int(cut.argmax()))
    assert len(starts) > 1


def test_every_window_without_black_may_be_drawn():
    sheet = edged_sheet(left=90)
    sheet[:, 90:] += np.arange(10, dtype=np.uint8)
    corners = {int(crop_sheet(sheet, [], (40, 4), sample(i), 0, True)[0][0, 0]) for i in range(200)}
    assert corners == set(range(90, 97))


@pytest.mark.parametrize("edge", [{"left": 88}, {"right": 88}, {"left": 50, "right": 38}])
def test_a_window_larger_than_what_is_not_black_holds_all_of_it(edge):
    sheet = edged_sheet(**edge)
    windows = [crop_sheet(sheet, [], (40, 30), sample(index), 0, True)[0] for index in range(100)]
    assert all((window == 90).sum() == 40 * 12 for window in windows)


def test_a_black_sheet_and_one_without_black_are_cropped_as_ever():
    for sheet in (edged_sheet(left=100), edged_sheet(), numbered_sheet(3, 40)):
        spans = spans_of(one_pixel(sheet.shape, (2, 30)))
        for index in range(20):
            window, masks = crop_sheet(sheet, spans, (9, 30), sample(index), 0.5, True)
            plain, plain_masks = crop_sheet(sheet, spans, (9, 30), sample(index), 0.5)
            np.testing.assert_array_equal(window, plain)
            np.testing.assert_array_equal(masks, plain_masks)


def test_a_defect_on_black_is_held_all_the_same():
    sheet = edged_sheet(left=60)
    spans = spans_of(one_pixel(sheet.shape, (5, 3)))
    assert all(crop_sheet(sheet, spans, (20, 30), sample(i), 1, True)[1][0].any() for i in range(50))


# ------------------------------------------------------------------------------------- blackout


def blackout(masks, image=None, index=0, **args):
    """What a blackout that always happens makes of a sheet of 100 and its masks."""
    image = np.full(masks[0].shape, 100, np.uint8) if image is None else image
    args = {"p": 1, "share": 1} | args
    steps = Augmentation([TRANSFORMS.find("DefectBlackout", "test")(**args)])
    spans = [s if len(s) else NO_SPANS for s in spans_of(*masks)]
    return steps(image, spans, sample(index))


def box(top, left, height, width, shape=(40, 60)):
    mask = np.zeros(shape, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def test_painted_defects_are_black_and_have_no_label():
    masks = [box(0, 0, 5, 5) | box(20, 30, 9, 9), box(0, 0, 1, 1) * 0, box(30, 0, 5, 8)]
    image, left = blackout(masks)
    assert not left.any()
    np.testing.assert_array_equal(image, np.where(masks[0] | masks[2], 0, 100))


def test_each_connected_part_is_removed_or_kept_by_itself():
    parts = [
        box(0, 0, 5, 5),
        box(20, 30, 9, 9),
        box(5, 5, 3, 3) | box(8, 8, 2, 2),
    ]  # the last touch at corners
    parts[0], parts[2] = parts[0] | parts[2], box(0, 50, 4, 4)
    counts = np.zeros(3)
    for index in range(400):
        image, (left,) = blackout([parts[0] | parts[1] | parts[2]], index=index, share=0.3)
        kept = [(left & part).any() for part in parts]
        assert all((left[part == 1] == keep).all() for part, keep in zip(parts, kept, strict=True))
        np.testing.assert_array_equal(image == 0, (parts[0] | parts[1] | parts[2]) & ~left == 1)
        counts += np.logical_not(kept)
    np.testing.assert_allclose(counts / 400, 0.3, atol=0.092)  # 4 standard deviations


def test_a_class_is_removed_or_kept_as_a_whole():
    masks = [box(0, 0, 5, 5) | box(20, 30, 9, 9), box(30, 0, 5, 8) | box(0, 50, 4, 4)]
    seen = set()
    for index in range(60):
        _, left = blackout(masks, index=index, remove="class", share=0.5)
        for whole, part in zip(masks, left, strict=True):
            assert not part.any() or (part == whole).all()
        seen.add(tuple(part.any() for part in left))
    assert seen == {(True, True), (True, False), (False, True), (False, False)}


def test_a_painted_pixel_loses_its_label_in_every_class():
    lower, upper = box(10, 10, 10, 10), box(15, 15, 10, 10)
    left = {}
    for index in range(60):
        _, masks = blackout([lower, upper], index=index, share=0.5)
        left[tuple(mask.any() for mask in masks)] = masks
    np.testing.assert_array_equal(left[True, False][0], lower & ~upper & 1)
    np.testing.assert_array_equal(left[False, True][1], upper & ~lower & 1)


def test_defects_are_filled_with_the_mean_of_what_is_chosen():
    image = np.full((40, 60), 50, np.uint8)
    image[:, 30:] = 150
    defects = box(10, 5, 10, 10) | box(10, 45, 10, 10)
    image[defects == 1] = 255
    for fill, levels in {"black": (0, 0), "sheet": (100, 100), "local": (50, 150)}.items():
        painted, _ = blackout([defects], image, fill=fill)
        assert set(painted[10:20, 5:15].ravel()) == {levels[0]}
        assert set(painted[10:20, 45:55].ravel()) == {levels[1]}
        np.testing.assert_array_equal(painted[defects == 0], image[defects == 0])


def test_a_defect_without_steel_around_it_takes_the_sheets_mean():
    image = np.full((40, 60), 80, np.uint8)
    inner, outer = box(18, 28, 4, 4), box(5, 15, 30, 30) & ~box(18, 28, 4, 4)
    painted = [blackout([inner, outer], image, index=i, share=0.5, fill="local") for i in range(30)]
    only_inner = next(p for p, masks in painted if masks[1].any() and not masks[0].any())
    assert set(only_inner[18:22, 28:32].ravel()) == {80}
    everywhere, _ = blackout([np.ones((40, 60), np.uint8)], image, fill="local")
    assert not everywhere.any()


def test_nothing_is_painted_where_nothing_is_drawn_or_there_is_no_defect():
    image, mask = numbered_sheet(12, 20), one_pixel((12, 20), (3, 4))
    for args in ({"share": 0}, {"p": 0}):
        changed, left = blackout([mask], image, **args)
        np.testing.assert_array_equal(changed, image)
        np.testing.assert_array_equal(left, mask[None])
    changed, left = blackout([mask * 0], image)
    np.testing.assert_array_equal(changed, image)
    assert not left.any()


# ------------------------------------------------------------------------------ named pipelines


@pytest.mark.parametrize("name", ["MediumTransforms", "HeavyTransforms"])
def test_masks_stay_on_their_defects_while_sheets_change(name):
    steps = AUGMENTATIONS.find(name, "augmentation")()
    image, mask = np.full((96, 300), 60, np.uint8), np.zeros((96, 300), np.uint8)
    mask[20:60, 50:120] = mask[35:90, 160:190] = mask[15:45, 220:290] = 1
    image[mask == 1] = 190
    results = [steps(image, [NO_SPANS, *spans_of(mask)], sample(index)) for index in range(60)]
    for changed, masks in results:
        assert changed.shape == image.shape
        assert set(np.unique(masks)) == {0, 1}
        assert not masks[0].any()
        _, bright = cv2.threshold(cv2.medianBlur(changed, 3), 0, 1, cv2.THRESH_OTSU)
        assert (bright & masks[1]).sum() / (bright | masks[1]).sum() > 0.8
    assert len({changed.tobytes() for changed, _ in results}) > 20


@pytest.mark.parametrize("name", ["MediumTransforms", "HeavyTransforms"])
def test_light_changes_around_the_grey_level_that_there_was(name):
    steps, sheet = AUGMENTATIONS.find(name, "augmentation")(), np.full((64, 96), 88, np.uint8)
    sheet += np.random.default_rng(0).integers(0, 30, sheet.shape, dtype=np.uint8)
    means = np.array([steps(sheet, [], sample(index))[0].mean() for index in range(100)])
    assert 40 < means.min() < sheet.mean() - 8
    assert sheet.mean() + 8 < means.max() < 180
    assert means.mean() == pytest.approx(sheet.mean(), abs=12)


@pytest.mark.parametrize(
    ("name", "share"),
    # A crop from anywhere holds the pixel by chance: 16 of its 31 rows times 12 of its 29 columns.
    [("RandomCropTransforms", 16 / 31 * 12 / 29), ("DefectCropTransforms", 1), ("HeavyCropTransforms", None)],
)
def test_named_crops_have_their_size_and_hold_defects_as_often_as_they_say(name, share):
    chance = 16 / 31 * 12 / 29
    expected = (1 + chance) / 2 if share is None else share
    steps = pipeline("{height: 16, width: 12}", name)
    image, spans = np.full((46, 40), 90, np.uint8), spans_of(one_pixel((46, 40), (23, 20)))
    results = [steps(image, spans, sample(index)) for index in range(800)]
    assert {changed.shape for changed, _ in results} == {(16, 12)}
    held = np.mean([masks.any() for _, masks in results])
    assert held == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 800) ** 0.5)


@pytest.mark.parametrize("name", ["RandomCropTransforms", "DefectCropTransforms", "HeavyCropTransforms"])
def test_named_crops_avoid_black_where_asked(name):
    sheet = edged_sheet(left=60)
    for args, with_black in (("avoid_black: true", False), ("avoid_black: false", True)):
        steps = pipeline(f"{{height: 20, width: 30, {args}}}", name)
        windows = [steps(sheet, [NO_SPANS], sample(index))[0] for index in range(60)]
        assert any((window < 40).any() for window in windows) == with_black


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("MediumTransforms", "{std: 0}", "std must be above 0, received 0"),
        ("HeavyTransforms", "{height: 8}", "HeavyTransforms does not take 'height'"),
        ("RandomCropTransforms", "{height: 0}", "height and width must be at least 1, received 0 and 416"),
        ("DefectCropTransforms", "{width: -8}", "received 256 and -8"),
        (
            "Pipeline",
            "{crop: {height: 8, width: 8, on_defect: 1.5}}",
            "on_defect: expected a share from 0 to 1",
        ),
    ],
)
def test_settings_of_named_pipelines_that_make_no_sense_are_refused(name, args, reason):
    with pytest.raises(ConfigError, match=reason):
        pipeline(args, name)
