"""What `check_submission` found, as lines to read and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sever.predictor.submission.read import Finding
from sever.utils.errors import first_few
from sever.utils.rle import Spans, area, shared_area

Pair = tuple[str, int]  # image, ClassId
Masks = dict[Pair, Spans]

_NO_SPANS: Spans = np.zeros((0, 2), dtype=np.int64)


@dataclass(frozen=True)
class ClassCount:
    """The masks of a class, and their share of its rows; the reference's numbers are None if unknown."""

    class_id: int
    masks: int
    share: float
    mean_pixels: float
    reference_masks: int | None = None
    reference_share: float | None = None


@dataclass(frozen=True)
class Difference:
    """An image and class whose mask here, in the submission, differs from the one there, in the other."""

    image: str
    class_id: int
    dice: float
    pixels_here: int
    pixels_there: int


@dataclass(frozen=True)
class Comparison:
    """Two submissions, pair by pair of image and class.

    Attributes:
        images: number of images that both name; only their pairs are compared.
        images_only_here: images that the submission alone names.
        images_only_there: images that the other one alone names.
        pairs: number of pairs compared.
        masks_only_here: number of pairs with a mask in the submission alone.
        masks_only_there: number of pairs with a mask in the other one alone.
        masks_differ: number of pairs with two different masks.
        dice: mean of the competition's Dice over all pairs, 1 where both are empty; None without pairs.
        dice_per_class: mean Dice by ClassId.
        differences: all pairs that differ, the most different first.
    """

    images: int
    images_only_here: list[str]
    images_only_there: list[str]
    pairs: int
    masks_only_here: int
    masks_only_there: int
    masks_differ: int
    dice: float | None
    dice_per_class: dict[int, float]
    differences: list[Difference]

    @classmethod
    def of(cls, here: Masks, there: Masks) -> "Comparison":
        """Compare the masks of two submissions, empty ones too."""
        images_here, images_there = ({image for image, _ in masks} for masks in (here, there))
        both = images_here & images_there
        class_ids = sorted({class_id for masks in (here, there) for _, class_id in masks})
        differences = []
        for pair in sorted({*here, *there}):
            ours, theirs = here.get(pair, _NO_SPANS), there.get(pair, _NO_SPANS)
            total = area(ours) + area(theirs)
            if pair[0] not in both or not total:
                continue
            shared = shared_area(ours, theirs)
            if 2 * shared < total:
                differences.append(Difference(*pair, 2 * shared / total, area(ours), area(theirs)))
        lost = dict.fromkeys(class_ids, 0.0)
        for difference in differences:
            lost[difference.class_id] += 1 - difference.dice
        differences.sort(key=lambda d: (d.dice, -d.pixels_here - d.pixels_there))
        pairs = len(both) * len(class_ids)
        return cls(
            images=len(both),
            images_only_here=sorted(images_here - both),
            images_only_there=sorted(images_there - both),
            pairs=pairs,
            masks_only_here=sum(not d.pixels_there for d in differences),
            masks_only_there=sum(not d.pixels_here for d in differences),
            masks_differ=sum(bool(d.pixels_here and d.pixels_there) for d in differences),
            dice=1 - sum(lost.values()) / pairs if pairs else None,
            dice_per_class={c: 1 - lost[c] / len(both) for c in class_ids} if pairs else {},
            differences=differences,
        )


