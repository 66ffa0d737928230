"""Pictures of sheets with their masks, and TensorBoard."""

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

logger = logging.getLogger(__name__)

# One colour per class, RGB, told apart on grey and by colour-blind people
# (Okabe and Ito, https://jfly.uni-koeln.de/color/), repeated where there are more classes.
COLOURS = ((240, 228, 66), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (230, 159, 0))
_FILL = 0.35  # how much of a mask's colour covers the steel


def colour(class_index: int) -> tuple[int, int, int]:
    """The colour of a class (0-based), RGB."""
    return COLOURS[class_index % len(COLOURS)]


def overlay(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Draw masks on a sheet as tinted areas with outlines.

    Args:
        image: (H, W) uint8 in [0, 255].
        masks: (C, H, W), not zero where the class is.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    picture = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    for class_index, mask in enumerate(masks):
        on = (mask != 0).astype(np.uint8)
        if not on.any():
            continue
        tint = np.array(colour(class_index), dtype=np.float32)
        inside = on.astype(bool)
        picture[inside] = ((1 - _FILL) * picture[inside] + _FILL * tint).astype(np.uint8)
        outlines, _ = cv2.findContours(on, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour(class_index), 1)
    return picture


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
            self._writer.close()

    @cached_property
    def _writer(self) -> Any:
        from sever.utils.event_file import EventWriter

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
            full_tag = f"{tag}/{self.mode}" if self.mode else tag
            try:
                getattr(self._writer, name)(full_tag, *values, **options)
            except OSError as error:  # ends TensorBoard's log, not the training
                self.enabled = False
                logger.warning(
                    "%s: TensorBoard's events cannot be written: %s. The training goes on without them.",
                    *(self._events_folder, error.strerror or error),
                )

        return add
