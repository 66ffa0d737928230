"""Data sets of very small black images that tests share, in the Severstal layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

TODAY = "ImageId,ClassId,EncodedPixels\n"
OF_2019 = "ImageId_ClassId,EncodedPixels\n"


def draw_images(folder: Path, names: Sequence[str], size: tuple[int, int] = (8, 8), grey: int = 0) -> None:
    """Write images of one size (H, W) and grey level."""
    folder.mkdir(parents=True, exist_ok=True)
    png = cv2.imencode(".png", np.full(size, grey, dtype=np.uint8))[1].tobytes()
    for name in names:
        (folder / name).write_bytes(png)


def draw_data(folder: Path, classes_of: Mapping[str, Sequence[int]]) -> Path:
    """Write `train.csv` and `train_images`; each class of an image is a mask of one pixel."""
    draw_images(folder / "train_images", list(classes_of))
    rows = [f"{name},{c},{c} 1\n" for name, classes in classes_of.items() for c in classes]
    (folder / "train.csv").write_text(TODAY + "".join(rows))
    return folder


def numbered(sets: Sequence[tuple[int, Sequence[int]]]) -> dict[str, Sequence[int]]:
    """`(how many, classes)` -> the classes of each image, by names 000.png, 001.png, …"""
    classes = [of_image for count, of_image in sets for _ in range(count)]
    return {f"{index:03d}.png": of_image for index, of_image in enumerate(classes)}
