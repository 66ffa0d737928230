"""Which checkpoints of a run are written, and which are kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sever.engine.checkpoint import save_checkpoint
from sever.engine.monitor import Monitor
from sever.engine.run_folder import RunFolder
from sever.parallel.collectives import barrier, is_main
from sever.utils.files import link_file, storage_errors

State = Callable[[], dict[str, Any]]  # returns the content of a checkpoint


class CheckpointKeeper:
    """Writes the checkpoints of a run, and removes one only after its successor is written.

    Args:
        run_folder: the folder of the checkpoints.
        monitor: knows the best epochs.
        epochs: number of the last epoch, which is always saved.
        save_period: epochs between two checkpoints.
        keep_last: how many checkpoints of epochs are kept beside the best ones; None keeps all.
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
        self.kept_as_best: set[int] = set()  # epochs with a checkpoint only since they are among the best

    def within_epoch(self, state: State) -> None:
        """Write the newest state, in the middle of an epoch."""
        self._write(state, self.run_folder.last)

    def after_epoch(self, state: State, epoch: int, improved: bool) -> bool:
        """Write the checkpoints of an epoch (from 1), which `improved` says is the best so far.

        Returns:
            Whether a checkpoint to resume from was written.
        """
        folder = self.run_folder
        ended = epoch == self.epochs or self.monitor.exhausted
        periodic = ended or epoch % self.save_period == 0
        if not periodic and epoch in self.monitor.best_epochs:
            self.kept_as_best.add(epoch)
        kept = periodic or epoch in self.kept_as_best
        paths = [folder.epoch(epoch), folder.last] if kept else []
        if improved:
            paths.append(folder.best)
        if paths:
            self._write(state, *paths)
        if is_main():
            self._remove_outdated(epoch)
        return kept

    def _write(self, state: State, path: Path, *other_names: Path) -> None:
        """Write the state in the main process; a collective, which ends when it is written."""
        content = state()  # all processes gather it
        if is_main():
            save_checkpoint(content, path)
            for name in other_names:
                link_file(path, name)
        barrier()

    def _remove_outdated(self, epoch: int) -> None:
        """Remove checkpoints that are no longer among the best or the last ones."""
        best = set(self.monitor.best_epochs)
        outdated = self.kept_as_best - best
        self.kept_as_best -= outdated
        if self.keep_last is not None:
            written = [n for n in self.run_folder.epochs if n <= epoch and n not in outdated]
            last = [n for n in written if n not in self.kept_as_best][-self.keep_last :]
            outdated |= set(written) - {*last, *best}
        for number in outdated:
            path = self.run_folder.epoch(number)
            with storage_errors(path, "cannot be removed"):
                path.unlink(missing_ok=True)
