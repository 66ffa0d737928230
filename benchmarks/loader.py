"""Training samples per second of `SteelSegDataLoader`, against decoding alone and against the usual way.

    python benchmarks/loader.py                        40 sheets, drawn into a temporary folder
    python benchmarks/loader.py data/severstal         a folder of sheets in the Severstal layout

Four loaders read the same sheets in the same order, each in one worker process of one thread, which lives
on from epoch to epoch:

sever         `SteelSegDataLoader` with `HeavyCropTransforms` 256 x 416 as training uses it, up to images that
              are float and normalised (`to_device`, in the main process).
sever, cache  the same with `cache: ram`, whose first epoch, which decodes, is not counted.
decode alone  torch's `DataLoader`; its worker decodes a sheet as one grey channel by `cv2.imread` and hands
              on one number, so that next to nothing but decoding is paid for.
usual way     torch's `DataLoader` as in most public solutions of the competition: decode in colour, draw the
              float32 masks of the whole sheet by a Python loop over the runs, then crop, augment and
              normalise by one Albumentations `Compose`. Crop, augmentations and how often each comes are
              those of `HeavyCropTransforms`.

A round is an epoch of each loader, one loader after the other. An epoch holds the sheets of a small folder
several times, so that the pause between two epochs weighs as little as on the whole data set; the first one
starts the workers and is not counted. Speeds are medians over the rounds; a ratio is taken within each round,
and then the median. The stages are timed in one process without workers, where "the rest" is mostly the
copying of samples into a batch, and `to_device`.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A
from albumentations.pytorch import ToTensorV2
from goals import head, print_ratios

from sever.base.base_data_loader import EpochSampler
from sever.data_loader import annotations
from sever.data_loader.augmentation import pipelines
from sever.data_loader.augmentation.pipelines import SEVERSTAL_MEAN, SEVERSTAL_STD, HeavyCropTransforms
from sever.data_loader.data_loaders import SteelSegDataLoader
from sever.data_loader.decoded_cache import Kind
from sever.data_loader.synth.write import draw_dataset
from sever.utils.csv_reading import read_csv, split_rows
from sever.utils.errors import SeverError
from sever.utils.seed import SampleRandom

HEIGHT, WIDTH, CLASSES = 256, 416, 4
SEED = 1234
DRAWN_SHEETS = 40
AT_LEAST_USUAL = 6.0  # times as many samples per second as the usual way
AT_LEAST_CACHED = 10.0
AT_MOST_DECODE = 2.0  # times the time of decoding alone

Epoch = Callable[[int], None]  # number of the epoch -> nothing; all its batches are read


class GreyDecoding(Dataset):
    """Decodes a sheet, and drops it."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        image = cv2.imread(str(self.paths[index]), cv2.IMREAD_GRAYSCALE)
        return int(image[0, 0])


