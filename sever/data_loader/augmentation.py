"""Augmentation pipelines. The only file that knows Albumentations."""

import os
from collections.abc import Sequence

import cv2
import numpy as np
import torch

from sever.utils.registry import Registry
from sever.utils.rle import Spans, decode_spans, union
from sever.utils.seed import SampleRandom

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for updates otherwise
import albumentations as A

# Grey level of the training sheets as a share of white, and its standard deviation. The seed
# normalised with std 0.0383, which is the variance.
SEVERSTAL_MEAN = 0.3439
SEVERSTAL_STD = 0.1957

# 1 / sqrt(2 ln 2): gives 1/4, 1/2, 1/4, the weights of OpenCV's own blur of width 3.
_SIGMA_OF_3 = 0.84932


class Augmentation:
    """Changes one sheet and its masks, and says how grey levels are normalised.

    A crop comes first and is taken before masks are decoded, so that nothing is paid for pixels that
    are cut away. Subclasses give the size of the crop and the Albumentations transforms after it.

    Args:
        transforms: what happens to the crop.
        crop: (height, width) in pixels; None keeps the whole sheet.
        mean: grey level that becomes 0, as a share of white.
        std: distance from it that becomes 1, likewise.
    """

    def __init__(
        self,
        transforms: Sequence[A.BasicTransform | A.BaseCompose],
        crop: tuple[int, int] | None = None,
        mean: float = SEVERSTAL_MEAN,
        std: float = SEVERSTAL_STD,
    ) -> None:
        if not std > 0:
            raise ValueError(f"std must be above 0, received {std}")
        if crop is not None and min(crop) < 1:
            raise ValueError(f"height and width must be at least 1, received {crop[0]} and {crop[1]}")
        self.crop = crop
        self.mean = mean
        self.std = std
        self._compose = A.Compose(list(transforms), strict=True)

    def __call__(
        self, image: np.ndarray, spans: Sequence[Spans], random: SampleRandom
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment a sheet.

        Args:
            image: (H, W) uint8 in [0, 255].
            spans: of each class.
            random: of the sample.

        Returns:
            image (h, w) uint8 and masks (C, h, w) uint8 in {0, 1}.
        """
        classes = [index for index, of_class in enumerate(spans) if len(of_class)]
        present = [spans[index] for index in classes]
        if self.crop is None:
            masks = [decode_spans(of_class, image.shape) for of_class in present]
        else:
            image, masks = crop_sheet(image, present, self.crop, random)
        # All transforms share the generators; `set_random_seed` would give each its own copy, and
        # they would all draw the same numbers.
        self._compose.set_random_state(random.numpy, random.python)
        targets = {"masks": masks} if masks else {}
        changed = self._compose(image=np.ascontiguousarray(image), **targets)
        image = changed["image"]
        full = np.zeros((len(spans), *image.shape[:2]), dtype=np.uint8)
        for index, mask in zip(classes, changed.get("masks", ()), strict=True):
            full[index] = mask
        return image, full

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Grey levels uint8 in [0, 255] -> float32, (x / 255 - mean) / std."""
        return images.float().sub_(255 * self.mean).div_(255 * self.std)


AUGMENTATIONS = Registry("augmentation", base=Augmentation)


@AUGMENTATIONS.register
class LightTransforms(Augmentation):
    """Whole sheets, flipped both ways.

    Args:
        mean: grey level that becomes 0, as a share of white.
        std: distance from it that becomes 1, likewise.
    """

    def __init__(self, mean: float = SEVERSTAL_MEAN, std: float = SEVERSTAL_STD) -> None:
        super().__init__([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)], None, mean, std)


@AUGMENTATIONS.register
class HeavyCropTransforms(Augmentation):
    """The seed's pipeline under today's Albumentations.

    A crop, half of the time on a defect where there is one; then one of CLAHE, blur and sharpening;
    then one of the three flips, half of the time. `Flip` and `IAASharpen` of 2019 are gone: they are
    built from what there is, `GaussianBlur(3)` with the weights that it had then.

    Args:
        height: of the crop in pixels.
        width: of the crop in pixels; 384, 416, 448 and 480 were used.
        mean: grey level that becomes 0, as a share of white.
        std: distance from it that becomes 1, likewise.
    """

    def __init__(
        self,
        height: int = 256,
        width: int = 416,
        mean: float = SEVERSTAL_MEAN,
        std: float = SEVERSTAL_STD,
    ) -> None:
        both = A.Sequential([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=1)
        transforms = [
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
        super().__init__(transforms, (height, width), mean, std)


def crop_sheet(
    image: np.ndarray,
    spans: Sequence[Spans],
    size: tuple[int, int],
    random: SampleRandom,
    on_defect: float = 0.5,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cut a window out of a sheet, and out of its masks without drawing them whole.

    The choice is that of Albumentations' `CropNonEmptyMaskIfExists` and `RandomCrop`, which take
    some 10 ms of a 256 x 1600 sheet to search its masks. A sheet smaller than the window is
    reflected at its edges.

    Args:
        image: (H, W) uint8.
        spans: of the classes that are on the sheet.
        size: (height, width) of the window in pixels.
        random: of the sample.
        on_defect: how often the window must hold a defect, where there is one.

    Returns:
        image (height, width) uint8, and a mask (height, width) uint8 for each of `spans`.
    """
    pads = [max(0, wanted - there) for wanted, there in zip(size, image.shape, strict=True)]
    before = [pad // 2 for pad in pads]
    focus: Sequence[int | None] = (None, None)
    if random.python.random() < on_defect and spans:
        row, column = _defect_pixel(spans, image.shape[0], random)
        focus = (row + before[0], column + before[1])
    top, left = (
        _window_start(at, wanted, there + pad, random)
        for at, wanted, there, pad in zip(focus, size, image.shape, pads, strict=True)
    )
    if not any(pads):
        masks = [decode_spans(s, image.shape, (top, left, *size)) for s in spans]
        return image[top : top + size[0], left : left + size[1]], masks
    whole = [image, *(decode_spans(s, image.shape) for s in spans)]
    sides = (before[0], pads[0] - before[0], before[1], pads[1] - before[1])
    padded = [cv2.copyMakeBorder(part, *sides, cv2.BORDER_REFLECT_101) for part in whole]
    cut = [part[top : top + size[0], left : left + size[1]] for part in padded]
    return cut[0], cut[1:]


def _defect_pixel(spans: Sequence[Spans], height: int, random: SampleRandom) -> tuple[int, int]:
    """A (row, column) of a defect of any class, each pixel as likely as any other."""
    pixels = union(list(spans))
    ends = np.cumsum(pixels[:, 1] - pixels[:, 0])
    chosen = random.python.randrange(int(ends[-1]))
    run = int(np.searchsorted(ends, chosen, side="right"))
    column, row = divmod(int(pixels[run, 1]) - (int(ends[run]) - chosen), height)
    return row, column


def _window_start(at: int | None, wanted: int, there: int, random: SampleRandom) -> int:
    if at is None:
        return random.python.randint(0, there - wanted)
    return min(max(at - random.python.randint(0, wanted - 1), 0), there - wanted)
