"""What the data of a run were when it began, in `data.csv`, so that a resumed run can tell what changed."""

import csv
import io
import logging
from pathlib import Path

from sever.utils.errors import DataError, in_short
from sever.utils.input_files import MOST_IN_CSV, read_bytes
from sever.utils.printing import printable

logger = logging.getLogger(__name__)

# The part of the data (`labelled`, `pseudo`) and the name of an image -> what was read of it: `bytes`, the
# size of its file; `content`, a check sum of the file, or nothing; `masks`, a check sum of its masks.
Record = dict[tuple[str, str], dict[str, str]]

_KEYS = ["part", "image"]
_VALUES = ["bytes", "content", "masks"]


def record_csv(record: Record) -> str:
    """A record as CSV, a row for each image.

    Example:
        >>> print(record_csv({("labelled", "a.jpg"): {"bytes": "9", "content": "", "masks": "none"}}))
        part,image,bytes,content,masks
        labelled,a.jpg,9,,none
        <BLANKLINE>
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_KEYS, *_VALUES], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**dict(zip(_KEYS, key, strict=True)), **values} for key, values in record.items())
    return text.getvalue()


def read_record(path: Path) -> Record:
    """Read what `record_csv` wrote.

    Raises:
        DataError: the file is something else.
    """
    try:
        header, *rows = csv.reader(io.StringIO(read_bytes(path, MOST_IN_CSV).decode()))
        if header != [*_KEYS, *_VALUES]:
            raise ValueError(f"its first line is not {','.join([*_KEYS, *_VALUES])}")
        return {(part, image): dict(zip(_VALUES, values, strict=True)) for part, image, *values in rows}
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read as the record of a run's data ({error}). Remove it; it is written anew"
        ) from error


def differences(before: Record, now: Record) -> list[str]:
    """How data differ from what they were, a line for each kind of difference, with the first images.

    Example:
        >>> before = {("labelled", "a.jpg"): {"bytes": "9", "content": "", "masks": "none"}}
        >>> differences(before, {("labelled", "a.jpg"): {"bytes": "8", "content": "", "masks": "none"}})
        ['1 labelled image with another file: a.jpg']
    """
    found: dict[tuple[str, str], list[str]] = {}
    for part, image in sorted({*before, *now}):
        old, new = before.get((part, image)), now.get((part, image))
        if old is None or new is None:
            kinds = ["new" if old is None else "gone"]
        else:
            changed = {name for name in _VALUES if old[name] != new[name]}
            if not (old["content"] and new["content"]):  # its check sum was taken only once
                changed -= {"content"}
            kinds = ["with another file"] if changed - {"masks"} else []
            kinds += ["with other masks"] if "masks" in changed else []
        for kind in kinds:
            found.setdefault((part, kind), []).append(image)
    return [
        f"{len(images)} {part} image{'s' if images[1:] else ''} {kind}: {in_short(images)}"
        for (part, kind), images in found.items()
    ]


def check_data(record: Record, path: Path, strict: bool) -> None:
    """Compare the data of a resumed run with the record of those that it began with, and warn of differences.

    Args:
        record: of the data as they are.
        path: the file with the run's own record; runs of earlier versions have none.
        strict: raise where they differ, or cannot be compared.

    Raises:
        DataError: see `strict`.
    """
    if not record or not path.is_file():
        if strict:
            lacking = f"{path} is not there" if record else "the data loader has no data_record"
            raise DataError(f"--strict-data: the data cannot be compared: {lacking}")
        return
    changed = differences(read_record(path), record)
    if not changed:
        return
    told = [f"{path}: the data are not those that the run began with:", *(f"  {line}" for line in changed)]
    if strict:
        raise DataError(*told, "Put them back, or resume without --strict-data")
    logger.warning("\n".join(map(printable, told)))
