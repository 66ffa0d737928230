"""Whether a submission file would be accepted, what is odd in it, and what it says beside other files.

The competition asks for a row for every image and class, with sorted, positive and disjoint runs, see
https://www.kaggle.com/c/severstal-steel-defect-detection/overview/evaluation.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from sever.predictor.submission.basis import Classes, basis_of, expected_classes
from sever.predictor.submission.compare import (
    Pair,
    Reference,
    Shape,
    compare_masks,
    read_masks,
    read_reference,
)
from sever.predictor.submission.report import ClassCount, Finding, Report
from sever.predictor.submission.rows import Row, read_rows
from sever.predictor.submission.write import read_layout
from sever.utils.errors import did_you_mean
from sever.utils.rle import Spans, area, decode_spans, encode, parse, shared_area

SIZE: Shape = (256, 1600)  # of Severstal's sheets


def check_submission(
    path: str | Path,
    *,
    classes: int | None = None,
    sizes: Mapping[str, Shape] | None = None,
    size: Shape = SIZE,
    sample_submission: str | Path | None = None,
    reference: str | Path | None = None,
    reference_images: int | None = None,
    against: str | Path | None = None,
) -> Report:
    """Check a submission file.

    There must be a row for each class of every image: of those that the sample submission names, else of
    `sizes`, else of those that the file itself names.

    Args:
        path: of the CSV, `ImageId_ClassId,EncodedPixels` or `ImageId,EncodedPixels,ClassId`, in any order.
        classes: how many there are, C. None takes what a whole sample submission names; where there is none,
            the highest ClassId of `sample_submission`, `reference`, `against` and the file itself, of which
            those count that more than half as many rows have as the commonest one.
        sizes: (H, W) in pixels of each image, by file name.
        size: (H, W) of images that are not in `sizes`.
        sample_submission: in either layout, for its images and classes.
        reference: a training CSV or a submission in either layout, to compare how often each class occurs.
        reference_images: of how many images `reference` is; see `read_reference`.
        against: another submission, compared mask by mask.

    Raises:
        DataError: a file cannot be read, or one of the three others has faults.
    """
    file = read_rows(Path(path))
    sample = None if sample_submission is None else read_layout(Path(sample_submission))
    counted = None if reference is None else read_reference(Path(reference), reference_images)
    other = None if against is None else read_masks(Path(against), _Shapes(sizes, size))
    needed = expected_classes(file.rows, classes, sample, counted, other)
    images = sample.images if sample else None if sizes is None else list(sizes)

    faults, warnings = list(file.faults), [*file.warnings, *needed.warnings]
    if sample and file.readable and set(sample.columns) != set(file.columns):
        columns = ",".join(sample.columns)
        warnings.append(Finding(1, f"the sample submission has other columns: {columns}"))
    shapes = _Shapes(sizes, size)
    rows = _known_rows(file.rows, needed.count, images, faults)
    masks = _read_spans(rows, shapes, faults, warnings)
    if file.readable:
        faults += _missing(file.rows, needed, images)
    warnings += _overlaps(rows, masks)
    assumed = sorted(shapes.unknown)
    if sizes is not None and assumed:
        message = f"{len(assumed)} images are not in the image folder, e.g. '{assumed[0]}'"
        warnings.append(Finding(None, f"{message}: their size is taken as {size[0]} x {size[1]} pixels"))
    counts = _class_counts(masks, needed.count, counted)
    warnings += _never_found(counts)
    return Report(
        path=str(path),
        columns=file.columns,
        row_count=file.count,
        images=len({image for image, _ in masks}),
        classes=needed.count,
        basis=basis_of(needed, file.rows, sample, sizes, size, len(assumed)),
        assumed_size=size if assumed else None,
        faults=sorted(faults),
        warnings=sorted(warnings),
        counts=counts,
        reference=None if reference is None else str(reference),
        reference_images=counted.images if counted else None,
        against=None if against is None else str(against),
        comparison=None if other is None else compare_masks(masks, other),
    )


class _Shapes:
    """The size of each image; remembers those that are not known."""

    def __init__(self, sizes: Mapping[str, Shape] | None, default: Shape) -> None:
        self.sizes = sizes or {}
        self.default = default
        self.unknown: set[str] = set()

    def __call__(self, image: str) -> Shape:
        if image not in self.sizes:
            self.unknown.add(image)
        return self.sizes.get(image, self.default)


def _known_rows(rows: list[Row], classes: int, images: list[str] | None, faults: list[Finding]) -> list[Row]:
    """The rows of images and classes that there are, each pair once."""
    known = None if images is None else set(images)
    first: dict[Pair, int] = {}
    kept = []
    guesses = 3  # a guess looks through all names
    for row in rows:
        pair = (row.image, row.class_id)
        if row.class_id > classes:
            message = f"image '{row.image}': expected a ClassId from 1 to {classes}, received {row.class_id}"
            faults.append(Finding(row.row, message))
        elif known is not None and row.image not in known:
            near = did_you_mean(row.image, known) if guesses > 0 else ""
            guesses -= 1
            faults.append(
                Finding(row.row, f"image '{row.image}' is not one of the {len(known)} asked for.{near}")
            )
        elif pair in first:
            message = f"image '{row.image}' has class {row.class_id} in row {first[pair]} already"
            faults.append(Finding(row.row, message))
        else:
            first[pair] = row.row
            kept.append(row)
    return kept


def _read_spans(
    rows: list[Row], shapes: _Shapes, faults: list[Finding], warnings: list[Finding]
) -> dict[Pair, Spans]:
    """The masks, empty ones too; those that are at fault are left out."""
    masks: dict[Pair, Spans] = {}
    for row in rows:
        shape = shapes(row.image)
        where = f"image '{row.image}', class {row.class_id}"
        try:
            spans = parse(row.runs, shape)
        except ValueError as error:
            faults.append(Finding(row.row, f"{where}: {error}"))
            continue
        masks[row.image, row.class_id] = spans
        if row.runs and encode(decode_spans(spans, shape)) != row.runs:
            _explain(row, where, spans, faults, warnings)
    return masks


def _explain(row: Row, where: str, spans: Spans, faults: list[Finding], warnings: list[Finding]) -> None:
    """Why the runs of a row are not those that are written for their mask."""
    words = row.runs.split()
    starts = [int(word) for word in words[::2]]
    falls = [at for at in range(1, len(starts)) if starts[at] < starts[at - 1]]
    touching = (spans[1:, 0] == spans[:-1, 1]).nonzero()[0]
    if falls:
        run, before = (f"'{starts[at]} {int(words[2 * at + 1])}'" for at in (falls[0], falls[0] - 1))
        faults.append(Finding(row.row, f"{where}: expected sorted runs, received {run} after {before}"))
    if touching.size:
        start, stop = spans[touching[0] + 1]
        message = f"{where}: run '{start + 1} {stop - start}' touches the run before it: they could be one"
        more = f" (and {touching.size - 1} more)" if touching.size > 1 else ""
        warnings.append(Finding(row.row, message + more))
    if row.runs != " ".join(str(int(word)) for word in words):
        message = f"{where}: spaces or leading zeros that numbers separated by one space do not need"
        warnings.append(Finding(row.row, message))


def _missing(rows: list[Row], needed: Classes, images: list[str] | None) -> list[Finding]:
    """The rows that are not there: classes that no image has, then an image at a time."""
    there: dict[str, set[int]] = {}
    for row in rows:
        there.setdefault(row.image, set()).add(row.class_id)
    named = set().union(*there.values())
    nowhere = [c for c in range(1, needed.count + 1) if there and c not in named]
    findings = []
    if nowhere:
        listed = ", ".join(map(str, nowhere))
        findings.append(
            Finding(None, f"no row of class {listed}: expected {needed.count} classes, {needed.source}")
        )
    for image in there if images is None else images:
        absent = [str(c) for c in range(1, needed.count + 1) if c not in {*there.get(image, ()), *nowhere}]
        if image not in there:
            findings.append(Finding(None, f"image '{image}' has no row"))
        elif absent:
            findings.append(Finding(None, f"image '{image}' has no row of class {', '.join(absent)}"))
    return findings


def _overlaps(rows: list[Row], masks: Mapping[Pair, Spans]) -> list[Finding]:
    """The images on which masks of two classes share pixels."""
    of_image: dict[str, list[Row]] = {}
    for row in rows:
        if len(masks.get((row.image, row.class_id), ())):
            of_image.setdefault(row.image, []).append(row)
    findings = []
    for image, with_mask in of_image.items():
        for some, other in combinations(with_mask, 2):
            pixels = shared_area(masks[image, some.class_id], masks[image, other.class_id])
            if pixels:
                message = (
                    f"image '{image}': masks of class {some.class_id} (row {some.row}) and {other.class_id} "
                    f"share {pixels} px"
                )
                findings.append(Finding(other.row, message))
    return findings


def _never_found(counts: list[ClassCount]) -> list[Finding]:
    """The classes that the reference has, and the submission has not."""
    return [
        Finding(
            None, f"no mask of class {count.class_id}, of which the reference has {count.reference_masks}"
        )
        for count in counts
        if count.reference_masks and not count.masks
    ]


def _class_counts(masks: Mapping[Pair, Spans], classes: int, reference: Reference | None) -> list[ClassCount]:
    pixels: dict[int, list[int]] = {class_id: [] for class_id in range(1, classes + 1)}
    rows = dict.fromkeys(pixels, 0)
    for (_, class_id), spans in masks.items():
        rows[class_id] += 1
        if len(spans):
            pixels[class_id].append(area(spans))
    return [
        ClassCount(
            class_id=class_id,
            masks=len(areas),
            share=len(areas) / rows[class_id] if rows[class_id] else 0.0,
            mean_pixels=sum(areas) / len(areas) if areas else 0.0,
            reference_masks=reference.masks.get(class_id, 0) if reference else None,
            reference_share=reference.masks.get(class_id, 0) / reference.images
            if reference and reference.images
            else None,
        )
        for class_id, areas in pixels.items()
    ]
