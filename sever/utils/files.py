"""Files that appear whole or not at all, and never in the place of anything but a file."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import StorageError
from sever.utils.launcher_env import world_of
from sever.utils.locks import HAS_LOCKS, forget, lock

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)
_CURES = {
    _FULL: "Make room, or choose another disk",
    _NO_RIGHT: "Choose a folder that you may write to",
    _NO_FOLDER: "Put its folder back, or choose another one",
    (errno.ENAMETOOLONG,): "Choose a shorter name",
    (errno.EMFILE, errno.ENFILE): "Allow more open files (ulimit -n), or use fewer workers",
}
_OTHER_CURE = "Check the disk and the connection to it, or choose another disk"
# What the choice of a path leads to, rather than a fault of the machine.
WRONG_PATH = frozenset((*_NO_RIGHT, *_NO_FOLDER, errno.ENAMETOOLONG))
# Of a fixed length, since a file with the longest name that is allowed needs one beside it too.
_PARTIAL = re.compile(r"\.sever-[0-9a-f]{16}\.partial")


@dataclass(frozen=True)
class FileInProgress:
    """A file that `atomic_write` has begun, and that will be `path` once it is complete."""

    path: Path
    file: BinaryIO

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            StorageError: the system refuses them.
        """
        with storage_errors(self.path):
            self.file.write(content)


@contextmanager
def atomic_write(path: str | Path, by_all: bool = False) -> Iterator[FileInProgress]:
    """Write to a temporary file beside `path` that is renamed to it once it is complete.

    It gets the mode of the file that it replaces, else the one that the umask gives. Of several processes
    only the main one writes; what the others write is dropped, unless each has a file of its own (`by_all`).

    Example:
        with atomic_write("submission.csv") as file:
            file.write(rows.encode())

    Raises:
        StorageError: the system refuses to write it, or there is something else than a regular file.
    """
    path = Path(path)
    if not by_all and not world_of(os.environ).is_main:
        with open(os.devnull, "wb") as nowhere:
            yield FileInProgress(path, nowhere)
        return
    partial: BinaryIO | None = None
    names: list[Path] = []
    try:
        with storage_errors(path):
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
            _check_replaced(path)
            partial = _new_partial(path.parent, names)
            _take_mode(partial, path)
        yield FileInProgress(path, partial)
        with storage_errors(path):
            partial.flush()
            os.fsync(partial.fileno())
            _check_replaced(path)
            if not HAS_LOCKS:  # Windows renames no open file
                partial.close()
            os.replace(partial.name, path)
    except BaseException:
        if partial is not None:
            _close(partial)
        for name in names:
            with suppress(OSError):
                name.unlink()
        raise
    _close(partial)


def write_file(path: str | Path, content: str | bytes | memoryview, by_all: bool = False) -> None:
    """Write a file by `atomic_write`; a text in UTF-8."""
    with atomic_write(path, by_all) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def link_file(path: Path, other: Path) -> None:
    """Give a finished file a second name, without a second copy where the file system can.

    Raises:
        StorageError: the system refuses it, or something else than a regular file has the name.
    """
    with storage_errors(other), path.open("rb") as file:
        _check_replaced(other)
        partial = _partial_name(other.parent)
        lock(file.fileno())  # so that nobody takes the link for one that was left behind
        try:
            os.link(path, partial)
        except OSError:
            with atomic_write(other) as copy:
                shutil.copyfileobj(file, copy)
        else:
            try:
                os.replace(partial, other)
            except BaseException:
                with suppress(OSError):
                    partial.unlink()
                raise
        finally:
            forget(file.fileno())


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that processes which were killed have left in a folder.

    One that a living process writes is locked, and stays; so do all where there are no locks.
    """
    with suppress(OSError):
        for path in folder.glob(".sever-*.partial"):
            if _PARTIAL.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                with suppress(OSError):
                    _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    flags = getattr(os, "O_NOFOLLOW", 0)
    try:
        file = os.open(path, os.O_RDWR | flags)  # network drives lock nothing that cannot be written
    except PermissionError:
        file = os.open(path, os.O_RDONLY | flags)
    try:
        if lock(file):
            path.unlink()
    finally:
        forget(file)
        os.close(file)


def _new_partial(folder: Path, names: list[Path]) -> BinaryIO:
    """A new temporary file, which no other process takes for one that was left behind.

    Its name is added to `names` before it is there: a signal may come in between.
    """
    while True:
        path = _partial_name(folder)
        names.append(path)
        try:
            file = path.open("xb")  # follows no link
        except OSError:  # so another's
            names.remove(path)
            raise
        if lock(file.fileno()) is not False and os.path.lexists(path):
            return file
        _close(file)  # it was removed before it could be locked


def _take_mode(partial: BinaryIO, path: Path) -> None:
    """Give a temporary file the permissions of the file that it will replace, if there is one."""
    if path.exists() and os.chmod in os.supports_fd:
        own, replaced = (stat.S_IMODE(status.st_mode) for status in (os.fstat(partial.fileno()), path.stat()))
        if own != replaced & 0o777:  # some file systems refuse any change
            os.chmod(partial.fileno(), replaced & 0o777)


def _close(file: BinaryIO) -> None:
    if not file.closed:
        forget(file.fileno())
        with suppress(OSError):  # of what could not be written before
            file.close()


def _partial_name(folder: Path) -> Path:
    return folder / f".sever-{secrets.token_hex(8)}.partial"


def not_a_file(path: Path) -> str | None:
    """What is wrong with a path as that of an output: something else than a regular file is there.

    Raises:
        OSError: the system does not say what is there.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    if path.is_dir():
        return "is a folder; give the name of a file"
    if stat.S_ISLNK(mode) and (path.is_file() or not path.exists()):
        return f"is a link; give the name of its file, {os.path.realpath(path)}, or remove the link"
    return (
        "is a device or a pipe, which a file would replace. Give the name of a file, e.g. in /tmp, and read "
        "that when it is there"
    )


def _check_replaced(path: Path) -> None:
    fault = not_a_file(path)
    if fault:
        raise StorageError(f"{path}: {fault}")


@contextmanager
def storage_errors(path: Path, what: str = "cannot be written") -> Iterator[None]:
    """Say it with place, reason and cure where the system refuses something.

    Raises:
        StorageError: for each `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: {what}: {reason_and_cure(error, path)}") from error


def reason_and_cure(error: OSError, path: Path) -> str:
    """The end of a message about something that the system refused to do with a path."""
    reason = error.strerror or str(error)
    cure = next((cure for numbers, cure in _CURES.items() if error.errno in numbers), _OTHER_CURE)
    if error.errno in _FULL:
        with suppress(OSError):
            reason += f" ({shutil.disk_usage(path.parent).free // 2**20} MB are free there)"
    return f"{reason}. {cure}; what was there before is still whole"


def sha256_of(path: Path) -> str:
    """The SHA-256 digest of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
