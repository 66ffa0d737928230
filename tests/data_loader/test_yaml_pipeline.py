"""Pipelines written in YAML: what they do, and what is refused before a run."""

import cv2
import numpy as np
import pytest
from augmented import differ, numbered_sheet, one_pixel, pipeline, sample, spans_of

from sever.config.build import build, check
from sever.config.load import Section
from sever.config.registry import AUGMENTATIONS
from sever.data_loader.annotations import read_table
from sever.data_loader.augmentation.crop import crop_sheet
from sever.data_loader.augmentation.transforms import TRANSFORMS
from sever.data_loader.datasets import SteelDataset
from sever.utils.errors import ConfigError
from sever.utils.yaml_parser import parse_yaml

# ------------------------------------------------------------------------------------ written in YAML


def test_transforms_are_applied_in_their_order_with_their_arguments():
    steps = pipeline(
        """
        transforms:
        - {type: Crop, args: {x_max: 40, y_max: 20}}
        - {type: HorizontalFlip, args: {p: 1}}
        - {type: Affine, args: {translate_px: {x: [5, 5], y: [0, 0]}, p: 1}}
        - {type: InvertImg, args: {p: 1}}
        """
    )
    image, mask = np.full((30, 50), 90, np.uint8), one_pixel((30, 50), (7, 30))
    changed, masks = steps(image, spans_of(mask), sample(0))
    assert changed.shape == (20, 40)
    np.testing.assert_array_equal(changed[:, 5:], 255 - 90)
    np.testing.assert_array_equal(changed[:, :5], 255)
    np.testing.assert_array_equal(masks, one_pixel((20, 40), (7, 39 - 30 + 5))[None])


def test_the_crop_comes_first_and_can_be_asked_to_hold_a_defect():
    steps = pipeline("crop: {height: 5, width: 4, on_defect: 1}")
    image, spans = numbered_sheet(12, 20), spans_of(one_pixel((12, 20), (9, 15)))
    for index in range(50):
        changed, masks = steps(image, spans, sample(index))
        window, cut = crop_sheet(image, spans, (5, 4), sample(index), on_defect=1)
        np.testing.assert_array_equal(changed, window)
        np.testing.assert_array_equal(masks, cut)
        assert masks.sum() == 1


def test_the_crop_is_on_a_defect_half_of_the_time_if_nothing_else_is_said():
    steps, spans = pipeline("crop: {height: 2, width: 2}"), spans_of(one_pixel((40, 40), (20, 20)))
    held = [steps(np.zeros((40, 40), np.uint8), spans, sample(i))[1].any() for i in range(1000)]
    assert np.mean(held) == pytest.approx(0.5013, abs=0.064)  # 4 standard deviations


