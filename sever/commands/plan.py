"""What a run will do, as text."""

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sever.base import BaseDataLoader
from sever.config.registry import LOADERS
from sever.config.signatures import parameters
from sever.data_loader.annotations import SheetTable
from sever.data_loader.torch_loader import TorchDataLoader
from sever.engine.run_folder import RunFolder
from sever.factory import (
    TrainingObjects,
    is_channels_last,
    lr_scheduler_of,
    steps_per_epoch,
    synchronises,
)
from sever.model.scheduler import moves_to_plot, rates_at
from sever.parallel import collectives
from sever.parallel.device import describe
from sever.parallel.sharded_batch import Shard
from sever.trainer.compiled import compiles
from sever.trainer.trial_step import TriedStep
from sever.utils.errors import ConfigError

_MANY_SHEETS = 32  # in a batch of validation
_PLOT_WIDTH = 60
_MOST_POINTS = 6000  # of a schedule, 100 for each column of the plot


def plan_of(
    objects: TrainingObjects, run: RunFolder, processes: int = 1, tried: TriedStep | None = None
) -> list[str]:
    """What a run of some processes will do, as lines of text.

    Args:
        objects: of the run.
        run: the folder of the run.
        processes: how many will share a batch.
        tried: a step of the run, which tells how much memory each needs.

    Raises:
        ConfigError: the schedule, the cache or the checkpoints do not fit.
    """
    checked = objects.config.checked
    training = checked.training
    groups = ", ".join(
        f"{group.get('name', 'all')} {sum(p.numel() for p in group['params']):,}"
        for group in objects.optimizer.param_groups
    )
    epochs = "1 epoch" if training.epochs == 1 else f"{training.epochs} epochs"
    rates = _Rates.of(objects)
    args = checked.data_loader.args
    fold = f"fold {args.get('fold') or 1} of {args['folds']}: " if args.get("folds") else ""
    lines = [
        ("experiment", f"{checked.name} ({objects.config.source})"),
        ("device", ", ".join(_computing(objects))),
        *(("processes", text) for text in _sharing(objects, processes)),
        ("model", f"{checked.arch.type}, {objects.model.parameter_count():,} parameters ({groups})"),
        ("memory", _memory(objects, processes, tried) if tried else "not known: no step was tried"),
        ("training", _sample_counts(objects.data_loader)),
        ("validation", f"{fold}{_sample_counts(objects.valid_data_loader)}"),
        *(("cache", text) for text in _caches(objects.data_loader)),
        *(("checkpoints", text) for text in ([_checkpoints(run, tried)] if tried else [])),
        *(("an epoch", f"{text} samples") for text in _epoch_counts(objects.data_loader)),
        ("steps", f"{steps_per_epoch(objects.config, objects.data_loader)} an epoch, {epochs}"),
        *rates.lines(),
        ("monitor", f"{training.monitor}, early stop {training.early_stop or 'off'}"),
        *(("note", text) for text in _notes(objects, processes)),
        *(("note", text) for text in rates.notes(training.epochs)),
    ]
    own = list(checked.model_extra or {})
    lines += [("own sections", ", ".join(own))] if own else []
    return [f"{title:14s} {text}".rstrip() for title, text in lines]


def _computing(objects: TrainingObjects) -> Iterator[str]:
    """The device, and how it computes a training step."""
    training = objects.config.checked.training
    yield describe(objects.device)
    yield training.precision
    if objects.device.type == "cuda" and training.precision == "fp32" and torch.backends.cudnn.allow_tf32:
        yield "convolutions in TF32"
    if is_channels_last(objects.config, objects.device):
        yield "channels last"
    if compiles(training.compile, objects.device, len(objects.data_loader) * training.epochs):
        yield "compiled"


def _sharing(objects: TrainingObjects, processes: int) -> Iterator[str]:
    """How several processes share a batch."""
    if processes == 1:
        return
    batch_size = objects.data_loader.batch_size
    sizes = [Shard.of(batch_size, rank, processes).images for rank in range(processes)]
    each = " or ".join(str(size) for size in sorted(set(sizes), reverse=True))
    together = synchronises(objects.config, batch_size, processes, objects.device)
    norm = "over all of them" if together else "of each process by itself"
    yield f"{processes}; of a batch of {batch_size} images each has {each}; BatchNorm {norm}"


