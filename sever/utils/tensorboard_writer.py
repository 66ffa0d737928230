"""TensorBoard's writer, which keeps the current step."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sever.utils.printing import printable

logger = logging.getLogger(__name__)


class TensorboardWriter:
    """TensorBoard's `SummaryWriter` that keeps the current step by itself.

    `add_scalar`, `add_image`, `add_histogram` and every other `add_…` of `SummaryWriter` take the
    tag and the value alone; where `set_step` was given a mode, it is added to the tag.

    Args:
        folder: the folder of the event files, made with the first value.
        enabled: False makes every call do nothing.
        first_step: events from here on, left by a run before it was resumed, are dropped.
    """

    def __init__(self, folder: Callable[[], Path] | Path, enabled: bool = True, first_step: int = 0):
        self.enabled = enabled
        self.step = first_step
        self.mode = ""
        self._folder = folder
        self._first_step = first_step

    def set_step(self, step: int, mode: str = "train") -> None:
        """Set the step and the mode (`train`, `valid`, or "") of the next values."""
        self.step = step
        self.mode = mode

    def close(self) -> None:
        """Close the event file."""
        if "_writer" in vars(self):
            with self._warning():
                self._writer.close()

    @cached_property
    def _writer(self) -> Any:
        from sever.utils.tensorboard_events import EventWriter

        return EventWriter(self._events_folder, self._first_step)

    @property
    def _events_folder(self) -> Path:
        return self._folder() if callable(self._folder) else self._folder

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("add_"):
            raise AttributeError(f"TensorboardWriter has no '{name}'")

        def add(tag: str, *values: Any, **options: Any) -> None:
            if not self.enabled:
                return
            options.setdefault("global_step", self.step)
            full_tag = printable(f"{tag}/{self.mode}" if self.mode else tag)
            shown = [printable(value, keep="\n\t") if isinstance(value, str) else value for value in values]
            with self._warning():
                getattr(self._writer, name)(full_tag, *shown, **options)

        return add

    @contextmanager
    def _warning(self) -> Iterator[None]:
        """An error of the disk ends TensorBoard's log, not the training."""
        try:
            yield
        except OSError as error:
            self.enabled = False
            logger.warning(
                "%s: TensorBoard's events cannot be written: %s. The training goes on without them.",
                *(self._events_folder, error.strerror or error),
            )
