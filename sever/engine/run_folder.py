"""The folders of a run."""

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from sever.utils.errors import CheckpointError, ConfigError, SeverError, StorageError
from sever.utils.files import WRONG_PATH, neighbours, not_a_file, reason_and_cure
from sever.utils.locks import HAS_LOCKS, forget, lock


@dataclass
class RunFolder:
    """The files of a run, in `<save_dir>/<name>/<mmdd_HHMMSS>` and (for TensorBoard) `<save_dir>/runs`.

    Attributes:
        path: the folder.
        is_new: whether the run has yet to make it.
    """

    path: Path
    is_new: bool = False
    _held: os.stat_result | None = field(default=None, repr=False, compare=False)

    @classmethod
    def planned(cls, save_dir: str, name: str) -> "RunFolder":
        """The folder of a new run, which `make` makes."""
        return cls(Path(save_dir) / name / _name(datetime.now()), is_new=True)

    @classmethod
    def started(cls, save_dir: str, name: str) -> list["RunFolder"]:
        """The runs of a name that have a checkpoint.

        Raises:
            ConfigError: a folder cannot be looked into.
        """
        folder = Path(save_dir) / name
        runs = [cls(folder / entry) for entry in _entries(folder)]
        return [run for run in runs if _is_folder(run.path) and run.newest_first]

    @classmethod
    def newest(cls, save_dir: str, name: str | None = None) -> "RunFolder | None":
        """The run that was written to last, of a name or of all names."""
        names = [name] if name else [path.name for path in Path(save_dir).glob("*") if path.is_dir()]
        runs: list[RunFolder] = []
        for each in names:
            with suppress(ConfigError):
                runs += cls.started(save_dir, each)
        return max(runs, key=lambda run: _changed_at(run.newest_first[0]), default=None)

    def check_can_be_made(self) -> None:
        """Check that `make` will find a place that can be written to.

        Raises:
            ConfigError: there is none.
        """
        there = next(path for path in self.path.parents if os.path.lexists(path))
        if not there.is_dir():
            what = "a link that leads to no folder" if there.is_symlink() else "a file"
            raise _cannot_make(self.path, f"{there} is {what}")
        if not os.access(there, os.W_OK | os.X_OK):
            raise _cannot_make(self.path, f"you may not write to {there}")

    def make(self) -> None:
        """Make the folder, under the name of the next free second where another run has taken its own.

        Raises:
            ConfigError: it cannot be made there, but could elsewhere.
            StorageError: the disk fails.
        """
        self._make_parents()
        self.is_new = False
        second = datetime.now()
        try:
            while True:
                with suppress(FileExistsError):
                    return self.path.mkdir()  # two processes cannot both make it
                self.path = self.path.with_name(_name(second))
                second += timedelta(seconds=1)  # and not that of the clock, which may stand still
        except OSError as error:
            raise _not_made(self.path, error) from error

    def _make_parents(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_made(self.path, error) from error

    def check_can_be_written(self) -> None:
        """Check that the files that a resumed run writes anew are regular ones.

        Raises:
            ConfigError: one is a link or a folder.
        """
        for path in (self.config, self.split, self.data, *self.newest_first):
            if fault := not_a_file(path):
                raise ConfigError(f"{path}: {fault}")

    @contextmanager
    def name_held(self) -> Iterator[None]:
        """Keep every other process that asks for it from beginning a run of the same name; see `held`."""
        self._make_parents()
        with RunFolder(self.path.parent).held():
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other process from training in this folder.

        Raises:
            ConfigError: another process trains in it, and did not end within some seconds; or it cannot be
                read.
        """
        if not HAS_LOCKS:
            self._held = self.path.stat()
            yield
            return
        try:
            folder = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise _cannot_read(self.path, error) from error
        try:
            end = time.monotonic() + _PATIENCE
            while lock(folder) is False:  # one that knows no locks counts as locked
                if time.monotonic() > end:
                    raise ConfigError(
                        f"{self.path}: another process trains in this folder; wait for it, or end it"
                    )
                time.sleep(0.1)
            self._held = os.fstat(folder)
            self.check_in_place()
            yield
        finally:
            self._held = None
            forget(folder)
            os.close(folder)

    def check_in_place(self) -> None:
        """Check that the folder that is held is where it was, before a file is written to it by its path.

        Raises:
            StorageError: it was moved, renamed or removed.
        """
        try:
            if self._held is None or os.path.samestat(self._held, self.path.stat()):
                return
        except OSError:
            pass
        raise StorageError(
            f"{self.path}: the folder of the run was moved, renamed or removed while it trained, so its next "
            f"checkpoint has no place. To go on, name the last one where it is now, with sever train -r"
        )

    @property
    def tensorboard(self) -> Path:
        """`<save_dir>/runs/<name>/<mmdd_HHMMSS>`: TensorBoard's event files."""
        return self.path.parent.parent / "runs" / self.path.parent.name / self.path.name

    @property
    def logs(self) -> Path:
        """Log files, as `logging.yml` says."""
        return self.path / "logs"

    @property
    def config(self) -> Path:
        """The config as run, overrides included."""
        return self.path / "config.yml"

    @property
    def split(self) -> Path:
        """Which image went to training and which to validation."""
        return self.path / "split.csv"

    @property
    def data(self) -> Path:
        """What the data were when the run began; see `data_record`."""
        return self.path / "data.csv"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation so far."""
        return self.path / "model_best.pth"

    @property
    def last(self) -> Path:
        """The newest checkpoint, in the middle of an epoch too."""
        return self.path / "checkpoint_last.pth"

    def epoch(self, epoch: int) -> Path:
        """The checkpoint after an epoch."""
        return self.path / f"checkpoint_epoch_{epoch}.pth"

    @property
    def epochs(self) -> list[int]:
        """The epochs that have a checkpoint, rising."""
        return sorted(int(found[1]) for entry in _entries(self.path) if (found := _OF_EPOCH.fullmatch(entry)))

    @property
    def newest_first(self) -> list[Path]:
        """The checkpoints of the run, by their names, since a copy of a run has other times.

        The best one comes last: a run that was ended early may have no other.
        """
        names = _entries(self.path)
        last, best = ([path] if path.name in names else [] for path in (self.last, self.best))
        return [*last, *map(self.epoch, reversed(self.epochs)), *best]

    @property
    def to_resume(self) -> Path | None:
        """The newest checkpoint, for a message; None where there is none, or the folder cannot be read."""
        with suppress(ConfigError):
            return next(iter(self.newest_first), None)
        return None


def check_checkpoint_path(path: Path) -> None:
    """Check that a path leads to a file, which may be a checkpoint.

    Raises:
        CheckpointError: it leads to none; the message names those that may be meant.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path}: no such checkpoint file{neighbours(path)}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise CheckpointError(f"{path}: is a folder{_in_folder(path)}")
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: is a device or a pipe; give the name of a file")


