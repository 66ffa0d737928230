"""Files that appear whole or not at all."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import ConfigError, StorageError
from sever.utils.launcher_env import world_of

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KINDS = frozenset((".pth", ".csv", ".json", ".yml", ".yaml", ".jpg", ".png"))


def check_output(
    path: Path,
    option: str,
    inputs: Iterable[Path | None] = (),
    suffix: str | None = None,
    makes_folder: bool = False,
) -> None:
    """Refuse an output path before any work is done for it.

    Args:
        path: the file that will be written.
        option: the option that gives it, for the message.
        inputs: files that are read, and must not be replaced.
        suffix: the expected suffix; that of another kind of file is refused.
        makes_folder: whether a missing folder will be made.

    Raises:
        ConfigError: the path is a folder, has the suffix of another kind of file or is one of the inputs, or
            its folder is missing or not writable.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder; give the name of a file")
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if there != path.absolute().parent and not makes_folder:
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}; make it, or correct the name")
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"{option} {path}: {there} is not a folder that you may write to")
    if path.is_file() and any(given and given.is_file() and given.samefile(path) for given in inputs):
        raise ConfigError(f"{option} {path}: is one of the files that are read here; choose another name")
    if suffix and path.suffix.lower() in _KINDS - {suffix}:
        raise ConfigError(f"{option} {path}: expected a name that ends with {suffix}")


def sha256_of(path: Path) -> str:
    """The SHA-256 digest of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_write(path: str | Path, by_all: bool = False) -> Iterator[Path]:
    """Write to a temporary file beside `path` that is renamed to it once it is complete.

    Of several processes only the main one writes; what the others write is dropped, unless each has a file
    of its own (`by_all`).

    Example:
        with atomic_write("submission.csv") as partial:
            partial.write_text(rows)
    """
    path = Path(path)
    if not by_all and not world_of(os.environ).is_main:
        with TemporaryDirectory(prefix="sever-") as folder:
            yield Path(folder) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(path.parent).free // 2**20
        raise StorageError(
            f"{path}: cannot be written: {os.strerror(error.errno or 0)} ({free} MB are free there). Make "
            f"room, or choose another disk; what was there before is still whole"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def neighbours(path: Path) -> str:
    """What is in the folder of a file or folder that does not exist, as the end of a message."""
    if not path.parent.is_dir():
        return f". {path.parent} is not there either."
    try:
        names = sorted(
            entry.name for entry in path.parent.iterdir() if entry.name[0] != "." and entry.name != path.name
        )
    except OSError as error:
        return f". {path.parent} cannot be read: {error.strerror}."
    if not names:
        return ". Its folder is empty."
    beside = f"{', '.join(names[:6])}{', …' if len(names) > 6 else ''}"
    return f".{did_you_mean(path.name, names)} Beside it: {beside}."
