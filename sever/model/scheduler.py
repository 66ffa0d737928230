"""Learning-rate schedules."""

import math

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from sever.utils.registry import Registry

SCHEDULERS = Registry("lr_scheduler", base=LRScheduler)
for _name, _class in vars(torch.optim.lr_scheduler).items():
    if (
        isinstance(_class, type)
        and issubclass(_class, LRScheduler)
        and not _name.startswith("_")
        and _class is not LRScheduler
    ):
        SCHEDULERS.register(_class)


@SCHEDULERS.register
class FlatCosineLR(LambdaLR):
    """The seed's schedule: flat, then half a cosine down to 0.

    Args:
        optimizer: whose rates are multiplied.
        flat_epochs: epochs at the full rate.
        anneal_epochs: epochs from there to 0; the rate stays 0 after them.
    """

    def __init__(self, optimizer: Optimizer, flat_epochs: int = 30, anneal_epochs: int = 220) -> None:
        if flat_epochs < 0 or anneal_epochs < 1:
            raise ValueError(
                f"flat_epochs must be at least 0 and anneal_epochs at least 1, received {flat_epochs} "
                f"and {anneal_epochs}"
            )
        super().__init__(optimizer, lambda epoch: flat_cosine_factor(epoch, flat_epochs, anneal_epochs))


def flat_cosine_factor(epoch: int, flat_epochs: int, anneal_epochs: int) -> float:
    """The share of the full rate in an epoch.

    Example:
        >>> [round(flat_cosine_factor(epoch, 2, 4), 3) for epoch in range(8)]
        [1.0, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    Args:
        epoch: from 0.
        flat_epochs: epochs at the full rate.
        anneal_epochs: epochs of the half cosine, from 1 to 0.
    """
    progress = min(max(epoch - flat_epochs, 0) / anneal_epochs, 1.0)
    return 0.5 * (1 + math.cos(math.pi * progress))