def _without_effect(objects: TrainingObjects, processes: int) -> Iterator[str]:
    """Settings that change nothing."""
    training = objects.config.checked.training
    if training.sync_bn and processes > 1 and objects.device.type == "cpu":
        yield "training.sync_bn is for GPUs: on the CPU each process takes BatchNorm's statistics by itself"
    if training.early_stop and training.monitor == "off":
        yield "training.early_stop follows training.monitor, which is off: the run does not stop early"
    for stage in getattr(objects.loss, "stages", ()):
        if stage.from_epoch > training.epochs:
            yield f"the loss of epoch {stage.from_epoch} on is never reached"


def _notes(objects: TrainingObjects, processes: int) -> Iterator[str]:
    """Settings that work and are hardly meant."""
    checked = objects.config.checked
    training = checked.training
    yield from _without_effect(objects, processes)
    if training.unfreeze_encoder > training.epochs:
        yield "training.unfreeze_encoder is after the last epoch: the encoder is never trained"
    if training.unfreeze_encoder > 1 and checked.arch.args.get("encoder_weights", "imagenet") is None:
        yield "training.unfreeze_encoder keeps an encoder of random weights frozen"
    if objects.device.type == "cpu" and training.precision != "fp32":
        yield f"{training.precision} is much slower than fp32 on most CPUs"
    workers = checked.data_loader.args.get("num_workers", 0)
    here = processes if collectives.world_size() == 1 else collectives.world().local_size
    if isinstance(workers, int) and workers * here > (os.cpu_count() or 1):
        of_each = f" for each of {here} processes" if here > 1 else ""
        yield f"data_loader.args.num_workers: {workers}{of_each} on {os.cpu_count()} CPU cores"
    at_once = objects.valid_data_loader.batch_size if objects.valid_data_loader else 0
    loader = LOADERS.find(checked.data_loader.type, objects.config.at("data_loader"))
    if processes > 1 and at_once > _MANY_SHEETS and "validation_batch_size" in parameters(loader):
        yield (
            f"each process validates {at_once} whole sheets at a time: where memory lacks, lower "
            f"data_loader.args.validation_batch_size"
        )
    if isinstance(objects.data_loader, TorchDataLoader):
        yield (
            f"nothing is validated: {checked.data_loader.type} is a plain torch DataLoader, which cannot be "
            f"split; derive it from sever.base.BaseDataLoader for that"
        )
    for name, count in getattr(objects.data_loader, "samples_per_epoch", dict)().items():
        if count == 0:
            what = f"class {name}" if name.isdecimal() else name
            yield f"no training sample has {what}" if what != "clean" else "no training sample is clean"


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


def _epoch_counts(data_loader: BaseDataLoader) -> Iterator[str]:
    """Samples of an epoch by class, where the loader knows them."""
    if hasattr(data_loader, "samples_per_epoch"):
        counts = data_loader.samples_per_epoch().items()
        yield ", ".join(f"class {name}: {n}" if name.isdecimal() else f"{name}: {n}" for name, n in counts)


def _caches(data_loader: BaseDataLoader) -> Iterator[str]:
    """Where decoded images are kept, and how large that gets; a `ConfigError` where they do not fit."""
    for cache in getattr(data_loader, "caches", ()):
        cache.check_fits()
        state = "there already" if cache.is_built else "decoded before the first epoch"
        yield f"{_gigabytes(cache.size)} of decoded images in {cache.path or 'memory'}, {state}"


def _checkpoints(run: RunFolder, tried: TriedStep) -> str:
    """How large they get; a `ConfigError` where there is no room for two, of which one replaces the other."""
    there = next(path for path in run.path.absolute().parents if path.is_dir())
    size, free = tried.bytes_of_state, shutil.disk_usage(there).free
    needed = 2 * size if run.is_new else size
    if free < needed:
        what = "two checkpoints take" if run.is_new else "a checkpoint takes"
        raise ConfigError(
            f"save_dir: {what} {needed:,} bytes, and {free:,} are free in {there}; make room, or choose "
            f"another with -s save_dir=FOLDER"
        )
    return f"{_gigabytes(size)} each, {_gigabytes(free)} are free in {there}"


