"""What a run will do, as text."""

import copy
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sever.base import BaseDataLoader, BaseModel
from sever.config.load import LoadedConfig
from sever.data_loader.annotations import SheetTable
from sever.engine.checkpoint import random_states, restore_random_states
from sever.factory import Parts, lr_scheduler_of, steps_per_epoch, synchronises
from sever.parallel import collectives
from sever.parallel.batch import Shard
from sever.parallel.device import describe
from sever.utils.errors import ConfigError

_MANY_SHEETS = 32  # in a batch of validation
_PLOT_WIDTH = 60
_PLOTTED_MOVES = 4000  # of a schedule, where fewer show the same course


def plan_of(parts: Parts, processes: int = 1) -> list[str]:
    """What a run will do, as lines of text.

    Args:
        parts: of the run.
        processes: that share its batches.
    """
    checked = parts.config.checked
    training = checked.training
    groups = ", ".join(
        f"{group.get('name', 'all')} {sum(p.numel() for p in group['params']):,}"
        for group in parts.optimizer.param_groups
    )
    epochs = "1 epoch" if training.epochs == 1 else f"{training.epochs} epochs"
    lines = [
        ("experiment", f"{checked.name} ({parts.config.source})"),
        ("device", f"{describe(parts.device)}, {training.precision}"),
        *_sharing(parts, processes),
        ("model", f"{checked.arch.type}, {parts.model.parameter_count():,} parameters ({groups})"),
        *(("memory", text) for text in _memory(parts, processes)),
        ("training", _sample_counts(parts.data_loader)),
        ("validation", f"{_held_out(parts)}{_sample_counts(parts.valid_data_loader)}"),
        *(("an epoch", text) for text in _epoch_counts(parts.data_loader)),
        ("steps", f"{steps_per_epoch(parts.config, parts.data_loader)} an epoch, {epochs}"),
        *_learning_rates(parts),
        ("monitor", f"{training.monitor}, early stop {training.early_stop or 'off'}"),
        *(("note", text) for text in _notes(parts, processes)),
    ]
    own = list(checked.model_extra or {})
    lines += [("own sections", ", ".join(own))] if own else []
    return [f"{title:14s} {text}".rstrip() for title, text in lines]


def _held_out(parts: Parts) -> str:
    args = parts.config.checked.data_loader.args
    return f"fold {args.get('fold') or 1} of {args['folds']}: " if args.get("folds") else ""


def _sharing(parts: Parts, processes: int) -> list[tuple[str, str]]:
    """How several processes share a batch."""
    if processes == 1:
        return []
    batch_size = parts.data_loader.batch_size
    sizes = [Shard.of(batch_size, rank, processes).images for rank in range(processes)]
    each = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} or {sizes[-1]}"
    together = synchronises(parts.config, batch_size, processes, parts.device)
    norm = "over all of them" if together else "of each process by itself"
    text = f"{processes}; of a batch of {batch_size} images each has {each}; BatchNorm {norm}"
    return [("processes", text)]


def _notes(parts: Parts, processes: int) -> Iterator[str]:
    """What can be run as it is and is hardly meant."""
    checked = parts.config.checked
    training = checked.training
    if training.unfreeze_encoder > training.epochs:
        yield "training.unfreeze_encoder is after the last epoch: the encoder is never trained"
    if training.unfreeze_encoder > 1 and checked.arch.args.get("encoder_weights", "imagenet") is None:
        yield "training.unfreeze_encoder keeps an encoder of random weights frozen"
    for stage in getattr(parts.loss, "stages", ()):
        if stage.from_epoch > training.epochs:
            yield f"the loss of epoch {stage.from_epoch} on is never reached"
    if parts.device.type == "cpu" and training.precision != "fp32":
        yield f"{training.precision} is much slower than fp32 on most CPUs"
    workers = checked.data_loader.args.get("num_workers", 0)
    here = processes if collectives.world_size() == 1 else collectives.world().local_size
    if isinstance(workers, int) and workers * here > (os.cpu_count() or 1):
        of_each = f" for each of {here} processes" if here > 1 else ""
        yield f"data_loader.args.num_workers: {workers}{of_each} on {os.cpu_count()} CPU cores"
    at_once = parts.valid_data_loader.batch_size if parts.valid_data_loader else 0
    if processes > 1 and at_once > _MANY_SHEETS:
        yield (
            f"each process validates {at_once} whole sheets at a time: where memory lacks, lower "
            f"data_loader.args.validation_batch_size"
        )
    for name, count in getattr(parts.data_loader, "samples_per_epoch", dict)().items():
        if count == 0:
            what = f"class {name}" if name.isdecimal() else name
            yield f"no training sample has {what}" if what != "clean" else "no training sample is clean"
    still = _still_epochs(parts)
    if still:
        yield f"the learning rates are 0 from epoch {still} on: nothing is learned in them"


