"""Reading files that others wrote: regular files alone, of a bounded size, and texts in UTF-8."""

import codecs
import errno
import stat
from pathlib import Path

from sever.utils.errors import ConfigError
from sever.utils.files import neighbours

MOST_IN_CONFIG = 1 << 20  # bytes of a YAML file: PyYAML reads about 100 kB in a second
MOST_IN_CSV = 1 << 30  # bytes; Severstal's train.csv has 18 MB
MOST_IN_IMAGE = 1 << 31

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: Path, most: int) -> None:
    """Refuse all but regular files of at most `most` bytes, before they are opened: that could wait for ever.

    Raises:
        OSError: `strerror` says why.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no regular file')}")
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"has more than {most:,} bytes")


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        OSError: it cannot be read; `strerror` says why.
    """
    check_regular(path, most)
    with path.open("rb") as file:
        return file.read(most)


def read_config_text(path: Path, where: str = "") -> str:
    """The text of a YAML file in UTF-8, with or without a byte order mark; messages call it `where`.

    Raises:
        ConfigError: it cannot be read, or is no text in UTF-8.
    """
    where = where or str(path)
    try:
        data = read_bytes(path, MOST_IN_CONFIG)
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}{neighbours(path)}") from error
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {reason_of(error, 'a YAML file')}") from error
    fault = text_fault(data)
    if fault:
        raise ConfigError(f"{where}: not a text file in UTF-8: line {fault[0]} {fault[1]}; save it as UTF-8")
    return data.decode("utf-8-sig")


def reason_of(error: OSError, kind: str) -> str:
    """Why something cannot be read, and for what is no file of some kind that another name is needed."""
    is_other = error.errno in (errno.EINVAL, errno.EFBIG)
    return f"{error.strerror or error}{f'; give the name of {kind}' if is_other else ''}"


def text_fault(data: bytes) -> tuple[int, str] | None:
    """The first line, from 1, at which a file is no text in UTF-8, and what is wrong there; or None."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return 1, "begins with the byte order mark of UTF-16"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1, f"holds the byte {data[error.start]:#04x}"
    at = data.find(b"\0")
    return None if at < 0 else (data.count(b"\n", 0, at) + 1, "holds a NUL byte")
