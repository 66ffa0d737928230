"""Averages gradients over processes, for training loops that do not exchange them in the backward pass."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from sever.parallel import collectives


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over all processes, in place, where any of them has one; a collective."""
    if collectives.world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    used = collectives.all_reduce_max(*(int(parameter.grad is not None) for parameter in trained))
    gradients = []
    for parameter, is_used in zip(trained, used, strict=True):
        if is_used and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    collectives.all_reduce_mean(gradients)


def average_before_steps(optimizer: Optimizer) -> None:
    """Let an optimizer average the gradients of all processes before each step."""

    def average(*_: object) -> None:
        average_gradients(p for group in optimizer.param_groups for p in group["params"])

    hook = optimizer.register_step_pre_hook(average)
    # Before other hooks, which look for gradients: all processes must have the same ones by then.
    optimizer._optimizer_step_pre_hooks.move_to_end(hook.id, last=False)  # type: ignore[attr-defined]
