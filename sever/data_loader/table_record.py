"""What the images and masks of a table were, for the record of a run's data."""

import math
import zlib
from pathlib import Path

from sever.data_loader.annotations import SheetTable
from sever.engine.data_record import Record
from sever.parallel.threads import in_threads
from sever.utils.errors import DataError
from sever.utils.input_files import MOST_IN_IMAGE, read_bytes
from sever.utils.rle import encode_spans

_READ_AT_MOST = 64 << 20  # bytes


def record_of(table: SheetTable, part: str) -> Record:
    """The sizes of the images' files, and check sums of the masks and of as many files as are quickly read.

    Times are left out, since a copy of the data has others. An image that is changed without a change of its
    file's size shows if it is among those that are read: all of a small data set, and about 64 MB of a larger
    one, chosen by their names. A collective.

    Args:
        table: the images.
        part: what the record calls them: `labelled` or `pseudo`.

    Raises:
        DataError: a file cannot be read.
    """
    paths = [table.folder / name for name in table.names]
    sizes = list(in_threads(_size, paths))
    # Powers of 2, so that those that are read of a grown data set were read before.
    share = 1 << max(0, math.ceil(math.log2(max(sum(sizes), 1) / _READ_AT_MOST)))
    read = [path for path in paths if zlib.crc32(path.name.encode()) % share == 0]
    content = dict(zip(read, in_threads(_check_sum, read), strict=True))
    return {
        (part, path.name): {
            "bytes": str(size),
            "content": content.get(path, ""),
            "masks": _masks(table, index),
        }
        for index, (path, size) in enumerate(zip(paths, sizes, strict=True))
    }


def _masks(table: SheetTable, index: int) -> str:
    runs = [
        f"{class_id} {encode_spans(spans)}"
        for class_id, spans in zip(table.class_ids, table.of_image(index), strict=True)
        if len(spans)
    ]
    return f"{zlib.crc32(','.join(runs).encode()):08x}" if runs else "none"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _check_sum(path: Path) -> str:
    try:
        return f"{zlib.crc32(read_bytes(path, MOST_IN_IMAGE)):08x}"
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
