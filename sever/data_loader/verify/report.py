"""What `sever verify` found, as lines to read and as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sever.data_loader.annotations import TableScan
from sever.data_loader.faults import ERRORS, WARNINGS, Fault, by_sort
from sever.utils.errors import first_few


@dataclass(frozen=True)
class Half:
    """One of the sets of images that a config names, and what is wrong with it.

    Attributes:
        name: `training`, `pseudo`, `testing` or `predict`.
        command: that would fail at its errors.
        folder: of the images.
        csv: of the masks; None where there is none.
        images: how many there are.
        not_named: how many of them the CSV does not name; they are clean.
        sizes: how many images there are of each size, `HEIGHT x WIDTH` in pixels, the commonest first.
        masks: how many there are of each class, by ClassId.
        faults: errors and warnings.
    """

    name: str
    command: str
    folder: str
    csv: str | None
    images: int
    not_named: int
    sizes: dict[str, int]
    masks: dict[str, int]
    faults: list[Fault] = field(default_factory=list)

    @classmethod
    def of_scan(cls, name: str, command: str, scan: TableScan, faults: Sequence[Fault]) -> "Half":
        """The half that a table was read from."""
        table = scan.table
        masks = table.present.sum(axis=0).tolist()
        return cls(
            name,
            command,
            str(table.folder),
            str(scan.csv),
            len(table),
            sum(image not in scan.named for image in table.names),
            sizes_of(table.shapes.tolist()),
            dict(zip(table.class_ids, masks, strict=True)),
            list(faults),
        )

    @property
    def errors(self) -> int:
        """How many of the faults are errors."""
        return sum(fault.is_error for fault in self.faults)

    def line(self) -> str:
        """The half in one line."""
        text = f"{self.name:10s}{self.images:,} images in {self.folder}"
        if self.sizes:
            size = next(iter(self.sizes))
            text += f", {size} px" if len(self.sizes) == 1 else f", {len(self.sizes)} sizes, mostly {size} px"
        if self.csv is not None:
            masks = ", ".join(f"class {class_id}: {count:,}" for class_id, count in self.masks.items())
            unread = any(fault.sort in ("no_csv", "csv") for fault in self.faults)
            rest = f"masks of {masks}; {self.not_named:,} not in {self.csv}, which are clean"
            text += f"; {self.csv} could not be read" if unread else f"; {rest}"
        return text


def sizes_of(shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """How many images there are of each size (H, W) in pixels, the commonest first; (0, 0) is none."""
    counts = Counter((height, width) for height, width in shapes if height)
    return {f"{height} x {width}": count for (height, width), count in counts.most_common()}


@dataclass(frozen=True)
class Report:
    """What there is to say about the data of a config.

    Attributes:
        config: its path.
        halves: the sets of images.
        compared: whether held-out images were compared with those that are trained on; not where training
            would fail before they are chosen.
    """

    config: str
    halves: list[Half]
    compared: bool

    @property
    def accepted(self) -> bool:
        """Whether no command would fail at the data."""
        return not any(half.errors for half in self.halves)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """How many faults of each sort there are in each half, of those that there are."""
        found: dict[str, dict[str, int]] = {}
        for half in self.halves:
            for sort, faults in by_sort(half.faults).items():
                found.setdefault(sort, {})[half.name] = len(faults)
        return {sort: found[sort] for sort in (*ERRORS, *WARNINGS) if sort in found}

    def lines(self, most: int = 10) -> list[str]:
        """The report as lines of text.

        Args:
            most: of the faults of each sort; the rest is counted.
        """
        lines = [half.line() for half in self.halves]
        counts = self.counts
        of_sort = by_sort(fault for half in self.halves for fault in half.faults)
        for sort in reversed(counts):  # the worst last, where they are seen
            kind, title = ("error", ERRORS[sort]) if sort in ERRORS else ("warning", WARNINGS[sort])
            shown = first_few([str(fault) for fault in of_sort[sort]], most).splitlines()
            lines += ["", f"{kind}: {title}", *(f"  {line}" for line in shown)]
        if counts:
            lines += ["", *self._table(counts)]
        if not self.compared:
            lines += ["", "validation images were not compared with training images: mend the errors first"]
        return [*lines, "", f"{self.config}: {self._verdict()}"]

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values that JSON can hold."""
        return {
            "config": self.config,
            "accepted": self.accepted,
            "compared": self.compared,
            "counts": self.counts,
            "halves": [_without_faults(half) for half in self.halves],
            "faults": [
                {"half": half.name, "error": fault.is_error, **asdict(fault)}
                for half in self.halves
                for fault in half.faults
            ],
        }

    def _table(self, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
        names = [half.name for half in self.halves]
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
        errors = sum(half.errors for half in self.halves)
        warnings = sum(len(half.faults) for half in self.halves) - errors
        told = f"{_number(errors, 'error')}, {_number(warnings, 'warning')}"
        if not errors:
            return f"can be trained on; {told}"
        failing = list(dict.fromkeys(half.command for half in self.halves if half.errors))
        return f"{' and '.join(failing)} would fail; {told}"


def _without_faults(half: Half) -> dict[str, Any]:
    values = asdict(half)
    del values["faults"]
    return values


def _number(count: int, one: str) -> str:
    return f"{count:,} {one}{'' if count == 1 else 's'}"
