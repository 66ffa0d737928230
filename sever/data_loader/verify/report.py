"""What `sever verify` found, as lines to read and as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sever.data_loader.annotations import TableScan
from sever.data_loader.data_faults import ERRORS, WARNINGS, Fault, by_sort
from sever.utils.errors import first_few


@dataclass(frozen=True)
class Subset:
    """One of the sets of images that a config names, and what is wrong with it."""

    name: str  # training, pseudo, testing or predict
    command: str  # the command that would fail at its errors
    folder: str
    csv: str | None  # of the masks; None for images without labels
    images: int
    not_named: int  # number of images that the CSV does not name; they are clean
    sizes: dict[str, int]  # number of images by size, HEIGHT x WIDTH in pixels, the commonest first
    masks: dict[str, int]  # number of masks by ClassId
    faults: list[Fault]  # errors and warnings

    @classmethod
    def of_scan(cls, name: str, command: str, scan: TableScan, faults: Sequence[Fault]) -> "Subset":
        """The subset of a scanned table."""
        table = scan.table
        return cls(
            name=name,
            command=command,
            folder=str(table.folder),
            csv=str(scan.csv),
            images=len(table),
            not_named=sum(image not in scan.named for image in table.names),
            sizes=sizes_of(table.shapes.tolist()),
            masks=dict(zip(table.class_ids, table.present.sum(axis=0).tolist(), strict=True)),
            faults=list(faults),
        )

    @property
    def errors(self) -> int:
        """Number of faults that are errors."""
        return sum(fault.is_error for fault in self.faults)

    def line(self) -> str:
        """The subset in one line."""
        text = f"{self.name:10s}{self.images:,} images in {self.folder}"
        if self.sizes:
            size = next(iter(self.sizes))
            text += f", {size} px" if len(self.sizes) == 1 else f", {len(self.sizes)} sizes, mostly {size} px"
        if self.csv is None:
            return text
        if any(fault.sort == "no_csv" for fault in self.faults):
            return f"{text}; {self.csv} could not be read"
        masks = ", ".join(f"class {class_id}: {count:,}" for class_id, count in self.masks.items())
        return f"{text}; masks of {masks}; {self.not_named:,} not in {self.csv}, which are clean"


def sizes_of(shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """Number of images of each size (H, W) in pixels, the commonest first; (0, 0) does not count."""
    counts = Counter((height, width) for height, width in shapes if height)
    return {f"{height} x {width}": count for (height, width), count in counts.most_common()}


@dataclass(frozen=True)
class Report:
    """What was found in the data of a config."""

    config: str  # its path
    subsets: list[Subset]
    compared: bool  # held-out images with training images; not where errors keep them from being chosen

    @property
    def accepted(self) -> bool:
        """Whether no command would fail at the data."""
        return not any(subset.errors for subset in self.subsets)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of faults by sort, the worst first, and by subset."""
        found: dict[str, dict[str, int]] = {}
        for subset in self.subsets:
            for sort, faults in by_sort(subset.faults).items():
                found.setdefault(sort, {})[subset.name] = len(faults)
        return {sort: found[sort] for sort in (*ERRORS, *WARNINGS) if sort in found}

    def lines(self, most: int = 10) -> list[str]:
        """The report as lines of text, with up to `most` faults of each sort."""
        lines = [subset.line() for subset in self.subsets]
        counts = self.counts
        of_sort = by_sort(fault for subset in self.subsets for fault in subset.faults)
        for sort in reversed(counts):  # the worst last, where a user sees them first
            kind, title = ("error", ERRORS[sort]) if sort in ERRORS else ("warning", WARNINGS[sort])
            shown = first_few([str(fault) for fault in of_sort[sort]], most)
            lines += ["", f"{kind}: {title}", *(f"  {line}" for line in shown)]
        if counts:
            lines += ["", *self._table(counts)]
        if not self.compared:
            lines += ["", "validation images were not compared with training images: fix the errors first"]
        return [*lines, "", f"{self.config}: {self._verdict()}"]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        subsets = [asdict(subset) for subset in self.subsets]
        faults = [
            {"half": subset.name, "error": fault.is_error, **asdict(fault)}
            for subset in self.subsets
            for fault in subset.faults
        ]
        for values in subsets:
            del values["faults"]
        return {
            "config": self.config,
            "accepted": self.accepted,
            "compared": self.compared,
            "counts": self.counts,
            "halves": subsets,
            "faults": faults,
        }

    def _table(self, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
        names = [subset.name for subset in self.subsets]
        lines = [f"{'':46s}" + "".join(f"{name:>10s}" for name in names)]
        for kind, titles in (("errors", ERRORS), ("warnings", WARNINGS)):
            rows = {sort: counts[sort] for sort in titles if sort in counts}
            totals = [sum(row.get(name, 0) for row in rows.values()) for name in names]
            lines.append(f"{kind:46s}" + "".join(f"{total:10,}" for total in totals))
            lines += [
                f"  {titles[sort]:44s}" + "".join(f"{row.get(name, 0):10,}" for name in names)
                for sort, row in rows.items()
            ]
        return lines

    def _verdict(self) -> str:
        errors = sum(subset.errors for subset in self.subsets)
        warnings = sum(len(subset.faults) for subset in self.subsets) - errors
        found = f"{errors:,} error{'s' * (errors != 1)}, {warnings:,} warning{'s' * (warnings != 1)}"
        failing = dict.fromkeys(subset.command for subset in self.subsets if subset.errors)
        return f"{' and '.join(failing)} would fail; {found}" if errors else f"can be trained on; {found}"
