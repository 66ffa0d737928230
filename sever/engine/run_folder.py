"""The folders of a run."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sever.utils.errors import ConfigError
from sever.utils.files import WRONG_PATH, storage_errors
from sever.utils.locks import HAS_LOCKS, forget, lock


@dataclass
class RunFolder:
    """The files of a run, in `<save_dir>/<name>/<mmdd_HHMMSS>` and (for TensorBoard) `<save_dir>/runs`."""

    path: Path

    @classmethod
    def planned(cls, save_dir: str, name: str) -> "RunFolder":
        """The folder of a new run, which `make` makes."""
        return cls(Path(save_dir) / name / _timestamp())

    @classmethod
    def started(cls, save_dir: str, name: str) -> list["RunFolder"]:
        """The runs of a name that have a checkpoint."""
        runs = [cls(path) for path in sorted((Path(save_dir) / name).glob("*")) if path.is_dir()]
        return [run for run in runs if run.newest_first]

    @classmethod
    def newest(cls, save_dir: str, name: str | None = None) -> "RunFolder | None":
        """The run that was written to last, of a name or of all names."""
        names = [name] if name else [path.name for path in Path(save_dir).glob("*") if path.is_dir()]
        runs = [run for name in names for run in cls.started(save_dir, name)]
        return max(runs, key=lambda run: run.newest_first[0].stat().st_mtime, default=None)

    def make(self) -> None:
        """Make the folder, under the name of the next second where another run has its own.

        Raises:
            ConfigError: it cannot be made there, but could elsewhere.
            StorageError: the disk fails.
        """
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            time.sleep(0.1)
            self.path = self.path.with_name(_timestamp())
            self.make()
        except OSError as error:
            if error.errno in WRONG_PATH:
                raise ConfigError(
                    f"save_dir: the folder {self.path} cannot be made: {error.strerror}. Choose one that you "
                    f"may write to, e.g. -s save_dir=/tmp/saved"
                ) from error
            with storage_errors(self.path, "cannot be made"):
                raise

    @contextmanager
    def held(self, patience: float = 10.0) -> Iterator[None]:
        """Keep every other process from training in this folder.

        Raises:
            ConfigError: another process trains in it, and did not end in so many seconds.
        """
        if not HAS_LOCKS:
            yield
            return
        folder = os.open(self.path, os.O_RDONLY)
        try:
            end = time.monotonic() + patience
            while lock(folder) is False:  # one that knows no locks counts as locked
                if time.monotonic() > end:
                    raise ConfigError(
                        f"{self.path}: another process trains in this folder; wait for it, or end it"
                    )
                time.sleep(0.1)
            yield
        finally:
            forget(folder)
            os.close(folder)

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
        numbers = map(self.epoch_of, self.path.glob("checkpoint_epoch_*.pth"))
        return sorted(number for number in numbers if number >= 0)

    @property
    def newest_first(self) -> list[Path]:
        """The checkpoints of the run, by their names, since a copy of a run has other times."""
        return [path for path in (self.last, *map(self.epoch, reversed(self.epochs))) if path.is_file()]

    @staticmethod
    def epoch_of(checkpoint: Path) -> int:
        """The epoch in the name of a checkpoint, or -1 where it has none."""
        number = checkpoint.stem.rpartition("_")[2]
        return int(number) if number.isdecimal() else -1


def _timestamp() -> str:
    return datetime.now().strftime("%m%d_%H%M%S")
