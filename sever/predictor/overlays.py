"""Pictures of predictions: each sheet with its truth, where known, and what was predicted."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from sever.predictor.predictor import Prediction
from sever.utils.draw_masks import colour, overlay
from sever.utils.files import write_file

logger = logging.getLogger(__name__)

_LARGEST_JPEG = 65_500  # pixels along a side
_LONGEST_STEM = 251  # bytes; a file name has 255 at most
_LINE = 22  # height of a line of text in pixels


def overlay_writer(
    folder: Path,
    names: Sequence[str],
    stems: Sequence[str],
    truth_of: Callable[[str], np.ndarray | None],
    class_names: Sequence[str],
) -> Callable[[Prediction, np.ndarray], None]:
    """The function that writes the picture of a prediction and its masks (C, H, W) into a folder.

    It is a JPEG, or a PNG where it is too large for one. A picture too large for both is left out with a
    warning: the submission is not to be lost for it.

    Args:
        folder: made if missing.
        names: of the images.
        stems: of the pictures, for each image; see `file_stems`.
        truth_of: the name of an image -> its true masks (C, H, W), or None where they are not known.
        class_names: for the legend.
    """
    titles = list(class_names)

    def write(prediction: Prediction, masks: np.ndarray) -> None:
        name = names[prediction.number]
        page = overlay_page(prediction.sheet, masks, truth_of(name), name, titles)
        suffix = ".jpg" if max(page.shape) <= _LARGEST_JPEG else ".png"
        try:
            write_picture(page, folder / f"{stems[prediction.number]}{suffix}")
        except ValueError as error:
            logger.warning("--overlays %s: no picture of %s: %s", folder, name, error)

    return write


def file_stems(names: Sequence[str]) -> list[str]:
    """A stem of its own for the files of each image.

    Example:
        >>> file_stems(["x.jpg", "x.png", "y.png"])
        ['x.jpg', 'x.png', 'y']

    One that would be too long for a file is the number of its image.
    """
    counts = Counter(Path(name).stem for name in names)
    stems = [Path(name).stem if counts[Path(name).stem] == 1 else name for name in names]
    if len(set(stems)) < len(names):  # as of x.jpg, x.png and x.jpg.png, or of a/x.jpg and b/x.jpg
        stems = [name.replace("/", "_") for name in names]
    if len(set(stems)) < len(names):
        stems = [f"{number:06d}" for number in range(len(names))]
    return [s if len(os.fsencode(s)) <= _LONGEST_STEM else f"{n:06d}" for n, s in enumerate(stems)]


def overlay_page(
    image: np.ndarray, predicted: np.ndarray, truth: np.ndarray | None, title: str, class_names: list[str]
) -> np.ndarray:
    """The sheet, the truth where it is known, and the prediction, one below the other.

    Args:
        image: (H, W) uint8 in [0, 255].
        predicted: (C, H, W), not zero where the class is predicted.
        truth: (C, H, W), not zero where the class is, or None where it is not known.
        title: the first line of the page.
        class_names: a name for each class, for the legend.

    Returns:
        (h, w, 3) uint8 page, RGB.
    """
    rows = [("sheet", image, np.zeros_like(predicted))]
    if truth is not None:
        rows.append(("truth", image, truth))
    rows.append(("prediction", image, predicted))
    width = max(image.shape[1], 420)
    legend = [(name, colour(index)) for index, name in enumerate(class_names)]
    parts = [_text_line([(title, (255, 255, 255)), *legend], width)]
    for name, grey, masks in rows:
        areas = [
            f"{class_names[c]}: {int(area)} px"
            for c, area in enumerate((masks != 0).sum(axis=(1, 2)))
            if area
        ]
        found = "" if name == "sheet" else ", ".join(areas) or "no defect"
        parts.append(_text_line([(f"{name}   {found}", (255, 255, 255))], width))
        picture = overlay(grey, masks)
        parts.append(np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0))))
    return np.concatenate(parts)


def _text_line(words: list[tuple[str, tuple[int, int, int]]], width: int) -> np.ndarray:
    line = np.zeros((_LINE, width, 3), np.uint8)
    left = 6
    for text, ink in words:
        (text_width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        cv2.putText(line, text, (left, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.5, ink, 1, cv2.LINE_AA)
        left += text_width + 18
    return line


def write_picture(picture: np.ndarray, path: Path) -> None:
    """Write an (H, W, 3) uint8 RGB picture, from any process, in the format of the path's suffix.

    Raises:
        ValueError: the format holds no picture of that size.
        StorageError: it cannot be written.
    """
    try:
        is_encoded, data = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except cv2.error:  # as OpenCV 4 says it
        is_encoded = False
    if not is_encoded:
        height, width = picture.shape[:2]
        raise ValueError(f"a {path.suffix} cannot hold {height} x {width} pixels")
    write_file(path, data.tobytes(), by_all=True)
