"""The transforms of Albumentations by name, constructed strictly, and our own."""

import functools
import inspect
import math
import os
import typing
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from pydantic import Field, ValidationError

from sever.config.registry import Nested, Registry

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for updates otherwise
import albumentations as A

Transform: TypeAlias = A.BasicTransform | A.BaseCompose

_COMPOSITIONS = (A.Compose, A.OneOf, A.OneOrOther, A.RandomOrder, A.Sequential, A.SomeOf)
# The arguments of theirs that make sense inside a pipeline of sheets and masks.
_COMPOSITION_ARGS = ("transforms", "first", "second", "n", "replace", "p")
_BASES = (A.BasicTransform, A.DualTransform, A.ImageOnlyTransform, A.Transform3D, A.Lambda)
# Albumentations warns of values that it changes, which are refused here; these warnings are only advice.
_ADVICE = ("is a special case", "is a specialized version", "is an alias", "is very slow")
_AROUND = 15  # size in pixels of the kernel that finds the surroundings of a defect


class _TransformRegistry(Registry):
    """The transforms by name; none takes a value that it would ignore or change."""

    def find(self, name: str, where: str) -> Callable[..., Any]:
        """See `Registry.find`."""
        return _strict(super().find(name, where))


TRANSFORMS = _TransformRegistry("transform", "albumentations.BasicTransform")