@dataclass(frozen=True)
class _Rates:
    """The learning rates of a run.

    Attributes:
        names: names of the optimizer's groups.
        epochs: the epoch, from 1, of each point in time.
        rates: at each point the rate of each group.
        course: how the rates change, in words; None plots them.
    """

    names: list[str]
    epochs: list[int]
    rates: list[list[float]]
    course: str | None = None

    @classmethod
    def of(cls, objects: TrainingObjects) -> "_Rates":
        """The rates that the schedule gives to an optimizer without the model's weights."""
        trained = objects.optimizer.param_groups
        names = [group.get("name", "all") for group in trained]
        groups: list[dict[str, Any]] = [
            {"params": [nn.Parameter(torch.zeros(1))], "lr": group.get("initial_lr", group["lr"])}
            for group in trained
        ]
        optimizer = torch.optim.SGD(groups, momentum=0.9)  # some schedules change it too, and ask for it
        section, epochs = objects.config.checked.lr_scheduler, objects.config.checked.training.epochs
        by_step = section is not None and section.interval == "step"
        per_epoch = steps_per_epoch(objects.config, objects.data_loader) if by_step else 1
        scheduler = lr_scheduler_of(objects.config, optimizer, per_epoch)
        if scheduler is None or isinstance(scheduler, ReduceLROnPlateau):
            course = ", lowered where validation stops improving" if scheduler else ""
            return cls(names, [1], [[group["lr"] for group in groups]], course)
        moves = moves_to_plot(scheduler, epochs * per_epoch)
        points = np.linspace(0, moves - 1, min(moves, _MOST_POINTS), dtype=int).tolist()
        where = objects.config.at("lr_scheduler")
        try:
            rates = rates_at(scheduler, [*points, moves])[:-1]
        except ValueError as error:
            raise ConfigError(f"{where}: ends before epoch {epochs} does: {error}") from error
        except ArithmeticError as error:  # of a length of 0, which constructors let pass
            raise ConfigError(
                f"{where}: {type(scheduler).__name__} refuses its arguments: {error}"
            ) from error
        return cls(names, [point // per_epoch + 1 for point in points], rates)

    def lines(self) -> Iterator[tuple[str, str]]:
        """The highest rate of each group, and a plot of the rates."""
        peaks = [max(of_group) for of_group in zip(*self.rates, strict=True)]
        texts = ", ".join(f"{name} {peak:.3g}" for name, peak in zip(self.names, peaks, strict=True))
        if self.course is not None:
            yield "learning rate", f"{texts}{self.course}"
            return
        yield "learning rate", f"at most {texts}"
        shares = np.divide(self.rates, peaks, out=np.zeros_like(self.rates), where=np.array(peaks) > 0)
        alike = np.allclose(shares, shares[:, :1], atol=1e-6)
        for number, name in enumerate(self.names[: 1 if alike else None]):
            plot = bar_plot(shares[:, number], width=_PLOT_WIDTH)
            width = min(_PLOT_WIDTH, len(shares))  # of the plot
            yield from (("" if alike or row else name, f"│{line}") for row, line in enumerate(plot))
            yield "", f"└{'─' * width}"
            yield "", f" 1{f'epoch {self.epochs[-1]}':>{max(width - 1, 10)}}"

    def notes(self, epochs: int) -> Iterator[str]:
        """Whether all rates stay 0 from some epoch on."""
        points = zip(self.epochs, self.rates, strict=True)
        last = max((epoch for epoch, rates in points if max(rates) > 1e-12), default=0)
        first = next((epoch for epoch in self.epochs if epoch > last), None)
        if first and (self.course is not None or self.epochs[-1] == epochs):
            yield f"the learning rates are 0 from epoch {first} on: nothing is learned in them"


def _memory(objects: TrainingObjects, processes: int, tried: TriedStep) -> str:
    """A rough estimate of a training step's memory, from what a tried one kept."""
    checked = objects.config.checked
    batch_size = -(-objects.data_loader.batch_size // processes)
    for_batch = batch_size * tried.bytes_per_image
    # Weights, gradients, two moments of Adam's kind, and weights that follow these.
    copies = 4 + (checked.training.ema_decay is not None) + (checked.optimizer.lookahead is not None)
    total = for_batch + copies * 4 * sum(p.numel() for p in objects.model.parameters())
    size = " x ".join(map(str, (batch_size, *tried.image_size)))
    of_batch = f"{_gigabytes(for_batch)} of it for the batch"
    return f"roughly {_gigabytes(total)} for a training step of {size} ({of_batch})"


def _gigabytes(size: float) -> str:
    """A size in bytes as GB with two significant digits, below 0.1 GB as MB."""
    if size < 1e8:
        return f"{size / 1e6:.{1 if size < 1e7 else 0}f} MB"
    return f"{size / 1e9:.{max(0, 1 - math.floor(math.log10(size / 1e9)))}f} GB"


def bar_plot(values: Sequence[float] | np.ndarray, height: int = 6, width: int = 60) -> list[str]:
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
    means = [float(part.mean()) for part in np.array_split(np.asarray(values), min(width, len(values)))]
    eighths = [round(8 * height * mean / (max(means) or 1)) for mean in means]
    return [
        "".join(" ▁▂▃▄▅▆▇█"[min(max(bar - 8 * line, 0), 8)] for bar in eighths).rstrip()
        for line in reversed(range(height))
    ]
