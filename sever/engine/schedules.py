"""Moving learning rates on."""

import warnings

from torch.optim.lr_scheduler import LRScheduler


def step_schedule(lr_scheduler: LRScheduler) -> None:
    """Move a schedule on, also where no step of the optimizer came before.

    torch takes that for a mistake, but a step may have been skipped, or taken before the run was stopped.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        lr_scheduler.step()
