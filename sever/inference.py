"""`sever.load`: trained models in Python, by the way that `sever predict` takes from an image to masks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import overload

import numpy as np
import pandas as pd
from PIL import Image

from sever.config.build import class_ids_of
from sever.config.loader_args import testing_args
from sever.config.request import Request
from sever.data_loader.image_files import find_images
from sever.data_loader.prediction_loader import ArrayDataLoader, PredictionDataLoader
from sever.factory import postprocess_of, prediction_loader
from sever.parallel.device import check_precision, choose_device
from sever.predictor.defects import defect_table
from sever.predictor.overlays import overlay_page
from sever.predictor.predictor import Prediction, Predictor
from sever.trained_models import Ensemble, load_ensemble
from sever.utils.errors import ConfigError, DataError, SeveralDevices
from sever.utils.files import neighbours
from sever.utils.rle import encode

_GROUP = 64  # images of a stream that are predicted together

PathOrArray = str | Path | np.ndarray


@dataclass(frozen=True, eq=False)
class Found:
    """What a model finds on an image.

    Attributes:
        name: the image's file name, or its number where it was an array.
        image: (H, W) uint8 in [0, 255].
        masks: (C, H, W) uint8 in {0, 1}, post-processed as in `sever predict`.
        probabilities: (C, H, W) float32 in [0, 1].
        label_probabilities: (C,) float32 in [0, 1] of a classifier among the models; None without one.
        class_ids: the ClassIds of the C classes.
        class_names: what people call them.
        mm_per_pixel: the side of a pixel in millimetres, where it is known.
    """

    name: str
    image: np.ndarray
    masks: np.ndarray
    probabilities: np.ndarray
    label_probabilities: np.ndarray | None
    class_ids: list[str]
    class_names: list[str]
    mm_per_pixel: float | None

    @cached_property
    def defects(self) -> pd.DataFrame:
        """A row for each connected component; see `defect_table` for the columns."""
        return defect_table(
            self.masks, self.probabilities, self.class_ids, self.class_names, self.mm_per_pixel
        )

    def rle(self) -> dict[str, str]:
        """The runs of each class by its ClassId, as a submission holds them; empty where there is none."""
        return {class_id: encode(mask) for class_id, mask in zip(self.class_ids, self.masks, strict=True)}

    def plot(self) -> Image.Image:
        """A picture of the image and of the masks on it, which a notebook shows and `.save(path)` writes."""
        return Image.fromarray(overlay_page(self.image, self.masks, None, self.name, self.class_names))

    def __repr__(self) -> str:
        """The name, the size and the number of defects."""
        height, width = self.image.shape
        return f"Found({self.name}, {height} x {width}, {len(self.defects)} defects)"


class Model:
    """One or several trained models, which find defects on images.

    Example:
        model = sever.load("saved/fpn-b5/1201_120000/model_best.pth")
        found = model("sheet.jpg")
        found.defects  # a pandas table
        for found in model("sheets/"):
            found.plot().save(f"pictures/{found.name}.png")
    """

    def __init__(self, ensemble: Ensemble, request: Request, mm_per_pixel: float | None = None) -> None:
        ensemble.check_masks()
        self._config = ensemble.config
        settings = self._config.checked.predict
        try:
            self.device = choose_device(request.device, 1)
        except SeveralDevices as error:
            raise ConfigError(f"device: expected one, received {request.device}") from error
        check_precision(self.device, request.precision, "precision")
        self.class_ids = class_ids_of(self._config)
        self.class_names = settings.names_of(self.class_ids)
        self.mm_per_pixel = settings.mm_per_pixel if mm_per_pixel is None else mm_per_pixel
        self._to_masks: Callable[[np.ndarray, np.ndarray | None], np.ndarray] = postprocess_of(settings)
        self._predictor: Predictor = ensemble.predictor(self.device, request.precision)

    @overload
    def __call__(self, images: np.ndarray) -> Found: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: list[PathOrArray]) -> list[Found]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: str | Path) -> "Found | Iterator[Found]": ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Iterable[PathOrArray]) -> Iterator[Found]: ...

    def __call__(self, images: PathOrArray | Iterable[PathOrArray]) -> Found | list[Found] | Iterator[Found]:
        """Find the defects on images.

        Args:
            images: an (H, W) uint8 array of grey levels or the path of an image; a list of them; the path of
                a folder, a pattern such as `sheets/*.jpg` or a `.txt` file of paths; any other iterable of
                arrays and paths.

        Returns:
            What is found on an image; on a list of images a list; on anything else an iterator, which
            predicts the images as it is asked for them and holds few of them in memory.

        Raises:
            DataError: there is no image, or one cannot be read or is no (H, W) uint8 array.
            CheckpointError: a model's outputs are not finite.
        """
        if isinstance(images, np.ndarray):
            return next(self._found_on_arrays([images], [0]))
        if isinstance(images, str | Path):
            folder, names = find_images(Path(images))
            found = self._found_on_paths(folder, names)
            is_one = Path(images).is_file() and names is not None and len(names) == 1
            return next(found) if is_one else found
        if not isinstance(images, Iterable):
            raise DataError(f"expected an image, or several, received {images!r:.60}")
        found = self._stream(images)
        return list(found) if isinstance(images, list) else found

    def _stream(self, images: Iterable[PathOrArray]) -> Iterator[Found]:
        numbered = map(_checked, enumerate(images))
        while group := list(islice(numbered, _GROUP)):
            for is_array, of_kind in groupby(group, lambda pair: isinstance(pair[1], np.ndarray)):
                numbers, same = zip(*of_kind, strict=True)
                if is_array:
                    yield from self._found_on_arrays(same, numbers)
                else:
                    yield from self._found_on_paths(Path(), list(map(str, same)))

    def _found_on_paths(self, folder: Path, names: list[str] | None) -> Iterator[Found]:
        on_gpu = self.device.type == "cuda"
        return self._found(prediction_loader(self._config, folder, names, on_gpu, "the images"))

    def _found_on_arrays(self, arrays: Sequence[np.ndarray], numbers: Sequence[int]) -> Iterator[Found]:
        size = self._config.checked.predict.batch_size or testing_args(self._config).get("batch_size", 8)
        return self._found(ArrayDataLoader(arrays, [str(number) for number in numbers], size))

    def _found(self, loader: PredictionDataLoader | ArrayDataLoader) -> Iterator[Found]:
        names = loader.sample_names

        def found_in(prediction: Prediction) -> Found:
            assert prediction.probs is not None
            masks = self._to_masks(prediction.probs, prediction.label_probs)
            return Found(
                Path(names[prediction.number]).name,
                prediction.sheet,
                masks,
                prediction.probs,
                prediction.label_probs,
                self.class_ids,
                self.class_names,
                self.mm_per_pixel,
            )

        return self._predictor.map(found_in, loader)


def load(
    checkpoints: str | Path | Sequence[str | Path],
    *,
    config: str | Path | None = None,
    settings: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    precision: str = "fp32",
    average: str = "mean",
    weights: Sequence[float] | None = None,
    tta: str = "none",
    mm_per_pixel: float | None = None,
    trust: bool = False,
) -> Model:
    """Load a trained model, or several as an ensemble; the arguments are the options of `sever predict`.

    Args:
        checkpoints: the path of a checkpoint, or several.
        config: a YAML file in the place of the config that the checkpoint holds.
        settings: thresholds and areas that `sever tune` wrote.
        overrides: `KEY=VALUE`, as with `-s`.
        device: `auto`, `cpu`, or the number of a GPU.
        precision: `fp32`, `bf16` or `fp16`.
        average: how several models are averaged: `mean`, `rms`, `geometric`, `max` or `vote`.
        weights: weights of several models.
        tta: flips at test time: `none`, `hflip`, `vflip` or `both`.
        mm_per_pixel: the side of a pixel in millimetres; by default the config's `predict.mm_per_pixel`.
        trust: import code that is not the program's own, where a checkpoint names it.

    Raises:
        CheckpointError: a checkpoint cannot be read.
        ConfigError: the models do not go together or with the arguments.
        DeviceError: the device is not there.
    """
    several = [checkpoints] if isinstance(checkpoints, str | Path) else checkpoints
    request = Request(
        tuple(map(Path, several)),
        config=Path(config) if config else None,
        settings=Path(settings) if settings else None,
        overrides=tuple(overrides),
        device=device,
        precision=precision,
        average=average,
        weights=tuple(weights) if weights is not None else None,
        tta=tta,
        trust=trust,
    )
    return Model(load_ensemble(request), request, mm_per_pixel)


def _checked(numbered: tuple[int, PathOrArray]) -> tuple[int, PathOrArray]:
    number, image = numbered
    if not isinstance(image, str | Path | np.ndarray):
        raise DataError(f"image {number}: expected an array or a path, received {image!r:.60}")
    if not isinstance(image, np.ndarray) and not Path(image).is_file():
        raise DataError(f"image {number}: {image}: no such file{neighbours(Path(image))}")
    return numbered
