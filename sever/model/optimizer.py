"""Optimizers by name, and their parameter groups.

Those of torch go by the names of their classes (`AdamW`), timm's by its own lower-case names with the
settings that timm gives them (`adamw`, `lamb`, `sgd` with Nesterov's momentum).
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers
from torch import nn
from torch.optim import Optimizer

from sever.base import BaseModel
from sever.config.registry import OPTIMIZERS
from sever.utils.errors import ConfigError

_UNUSABLE = {
    "LBFGS": "needs a closure",
    "SparseAdam": "needs sparse gradients",
    "Muon": "takes matrices alone",
    **dict.fromkeys(("kron", "kronc", "kronw"), "needs the package opt_einsum"),
}
_MOMENTUM = 0.9  # timm's own default for optimizers with a momentum; Nesterov's needs one
_NORMS = (nn.LayerNorm, nn.RMSNorm)  # the parameters of all others have one axis


def _register_all() -> None:
    """Register torch's optimizers by the names of their classes, timm's by its own names."""
    for name, reason in _UNUSABLE.items():
        OPTIMIZERS.refuse(name, reason)
    for name, thing in vars(torch.optim).items():
        usable = isinstance(thing, type) and issubclass(thing, Optimizer) and thing is not Optimizer
        if usable and name not in _UNUSABLE and name != "RAdam":
            OPTIMIZERS.register(thing, name)
    for name in map(str, list_optimizers()):
        info = get_optimizer_info(name)
        if isinstance(info.opt_class, str):  # an import path
            OPTIMIZERS.refuse(name, f"needs the package {info.opt_class.partition('.')[0]}")
        elif info.second_order:
            OPTIMIZERS.refuse(name, "needs second derivatives")
        elif name not in _UNUSABLE:
            defaults = ({"momentum": _MOMENTUM} if info.has_momentum else {}) | (info.defaults or {})
            thing = get_optimizer_class(name, bind_defaults=False)
            OPTIMIZERS.register(partial(thing, **defaults) if defaults else thing, name)


_register_all()


class RAdam(torch.optim.RAdam):
    """Rectified Adam (https://arxiv.org/abs/1908.03265) with decoupled weight decay.

    torch's with another default, which the RAdam of the competition had.
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


def with_lookahead(optimizer: Optimizer, k: int = 6, alpha: float = 0.5) -> Optimizer:
    """Lookahead, https://arxiv.org/abs/1907.08610: slow weights that go towards the fast ones every k steps.

    The fast weights, those of the model, then start again from the slow ones, and the optimizer keeps its
    moments. A parameter's slow weights start with its value before its first step, so an encoder that is
    frozen at first joins later. They and the steps of the cycle are in the optimizer's `state_dict`.

    `timm.optim.Lookahead` is not used: it leaves out the first k steps, and wraps the optimizer in a class
    that schedules and gradient scalers do not know. This one adds hooks to the optimizer itself.

    Args:
        optimizer: the optimizer of the fast weights; it is changed and returned.
        k: steps of the optimizer between two slow steps, at least 1.
        alpha: how far a slow step goes towards the fast weights, in (0, 1]; 1 has no effect.
    """
    first: dict[nn.Parameter, torch.Tensor] = {}  # weights before their first step

    @torch.no_grad()
    def before_step(optimizer: Optimizer, *_: Any) -> None:
        # Not into the state yet: many optimizers take an entry there for one of their own.
        first.clear()
        for weight in _weights(optimizer):
            if weight.grad is not None and "lookahead_slow" not in optimizer.state.get(weight, {}):
                first[weight] = weight.clone()

    @torch.no_grad()
    def after_step(optimizer: Optimizer, *_: Any) -> None:
        found_inf = getattr(optimizer, "found_inf", None)  # a fused optimizer leaves such a step out itself
        skipped = found_inf is not None and found_inf.item()
        if skipped or all(weight.grad is None for weight in _weights(optimizer)):
            return
        for weight, before in first.items():
            optimizer.state[weight]["lookahead_slow"] = before
        first.clear()
        steps = optimizer.param_groups[0].get("lookahead_steps", 0) + 1
        for group in optimizer.param_groups:
            group["lookahead_steps"] = steps % k
        if steps % k == 0:
            for weight in _weights(optimizer):
                slow = optimizer.state.get(weight, {}).get("lookahead_slow")
                if slow is not None:
                    weight.copy_(slow.lerp_(weight, alpha))

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_step_post_hook(after_step)
    optimizer.register_load_state_dict_post_hook(_check_slow_weights)
    return optimizer


def _check_slow_weights(optimizer: Optimizer) -> None:
    """Raise a `ValueError` where a loaded state has no slow weights of the parameters' shapes."""
    for group in optimizer.param_groups:
        if type(group.get("lookahead_steps", 0)) is not int:
            raise ValueError("lookahead_steps: expected a number of steps")
    for weight in _weights(optimizer):
        slow = optimizer.state.get(weight, {}).get("lookahead_slow", weight)
        if slow.shape != weight.shape:
            raise ValueError(f"lookahead_slow: expected shape {tuple(weight.shape)}")


def _weights(optimizer: Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def parameter_groups(
    model: BaseModel, settings: Mapping[str, Mapping[str, Any]], decay_biases_and_norms: bool = True
) -> list[dict[str, Any]]:
    """The optimizer's groups, with every trainable parameter in exactly one of them.

    They are made before an encoder is frozen for some epochs, so that they hold its parameters too.
    Parameters that the model itself has frozen are left out.

    Args:
        model: the model, whose `parameter_groups()` are used.
        settings: options by the name of the group, e.g. `{"encoder": {"lr": 7e-5}, "decoder": {…}}`;
            empty puts all parameters into one group.
        decay_biases_and_norms: False puts biases, parameters of norms and all others with one axis
            into groups `<group>_no_decay` with weight decay 0.

    Raises:
        ConfigError: the model has no such groups, or they lack or repeat a parameter.
    """
    named = model.parameter_groups() if settings else {"all": list(model.parameters())}
    if settings and set(settings) != set(named):
        raise ConfigError(
            f"optimizer: has the groups {', '.join(settings)}, but {type(model).__name__} has "
            f"{', '.join(named)}. For one rate for all, that of optimizer.args.lr, set both to null: "
            f"-s optimizer.encoder=null -s optimizer.decoder=null"
        )
    groups: list[dict[str, Any]] = [
        {"params": [p for p in members if p.requires_grad], "name": name, **settings.get(name, {})}
        for name, members in named.items()
    ]
    _check_each_once(model, groups)
    if decay_biases_and_norms:
        return groups
    spared = _biases_and_norms(model)
    split = []
    for group in groups:
        decayed, others = (
            [p for p in group["params"] if (id(p) in spared) == is_spared] for is_spared in (False, True)
        )
        split.append({**group, "params": decayed})
        if others:
            name = f"{group['name']}_no_decay"
            split.append({**group, "params": others, "name": name, "weight_decay": 0.0})
    return split


def _biases_and_norms(model: nn.Module) -> set[int]:
    """The ids of parameters that are biases, belong to a norm, or have at most one axis."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim <= 1 or "bias" in name or isinstance(module, _NORMS)
    }


def _check_each_once(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    grouped = Counter(id(p) for group in groups for p in group["params"])
    wrong = [n for n, p in model.named_parameters() if p.requires_grad and grouped[id(p)] != 1]
    if wrong:
        raise ConfigError(
            f"arch: {type(model).__name__}.parameter_groups() must give every parameter once; it does "
            f"not for {', '.join(wrong[:5])}"
        )