class _Strict:
    """A class of Albumentations with the argument types of its schema, constructed strictly.

    By itself Albumentations takes text for numbers, only warns of unknown arguments, drops those that are
    missing in its schema, and replaces some values by the nearest allowed one.
    """

    def __init__(self, thing: type[Transform]) -> None:
        self._thing = thing
        self.__name__ = thing.__name__
        self.__doc__ = thing.__doc__
        owner = next(base for base in thing.__mro__ if "__init__" in vars(base))
        hints = _type_hints(thing, vars(owner)["__init__"])
        self._has_schema = "InitSchema" in vars(owner)
        names = [name for name in inspect.signature(thing).parameters if not self._drops(name, hints)]
        signature = inspect.signature(thing)
        self.__signature__ = signature.replace(parameters=[signature.parameters[name] for name in names])
        self.__annotations__ = {name: hint for name, hint in hints.items() if name in names}

    def _drops(self, name: str, hints: dict[str, Any]) -> bool:
        if issubclass(self._thing, A.BaseCompose):
            return name not in _COMPOSITION_ARGS
        return self._has_schema and name not in hints

    def __call__(self, **args: Any) -> Transform:
        """Construct it; ValueError where it refuses a value or would change it."""
        if issubclass(self._thing, A.BaseCompose):
            _check_composition(self._thing, args)
        strict = {"strict": True} if self._has_schema else {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                made = self._thing(**args, **strict)
            except ValueError as error:
                raise ValueError(_reason(error)) from error
        changed = [text for text in (str(w.message) for w in caught) if not any(a in text for a in _ADVICE)]
        if changed:
            raise ValueError("; ".join(changed))
        return made


_strict = functools.cache(_Strict)


def _type_hints(thing: type[Transform], constructor: Callable[..., None]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(constructor)
    except NameError:  # imported for type checkers alone
        hints = {}
    schema = getattr(thing, "InitSchema", None)
    return {**hints, **(typing.get_type_hints(schema) if schema else {})}


def _check_composition(thing: type[A.BaseCompose], args: dict[str, Any]) -> None:
    """Refuse arguments that compositions do not check."""
    transforms = args.get("transforms", [args[name] for name in ("first", "second") if name in args])
    if not isinstance(transforms, list) or not transforms:
        received = "an empty one" if transforms == [] else f"a {type(transforms).__name__}"
        raise ValueError(f"transforms: expected a list of at least one transform, received {received}")
    if "transforms" in args and ("first" in args or "second" in args):
        raise ValueError("expected either 'transforms' or 'first' and 'second', received both")
    if thing is A.OneOrOther and len(transforms) != 2:
        raise ValueError(f"expected two transforms, received {len(transforms)}")
    p = args.get("p", 1)
    if not 0 <= p <= 1:
        raise ValueError(f"p: expected a share from 0 to 1, received {p}")
    most = math.inf if args.get("replace") else len(transforms)
    if not 1 <= args.get("n", 1) <= most:
        raise ValueError(f"n: expected a number from 1 to that of the transforms, received {args['n']}")
    if thing is A.OneOf and not any(transform.p for transform in transforms):
        raise ValueError("transforms: expected a p above 0 in at least one of them, which are its weights")


def _reason(error: ValueError) -> str:
    """What pydantic found, by argument, in one line."""
    if not isinstance(error.__cause__, ValidationError):
        return str(error)
    found = []
    for detail in error.__cause__.errors():
        name = ".".join(str(part) for part in detail["loc"][:1])
        text = detail["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")
        found.append(f"{name}: {text}, received {detail['input']!r}" if name else text)
    return "; ".join(dict.fromkeys(found))


for _name in dir(A):
    _thing = getattr(A, _name)
    if isinstance(_thing, type) and issubclass(_thing, A.BasicTransform) and _thing not in _BASES:
        TRANSFORMS.register(_thing)
for _thing in _COMPOSITIONS:
    TRANSFORMS.register(
        _thing, nested={name: Nested(TRANSFORMS) for name in ("transforms", "first", "second")}
    )


@TRANSFORMS.register
class DefectBlackout(A.DualTransform):
    """Paints over defects and removes their labels, so that a model learns to look at the defect itself.

    The winners of Severstal's competition did so with random components for their classifier
    (https://www.kaggle.com/c/severstal-steel-defect-detection/discussion/114254); all else is chosen here.
    Albumentations' `MaskDropout` takes a single mask. A painted pixel loses its label in every class.

    Args:
        remove: what is removed or kept as a whole: "component", the pixels of a class that touch each
            other, at corners too, or "class", all of a class on the sample.
        share: the probability, in [0, 1], with which each of these is removed.
        fill: "black"; "sheet", the mean of all pixels without a defect; "local", for each component
            the mean of the pixels without a defect around it.
        p: probability that the transform is applied.
    """

    class InitSchema(A.BasicTransform.InitSchema):
        """The types of the arguments."""

        remove: Literal["component", "class"]
        share: float = Field(ge=0, le=1)
        fill: Literal["black", "sheet", "local"]

    def __init__(
        self,
        remove: Literal["component", "class"] = "component",
        share: float = 0.5,
        fill: Literal["black", "sheet", "local"] = "black",
        p: float = 0.5,
    ) -> None:
        super().__init__(p=p)
        self.remove = remove
        self.share = share
        self.fill = fill

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Choose what is removed.

        Returns:
            removed: (h, w) int32, the number of each removed component, 0 elsewhere; None where none is.
            levels: the grey level in [0, 255] of each number, from 1.
        """
        removed = np.zeros(data["image"].shape[:2], np.int32)
        number = 0
        masks = data.get("masks", ())
        for mask in masks:
            count, labels = cv2.connectedComponents(mask, connectivity=8)
            numbers = np.zeros(count, np.int32)
            drawn = self.py_random.random() < self.share
            for label in range(1, count):
                if drawn:
                    number += 1
                    numbers[label] = number
                if self.remove == "component":
                    drawn = self.py_random.random() < self.share
            if numbers.any():
                np.maximum(removed, numbers[labels], out=removed)
        if not number:
            return {"removed": None, "levels": []}
        clean = 1 - np.maximum.reduce(list(masks))
        return {"removed": removed, "levels": self._levels(data["image"], removed, clean, number)}

    def _levels(self, image: np.ndarray, removed: np.ndarray, clean: np.ndarray, count: int) -> list[int]:
        """The grey levels of the numbers in `removed`; `clean` (h, w) uint8 is 1 outside the defects."""
        if self.fill == "black":
            return [0] * count
        sheet = round(cv2.mean(image, clean)[0])
        if self.fill == "sheet":
            return [sheet] * count
        kernel = np.ones((_AROUND, _AROUND), np.uint8)
        levels = []
        for number in range(1, count + 1):
            around = cv2.dilate((removed == number).astype(np.uint8), kernel) & clean
            levels.append(round(cv2.mean(image, around)[0]) if around.any() else sheet)
        return levels

    def apply(self, img: np.ndarray, removed: np.ndarray | None, levels: list[int], **params: Any) -> Any:
        """Paint the image (h, w) uint8."""
        if removed is None:
            return img
        return np.where(removed > 0, np.array([0, *levels], np.uint8)[removed], img)

    def apply_to_mask(self, mask: np.ndarray, removed: np.ndarray | None, **params: Any) -> np.ndarray:
        """Remove the label from a mask (h, w) uint8 in {0, 1}."""
        return mask if removed is None else mask * (removed == 0)
