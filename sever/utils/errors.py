"""What a user can get wrong, as exceptions: the command line prints the message and exits with 2."""

from collections.abc import Sequence

from sever.utils.printing import printable


class SeverError(Exception):
    r"""A mistake outside the program; the message names the place, the cause and the cure.

    Example:
        >>> print(ConfigError("a.yml: name: received 'x\ny'", "a.yml: seed: received -1"))
        a.yml: name: received 'x\ny'
        a.yml: seed: received -1

    Args:
        *lines: the lines of the message. A line break within one is escaped like other control characters:
            it comes from a name or a value that is quoted in it.

    Attributes:
        status: the exit status of the program.
    """

    status = 2

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(map(printable, self.args))


class ConfigError(SeverError):
    """A config file, a `-s` override or an option is wrong."""


class DataError(SeverError):
    """Images or annotations are missing, unreadable or contradict each other."""


class ReaderError(DataError):
    """A worker process that reads images was killed."""

    status = 1


class CheckpointError(SeverError):
    """A checkpoint cannot be read or does not fit."""


class DeviceError(SeverError):
    """A device does not exist or cannot be used."""


class TrainingError(SeverError):
    """A training cannot go on: its numbers are not finite any more."""


class StorageError(SeverError):
    """A file cannot be written: the disk is full, gone, or refuses it."""

    status = 1


class PeerError(SeverError):
    """Another process of the run is gone."""

    status = 1


class ElsewhereError(DataError):
    """Another process found a mistake in its data; this one only ends with it."""


class SeveralDevices(Exception):  # noqa: N818 - nothing went wrong
    """The command needs a process for each of several devices, whose `names` it has."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(", ".join(names))
        self.names = list(names)


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A run was stopped on request, and its state is saved; `status` is the program's exit status."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


def in_short(names: Sequence[str], most: int = 3) -> str:
    """The first names in one line, and how many more there are.

    Example:
        >>> in_short(["a.jpg", "b.jpg", "c.jpg"], 2)
        'a.jpg, b.jpg and 1 more'
    """
    return f"{', '.join(names[:most])}{f' and {len(names) - most} more' if names[most:] else ''}"


def first_few(faults: Sequence[str], most: int = 10) -> list[str]:
    """The first faults, one a line, and a line that says how many are left out."""
    more = [f"(and {len(faults) - most} more)"] if len(faults) > most else []
    return [*faults[:most], *more]
