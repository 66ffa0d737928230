"""The files that predictions go into: tables of all images, and one file for each image."""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sever.base import BaseDataLoader
from sever.predictor.defects import coco_counts, components, defect_table
from sever.predictor.predictor import Prediction, Predictor
from sever.predictor.submission.write import Layout, csv_text
from sever.utils.errors import ConfigError
from sever.utils.files import FileInProgress, atomic_write, write_file

# Writes what belongs to an image: its prediction and its masks (C, H, W) uint8 in {0, 1}.
OfImage = Callable[[Prediction, np.ndarray], None]


class Table(ABC):
    """A file of all images; `part` is called in several threads and processes, the rest in one, in order.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, file: FileInProgress) -> None:
        """Write what is before all images."""
        return

    @abstractmethod
    def part(self, name: str, prediction: Prediction, masks: np.ndarray) -> Any:
        """What the file holds of an image, as values that can be sent between processes."""

    @abstractmethod
    def add(self, file: FileInProgress, part: Any) -> None:
        """Write the part of the next image."""

    def end(self, file: FileInProgress) -> None:
        """Write what is after all images."""
        return


class SubmissionTable(Table):
    """A submission, of rows as `Layout.rows` makes them."""

    def __init__(self, path: Path, layout: Layout, class_ids: Sequence[str]) -> None:
        super().__init__(path)
        self.layout = layout
        self.class_ids = class_ids

    def begin(self, file: FileInProgress) -> None:
        """Write the columns."""
        file.write(csv_text([list(self.layout.columns)]))

    def part(self, name: str, prediction: Prediction, masks: np.ndarray) -> bytes:
        """A row for each class."""
        return csv_text(self.layout.rows(name, self.class_ids, masks))

    def add(self, file: FileInProgress, part: bytes) -> None:
        """Write the rows."""
        file.write(part)


class DefectsTable(Table):
    """A CSV or, by the suffix of its name, a JSON list of all defects; see `defect_table`."""

    def __init__(
        self, path: Path, class_ids: Sequence[str], class_names: Sequence[str], mm_per_pixel: float | None
    ) -> None:
        super().__init__(path)
        self.class_ids = class_ids
        self.class_names = class_names
        self.mm_per_pixel = mm_per_pixel
        self._is_json = path.suffix.lower() == ".json"
        self._is_first = True

    def begin(self, file: FileInProgress) -> None:
        """Write the columns, or open the list."""
        empty = np.zeros((len(self.class_ids), 1, 1), np.uint8)
        columns = ["image", *self._table(empty, empty).columns]
        file.write(b"[" if self._is_json else csv_text([columns]))

    def part(self, name: str, prediction: Prediction, masks: np.ndarray) -> list[dict[str, Any]]:
        """A row for each defect."""
        assert prediction.probs is not None
        rows = self._table(masks, prediction.probs).round(6).to_dict("records")
        return [{"image": name, **{str(key): value for key, value in row.items()}} for row in rows]

    def add(self, file: FileInProgress, part: list[dict[str, Any]]) -> None:
        """Write the rows."""
        if not self._is_json:
            file.write(csv_text([list(row.values()) for row in part]))
            return
        for row in part:
            file.write(f"{'' if self._is_first else ','}\n{json.dumps(row)}".encode())
            self._is_first = False

    def end(self, file: FileInProgress) -> None:
        """Close the list."""
        if self._is_json:
            file.write(b"\n]\n")

    def _table(self, masks: np.ndarray, probs: np.ndarray) -> Any:
        return defect_table(masks, probs, self.class_ids, self.class_names, self.mm_per_pixel)


class CocoTable(Table):
    """The defects in the format of COCO (https://cocodataset.org/#format-data), as uncompressed runs.

    The ids of images count from 1 in their order, those of categories are the ClassIds.
    """

    def __init__(self, path: Path, class_ids: Sequence[str], class_names: Sequence[str]) -> None:
        super().__init__(path)
        self.categories = [
            {"id": int(class_id), "name": name} for class_id, name in zip(class_ids, class_names, strict=True)
        ]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def part(
        self, name: str, prediction: Prediction, masks: np.ndarray
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The image and its annotations, without ids."""
        assert prediction.probs is not None
        height, width = masks.shape[1:]
        annotations = []
        for category, mask, probs in zip(self.categories, masks, prediction.probs, strict=True):
            for x, y, inside in components(mask):
                h, w = inside.shape
                runs = {"size": [height, width], "counts": coco_counts(inside, x, y, (height, width))}
                values = probs[y : y + h, x : x + w][inside]
                annotations.append(
                    {"category_id": category["id"], "bbox": [x, y, w, h], "area": values.size, "iscrowd": 0}
                    | {"segmentation": runs, "score": round(float(values.mean()), 6)}
                )
        return {"file_name": name, "height": height, "width": width}, annotations

    def add(self, file: FileInProgress, part: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        """Give the image and its annotations their ids."""
        image, annotations = part
        self._images.append({"id": len(self._images) + 1, **image})
        for annotation in annotations:
            ids = {"id": len(self._annotations) + 1, "image_id": len(self._images)}
            self._annotations.append(ids | annotation)

    def end(self, file: FileInProgress) -> None:
        """Write all."""
        whole = {"images": self._images, "annotations": self._annotations, "categories": self.categories}
        file.write(json.dumps(whole).encode())


def mask_writer(folder: Path, stems: Sequence[str]) -> OfImage:
    """The function that writes masks as a PNG: 0, or the number of the pixel's class, from 1.

    A pixel of several classes gets the one of the highest probability.

    Args:
        folder: made if missing.
        stems: of the files, for each image; see `file_stems`.
    """

    def write(prediction: Prediction, masks: np.ndarray) -> None:
        assert prediction.probs is not None
        highest = np.where(masks, prediction.probs, -1).argmax(axis=0) + 1
        values = np.where(masks.any(axis=0), highest, 0)
        encoded, data = cv2.imencode(".png", values.astype(np.uint8 if len(masks) < 256 else np.uint16))
        assert encoded
        write_file(folder / f"{stems[prediction.number]}.png", data.tobytes(), by_all=True)

    return write


def probability_writer(folder: Path, stems: Sequence[str], kind: str) -> OfImage:
    """The function that writes probabilities (C, H, W) as a NumPy file.

    Args:
        folder: made if missing.
        stems: of the files, for each image; see `file_stems`.
        kind: `float16`, or `uint8` for the probability times 255.
    """

    def write(prediction: Prediction, masks: np.ndarray) -> None:
        assert prediction.probs is not None
        values = prediction.probs if kind == "float16" else np.rint(prediction.probs * 255)
        content = io.BytesIO()
        np.save(content, values.astype(kind))
        write_file(folder / f"{stems[prediction.number]}.npy", content.getbuffer(), by_all=True)

    return write


def predict_to_files(
    predictor: Predictor,
    data_loader: BaseDataLoader,
    to_masks: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
    tables: Sequence[Table],
    of_images: Sequence[OfImage] = (),
    label: str = "",
) -> np.ndarray:
    """Predict all sheets of a loader, and write them.

    Args:
        predictor: predicts with at least one model that gives masks.
        data_loader: gives the sheets; its `sample_names` are written.
        to_masks: (probs (C, H, W), label_probs (C,) or None) -> masks (C, H, W) uint8 in {0, 1}; called in
            several threads at the same time.
        tables: files of all images, which appear only once they are complete.
        of_images: functions that write what belongs to an image; called in the threads of `to_masks`.
        label: label of the progress bar; empty for none.

    Returns:
        (C,) int64, the number of sheets on which each class was found.

    Raises:
        ConfigError: no model of the predictor gives masks.
        DataError: a sheet cannot be read.
        CheckpointError: a model's outputs for a sheet are not finite.
    """
    names = data_loader.sample_names

    def finished(prediction: Prediction) -> tuple[list[Any], np.ndarray]:
        if prediction.probs is None:
            raise ConfigError("-r: expected a model that gives masks, received classifiers alone")
        masks = to_masks(prediction.probs, prediction.label_probs)
        for write in of_images:
            write(prediction, masks)
        name = names[prediction.number]
        return [table.part(name, prediction, masks) for table in tables], np.asarray(masks.any(axis=(1, 2)))

    found: Any = np.zeros((), dtype=np.int64)
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_write(table.path)) for table in tables]
        for table, file in zip(tables, files, strict=True):
            table.begin(file)
        for parts, present in predictor.map(finished, data_loader, label):
            found = found + present
            for table, file, part in zip(tables, files, parts, strict=True):
                table.add(file, part)
        for table, file in zip(tables, files, strict=True):
            table.end(file)
    return np.asarray(found)
