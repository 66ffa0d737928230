"""Tries the transforms of a pipeline on a drawn sheet, before a run fails on the thousandth real one."""

import random
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from sever.data_loader.augmentation.transforms import A, Transform

_TRIES = 4  # draws of each transform's random choices, or as many as fit into this time:
_ENOUGH_SECONDS = 1.0


class TransformCheck:
    """Applies each transform in turn, whatever its `p`, to a sheet with defects and to one without.

    Attributes:
        size: (height, width) of the result in pixels.
        faults: place and reason for each transform that fails, or that gives anything but an image (h, w)
            uint8 and masks (h, w) uint8 in {0, 1} of the same size.
        resizing: the places of the transforms that change the size.
    """

    def __init__(self, transforms: Sequence[Transform], size: tuple[int, int]) -> None:
        self.faults: list[str] = []
        self.resizing: list[str] = []
        sample = drawn_sheet(size)
        for number, transform in enumerate(transforms):
            sample = self._after(transform, f"transforms.{number}", sample)
        self.size: tuple[int, int] = sample["image"].shape

    def _after(self, node: Transform, place: str, sample: dict[str, Any]) -> dict[str, Any]:
        """The sheet after a transform or composition; of alternatives after one that changes its size."""
        if node.p <= 0:
            return sample
        if not isinstance(node, A.BaseCompose):
            return self._try(node, f"{place} ({type(node).__name__})", sample)
        result = sample
        for number, child in enumerate(node.transforms):
            at = f"{place}.args.transforms.{number}"
            if not isinstance(node, (A.OneOf, A.OneOrOther)):
                result = self._after(child, at, result)
            else:
                other = self._after(child, at, sample)
                result = result if result["image"].shape != sample["image"].shape else other
        return result

    def _try(self, leaf: A.BasicTransform, place: str, sample: dict[str, Any]) -> dict[str, Any]:
        started, changed = time.perf_counter(), sample
        try:
            _applied(leaf, 0, {"image": sample["image"]})
            for seed in range(_TRIES):
                changed = _applied(leaf, seed, sample)
                if changed["image"].shape != sample["image"].shape:
                    self.resizing.append(place)
                    break
                if time.perf_counter() - started > _ENOUGH_SECONDS:
                    break
        except ValueError as fault:
            self.faults.append(f"{place}: {fault}")
        return changed


def drawn_sheet(size: tuple[int, int]) -> dict[str, Any]:
    """`image` (h, w) uint8 of noise, and `masks` (2, h, w) uint8 in {0, 1} of a defect each."""
    height, width = size
    masks = np.zeros((2, *size), np.uint8)
    masks[0, height // 8 : height // 3 + 1, width // 8 : width // 3 + 1] = 1
    masks[1, height // 2 : height // 4 * 3 + 1, width // 2 : width // 4 * 3 + 1] = 1
    return {"image": np.random.default_rng(0).integers(40, 200, size, dtype=np.uint8), "masks": masks}


def _applied(leaf: A.BasicTransform, seed: int, sample: dict[str, Any]) -> dict[str, Any]:
    """A sample after a transform; ValueError where it fails, or gives what a pipeline must not."""
    if "image" not in leaf.targets:
        raise ValueError("changes no images")
    leaf.set_random_state(np.random.default_rng(seed), random.Random(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", UserWarning)  # says that something will not be done
        try:
            changed = leaf(force_apply=True, **{key: array.copy() for key, array in sample.items()})
        except Exception as error:  # whatever Albumentations and OpenCV raise
            height, width = sample["image"].shape
            kind = "with" if "masks" in sample else "without"
            reason = str(error).partition("\n")[0] or type(error).__name__
            text = f"fails on a grey sheet of {height} x {width} {kind} a defect: {reason}"
            raise ValueError(text) from error
    image, masks = changed["image"], changed.get("masks", np.zeros((0, 0, 0), np.uint8))
    if image.dtype != np.uint8 or image.ndim != 2:
        advice = "; it becomes a float tensor after the pipeline, by 'mean' and 'std'"
        raise ValueError(
            f"expected an image of one uint8 channel (height, width), received {_described(image)}"
            f"{'' if image.dtype == np.uint8 else advice}"
        )
    if len(masks) and (masks.dtype != np.uint8 or masks.shape[1:] != image.shape or masks.max(initial=0) > 1):
        raise ValueError(
            f"expected uint8 masks of 0 and 1 and of the image's {image.shape[0]} x {image.shape[1]} pixels, "
            f"received {_described(masks)} with a value of {masks.max()}"
        )
    return changed


def _described(array: Any) -> str:
    return f"{type(array).__name__} of {array.dtype} {tuple(array.shape)}"
