"""What a run will do, as text."""

import math
import warnings

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sever.base import BaseDataLoader
from sever.building import Parts, lr_scheduler_of
from sever.data_loader.annotations import SheetTable
from sever.utils.device import describe
from sever.utils.errors import ConfigError


def plan_of(parts: Parts) -> list[str]:
    """What a run will do, as lines of text."""
    checked = parts.config.checked
    groups = ", ".join(
        f"{group.get('name', 'all')} {sum(p.numel() for p in group['params']):,}"
        for group in parts.optimizer.param_groups
    )
    lines = [
        ("experiment", f"{checked.name} ({parts.config.source})"),
        ("device", describe(parts.device)),
        ("model", f"{checked.arch.type}, {parts.model.parameter_count():,} parameters ({groups})"),
        ("training", _sample_counts(parts.data_loader)),
        ("validation", _sample_counts(parts.valid_data_loader)),
        ("steps", f"{len(parts.data_loader)} an epoch, {checked.training.epochs} epochs"),
        *(("learning rate", line) for line in _learning_rates(parts)),
        ("monitor", f"{checked.training.monitor}, early stop {checked.training.early_stop or 'off'}"),
    ]
    own = list(checked.model_extra or {})
    lines += [("own sections", ", ".join(own))] if own else []
    return [f"{title:14s} {text}" for title, text in lines]


def _sample_counts(data_loader: BaseDataLoader | None) -> str:
    if data_loader is None:
        return "none"
    text = f"{len(data_loader.indices):,} images"
    table = getattr(data_loader, "table", None)
    if isinstance(table, SheetTable):
        present = table.present[data_loader.indices]
        counts = [f"class {c}: {n}" for c, n in zip(table.class_ids, present.sum(axis=0), strict=True)]
        text += f" ({', '.join(counts)}, clean: {(~present.any(axis=1)).sum()})"
    return text


def _learning_rates(parts: Parts) -> list[str]:
    """The rates at some epochs, found by stepping the schedule over an optimizer of no weights."""
    groups = parts.optimizer.param_groups
    stand_in = torch.optim.SGD(
        [
            {
                "params": [nn.Parameter(torch.zeros(1))],
                "name": g.get("name", "all"),
                "lr": g.get("initial_lr", g["lr"]),
            }
            for g in groups
        ]
    )
    scheduler = lr_scheduler_of(parts.config, stand_in)
    epochs = parts.config.checked.training.epochs
    shown = sorted({1, *(max(1, math.ceil(epochs * share)) for share in (0.25, 0.5, 0.75, 1.0))})
    lines = []
    for epoch in range(1, epochs + 1):
        if epoch in shown:
            rates = ", ".join(f"{g['name']} {g['lr']:.3g}" for g in stand_in.param_groups)
            lines.append(f"epoch {epoch}: {rates}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stand_in.step()
            if scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau):
                _step(scheduler, parts, epoch)
    return lines


def _step(scheduler: LRScheduler, parts: Parts, epoch: int) -> None:
    try:
        scheduler.step()
    except ValueError as error:
        raise ConfigError(
            f"{parts.config.source}: lr_scheduler: ends before epoch {epoch + 1}: {error}"
        ) from error
