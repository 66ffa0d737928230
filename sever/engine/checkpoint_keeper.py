"""Which checkpoints of a run are written, and which are kept."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

from typing_extensions import Self

from sever.engine.checkpoint import not_finite, packed
from sever.engine.monitor import Monitor
from sever.engine.run_folder import RunFolder
from sever.parallel.collectives import barrier, broadcast, is_main
from sever.utils.errors import TrainingError, in_short
from sever.utils.files import link_file, storage_errors, write_file

State = Callable[[], dict[str, Any]]  # returns the content of a checkpoint


class CheckpointKeeper:
    """Writes the checkpoints of a run, and removes one only after its successor is written.

    The state is copied at once. A thread writes it while the training goes on; see `wait`.

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
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def within_epoch(self, state: State) -> None:
        """Write the newest state, in the middle of an epoch; a collective."""
        content = self._content(state)
        if is_main():
            self._write(content, [self.run_folder.last])

    def after_epoch(self, state: State, epoch: int, improved: bool) -> bool:
        """Write the checkpoints of an epoch (from 1), which `improved` says is the best so far; a collective.

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
        paths += [folder.best] if improved else []
        content = self._content(state) if paths else None
        if is_main():
            self._write(content, paths, epoch, kept)
        return kept

    def check(self) -> None:
        """Raise what went wrong with a checkpoint since it was to be written."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def wait(self) -> None:
        """End when all checkpoints are written; a collective."""
        if self._writing is not None:
            self._writing.result()
        barrier()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let the last checkpoint be written, also where the training ends with an error."""
        if kind is None:
            self.wait()
        elif self._writing is not None:
            wait_for([self._writing])

    def _content(self, state: State) -> dict[str, Any]:
        """The state, gathered by all processes.

        Raises:
            TrainingError: weights or statistics are not finite.
        """
        content = state()
        self._check_finite(content)
        return content

    def _write(
        self, content: dict[str, Any] | None, paths: Sequence[Path], epoch: int = 0, kept: bool = False
    ) -> None:
        """Let the thread write a state under some names, and remove what an epoch made outdated."""
        if self._writing is not None:
            self._writing.result()
        self.run_folder.check_in_place()
        outdated = self._outdated(epoch, kept) if epoch else []
        self._writing = self._writer.submit(_replace, packed(content) if content else None, paths, outdated)

    def _check_finite(self, content: Mapping[str, Any]) -> None:
        names: list[str] = []
        if is_main():
            for key in ("state_dict", "ema"):
                names += not_finite(content.get(key) or {}, self.never_finite)
        names = broadcast(names)
        if not names:
            return
        self.wait()
        newest = self.run_folder.to_resume
        cure = f"start from {newest} with -c FILE -r" if newest else "start anew"
        raise TrainingError(
            f"after epoch {content['epoch']}: weights or statistics of the model are not finite any more: "
            f"{in_short(names)}. They are not saved. Lower the rates, cut gradients with "
            f"training.clip_grad_norm, or leave fp16, and {cure}"
        )

    def _outdated(self, epoch: int, kept: bool) -> list[Path]:
        """The checkpoints that an epoch, kept or not, takes from the best and the last ones."""
        best = set(self.monitor.best_epochs)
        outdated = self.kept_as_best - best
        self.kept_as_best -= outdated
        written = {*self.run_folder.epochs, *([epoch] if kept else [])}
        if self.keep_last is not None:
            earlier = [n for n in sorted(written) if n <= epoch and n not in outdated]
            # The newest may be one file with checkpoint_last.pth: what damages it must leave another one.
            last = [n for n in earlier if n not in self.kept_as_best][-max(self.keep_last, 2) :]
            outdated |= set(earlier) - {*last, *best}
        return [self.run_folder.epoch(number) for number in outdated.intersection(written)]


def _replace(data: memoryview | None, paths: Sequence[Path], outdated: Sequence[Path]) -> None:
    """Write a file under some names, then remove others."""
    if data is not None:
        write_file(paths[0], data)
    for name in paths[1:]:
        link_file(paths[0], name)
    for path in outdated:
        with storage_errors(path, "cannot be removed"):
            path.unlink(missing_ok=True)