NESTED = {
    "OneOf": "{type: OneOf, args: {p: 1, transforms: [{type: GaussNoise}, {type: SaltAndPepper}]}}",
    "SomeOf": "{type: SomeOf, args: {n: 2, transforms: [Blur, {type: GaussNoise, args: {p: 1}}]}}",
    "RandomOrder": "{type: RandomOrder, args: {n: 2, transforms: [Blur, {type: ShotNoise, args: {p: 1}}]}}",
    "Sequential": "{type: Sequential, args: {p: 1, transforms: [HorizontalFlip, "
    "{type: CoarseDropout, args: {p: 1}}]}}",
    "Compose": "{type: Compose, args: {transforms: [{type: AdditiveNoise, args: {p: 1}}]}}",
    "OneOrOther": "{type: OneOrOther, args: {first: {type: OneOf, args: {transforms: [GaussNoise]}}, "
    "second: ShotNoise}}",
    "blackout": "{type: DefectBlackout, args: {p: 1}}",
    "deep": "{type: SomeOf, args: {n: 1, transforms: [{type: Sequential, args: {p: 1, transforms: "
    "[{type: OneOf, args: {p: 1, transforms: [GaussNoise, MultiplicativeNoise]}}, "
    "{type: GaussNoise, args: {p: 1}}]}}]}}",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Eight copies of one sheet with ten defects."""
    folder = tmp_path_factory.mktemp("sheets")
    (folder / "train_images").mkdir()
    sheet = np.random.default_rng(0).integers(60, 120, (24, 40), dtype=np.uint8)
    for name in "abcdefgh":
        cv2.imwrite(str(folder / "train_images" / f"{name}.png"), sheet)
    runs = " ".join(f"{1 + 4 * column * 24} 10" for column in range(10))
    rows = [f"{name}.png,1,{runs}\n" for name in "abcdefgh"]
    (folder / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n" + "".join(rows))
    return read_table(folder, "train.csv", "train_images", classes=2)


@pytest.mark.parametrize("kind", NESTED)
def test_a_sample_is_a_function_of_seed_epoch_and_index(table, kind):
    def drawn(indices, seed=7, epoch=3):
        steps = f"{{crop: {{height: 20, width: 24}}, transforms: [HorizontalFlip, {NESTED[kind]}]}}"
        dataset = SteelDataset(table, pipeline(steps), seed)
        dataset.set_epoch(epoch)
        return {index: [part.numpy() for part in dataset[index]] for index in indices}

    in_order, backwards = drawn([0, 1, 2]), drawn([2, 1, 0, 2])
    for index in range(3):
        np.testing.assert_array_equal(in_order[index][0], backwards[index][0])
        np.testing.assert_array_equal(in_order[index][1], backwards[index][1])
    assert differ(in_order[0], in_order[1])
    assert differ(in_order[1], in_order[2])
    assert differ(in_order[0], drawn([0], seed=8)[0])
    assert differ(in_order[0], drawn([0], epoch=4)[0])


def test_two_transforms_of_a_pipeline_do_not_draw_the_same_numbers():
    noise = (
        "{type: AdditiveNoise, args: {noise_params: {ranges: [[-0.1, 0.1]]}, spatial_mode: constant, p: 1}}"
    )
    once, twice = pipeline(f"transforms: [{noise}]"), pipeline(f"transforms: [{noise}, {noise}]")
    grey = np.full((4, 4), 128, np.uint8)
    steps = [[int(p(grey, [], sample(i))[0][0, 0]) - 128 for p in (once, twice)] for i in range(20)]
    assert any(abs(both - 2 * first) > 2 for first, both in steps)


# ------------------------------------------------------------------------- refused before the run


@pytest.mark.parametrize(
    ("args", "faults"),
    [
        ("{transforms: [HorizontalFlipp]}", ["transforms.0: 'HorizontalFlipp' is not", "'HorizontalFlip'?"]),
        (
            "{transforms: [{type: OneOf, args: {transforms: [D4, {type: CLAHE, args: {clip_limits: 2}}]}}]}",
            ["transforms.0.args.transforms.1.args: CLAHE does not take 'clip_limits'", "'clip_limit'?"],
        ),
        ("{transforms: [{type: Blur, args: {p: '0.5'}}]}", ["transforms.0.args.p: expected a", "'0.5'"]),
        ("{transforms: [{type: Blur, args: {p: true}}]}", ["transforms.0.args.p: expected", "True"]),
        (
            "{transforms: [{type: GaussNoise, args: {std_range: 0.1}}, {type: D4, args: {q: 1}}]}",
            ["transforms.0.args.std_range: expected", "transforms.1.args: D4 does not take 'q'"],
        ),
        # Albumentations has the parameter, and drops what it is given.
        ("{transforms: [{type: PlasmaShadow, args: {plasma_size: 8}}]}", ["does not take 'plasma_size'"]),
        ("{transforms: [{type: Compose, args: {transforms: [], bbox_params: {}}}]}", ["'bbox_params'"]),
        ("{transforms: [OneOf]}", ["transforms.0.args: OneOf needs 'transforms'"]),
        ("{transforms: [{type: RandomCrop, args: {height: 8}}]}", ["RandomCrop needs 'width'"]),
        (
            "{transforms: [{type: DefectBlackout, args: {fill: white}}]}",
            ["fill: expected 'black', 'sheet' or"],
        ),
        ("{crop: {height: 1.5, width: 4}}", ["crop.height: expected a valid integer, received 1.5"]),
        ("{crop: {height: 4, width: 4, avoid_blak: true}}", ["augmentation.args.crop", "avoid_blak"]),
        ("{crop: 256}", ["augmentation.args.crop: expected", "256"]),
    ],
)
def test_wrong_names_arguments_and_types_are_found_without_building_anything(args, faults):
    section = Section(type="Pipeline", args=parse_yaml(args, "test"))
    found = "\n".join(check(AUGMENTATIONS, section, "f.yml: augmentation"))
    assert found.startswith("f.yml: augmentation.args.")
    for fault in faults:
        assert fault in found


@pytest.mark.parametrize(
    ("args", "faults"),
    [
        (
            "[{type: Blur, args: {p: 2}}]",
            ["augmentation.args.transforms.0: Blur", "p: expected less than", "2"],
        ),
        # Albumentations would warn, and take 5 for 4.
        ("[{type: MedianBlur, args: {blur_limit: [4, 7]}}]", ["blur_limit: ", "must be odd"]),
        ("[{type: SomeOf, args: {n: 3, transforms: [Blur]}}]", ["n: expected a number from 1 to", "3"]),
        ("[{type: SomeOf, args: {n: 0, transforms: [Blur]}}]", ["n: expected a number from 1 to", "0"]),
        (
            "[{type: OneOf, args: {p: 7, transforms: [Blur]}}]",
            ["p: expected a share from 0 to 1, received 7"],
        ),
        ("[{type: OneOf, args: {transforms: []}}]", ["at least one transform, received an empty one"]),
        ("[{type: OneOf, args: {transforms: Blur}}]", ["transforms: expected a list", "a Blur"]),
        (
            "[{type: OneOf, args: {transforms: [{type: Blur, args: {p: 0}}]}}]",
            ["expected a p above 0 in at least one of them"],
        ),
        ("[{type: OneOrOther, args: {first: Blur}}]", ["expected two transforms, received 1"]),
        (
            "[{type: OneOrOther, args: {first: Blur, transforms: [Blur, Blur]}}]",
            ["expected either 'transforms' or 'first' and 'second'"],
        ),
        ("{a: Blur}", ["transforms: expected a list, received a dict"]),
    ],
)
def test_values_that_a_transform_would_change_or_ignore_are_refused(args, faults):
    with pytest.raises(ConfigError) as refusal:
        pipeline(f"transforms: {args}")
    for fault in faults:
        assert fault in str(refusal.value)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("Normalize", "received ndarray of float32"),
        ("ToFloat", "it becomes a float tensor after the pipeline, by 'mean' and 'std'"),
        ("ToTensorV2", "received Tensor"),
        ("ToRGB", "one uint8 channel (height, width), received ndarray of uint8 (64, 96, 3)"),
        ("ToGray", "already gray"),
        ("HueSaturationValue", "not applicable to grayscale"),
        ("RandomFog", "expects 3-channel images"),
        ("ChannelDropout", "one channel"),
        ("HistogramMatching", "hm_metadata"),
        ("BBoxSafeRandomCrop", "bboxes"),
        ("MaskDropout", "mask"),
        ("ToTensor3D", "changes no images"),
        (
            "{type: CoarseDropout, args: {fill_mask: 255}}",
            "expected uint8 masks of 0 and 1 and of the image's 64 x 96 pixels, received ndarray of uint8 "
            "(2, 64, 96) with a value of 255",
        ),
        ("{type: CropNonEmptyMaskIfExists, args: {height: 8, width: 8}}", "64 x 96 without a defect"),
        ("{type: RandomCrop, args: {height: 65, width: 8}}", "fails on a grey sheet of 64 x 96"),
    ],
)
@pytest.mark.parametrize("at", ["{}", "{{type: OneOf, args: {{p: 0.1, transforms: [Blur, {}]}}}}"])
def test_transforms_that_do_not_keep_grey_sheets_and_their_masks_are_refused(node, reason, at):
    with pytest.raises(ConfigError) as refusal:
        pipeline(f"{{crop: {{height: 64, width: 96}}, transforms: [HorizontalFlip, {at.format(node)}]}}")
    place = "transforms.1 (" if at == "{}" else "transforms.1.args.transforms.1 ("
    assert f"f.yml: augmentation: Pipeline refuses its arguments: {place}" in str(refusal.value)
    assert reason in str(refusal.value)


def test_all_transforms_that_fail_are_reported_together():
    with pytest.raises(ConfigError, match=r"transforms.0 \(ToGray\)(.|\n)*transforms.2 \(FDA\)"):
        pipeline("transforms: [ToGray, Blur, FDA]")


def test_a_transform_that_is_switched_off_is_not_tried():
    assert pipeline("transforms: [{type: ToGray, args: {p: 0}}]").size_after((8, 9)) == (8, 9)


def test_a_pipeline_that_fails_only_now_and_then_is_refused():
    padded = "{type: PadIfNeeded, args: {min_height: 100, min_width: 100, p: 0.5}}"
    cropped = "{type: RandomCrop, args: {height: 100, width: 100}}"
    with pytest.raises(ConfigError, match="fails on a grey sheet of"):
        pipeline(f"{{crop: {{height: 64, width: 96}}, transforms: [{padded}, {cropped}]}}")


@pytest.mark.parametrize(
    "at",
    [
        "{}",
        "{{type: SomeOf, args: {{n: 1, transforms: [Blur, {}]}}}}",
        "{{type: OneOf, args: {{p: 0.001, transforms: [Blur, {}]}}}}",
    ],
)
@pytest.mark.parametrize("node", ["D4", "Transpose", "RandomScale", "RandomCropFromBorders"])
def test_samples_of_different_sizes_are_refused(node, at):
    with pytest.raises(ConfigError, match=rf"different sizes.*make no batch.*\({node}\).*Resize"):
        pipeline(f"transforms: [{at.format(node)}]")


@pytest.mark.parametrize(
    ("args", "size"),
    [
        ("transforms: [RandomScale, {type: Resize, args: {height: 32, width: 48}}]", (32, 48)),
        ("{crop: {height: 32, width: 32}, transforms: [D4, RandomRotate90]}", (32, 32)),
        ("transforms: [{type: Transpose, args: {p: 1}}]", (96, 64)),
        (
            "transforms: [{type: Sequential, args: {p: 1, transforms: [{type: Transpose, args: {p: 1}}]}}]",
            (96, 64),
        ),
        ("transforms: [{type: OneOf, args: {p: 1, transforms: [Transpose]}}]", (96, 64)),
        (
            "transforms: [{type: SomeOf, args: {n: 2, transforms: [{type: Transpose, args: {p: 1}}, "
            "{type: Transpose, args: {p: 1}}]}}]",
            (64, 96),
        ),
    ],
)
def test_the_size_that_comes_out_is_known(args, size):
    steps = pipeline(args)
    assert steps.size_after((64, 96)) == size
    assert {steps(np.zeros((64, 96), np.uint8), [], sample(i))[0].shape for i in range(20)} == {size}


def test_every_transform_of_albumentations_that_keeps_the_rules_is_accepted():
    """Its defaults, where it has them all; those that are refused need what grey sheets do not have."""
    refused = set()
    arguments = {"Pad": "{padding: 2}", "CropAndPad": "{px: 2}", "LongestMaxSize": "{max_size: 64}"}
    arguments |= {
        "SmallestMaxSize": "{max_size: 64}",
        "GridElasticDeform": "{num_grid_xy: [2, 3], magnitude: 3}",
        "OneOrOther": "{first: Blur, second: NoOp}",
    }
    for name in TRANSFORMS.names():
        if name in ("PiecewiseAffine", "Superpixels"):  # seconds each
            continue
        section = parse_yaml(f"{{type: {name}, args: {arguments.get(name, '{}')}}}", "test")
        if check(TRANSFORMS, Section(**section), "f"):  # arguments that it needs
            continue
        try:
            build(AUGMENTATIONS, Section(type="Pipeline", args=PADDED | {"transforms": [section]}), "f")
        except ConfigError:
            refused.add(name)
    need_size = {
        "D4",
        "RandomCropFromBorders",
        "RandomRotate90",
        "RandomScale",
        "SquareSymmetry",
        "Transpose",
    }
    need_colour = {"ChannelDropout", "ChromaticAberration", "HEStain", "HueSaturationValue", "ISONoise"}
    need_colour |= {"PlanckianJitter", "RandomFog", "RandomGravel", "RandomRain", "RandomSnow"}
    need_colour |= {"RandomSunFlare", "Spatter", "ToGray"}
    other_result = {"FromFloat", "Normalize", "ToFloat", "ToRGB", "ToTensorV2", "ToTensor3D"}
    need_more = {"BBoxSafeRandomCrop", "ConstrainedCoarseDropout", "FDA", "HistogramMatching", "MaskDropout"}
    need_more |= {"Mosaic", "OverlayElements", "PixelDistributionAdaptation", "RandomCropNearBBox", "Crop"}
    need_more |= {"CubicSymmetry", "CoarseDropout3D", "PadIfNeeded3D"}
    assert refused == need_size | need_colour | other_result | need_more


PADDED = {"crop": {"height": 48, "width": 64}}
