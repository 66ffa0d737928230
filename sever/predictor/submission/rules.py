"""Checks of a submission file against the competition's rules, a training CSV and another submission.

The competition asks for a row for every image and class, with sorted, positive and disjoint runs, see
https://www.kaggle.com/c/severstal-steel-defect-detection/overview/evaluation.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from sever.predictor.submission.read import (
    Finding,
    Row,
    raise_findings,
    read_layout,
    read_submission,
    read_whole,
)
from sever.predictor.submission.report import ClassCount, Comparison, Masks, Pair, Report
from sever.predictor.submission.write import Layout
from sever.utils.did_you_mean import did_you_mean
from sever.utils.rle import Spans, area, encode_spans, parse, shared_area, union

SIZE = (256, 1600)  # (H, W) of Severstal's sheets
_GUESSES = 3  # suggested names; each suggestion looks through all names

Shape = tuple[int, int]


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

    Every image must have a row for each class: every image of the sample submission if there is one, else of
    `sizes`, else of the file itself.

    Args:
        path: path of the CSV, with the columns `ImageId_ClassId,EncodedPixels` or
            `ImageId,EncodedPixels,ClassId` in any order.
        classes: number of classes C. None takes what a complete sample submission names; without one, the
            highest ClassId of `sample_submission`, `reference`, `against` and the file itself, whose rare
            ClassIds (at most half as many rows as the commonest one) are ignored.
        sizes: (H, W) in pixels of each image, by file name.
        size: (H, W) in pixels of images that are not in `sizes`.
        sample_submission: submission in either layout that names the images and classes.
        reference: training CSV or submission in either layout, to compare how often each class occurs.
        reference_images: number of images of `reference`, for shares. None takes those that it names if each
            has a row for each class; today's `train.csv` only names those with a defect.
        against: another submission, compared mask by mask.

    Raises:
        DataError: a file cannot be read, or one of the three others has faults.
    """
    file = read_submission(Path(path))
    sample = read_layout(Path(sample_submission)) if sample_submission else None
    counted = _read_reference(Path(reference), reference_images) if reference else None
    known_sizes = sizes or {}
    other = _read_masks(Path(against), known_sizes, size) if against else None
    count, source, warnings = _expected_classes(file.rows, classes, sample, counted, other)
    images = sample.images if sample else None if sizes is None else list(sizes)

    faults, warnings = list(file.faults), file.warnings + warnings
    if sample and file.readable and set(sample.columns) != set(file.columns):
        columns = ",".join(sample.columns)
        warnings.append(Finding(1, f"the sample submission has other columns: {columns}"))
    rows = _known_rows(file.rows, count, images, faults)
    masks = _masks_of(rows, known_sizes, size, faults)
    for row in rows:
        if row.pair in masks:
            _check_form(row, masks[row.pair], faults, warnings)
    if file.readable:
        faults += _missing(file.rows, count, source, images)
    warnings += _overlaps(rows, masks)
    assumed = sorted({row.image for row in rows} - set(known_sizes))
    if sizes is not None and assumed:
        message = f"{len(assumed)} images are not in the image folder, e.g. '{assumed[0]}'"
        warnings.append(Finding(None, f"{message}: their size is taken as {size[0]} x {size[1]} pixels"))
    counts = _class_counts(masks, count, counted)
    warnings += [
        Finding(None, f"no mask of class {c.class_id}, of which the reference has {c.reference_masks}")
        for c in counts
        if c.reference_masks and not c.masks
    ]
    return Report(
        path=str(path),
        columns=file.columns,
        row_count=file.row_count,
        images=len({image for image, _ in masks}),
        classes=count,
        basis={"classes_from": source, **_basis(file.rows, sample, sizes, size, len(assumed))},
        assumed_size=size if assumed else None,
        faults=_by_row(faults),
        warnings=_by_row(warnings),
        counts=counts,
        reference=str(reference) if reference else None,
        reference_images=counted.images if counted else None,
        against=str(against) if against else None,
        comparison=None if other is None else Comparison.of(masks, other),
    )