@dataclass(frozen=True)
class Report:
    """The result of `check_submission`.

    Attributes:
        path: path of the file.
        columns: columns of its header.
        row_count: number of rows below the header that are not blank.
        images: number of images with a row without a fault.
        classes: number of classes C that it was checked for.
        basis: what it was checked for: `classes_from` (source of the number of classes), `images` (expected
            number of images), `images_from` (source of that number) and `sizes` (of the images, in words).
        assumed_size: (H, W) in pixels taken for images of unknown size; None if there was none.
        faults: why the competition would reject the file.
        warnings: what is odd but would be accepted.
        counts: counts of each class.
        reference: path of the file that the counts are compared with.
        reference_images: number of images of the reference; None if unknown.
        against: path of the submission that the masks are compared with.
        comparison: comparison with `against`.
    """

    path: str
    columns: list[str]
    row_count: int
    images: int
    classes: int
    basis: dict[str, Any]
    assumed_size: tuple[int, int] | None
    faults: list[Finding]
    warnings: list[Finding]
    counts: list[ClassCount]
    reference: str | None = None
    reference_images: int | None = None
    against: str | None = None
    comparison: Comparison | None = None

    @property
    def accepted(self) -> bool:
        """Whether the competition would take the file."""
        return not self.faults

    def lines(self, most: int = 10) -> list[str]:
        """The report as lines, with at most so many faults, warnings and differences; the rest is counted."""
        lines = [
            f"{self.path}: {_number(self.row_count, 'row')}, {_number(self.images, 'image')}, "
            f"{_number(self.classes, 'class', 'classes')}, columns {','.join(self.columns) or 'none'}"
        ]
        if self.assumed_size:
            height, width = self.assumed_size
            lines.append(f"images of unknown size are taken as {height} x {width} pixels")
        if self.counts:
            lines += ["", *self._count_lines()]
        if self.comparison:
            lines += ["", *self._comparison_lines(self.comparison, most)]
        for name, findings in (("warning", self.warnings), ("fault", self.faults)):
            if findings:
                shown = first_few([str(finding) for finding in findings], most)
                lines += ["", f"{_number(len(findings), name)}:", *(f"  {line}" for line in shown)]
        verdict = "would be rejected" if self.faults else "nothing that the competition would reject"
        return [
            *lines,
            "",
            "checked for:",
            f"  classes  {self.classes:,}, {self.basis['classes_from']}",
            f"  images   {self.basis['images']:,} {self.basis['images_from']}",
            f"  sizes    {self.basis['sizes']}",
            f"{self.path}: {verdict}",
        ]

    def as_dict(self) -> dict[str, Any]:
        """The report as values for JSON."""
        return {"accepted": self.accepted, **asdict(self)}

    def _count_lines(self) -> list[str]:
        head = f"{'':10s}{'masks':>8s}{'share':>9s}{'mean pixels':>13s}"
        if self.reference:
            head += f"   {self.reference}:"
            if self.reference_images is None:
                head += " masks (no share: the number of its images is unknown)"
            else:
                head += f" masks, share of {self.reference_images:,} images"
        lines = [head]
        for c in self.counts:
            line = f"{f'class {c.class_id}':10s}{c.masks:8,}{c.share:9.2%}{c.mean_pixels:13,.0f}"
            if c.reference_masks is not None:
                line += f"   {c.reference_masks:8,}"
            if c.reference_share is not None:
                line += f"{c.reference_share:9.2%}"
            lines.append(line)
        return lines

    def _comparison_lines(self, comparison: Comparison, most: int) -> list[str]:
        differing = len(comparison.differences)
        lines = [
            f"against {self.against}: {differing:,} of {comparison.pairs:,} pairs of image and class differ",
            f"  {comparison.masks_only_here:,} have a mask here alone, {comparison.masks_only_there:,} there "
            f"alone, {comparison.masks_differ:,} have different masks",
        ]
        for where in ("here", "there"):
            names = getattr(comparison, f"images_only_{where}")
            if names:
                shown = _number(len(names), "image")
                lines.append(f"  {shown} {where} alone, e.g. '{names[0]}': not compared")
        if comparison.dice is not None:
            of_classes = ", ".join(f"class {c} {dice:.5f}" for c, dice in comparison.dice_per_class.items())
            lines.append(f"  agreement (the competition's Dice): {comparison.dice:.5f}; {of_classes}")
        for difference in comparison.differences[:most]:
            lines.append(
                f"  {difference.image} class {difference.class_id}: Dice {difference.dice:.4f}, "
                f"{difference.pixels_here:,} pixels here, {difference.pixels_there:,} there"
            )
        if differing > most:
            lines.append(f"  (and {differing - most:,} more)")
        return lines


def _number(count: int, one: str, several: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"