def _still_epochs(parts: Parts) -> int | None:
    """The epoch from which on all rates stay 0, if there is one."""
    epochs = parts.config.checked.training.epochs
    _, rates = _course(parts)
    moving = [number for number, step in enumerate(rates) if any(rate > 1e-12 for rate in step)]
    first_still = math.ceil((moving[-1] + 1) * epochs / len(rates)) + 1 if moving else 1
    return first_still if first_still <= epochs else None


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


def _epoch_counts(data_loader: BaseDataLoader) -> list[str]:
    """Samples of an epoch by class, of loaders that can tell."""
    if not hasattr(data_loader, "samples_per_epoch"):
        return []
    counts = data_loader.samples_per_epoch()
    names = (f"class {name}: {n}" if name.isdecimal() else f"{name}: {n}" for name, n in counts.items())
    return [f"{', '.join(names)} samples"]


def _learning_rates(parts: Parts) -> list[tuple[str, str]]:
    """The highest rate of each group, and a plot of the course that they all take."""
    epochs = parts.config.checked.training.epochs
    names, rates = _course(parts)
    peaks = [max(of_group) for of_group in zip(*rates, strict=True)]
    texts = [f"{name} {peak:.3g}" for name, peak in zip(names, peaks, strict=True)]
    if parts.lr_scheduler is None or isinstance(parts.lr_scheduler, ReduceLROnPlateau):
        then = "" if parts.lr_scheduler is None else ", lowered where validation stops improving"
        return [("learning rate", f"{', '.join(texts)}{then}")]
    lines = [("learning rate", f"at most {', '.join(texts)}")]
    shares = [
        tuple(round(rate / peak, 6) if peak else 0.0 for rate, peak in zip(step, peaks, strict=True))
        for step in rates
    ]
    alike = all(len(set(step)) == 1 for step in shares)
    for number, name in enumerate(["all groups"] if alike else names):
        plot = bar_plot([step[number] for step in shares], width=_PLOT_WIDTH)
        width = min(_PLOT_WIDTH, len(shares))
        lines += [("" if alike or row else name, f"│{line}") for row, line in enumerate(plot)]
        lines.append(("", f"└{'─' * width}"))
        lines.append(("", f" 1{f'epoch {epochs}':>{max(width - 1, 10)}}"))
    return lines


