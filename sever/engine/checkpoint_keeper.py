"""Which checkpoints of a run are written, and which are kept."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from sever.engine.checkpoint import not_finite, save_checkpoint
from sever.engine.monitor import Monitor
from sever.engine.run_folder import RunFolder
from sever.parallel.collectives import barrier, broadcast, is_main
from sever.utils.errors import TrainingError, in_short
from sever.utils.files import link_file, storage_errors

State = Callable[[], dict[str, Any]]  # returns the content of a checkpoint


class CheckpointKeeper:
    """Writes the checkpoints of a run, and removes one only after its successor is written.

    Args:
        run_folder: the folder of the checkpoints.
        monitor: knows the best epochs.
        epochs: number of the last epoch, which is always saved.
        save_period: epochs between two checkpoints.
        keep_last: how many checkpoints of epochs are kept beside the best ones, but at least two; None
            keeps all.
        never_finite: names of tensors of the model that are not finite from the start.
    """

    def __init__(
        self,
        run_folder: RunFolder,
        monitor: Monitor,
        epochs: int,
        save_period: int = 1,
        keep_last: int | None = None,
        never_finite: Collection[str] = (),
    ) -> None:
        self.run_folder = run_folder
        self.monitor = monitor
        self.epochs = epochs
        self.save_period = save_period
        self.keep_last = keep_last
        self.never_finite = never_finite
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
        """Write the state in the main process; a collective, which ends when it is written.

        Raises:
            TrainingError: weights or statistics are not finite; nothing is written.
        """
        content = state()  # all processes gather it
        self._check_finite(content)
        if is_main():
            self.run_folder.check_in_place()
            save_checkpoint(content, path)
            for name in other_names:
                link_file(path, name)
        barrier()

    def _check_finite(self, content: Mapping[str, Any]) -> None:
        names: list[str] = []
        if is_main():
            for key in ("state_dict", "ema"):
                names += not_finite(content.get(key) or {}, self.never_finite)
        names = broadcast(names)
        if not names:
            return
        newest = self.run_folder.to_resume
        cure = f"start from {newest} with -c FILE -r" if newest else "start anew"
        raise TrainingError(
            f"after epoch {content['epoch']}: weights or statistics of the model are not finite any more: "
            f"{in_short(names)}. They are not saved. Lower the rates, cut gradients with "
            f"training.clip_grad_norm, or leave fp16, and {cure}"
        )

    def _remove_outdated(self, epoch: int) -> None:
        """Remove checkpoints that are no longer among the best or the last ones."""
        best = set(self.monitor.best_epochs)
        outdated = self.kept_as_best - best
        self.kept_as_best -= outdated
        written = self.run_folder.epochs
        if self.keep_last is not None:
            earlier = [n for n in written if n <= epoch and n not in outdated]
            # The newest may be one file with checkpoint_last.pth: what damages it must leave another one.
            last = [n for n in earlier if n not in self.kept_as_best][-max(self.keep_last, 2) :]
            outdated |= set(earlier) - {*last, *best}
        for number in outdated.intersection(written):
            path = self.run_folder.epoch(number)
            with storage_errors(path, "cannot be removed"):
                path.unlink(missing_ok=True)
