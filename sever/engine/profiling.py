"""A profile of some training steps, for TensorBoard or https://ui.perfetto.dev."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.optim import Optimizer
from torch.profiler import profile, schedule, tensorboard_trace_handler

from sever.utils.files import storage_errors

logger = logging.getLogger(__name__)

_LEFT_OUT = 2  # steps at the beginning, which are not like the others


@contextmanager
def profiled(optimizer: Optimizer, steps: int, folder: Path) -> Iterator[None]:
    """A context in which the optimizer's first steps but two are profiled.

    Args:
        optimizer: its steps are counted.
        steps: how many are profiled; 0 profiles none.
        folder: for the profile, `<host>_<process>.<time>.pt.trace.json`; made if missing.

    Raises:
        StorageError: the profile cannot be written.
    """
    if not steps:
        yield
        return
    write = tensorboard_trace_handler(str(folder))

    def on_trace_ready(profiler: profile) -> None:
        with storage_errors(folder, "no profile can be written there"):
            write(profiler)
        logger.info("Profile of %d steps: %s", steps, folder)

    plan = schedule(wait=_LEFT_OUT - 1, warmup=1, active=steps, repeat=1)
    with profile(schedule=plan, on_trace_ready=on_trace_ready, record_shapes=True) as profiler:
        hook = optimizer.register_step_post_hook(lambda *_: profiler.step())
        try:
            yield
        finally:
            hook.remove()
