"""Optimizers by name, with rates of their own for the pretrained encoder and for all the rest."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sever.base import BaseModel
from sever.utils.errors import ConfigError, did_you_mean
from sever.utils.registry import Registry, parameters

OPTIMIZERS = Registry("optimizer", base=Optimizer)
_UNUSABLE = ("Optimizer", "LBFGS", "SparseAdam")  # LBFGS wants a closure, SparseAdam sparse gradients
for _class in vars(torch.optim).values():
    if isinstance(_class, type) and issubclass(_class, Optimizer) and _class.__name__ not in _UNUSABLE:
        OPTIMIZERS.register(_class)


@OPTIMIZERS.register
class RAdam(torch.optim.RAdam):
    """Rectified Adam (https://arxiv.org/abs/1908.03265) with decoupled weight decay.

    The same as torch's but for that default, which is what the competition's implementations of
    RAdam had.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, decoupled_weight_decay=decoupled_weight_decay)


def parameter_groups(model: BaseModel, settings: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The optimizer's groups, with every trainable parameter in exactly one of them.

    Args:
        model: whose `parameter_groups()` are taken.
        settings: options by the name of the group, e.g. `{"encoder": {"lr": 7e-5}, "decoder": {…}}`;
            empty puts all parameters into one group.

    Raises:
        ConfigError: the model has no such groups.
    """
    named = model.parameter_groups() if settings else {"all": list(model.parameters())}
    if settings and set(settings) != set(named):
        raise ConfigError(
            f"optimizer: has the groups {', '.join(settings)}, but {type(model).__name__} has "
            f"{', '.join(named)}. Put one rate for all into optimizer.args."
        )
    groups = [
        {"params": [p for p in members if p.requires_grad], "name": name, **settings.get(name, {})}
        for name, members in named.items()
    ]
    _check_each_once(model, groups)
    return groups


def group_faults(
    optimizer: Callable[..., Any], settings: Mapping[str, Mapping[str, Any]], where: str
) -> list[str]:
    """Options in `encoder:` and `decoder:` that the optimizer does not take."""
    taken = [name for name in parameters(optimizer) if name != "params"]
    return [
        f"{where}.{group}: unknown key '{option}'.{did_you_mean(option, taken)} Known: {', '.join(taken)}."
        for group, options in settings.items()
        for option in options
        if option not in taken
    ] + [
        f"{where}.{group}.{option}: expected a number of at least 0, received {value!r}"
        for group, options in settings.items()
        for option, value in options.items()
        if option in ("lr", "weight_decay", "momentum", "eps") and not _at_least_0(value)
    ]


def _at_least_0(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < float("inf")  # type: ignore[operator]


def _check_each_once(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    grouped = [id(p) for group in groups for p in group["params"]]
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if len(grouped) != len(set(grouped)) or set(grouped) != set(trainable):
        lost = [name for key, name in trainable.items() if grouped.count(key) != 1]
        raise ConfigError(
            f"arch: {type(model).__name__}.parameter_groups() must give every parameter once; it does "
            f"not for {', '.join(lost[:5])}"
        )
