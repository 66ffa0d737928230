"""For how many classes, which images and which sizes a submission is checked, and where that comes from."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sever.predictor.submission.compare import Reference, Shape
from sever.predictor.submission.report import Basis, Finding
from sever.predictor.submission.rows import Row
from sever.predictor.submission.write import Layout
from sever.utils.rle import Spans


@dataclass(frozen=True)
class Classes:
    """How many classes a submission needs.

    Attributes:
        count: C.
        source: where it comes from, to be put behind it.
        warnings: what is odd about it.
    """

    count: int
    source: str
    warnings: list[Finding]


def expected_classes(
    rows: Sequence[Row],
    explicit: int | None = None,
    sample: Layout | None = None,
    reference: Reference | None = None,
    against: Mapping[tuple[str, int], Spans] | None = None,
) -> Classes:
    """How many classes: as asked for, else those of a whole sample, else the highest that any file shows.

    A sample submission is whole where it has a row for each class of each image, as that of 2019 has. Today's
    has one row per image and names no class. The submission itself is asked last: a class that it lacks is
    just what is to be found.

    Args:
        rows: of the submission.
        explicit: what was asked for.
        sample: of the sample submission.
        reference: of the training CSV or submission that classes are counted in.
        against: the masks of another submission, empty ones too.
    """
    shown = {
        "the sample submission": max(map(int, sample.class_ids), default=0) if sample else 0,
        "the reference": reference.classes if reference else 0,
        "the other submission": max((class_id for _, class_id in against or ()), default=0),
    }
    highest, own = max(shown.values()), _common_classes(rows)
    if explicit:
        count, source = explicit, "as --classes says"
    elif sample and sample.complete:
        count, source = shown["the sample submission"], "those of the sample submission"
    elif highest and highest >= own:
        count = highest
        source = "those of " + next(name for name, classes in shown.items() if classes == highest)
    else:
        message = (
            f"the number of classes, {own}, is only guessed from the submission, which may lack one: say "
            f"--classes, or give a --reference that has all"
        )
        return Classes(own, "guessed from the submission alone", [Finding(None, message)] if own else [])
    beyond = [
        Finding(None, f"{name} has class {classes}; the submission is checked for {count} classes, {source}")
        for name, classes in shown.items()
        if classes > count
    ]
    return Classes(count, source, beyond)


def _common_classes(rows: Iterable[Row]) -> int:
    """The highest ClassId that is no slip: more than half as many rows have it as the commonest."""
    rows_of = Counter(row.class_id for row in rows)
    enough = max(rows_of.values(), default=0) / 2
    return max((class_id for class_id, count in rows_of.items() if count > enough), default=0)


def basis_of(
    classes: Classes,
    rows: Iterable[Row],
    sample: Layout | None,
    sizes: Mapping[str, Shape] | None,
    size: Shape,
    assumed: int,
) -> Basis:
    """What a submission was checked for, to be said beside the verdict.

    Args:
        classes: of `expected_classes`.
        rows: of the submission.
        sample: of the sample submission.
        sizes: (H, W) in pixels of each image of the image folder.
        size: (H, W) of images that are not in `sizes`.
        assumed: how many those are.
    """
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
    return Basis(classes.source, images, whose, of_images)
