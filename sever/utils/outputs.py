"""What a command writes, checked before it begins."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from sever.utils.errors import ConfigError
from sever.utils.files import not_a_file, remove_abandoned

CSV, JSON, CHECKPOINT, YAML = (".csv",), (".json",), (".pth",), (".yml", ".yaml")
PICTURES = ()  # a folder of them, which is made if it is missing
_MARKED = 1 << 20  # bytes in which the mark of a file is looked for
_Identity = tuple[int, int]


@dataclass(frozen=True)
class Output:
    """A file, or a folder of pictures, that a command writes.

    Attributes:
        option: the option that names it, for messages.
        path: its path.
        kind: the suffixes that its name may have, or `PICTURES`.
        makes_folder: whether the folder of a file is made if it is missing.
        may_replace: whether a file that is there may be replaced, as one that the same command wrote; by
            default any that does not lie in a folder that is read.
    """

    option: str
    path: Path
    kind: tuple[str, ...]
    makes_folder: bool = False
    may_replace: Callable[[Path], bool] | None = None

    def __str__(self) -> str:
        return f"{self.option} {self.path}"


def check_outputs(outputs: Sequence[Output], inputs: Iterable[Path | None] = ()) -> None:
    """Refuse outputs that cannot be written or would replace something else, before work is done for them.

    What processes that were killed have left half-written in the folders of the outputs is removed.

    Args:
        outputs: all that the command will write.
        inputs: the files and folders that it reads; a link to one counts as that one.

    Raises:
        ConfigError: an output is one of the inputs, another output, something else than a regular file or a
            folder of pictures, or a file that it may not replace; its name does not end as its kind does; or
            its folder is missing or not writable.
    """
    read = {identity: path for path in inputs if path and (identity := _identity(path))}
    for output in outputs:
        try:
            fault = _place_fault(output) or (
                _file_fault(output, read) if output.kind else _folder_fault(output.path, read)
            )
        except OSError as error:
            fault = f"{error.strerror}; choose another name or folder"
        if fault:
            raise ConfigError(f"{output}: {fault}")
    places = [(output, Path(os.path.realpath(output.path))) for output in outputs]
    for (one, place), (other, taken) in permutations(places, 2):
        if place == taken or (other.kind and taken in place.parents):
            raise ConfigError(f"{one}: {other} is in its place; choose another name for one of them")
    for output in outputs:
        remove_abandoned(output.path.parent if output.kind else output.path)


def _place_fault(output: Output) -> str | None:
    """What is wrong with the folder of a file, or with the one that a folder of pictures will be in."""
    path = output.path.absolute()
    there = next(folder for folder in ([] if output.kind else [path]) + [*path.parents] if folder.exists())
    if output.kind and there != path.parent and not output.makes_folder:
        return f"there is no folder {output.path.parent}; make it, or correct the name"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"{there} is not a folder that you may write to"
    return None


def _file_fault(output: Output, read: Mapping[_Identity, Path]) -> str | None:
    path = output.path
    if _identity(path) in read and not path.is_dir():
        return "is one of the files that are read here; choose another name"
    if path.suffix.lower() not in output.kind:
        return not_a_file(path) or f"expected a name that ends with {' or '.join(output.kind)}"
    if fault := not_a_file(path):
        return fault
    if not path.exists():
        return None
    if output.may_replace and not output.may_replace(path):
        return "is a file that this command did not write; choose another name, or remove it"
    if output.may_replace is None and _identity(path.parent) in read:
        return "is a file in a folder that is read here; choose another name or folder, or remove it"
    return None


def has_line(path: Path, start: str) -> bool:
    """Whether a line of a small text file starts so, as one of each file that a command writes does."""
    with path.open("rb") as file:
        return any(line.startswith(start.encode()) for line in file.read(_MARKED).splitlines())


def _folder_fault(folder: Path, read: Mapping[_Identity, Path]) -> str | None:
    if _identity(folder) in read:
        return "is a folder that is read here, whose files pictures could replace; choose another one"
    if not folder.is_dir():
        return "is a link to nothing; remove it, or name another folder" if folder.is_symlink() else None
    own = {_identity(path): path.name for path in folder.iterdir()}
    own.pop(None, None)  # of links to nothing
    for given in (path for path in read.values() if own and path.is_dir()):
        for path in given.iterdir():
            if name := own.get(_identity(path)):
                return f"holds {name}, which is read here as {path}; choose another folder"
    return None


def _identity(path: Path) -> _Identity | None:
    """What a file or folder shares with all links to it; None where nothing is there."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