def _in_folder(path: Path) -> str:
    """The checkpoints in a folder, or in the newest runs below it, as the end of a message."""
    held = sorted(p.name for p in path.glob("*.pth"))
    if held:
        return f"; name one of its checkpoints: {', '.join(held[:8])}{', …' if held[8:] else ''}"
    below = sorted((*path.glob("*/*.pth"), *path.glob("*/*/*.pth")), key=_changed_at)
    newest = sorted({p.parent: str(p) for p in below}.values())  # of each run
    if not newest:
        return " without a checkpoint; name the .pth file of a run"
    count = "one run" if len(newest) == 1 else f"{len(newest)} runs"
    return f" of {count}; name a checkpoint, such as {', '.join(newest[:4])}{', …' if newest[4:] else ''}"


def _name(second: datetime) -> str:
    return second.strftime("%m%d_%H%M%S")


def _entries(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where there is no folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _cannot_read(folder, error) from error


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _cannot_read(path, error) from error


def _changed_at(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _cannot_read(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder}: cannot be read: {error.strerror}. Make it readable, or move it away")


def _not_made(folder: Path, error: OSError) -> SeverError:
    """The mistake of a user who chose the place, or a fault of the disk."""
    if error.errno in WRONG_PATH:
        return _cannot_make(folder, error.strerror)
    return StorageError(f"{folder}: cannot be made: {reason_and_cure(error, folder)}")


def _cannot_make(folder: Path, reason: str | None) -> ConfigError:
    return ConfigError(
        f"save_dir: the folder {folder} cannot be made: {reason}. Choose one that you may write to, e.g. -s "
        f"save_dir=/tmp/saved"
    )


_OF_EPOCH = re.compile(r"checkpoint_epoch_(0|[1-9][0-9]*)\.pth")
_PATIENCE = 10.0  # seconds to wait for another process that may be about to end