def _course(parts: Parts) -> tuple[list[str], list[list[float]]]:
    """The groups' names, and their rates at each move of the schedule.

    They are found by stepping the schedule over an optimizer of no weights.
    """
    groups = parts.optimizer.param_groups
    stand_in = torch.optim.SGD(
        [
            {
                "params": [nn.Parameter(torch.zeros(1))],
                "name": g.get("name", "all"),
                "lr": g.get("initial_lr", g["lr"]),
            }
            for g in groups
        ],
        momentum=0.9,  # some schedules change it too, and ask for it
    )
    config, per_epoch = _coarse(parts)
    scheduler = lr_scheduler_of(config, stand_in, per_epoch)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for move in range(parts.config.checked.training.epochs * per_epoch):
            rates.append([group["lr"] for group in stand_in.param_groups])
            stand_in.step()
            if scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau):
                _step(scheduler, parts, move // per_epoch + 1)
    return [g["name"] for g in stand_in.param_groups], rates


def _coarse(parts: Parts) -> tuple[LoadedConfig, int]:
    """The config, and how often its schedule moves on in an epoch, for a plot.

    A schedule whose arguments count epochs has the same course with fewer, longer steps, which saves
    seconds where there are many.
    """
    config = parts.config
    section = config.checked.lr_scheduler
    if section is None or section.interval == "epoch":
        return config, 1
    steps = steps_per_epoch(config, parts.data_loader)
    thinned = max(1, _PLOTTED_MOVES // config.checked.training.epochs)
    if section.type != "FlatCosineLR" or thinned >= steps:
        return config, steps
    if section.warmup:
        length = max(1, round(section.warmup.length * thinned / steps))
        config = config.replace({"lr_scheduler.warmup.length": length})
    return config, thinned


def _step(scheduler: LRScheduler, parts: Parts, epoch: int) -> None:
    try:
        scheduler.step()
    except ValueError as error:
        raise ConfigError(
            f"{parts.config.source}: lr_scheduler: ends before epoch {epoch + 1}: {error}"
        ) from error


def _memory(parts: Parts, processes: int) -> Iterator[str]:
    """A rough need of memory for a training step, found by a forward pass without numbers."""
    batch_size = -(-parts.data_loader.batch_size // processes)
    states = random_states(parts.device)  # data sets of the user's own may draw from the global generators
    sample = parts.data_loader.dataset[int(parts.data_loader.indices[0])][0]
    restore_random_states(states, parts.device)
    if not isinstance(sample, torch.Tensor):
        return
    training = parts.config.checked.training
    try:
        activations = _saved_bytes(parts.model, (batch_size, *sample.shape))
    except Exception:  # a model of the user's own may not be able to compute without numbers
        return
    if training.precision != "fp32":
        activations //= 2
    weights = 4 * sum(p.numel() for p in parts.model.parameters())
    slow = (training.ema_decay is not None) + (parts.config.checked.optimizer.lookahead is not None)
    copies = 4 + slow  # weights, gradients, two moments of Adam's kind
    total = activations + copies * weights
    yield (
        f"roughly {_gigabytes(total)} for a training step of {batch_size} x "
        f"{' x '.join(map(str, sample.shape[1:]))} ({_gigabytes(activations)} of it for the batch)"
    )


def _saved_bytes(model: BaseModel, shape: tuple[int, ...]) -> int:
    """Bytes that a forward pass keeps for the backward pass, in float32."""
    without_numbers = copy.deepcopy(model).to("meta").train()
    own = {tensor.untyped_storage()._cdata for tensor in without_numbers.state_dict().values()}
    seen: dict[int, tuple[torch.Tensor, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_meta and storage._cdata not in own:
            seen[storage._cdata] = (tensor, storage.nbytes())  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = without_numbers(torch.zeros(shape, device="meta"))
    del outputs
    return sum(size for _, size in seen.values())


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.{max(0, 1 - math.floor(math.log10(max(size, 1e8) / 1e9)))}f} GB"


def bar_plot(values: Sequence[float], height: int = 6, width: int = 60) -> list[str]:
    r"""Values at least 0 as a plot of vertical bars, scaled to the highest of them.

    Example:
        >>> print("\n".join(bar_plot([4.0, 4.0, 3.0, 2.0, 0.5], height=2)))
        ██▄
        ████▂

    Args:
        values: from left to right; where there are more than `width`, neighbours are averaged.
        height: in lines.
        width: in characters, at most.
    """
    columns = min(width, len(values))
    edges = [round(column * len(values) / columns) for column in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    top = max(means, default=0.0)
    eighths = [round(8 * height * mean / top) if top > 0 else 0 for mean in means]
    return [
        "".join(" ▁▂▃▄▅▆▇█"[min(max(bar - 8 * line, 0), 8)] for bar in eighths).rstrip()
        for line in reversed(range(height))
    ]
