"""Augmentation pipelines: the named ones, and any that is written in YAML."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from sever.config.registry import AUGMENTATIONS, Nested
from sever.config.schema import Side
from sever.data_loader.augmentation.crop import Crop, CropSettings, crop_sheet
from sever.data_loader.augmentation.transform_check import TransformCheck, drawn_sheet
from sever.data_loader.augmentation.transforms import TRANSFORMS, A, Transform
from sever.utils.rle import Spans, decode_spans
from sever.utils.seed import SampleRandom

# Mean and standard deviation of the training sheets' grey levels, as shares of white. The seed
# normalised with std 0.0383, which is the variance.
SEVERSTAL_MEAN = 0.3439
SEVERSTAL_STD = 0.1957
SEVERSTAL_SHEET = (256, 1600)  # height and width in pixels
_LARGE_SHEET = (2048, 2304)  # height and width of other mills' sheets
_TRIES = 20  # with a pipeline that changes the size

# 1 / sqrt(2 ln 2): gives 1/4, 1/2, 1/4, the weights of OpenCV's own blur of width 3.
_SIGMA_OF_3 = 0.84932


class Augmentation:
    """Changes one sheet and its masks, and says how grey levels are normalised.

    The crop comes first, before masks are decoded, so that pixels that are cut away cost nothing.
    Subclasses give the size of the crop and the Albumentations transforms after it.

    Args:
        transforms: applied to the crop, one after the other.
        crop: how the crop is taken; None keeps the whole sheet.
        mean: grey level that becomes 0, as a share of white.
        std: standard deviation of the grey levels, as a share of white.
    """

    def __init__(
        self,
        transforms: Sequence[Transform],
        crop: Crop | None = None,
        mean: float = SEVERSTAL_MEAN,
        std: float = SEVERSTAL_STD,
    ) -> None:
        if not std > 0:
            raise ValueError(f"std must be above 0, received {std}")
        if not (0 <= mean <= 1 and std <= 1):
            raise ValueError(f"mean and std are shares of white, at most 1; received {mean} and {std}")
        self.crop = crop
        self.mean = mean
        self.std = std
        self._transforms = list(transforms)
        self._compose = A.Compose(self._transforms, strict=True)

    def __call__(
        self, image: np.ndarray, spans: Sequence[Spans], random: SampleRandom
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment a sheet.

        Args:
            image: (H, W) uint8 in [0, 255].
            spans: the defects of each class.
            random: the sample's random generators.

        Returns:
            image (h, w) uint8 and masks (C, h, w) uint8 in {0, 1}.
        """
        classes = [index for index, of_class in enumerate(spans) if len(of_class)]
        present = [spans[index] for index in classes]
        if self.crop is None:
            masks = [decode_spans(of_class, image.shape) for of_class in present]
        else:
            crop = self.crop
            image, masks = crop_sheet(image, present, crop.size, random, crop.on_defect, crop.avoid_black)
        # `set_random_seed` would give each transform its own copy: all would draw the same numbers.
        self._compose.set_random_state(random.numpy, random.python)
        targets = {"masks": masks} if masks else {}
        changed = self._compose(image=_in_rows(image), **targets)
        image = changed["image"]
        full = np.zeros((len(spans), *image.shape[:2]), dtype=np.uint8)
        for index, mask in zip(classes, changed.get("masks", ()), strict=True):
            full[index] = mask
        return image, full

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        """Try every transform by itself, and then the pipeline, on a drawn sheet.

        Args:
            size: (height, width) of the sheet in pixels.

        Returns:
            The (height, width) of the result.

        Raises:
            ValueError: a transform fails or gives what a pipeline must not, or results differ in size.
        """
        check = TransformCheck(self._transforms, self.crop.size if self.crop else size)
        if check.faults:
            raise ValueError("; ".join(check.faults))
        sizes = {check.size}
        if check.resizing:
            sheet = drawn_sheet(size)["image"]
            try:
                sizes |= {self(sheet, [], SampleRandom.of(0, 0, i))[0].shape for i in range(_TRIES)}
            except Exception as error:  # whatever Albumentations and OpenCV raise
                raise ValueError(f"fails on a grey sheet of {size[0]} x {size[1]}: {error}") from error
        if len(sizes) > 1:
            told = " and ".join(f"{height} x {width}" for height, width in sorted(sizes)[:2])
            raise ValueError(
                f"samples come out in different sizes, such as {told}, which make no batch. Leave out "
                f"{', '.join(check.resizing)}, or end with Resize"
            )
        return sizes.pop()

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Grey levels in [0, 255], uint8 or float32 -> float32, (x / 255 - mean) / std."""
        return (images - 255 * self.mean).div_(255 * self.std)


def _in_rows(image: np.ndarray) -> np.ndarray:
    """An (H, W) image as rows that may be changed; one out of a cache lies in columns, and is read-only."""
    if image.strides[0] == image.itemsize:
        return cv2.transpose(image.T)  # ten times as fast as NumPy's copy
    return np.require(image, requirements=["C", "W"])


class LightTransforms(Augmentation):
    """Whole sheets, flipped both ways; `mean` and `std` as in `Augmentation`."""

    def __init__(self, mean: float = SEVERSTAL_MEAN, std: float = SEVERSTAL_STD) -> None:
        super().__init__(self._steps(), None, mean, std)

    def _steps(self) -> list[Transform]:
        return _either_flip()


class MediumTransforms(LightTransforms):
    """Whole sheets, flipped both ways, half of them lit otherwise and a third moved a little."""

    def _steps(self) -> list[Transform]:
        light = A.OneOf(
            [
                A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=1),
                A.RandomGamma(gamma_limit=(80, 125), p=1),
            ],
            p=0.5,
        )
        return [*_either_flip(), light, _moved(0.03, 0.05, 0, p=0.3)]


class HeavyTransforms(LightTransforms):
    """Whole sheets, flipped both ways, with strong changes of light, focus, noise and position."""

    def _steps(self) -> list[Transform]:
        light = A.OneOf(
            [
                A.RandomBrightnessContrast(brightness_limit=0.25, contrast_limit=0.3, p=1),
                A.RandomGamma(gamma_limit=(60, 160), p=1),
                A.CLAHE(p=1),
            ],
            p=0.7,
        )
        focus = A.OneOf(
            [
                A.GaussianBlur(blur_limit=(3, 7), p=1),
                A.MotionBlur(blur_limit=(3, 9), p=1),
                A.Sharpen(alpha=(0.2, 0.5), p=1),
            ],
            p=0.3,
        )
        noise = A.OneOf(
            [
                A.GaussNoise(std_range=(0.01, 0.05), p=1),
                A.ImageCompression(quality_range=(40, 90), p=1),
            ],
            p=0.3,
        )
        return [*_either_flip(), _moved(0.06, 0.15, 3, p=0.5), light, focus, noise]


class RandomCropTransforms(Augmentation):
    """Crops from anywhere, flipped both ways; for the arguments see `Crop` and `Augmentation`."""

    _on_defect = 0.0  # share of the crops that are placed on a defect, where there is one

    def __init__(
        self,
        height: Side = 256,
        width: Side = 416,
        mean: float = SEVERSTAL_MEAN,
        std: float = SEVERSTAL_STD,
        avoid_black: bool = False,
    ) -> None:
        super().__init__(self._steps(), Crop(height, width, self._on_defect, avoid_black), mean, std)

    def _steps(self) -> list[Transform]:
        return _either_flip()


class DefectCropTransforms(RandomCropTransforms):
    """Crops on a defect where there is one, else from anywhere; flipped both ways."""

    _on_defect = 1.0


class HeavyCropTransforms(RandomCropTransforms):
    """The seed's pipeline under today's Albumentations.

    A crop, half of the time on a defect where there is one; then one of CLAHE, blur and sharpening;
    then one of the three flips, half of the time. The `Flip` and `IAASharpen` of 2019 are rebuilt from
    today's transforms, and `GaussianBlur(3)` has its former weights. The seed's widths were 384, 416, 448
    and 480.
    """

    _on_defect = 0.5

    def _steps(self) -> list[Transform]:
        both = A.Sequential([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=1)
        return [
            A.OneOf(
                [
                    A.CLAHE(p=0.5),
                    A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(_SIGMA_OF_3, _SIGMA_OF_3), p=0.3),
                    A.Sharpen(alpha=(0.2, 0.3), p=0.3),
                ],
                p=1,
            ),
            A.OneOf([A.HorizontalFlip(p=1), A.VerticalFlip(p=1), both], p=0.5),
        ]


def _either_flip() -> list[Transform]:
    """Each of the four orientations of a sheet equally often."""
    return [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]


def _moved(shift: float, scale: float, degrees: float, p: float) -> Transform:
    """A sheet shifted by up to a share of its size, scaled and turned, and reflected at its edges.

    Black there would look like the edge of the steel.
    """
    return A.Affine(
        translate_percent=(-shift, shift),
        scale=(1 - scale, 1 + scale),
        rotate=(-degrees, degrees),
        border_mode=cv2.BORDER_REFLECT_101,
        p=p,
    )


@AUGMENTATIONS.register(nested={"transforms": Nested(TRANSFORMS)})
class Pipeline(Augmentation):
    """Any transforms of Albumentations and of our own, one after the other, and a crop before them.

    Each transform is tried on a drawn sheet, so that one that cannot work on grey sheets and their masks
    is refused before a run.

    Args:
        transforms: ready transforms; in a config names and sections, compositions such as OneOf with
            theirs in `args.transforms`.
        crop: height and width in pixels, and optionally on_defect and avoid_black; see `Crop`. None
            keeps the whole sheet.
        mean: see `Augmentation`.
        std: see `Augmentation`.

    Raises:
        ValueError: with the place of each transform that fails, or that gives anything but one uint8
            channel and masks of 0 and 1; or samples come out in several sizes, which make no batch.
    """

    def __init__(
        self,
        transforms: Sequence[Transform] = (),
        crop: CropSettings | None = None,
        mean: float = SEVERSTAL_MEAN,
        std: float = SEVERSTAL_STD,
    ) -> None:
        if not isinstance(transforms, (list, tuple)):
            raise ValueError(f"transforms: expected a list, received a {type(transforms).__name__}")
        super().__init__(transforms, Crop(**crop) if crop else None, mean, std)
        try:
            self.size_after(SEVERSTAL_SHEET)
        except ValueError:
            if crop:
                raise
            self.size_after(_LARGE_SHEET)  # the user's sheets may be larger than Severstal's