class UsualDataset(Dataset):
    """Sheets with masks, as most public solutions read them.

    Args:
        paths: of the sheets.
        runs: of each sheet, the `start length` pairs of its classes as text.
    """

    def __init__(self, paths: list[Path], runs: list[list[str]]) -> None:
        self.paths = paths
        self.runs = runs
        self.transform = A.Compose(
            [
                A.OneOf([A.CropNonEmptyMaskIfExists(HEIGHT, WIDTH), A.RandomCrop(HEIGHT, WIDTH)], p=1),
                A.OneOf(
                    [
                        A.CLAHE(p=0.5),
                        A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(0.85, 0.85), p=0.3),
                        A.Sharpen(alpha=(0.2, 0.3), p=0.3),
                    ],
                    p=1,
                ),
                A.OneOf(
                    [
                        A.HorizontalFlip(p=1),
                        A.VerticalFlip(p=1),
                        A.Sequential([A.HorizontalFlip(p=1), A.VerticalFlip(p=1)], p=1),
                    ],
                    p=0.5,
                ),
                A.Normalize(mean=[SEVERSTAL_MEAN] * 3, std=[SEVERSTAL_STD] * 3),
                ToTensorV2(transpose_mask=True),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (3, h, w) float32, normalised, and masks (C, h, w) float32 in {0, 1}."""
        image = cv2.imread(str(self.paths[index]))
        height, width = image.shape[:2]
        masks = np.zeros((height, width, CLASSES), dtype=np.float32)
        for channel, runs in enumerate(self.runs[index]):
            mask = np.zeros(height * width, dtype=np.float32)
            numbers = [int(number) for number in runs.split()]
            for start, length in zip(numbers[::2], numbers[1::2], strict=True):
                mask[start - 1 : start - 1 + length] = 1
            masks[:, :, channel] = mask.reshape(height, width, order="F")
        changed = self.transform(image=image, mask=masks)
        return changed["image"], changed["mask"]


def main() -> None:
    options = _options()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)  # the core beside it is the worker's
    with tempfile.TemporaryDirectory() as drawn:
        if options.data_dir is None:
            draw_dataset(drawn, DRAWN_SHEETS, SEED)
        data_dir = options.data_dir or Path(drawn)
        ours, cached = (
            our_loader(data_dir, options.samples, options.batch_size, num_workers=1, cache=cache)
            for cache in ("off", "ram")
        )
        paths = [ours.table.folder / name for name in ours.table.names]
        usual = UsualDataset(paths, _runs(data_dir, ours.table.names))
        readers = {
            "sever": our_epochs(ours),
            "sever, cache": our_epochs(cached),
            "decode alone": plain_epochs(GreyDecoding(paths), ours.indices, options.batch_size),
            "usual way": plain_epochs(usual, ours.indices, options.batch_size),
        }
        seconds = race(readers, options.rounds)
        stages = stage_seconds(our_loader(data_dir, options.samples, options.batch_size, num_workers=0))

    samples = len(ours.indices)
    print(f"{len(paths)} sheets, {options.data_dir or 'drawn'}; batches of {options.batch_size}")
    print(f"{options.rounds} rounds of {samples} samples for each loader, {samples} for the stages\n")
    print_stages({stage: spent / samples for stage, spent in stages.items()})
    print_speeds(seconds, samples)


def our_loader(
    data_dir: Path, samples: int, batch_size: int, num_workers: int, cache: Kind = "off"
) -> SteelSegDataLoader:
    """A loader of all sheets, each so many times in an epoch that it has at least `samples`."""
    loader = SteelSegDataLoader(
        str(data_dir),
        batch_size=batch_size,
        num_workers=num_workers,
        shuffle=True,
        validation_split=0,
        classes=CLASSES,
        augmentation=HeavyCropTransforms(HEIGHT, WIDTH),
        seed=SEED,
        cache=cache,
    )
    times = math.ceil(samples / len(loader.table))
    loader.split_validation({"training": loader.table.names * times, "validation": []})
    return loader


def our_epochs(loader: SteelSegDataLoader) -> Epoch:
    def read(epoch: int) -> None:
        loader.set_epoch(epoch)
        for batch in loader:
            loader.to_device(batch, torch.device("cpu"))

    return read


def plain_epochs(dataset: Dataset, indices: np.ndarray, batch_size: int) -> Epoch:
    order = EpochSampler(indices, shuffle=True, seed=SEED)
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=order,
        num_workers=1,
        worker_init_fn=_one_thread,
        persistent_workers=True,
    )

    def read(epoch: int) -> None:
        order.epoch = epoch
        for _ in loader:
            pass

    return read


def race(readers: dict[str, Epoch], rounds: int) -> dict[str, list[float]]:
    """Let the readers read an epoch in turn, `rounds` times; returns the seconds of each in each round."""
    for read in readers.values():
        read(0)
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for epoch in range(1, rounds + 1):
        for name, read in readers.items():
            start = time.perf_counter()
            read(epoch)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def stage_seconds(loader: SteelSegDataLoader) -> dict[str, float]:
    """Read an epoch in this process; returns the seconds that the stages took."""
    read = our_epochs(loader)
    read(0)
    stages = {
        "decoding": (annotations, "read_grey"),
        "crop, masks from runs": (pipelines, "crop_sheet"),
        "Albumentations": (A.Compose, "__call__"),
        "random generators": (SampleRandom, "of"),
    }
    spent = dict.fromkeys(stages, 0.0)
    with ExitStack() as stack:
        for stage, (owner, name) in stages.items():
            stack.enter_context(_timed(owner, name, spent, stage))
        start = time.perf_counter()
        read(1)
        whole = time.perf_counter() - start
    return spent | {"the rest": whole - sum(spent.values())}


def print_stages(seconds: dict[str, float]) -> None:
    whole = sum(seconds.values())
    print(f"{'sever, one process, no worker':32s} ms per sample   share")
    for stage, spent in seconds.items():
        print(f"  {stage:30s} {1000 * spent:13.2f} {spent / whole:7.0%}")
    print(f"  {'together':30s} {1000 * whole:13.2f}\n")


def print_speeds(seconds: dict[str, list[float]], samples: int) -> None:
    print(f"{'one worker':32s} samples per s   ms per sample")
    for name, of_rounds in seconds.items():
        middle = statistics.median(of_rounds)
        print(f"  {name:30s} {samples / middle:13.1f} {1000 * middle / samples:15.2f}")
    print(f"\n{head('ratio')}")

    def ratios(upper: str, lower: str) -> list[float]:
        return [up / low for up, low in zip(seconds[upper], seconds[lower], strict=True)]

    print_ratios("samples a second / usual way", ratios("usual way", "sever"), at_least=AT_LEAST_USUAL)
    cached = ratios("usual way", "sever, cache")
    print_ratios("samples a second with a cache / usual way", cached, at_least=AT_LEAST_CACHED)
    alone = ratios("sever", "decode alone")
    print_ratios("time of a sample / OpenCV's grey decode alone", alone, at_most=AT_MOST_DECODE)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Training samples per second of SteelSegDataLoader, against decoding alone and against "
        "the usual way."
    )
    parser.add_argument(
        "data_dir",
        nargs="?",
        type=Path,
        metavar="DATA_DIR",
        help="a folder with train.csv and train_images, of sheets of at least "
        f"{HEIGHT} x {WIDTH} pixels; default: {DRAWN_SHEETS} sheets are drawn",
    )
    for name, default, text in (
        ("samples", 300, "in a round, at least; rounded up to a multiple of the sheets"),
        ("rounds", 7, "in which each loader reads an epoch"),
        ("batch-size", 8, "samples in a batch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    return parser.parse_args()


def _runs(data_dir: Path, names: list[str]) -> list[list[str]]:
    """The runs of each sheet's classes as text, empty where it has none."""
    path = data_dir / "train.csv"
    by_sheet = {name: [""] * CLASSES for name in names}
    for _, name, class_id, runs in split_rows(read_csv(path), path):
        if name:
            by_sheet[name][int(class_id) - 1] = runs
    return list(by_sheet.values())


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)


@contextmanager
def _timed(owner: Any, name: str, spent: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds inside `owner.name` to `spent[stage]`."""
    function = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[stage] += time.perf_counter() - start

    is_bound = hasattr(function, "__self__")  # a classmethod has its class already
    with patch.object(owner, name, staticmethod(timed) if is_bound else timed):
        yield


if __name__ == "__main__":
    try:
        main()
    except SeverError as error:
        sys.exit(f"loader.py: {error}")
