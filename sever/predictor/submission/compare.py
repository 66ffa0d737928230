"""What the masks of a submission say beside those of other files."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sever.predictor.submission.report import Comparison, Difference
from sever.predictor.submission.rows import CLASS_ID
from sever.utils.csv_layouts import read_csv, split_rows
from sever.utils.errors import DataError, first_few
from sever.utils.rle import Spans, area, parse, shared_area

NO_SPANS: Spans = np.zeros((0, 2), dtype=np.int64)

Pair = tuple[str, int]  # image, ClassId
Shape = tuple[int, int]


@dataclass(frozen=True)
class Reference:
    """How often each class occurs elsewhere.

    Attributes:
        masks: by ClassId, the images that have the class.
        images: of which they are a part; None where the file does not tell.
        classes: the highest ClassId that is named, be it without a mask.
    """

    masks: dict[int, int]
    images: int | None
    classes: int


def read_reference(path: Path, images: int | None = None) -> Reference:
    """Count the masks of each class in a training CSV or a submission, in either layout.

    Args:
        path: of the CSV.
        images: how many there are, for shares. None takes the images that the CSV names where it has a row
            for each of their classes; today's `train.csv` names those with a defect alone.

    Raises:
        DataError: it cannot be read, or a ClassId is not a positive number.
    """
    has_mask: dict[Pair, bool] = {}
    faults: list[str] = []
    for row, image, class_id, runs in _rows(path, "--reference"):
        if not image or not CLASS_ID.fullmatch(class_id):
            faults.append(_no_pair(path, row, image, class_id))
            continue
        pair = (image, int(class_id))
        has_mask[pair] = bool(runs) or has_mask.get(pair, False)
    if faults:
        raise DataError(first_few(faults))
    names, class_ids = {image for image, _ in has_mask}, {class_id for _, class_id in has_mask}
    if images is None and len(has_mask) == len(names) * len(class_ids):
        images = len(names)
    masks = Counter(class_id for (_, class_id), mask in has_mask.items() if mask)
    return Reference(dict(masks), images, max(class_ids, default=0))


def read_masks(path: Path, shape_of: Callable[[str], Shape]) -> dict[Pair, Spans]:
    """Read the masks of a submission that others are compared with, empty ones too.

    Args:
        path: of the CSV, in either layout.
        shape_of: an image's name -> its (H, W) in pixels.

    Raises:
        DataError: with every fault of the CSV, by row.
    """
    masks: dict[Pair, Spans] = {}
    faults: list[str] = []
    for row, image, class_id, runs in _rows(path, "--against"):
        if not image or not CLASS_ID.fullmatch(class_id):
            faults.append(_no_pair(path, row, image, class_id))
            continue
        pair = (image, int(class_id))
        if pair in masks:
            faults.append(
                f"{path}, row {row}: image '{image}' has class {class_id} in an earlier row already"
            )
            continue
        try:
            masks[pair] = parse(runs, shape_of(image))
        except ValueError as error:
            faults.append(f"{path}, row {row}: image '{image}', class {class_id}: {error}")
    if faults:
        raise DataError(first_few(faults))
    return masks


def compare_masks(here: Mapping[Pair, Spans], there: Mapping[Pair, Spans]) -> Comparison:
    """Compare the masks of two submissions.

    Args:
        here: of the submission, empty ones too.
        there: of the other.
    """
    images_here, images_there = ({image for image, _ in masks} for masks in (here, there))
    both = images_here & images_there
    class_ids = sorted({class_id for masks in (here, there) for _, class_id in masks})
    lost = dict.fromkeys(class_ids, 0.0)
    differences = []
    for pair in sorted({*here, *there}):
        if pair[0] not in both:
            continue
        ours, theirs = here.get(pair, NO_SPANS), there.get(pair, NO_SPANS)
        pixels = (area(ours), area(theirs))
        if sum(pixels) == 0:
            continue
        shared = shared_area(ours, theirs)
        if 2 * shared < sum(pixels):
            dice = 2 * shared / sum(pixels)
            lost[pair[1]] += 1 - dice
            differences.append(Difference(*pair, dice, *pixels))
    differences.sort(key=lambda d: (d.dice, -d.pixels_here - d.pixels_there))
    pairs = len(both) * len(class_ids)
    return Comparison(
        images=len(both),
        images_only_here=sorted(images_here - both),
        images_only_there=sorted(images_there - both),
        pairs=pairs,
        masks_only_here=sum(not d.pixels_there for d in differences),
        masks_only_there=sum(not d.pixels_here for d in differences),
        masks_differ=sum(bool(d.pixels_here and d.pixels_there) for d in differences),
        dice=1 - sum(lost.values()) / pairs if pairs else None,
        dice_per_class={class_id: 1 - lost[class_id] / len(both) for class_id in class_ids} if pairs else {},
        differences=differences,
    )


def _rows(path: Path, option: str) -> list[tuple[int, str, str, str]]:
    return [row for row in split_rows(read_csv(path, option), path) if any(row[1:])]


def _no_pair(path: Path, row: int, image: str, class_id: str) -> str:
    return f"{path}, row {row}: expected an image and a ClassId from 1, received '{image}' and '{class_id}'"
