"""Which checkpoints of a run are written, and which of them stay."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sever.engine.checkpoint import save_checkpoint
from sever.engine.monitor import Monitor
from sever.engine.run_folder import RunFolder
from sever.parallel.collectives import barrier, is_main
from sever.utils.files import atomic_write

# gives the content of a checkpoint
State = Callable[[], dict[str, Any]]


class CheckpointKeeper:
    """Writes the checkpoints of a run, and removes one only when what takes its place is whole.

    Args:
        run_folder: where they go.
        monitor: says which epochs are the best.
        epochs: of the run; the last one is always saved.
        save_period: epochs between two checkpoints.
        keep_last: how many checkpoints of epochs stay beside the best ones; None keeps all.
    """

    def __init__(
        self,
        run_folder: RunFolder,
        monitor: Monitor,
        epochs: int,
        save_period: int = 1,
        keep_last: int | None = None,
    ) -> None:
        self.run_folder = run_folder
        self.monitor = monitor
        self.epochs = epochs
        self.save_period = save_period
        self.keep_last = keep_last
        self.kept_as_best: set[int] = set()  # epochs with a checkpoint for no other reason

    def within_epoch(self, state: State) -> Path:
        """Write the newest state, in the middle of an epoch."""
        self._write(state, self.run_folder.last)
        return self.run_folder.last

    def after_epoch(self, state: State, epoch: int, improved: bool) -> bool:
        """Write what is to be kept of an epoch.

        Args:
            state: of the run after it.
            epoch: from 1.
            improved: it is the best so far.

        Returns:
            Whether the newest checkpoint is that of this epoch.
        """
        folder = self.run_folder
        ended = epoch == self.epochs or self.monitor.exhausted
        periodic = ended or epoch % self.save_period == 0
        kept = periodic or epoch in self.monitor.best_epochs
        if kept and not periodic:
            self.kept_as_best.add(epoch)
        if kept:
            self._write(state, folder.epoch(epoch), folder.last, *([folder.best] if improved else []))
        elif improved:
            self._write(state, folder.best)
        if is_main():
            self._drop_surpassed(epoch)
        return kept

    def _write(self, state: State, path: Path, *other_names: Path) -> None:
        """Write a state, which all processes give together; the others wait until it is written."""
        of_run = state()
        if is_main():
            save_checkpoint(of_run, path)
            for name in other_names:
                _share(path, name)
        barrier()

    def _drop_surpassed(self, epoch: int) -> None:
        """Remove what is neither among the best any more nor among the last ones."""
        for surpassed in self.kept_as_best - set(self.monitor.best_epochs):
            self.run_folder.epoch(surpassed).unlink(missing_ok=True)
            self.kept_as_best.remove(surpassed)
        if self.keep_last is None:
            return
        there = [number for number in self.run_folder.epochs if number <= epoch]
        last = [number for number in there if number not in self.kept_as_best][-self.keep_last :]
        for number in set(there) - {*last, *self.monitor.best_epochs}:
            self.run_folder.epoch(number).unlink(missing_ok=True)


def _share(path: Path, other: Path) -> None:
    """Give a finished file a second name, without a second copy where the file system can."""
    with atomic_write(other) as partial:
        try:
            os.link(path, partial)
        except OSError:
            shutil.copy2(path, partial)