def _basis(
    rows: Sequence[Row], sample: Layout | None, sizes: Mapping[str, Shape] | None, size: Shape, assumed: int
) -> dict[str, Any]:
    """Which images and sizes a submission was checked for; `assumed` images are not in `sizes`."""
    if sample and sample.images is not None:
        images, whose = len(sample.images), "of the sample submission"
    elif sizes is not None:
        images, whose = len(sizes), "of the image folder"
    else:
        images, whose = len({row.image for row in rows}), "that the submission itself names"
    taken = f"{size[0]} x {size[1]} pixels taken for"
    if sizes is None:
        of_images = f"{taken} all images"
    else:
        of_images = "of the image folder" + (f"; {taken} the {assumed} that it lacks" if assumed else "")
    return {"images": images, "images_from": whose, "sizes": of_images}


def _by_row(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in the order of their rows, those about the whole file last."""
    return sorted(findings, key=lambda finding: finding.row or math.inf)


class _Reference(NamedTuple):
    """The number of masks of each ClassId in a reference, of its images, and its highest ClassId."""

    masks: Mapping[int, int]
    images: int | None
    classes: int


def _read_reference(path: Path, images: int | None) -> _Reference:
    has_mask: dict[Pair, bool] = {}
    for row in read_whole(path, "reference", "--reference").rows:
        has_mask[row.pair] = bool(row.runs) or has_mask.get(row.pair, False)
    names, class_ids = {image for image, _ in has_mask}, {class_id for _, class_id in has_mask}
    if images is None and len(has_mask) == len(names) * len(class_ids):
        images = len(names)
    return _Reference(
        Counter(class_id for (_, class_id), mask in has_mask.items() if mask), images, max(class_ids)
    )


def _read_masks(path: Path, sizes: Mapping[str, Shape], size: Shape) -> Masks:
    """The masks, empty ones too, of the submission to compare with."""
    rows = read_whole(path, "submission", "--against").rows
    faults: list[Finding] = []
    masks = _masks_of(_known_rows(rows, None, None, faults), sizes, size, faults)
    raise_findings(_by_row(faults), path, "--against")
    return masks


def _expected_classes(
    rows: Sequence[Row],
    explicit: int | None,
    sample: Layout | None,
    reference: _Reference | None,
    against: Masks | None,
) -> tuple[int, str, list[Finding]]:
    """How many classes a submission needs, where the number comes from, and warnings about it.

    The submission itself is asked last: the check is to find a class that it lacks.
    """
    named = {
        "the sample submission": max(map(int, sample.class_ids), default=0) if sample else 0,
        "the reference": reference.classes if reference else 0,
        "the other submission": max((class_id for _, class_id in against or ()), default=0),
    }
    highest = max(named, key=lambda name: named[name])
    own = _common_classes(rows)
    if explicit:
        count, source = explicit, "as --classes says"
    elif sample and sample.complete:
        count, source = named["the sample submission"], "those of the sample submission"
    elif named[highest] and named[highest] >= own:
        count, source = named[highest], f"those of {highest}"
    else:
        message = (
            f"the number of classes, {own}, is only guessed from the submission, which may lack one: say "
            f"--classes, or give a --reference that has all"
        )
        return own, "guessed from the submission alone", [Finding(None, message)] if own else []
    beyond = [
        Finding(None, f"{name} has class {classes}; the submission is checked for {count} classes, {source}")
        for name, classes in named.items()
        if classes > count
    ]
    return count, source, beyond


def _common_classes(rows: Iterable[Row]) -> int:
    """The highest ClassId that has more than half as many rows as the commonest one, so is no slip."""
    rows_of = Counter(row.class_id for row in rows)
    enough = max(rows_of.values(), default=0) / 2
    return max((class_id for class_id, count in rows_of.items() if count > enough), default=0)


def _known_rows(
    rows: Sequence[Row], classes: int | None, images: list[str] | None, faults: list[Finding]
) -> list[Row]:
    """The rows of known images and classes (None: of all), each pair once."""
    known = None if images is None else set(images)
    first: dict[Pair, int] = {}
    kept = []
    guesses = _GUESSES
    for row in rows:
        image, class_id = row.pair
        if classes is not None and class_id > classes:
            message = f"image '{image}': expected a ClassId from 1 to {classes}, received {class_id}"
        elif known is not None and image not in known:
            near = did_you_mean(image, known) if guesses > 0 else ""
            guesses -= 1
            message = f"image '{image}' is not one of the {len(known)} asked for.{near}"
        elif row.pair in first:
            message = f"image '{image}' has class {class_id} in row {first[row.pair]} already"
        else:
            first[row.pair] = row.line
            kept.append(row)
            continue
        faults.append(Finding(row.line, message))
    return kept


def _masks_of(rows: Iterable[Row], sizes: Mapping[str, Shape], size: Shape, faults: list[Finding]) -> Masks:
    """The valid masks, empty ones too."""
    masks: Masks = {}
    for row in rows:
        try:
            masks[row.pair] = parse(row.runs, sizes.get(row.image, size))
        except ValueError as error:
            faults.append(Finding(row.line, f"image '{row.image}', class {row.class_id}: {error}"))
    return masks


def _check_form(row: Row, spans: Spans, faults: list[Finding], warnings: list[Finding]) -> None:
    """Add what differs between the runs of a row and those that `encode` writes for its mask."""
    if not row.runs or encode_spans(union([spans])) == row.runs:
        return
    where = f"image '{row.image}', class {row.class_id}"
    words = row.runs.split()
    starts = [int(word) for word in words[::2]]
    falls = [at for at in range(1, len(starts)) if starts[at] < starts[at - 1]]
    touching = (spans[1:, 0] == spans[:-1, 1]).nonzero()[0]
    if falls:
        run, before = (f"'{starts[at]} {int(words[2 * at + 1])}'" for at in (falls[0], falls[0] - 1))
        faults.append(Finding(row.line, f"{where}: expected sorted runs, received {run} after {before}"))
    if touching.size:
        start, stop = spans[touching[0] + 1]
        message = f"{where}: run '{start + 1} {stop - start}' touches the run before it: they could be one"
        more = f" (and {touching.size - 1} more)" if touching.size > 1 else ""
        warnings.append(Finding(row.line, message + more))
    if row.runs != " ".join(str(int(word)) for word in words):
        message = f"{where}: unneeded spaces or leading zeros"
        warnings.append(Finding(row.line, message))


def _missing(rows: Sequence[Row], classes: int, source: str, images: list[str] | None) -> list[Finding]:
    """The missing rows: first the classes that no image has, then image by image."""
    there: dict[str, set[int]] = {}
    for row in rows:
        there.setdefault(row.image, set()).add(row.class_id)
    absent_everywhere = set(range(1, classes + 1)) - set().union(*there.values()) if there else set()
    findings = []
    if absent_everywhere:
        listed = ", ".join(map(str, sorted(absent_everywhere)))
        findings.append(Finding(None, f"no row of class {listed}: expected {classes} classes, {source}"))
    expected = set(range(1, classes + 1)) - absent_everywhere
    for image in there if images is None else images:
        absent = sorted(expected - there.get(image, set()))
        if image not in there:
            findings.append(Finding(None, f"image '{image}' has no row"))
        elif absent:
            listed = ", ".join(map(str, absent))
            findings.append(Finding(None, f"image '{image}' has no row of class {listed}"))
    return findings


def _overlaps(rows: Sequence[Row], masks: Masks) -> list[Finding]:
    """The images on which masks of two classes share pixels."""
    of_image: dict[str, list[Row]] = {}
    for row in rows:
        if len(masks.get(row.pair, ())):
            of_image.setdefault(row.image, []).append(row)
    findings = []
    for image, with_mask in of_image.items():
        for one, other in combinations(with_mask, 2):
            if pixels := shared_area(masks[one.pair], masks[other.pair]):
                classes = f"class {one.class_id} (row {one.line}) and {other.class_id}"
                findings.append(Finding(other.line, f"image '{image}': masks of {classes} share {pixels} px"))
    return findings


def _class_counts(masks: Masks, classes: int, reference: _Reference | None) -> list[ClassCount]:
    rows = Counter(class_id for _, class_id in masks)
    counts = []
    for class_id in range(1, classes + 1):
        areas = [area(spans) for (_, of_class), spans in masks.items() if of_class == class_id and len(spans)]
        there = reference.masks.get(class_id, 0) if reference else None
        images = reference.images if reference else None
        counts.append(
            ClassCount(
                class_id=class_id,
                masks=len(areas),
                share=len(areas) / rows[class_id] if rows[class_id] else 0.0,
                mean_pixels=sum(areas) / len(areas) if areas else 0.0,
                reference_masks=there,
                reference_share=there / images if there is not None and images else None,
            )
        )
    return counts
