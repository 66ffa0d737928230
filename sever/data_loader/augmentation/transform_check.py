"""Tries every transform of a pipeline on a drawn sample, before a run meets it on the thousandth sheet."""

import functools
import random
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from sever.data_loader.augmentation.transforms import A, Transform

Size = tuple[int, int]

_TRIES = 4  # draws of each transform's random choices, or as many as fit into this time:
_ENOUGH_SECONDS = 1.0
_MOST_SIZES = 4  # of those that a transform of random size gives, as many go on to the next one
_CLASSES = 2


class TransformCheck:
    """What the transforms of a pipeline do to samples of a size.

    Each one runs by itself, always applied, on a drawn sample of every size that can reach it, with
    defects and without. A sample must come out as it went in: an image (h, w) uint8 and masks (h, w)
    uint8 in {0, 1} of the same size.

    Args:
        transforms: of the pipeline, compositions of them included.
        size: (height, width) in pixels, of what goes in.

    Attributes:
        sizes: all with which a sample can come out.
        faults: of each transform that breaks the rules, its place and why.
        resizing: the places of those that give more than one size.
    """

    def __init__(self, transforms: Sequence[Transform], size: Size) -> None:
        self.faults: list[str] = []
        self.resizing: list[str] = []
        self._tried: dict[tuple[int, Size], set[Size]] = {}
        self.sizes = self._in_turn(_children(transforms, "transforms"), {size})

    def _in_turn(self, children: list[tuple[Transform, str]], sizes: set[Size]) -> set[Size]:
        for child, at in children:
            sizes = self._after(child, sizes, at)
        return sizes

    def _after(self, node: Transform, sizes: set[Size], at: str, forced: bool = False) -> set[Size]:
        """The sizes after a transform; `forced`: it is applied whatever its `p` is."""
        if node.p <= 0:
            return sizes
        if not isinstance(node, A.BaseCompose):
            after = {size for before in sorted(sizes) for size in self._try(node, before, at)}
            after = set(sorted(after)[:_MOST_SIZES])
        else:
            children = _children(node.transforms, f"{at}.args.transforms")
            forced = forced and not isinstance(node, A.SomeOf)
            if isinstance(node, (A.OneOf, A.OneOrOther)):
                after = {s for child, place in children for s in self._after(child, sizes, place, True)}
                forced = forced or isinstance(node, A.OneOrOther)  # its p is how often it is the first
            elif isinstance(node, A.SomeOf):
                after = self._some_of(node, children, sizes)
            else:
                after = self._in_turn(children, sizes)
        return after if forced or node.p >= 1 else after | sizes

    def _some_of(self, node: A.SomeOf, children: list[tuple[Transform, str]], sizes: set[Size]) -> set[Size]:
        if node.n == len(children) and not node.replace and not isinstance(node, A.RandomOrder):
            return self._in_turn(children, sizes)
        for _ in range(node.n):
            after = {s for child, place in children for s in self._after(child, sizes, place)} | sizes
            if after == sizes:
                break
            sizes = set(sorted(after)[:_MOST_SIZES])
        return sizes

    def _try(self, leaf: A.BasicTransform, size: Size, at: str) -> set[Size]:
        """The sizes that a transform gives; where it breaks the rules, that which it got."""
        key = id(leaf), size
        if key not in self._tried:
            name = f"{at} ({type(leaf).__name__})"
            try:
                after = _run(leaf, size)
            except _BrokenRuleError as fault:
                self.faults.append(f"{name}: {fault}")
                after = {size}
            if after != {size} and name not in self.resizing:
                self.resizing.append(name)
            self._tried[key] = after
        return self._tried[key]


class _BrokenRuleError(Exception):
    """What a transform did that it must not do."""


def _children(transforms: Sequence[Transform], at: str) -> list[tuple[Transform, str]]:
    return [(transform, f"{at}.{number}") for number, transform in enumerate(transforms)]


def _run(leaf: A.BasicTransform, size: Size) -> set[Size]:
    """Apply a transform to a sample without defects, and some times to one with; returns the sizes."""
    if "image" not in leaf.targets:
        raise _BrokenRuleError("changes no images")
    started = time.perf_counter()
    image, masks = _sample(size)
    sizes = {_applied(leaf, 0, image=image.copy())}
    for seed in range(_TRIES):
        sizes.add(_applied(leaf, seed, image=image.copy(), masks=masks.copy()))
        if time.perf_counter() - started > _ENOUGH_SECONDS:
            break
    return sizes


def _applied(leaf: A.BasicTransform, seed: int, **targets: np.ndarray) -> Size:
    leaf.set_random_state(np.random.default_rng(seed), random.Random(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", UserWarning)  # says that something will not be done
        try:
            return _checked_size(leaf(force_apply=True, **targets))
        except _BrokenRuleError:
            raise
        except Exception as error:  # whatever Albumentations and OpenCV raise
            height, width = targets["image"].shape
            kind = "with" if "masks" in targets else "without"
            reason = str(error).partition("\n")[0] or type(error).__name__
            text = f"fails on a grey sheet of {height} x {width} {kind} a defect: {reason}"
            raise _BrokenRuleError(text) from error


@functools.lru_cache(maxsize=_MOST_SIZES)
def _sample(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """An image (h, w) uint8 of noise and masks (2, h, w) uint8 of a defect each."""
    height, width = size
    image = np.random.default_rng(0).integers(40, 200, size, dtype=np.uint8)
    masks = np.zeros((_CLASSES, *size), np.uint8)
    masks[0, height // 8 : height // 3 + 1, width // 8 : width // 3 + 1] = 1
    masks[1, height // 2 : height // 4 * 3 + 1, width // 2 : width // 4 * 3 + 1] = 1
    return image, masks


def _checked_size(changed: dict[str, Any]) -> Size:
    image, masks = changed["image"], changed.get("masks")
    if not _is_grey(image, 2):
        stays_grey = isinstance(image, np.ndarray) and image.dtype == np.uint8
        advice = "" if stays_grey else "; it becomes a float tensor after the pipeline, by 'mean' and 'std'"
        raise _BrokenRuleError(
            f"expected an image of one uint8 channel (height, width), received {_described(image)}{advice}"
        )
    if masks is not None and not (_is_grey(masks, 3) and masks.shape[1:] == image.shape):
        raise _BrokenRuleError(
            f"expected uint8 masks of the image's {image.shape[0]} x {image.shape[1]} pixels, received "
            f"{_described(masks)}"
        )
    if masks is not None and masks.size and masks.max() > 1:
        raise _BrokenRuleError(f"expected masks of 0 and 1, received a value of {masks.max()}")
    height, width = image.shape
    return height, width


def _is_grey(array: Any, axes: int) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == axes


def _described(array: Any) -> str:
    shape = tuple(getattr(array, "shape", ()))
    return f"{type(array).__name__} of {getattr(array, 'dtype', 'no type')} {shape}"
