"""`sever benchmark`: how fast this machine reads and trains a config, and which settings make it faster."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Any

import torch

from sever.base.base_model import forward
from sever.config.load import LoadedConfig, load_config
from sever.config.registry import LOADERS
from sever.config.section_checks import check_sections, section_faults
from sever.config.signatures import parameters
from sever.factory import TrainingObjects, training_objects
from sever.parallel.device import check_precision, choose_device, describe
from sever.parallel.out_of_memory import IN_TRAINING, memory_fault
from sever.parallel.sharded_batch import named_losses
from sever.trainer.step import Stepper
from sever.utils.errors import ConfigError, DeviceError
from sever.utils.logger import log_to_console, print_lines
from sever.utils.seed import seed_everything

logger = logging.getLogger(__name__)

_WARM_UP = 2  # batches that are not counted
_ENOUGH = 1.2  # times as fast as computing is fast enough for reading
_WORTH_IT = 1.1  # times as fast as the config's own settings is worth a change
_MARGIN = 0.9  # share of the largest batch that is advised: other batches may need a little more
_MOST_IMAGES = 4096


@dataclass(frozen=True)
class Speed:
    """How fast something is under some settings.

    Attributes:
        settings: keys of the config with their values.
        images: a second.
        memory: of the GPU at most, in bytes; 0 on a CPU.
    """

    settings: dict[str, Any]
    images: float
    memory: int = 0

    def line(self, what: str) -> str:
        """The speed as a line of the report."""
        memory = f"  {self.memory / 1e9:7.1f} GB" if self.memory else ""
        return f"{what:12s} {self.images:9.1f} images/s{memory}  {_assignments(self.settings)}".rstrip()


def benchmark(
    config_path: Path, device: str, overrides: Sequence[str], seconds: float, find_batch_size: bool
) -> None:
    """Measure reading, computing and both together, and print the speeds and what to change.

    Args:
        config_path: the experiment.
        device: see `choose_device`; the first one is used.
        overrides: `KEY=VALUE`.
        seconds: how long each is measured.
        find_batch_size: look for the largest batch too.
    """
    log_to_console()
    config = load_config(config_path, overrides, section_faults)
    check_sections(config)
    chosen = choose_device(device, 1)
    if find_batch_size and chosen.type != "cuda":
        raise DeviceError("--find-batch-size: a CPU's memory has no sharp end; give a GPU with -d")
    print_lines([f"{'device':12s} {describe(chosen)}, {os.cpu_count()} CPU cores"])
    reading = list(_measured("reading", _reading(config, chosen, seconds)))
    computing = list(_measured("computing", _computing(config, chosen, seconds)))
    together = _together(config, chosen, seconds)
    print_lines([together.line("together"), "", *_advice(config, reading, computing, together)])
    if find_batch_size:
        print_lines(_batch_size_lines(config, chosen))


def _measured(what: str, speeds: Iterator[Speed]) -> Iterator[Speed]:
    for speed in speeds:
        print_lines([speed.line(what)])
        yield speed


def _reading(config: LoadedConfig, device: torch.device, seconds: float) -> Iterator[Speed]:
    """The loader alone: as the config says, then with each number of workers, without and with a cache."""
    section = config.checked.data_loader
    taken = parameters(LOADERS.find(section.type, config.at("data_loader")))
    cores = os.cpu_count() or 1
    choices: dict[str, list[Any]] = {
        "num_workers": [0, *(2**power for power in range(7) if 2**power <= cores)],
        "cache": ["off", "ram"],
    }
    varied = {f"data_loader.args.{name}": values for name, values in choices.items() if name in taken}
    own = {key: section.args.get(key.rpartition(".")[2], varied[key][0]) for key in varied}
    others = [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]
    for keys in [own, *(keys for keys in others if keys != own)]:
        try:
            objects = _objects(config, device, keys)
            batches = _endless(objects)
            yield Speed(keys, *_timed(lambda: len(next(batches)[0]), device, seconds))  # noqa: B023
            objects.data_loader.end_workers()
        except ConfigError as error:  # a cache that does not fit
            logger.info("Left out: %s", error)


def _computing(config: LoadedConfig, device: torch.device, seconds: float) -> Iterator[Speed]:
    """Training steps on one batch, in each precision and layout, and compiled where that may pay."""
    training = config.checked.training
    on_gpu = device.type == "cuda"
    precisions = [p for p in ("fp32", "bf16", "fp16") if on_gpu or p == "fp32" or p == training.precision]
    choices = product(precisions, ("contiguous", "channels_last"), (False, True) if on_gpu else (False,))
    for precision, layout, compiled in choices:
        with suppress(DeviceError):  # a precision that the device lacks
            check_precision(device, precision)
            keys = {
                "training.precision": precision,
                "training.memory_format": layout,
                "training.compile": compiled,
            }
            objects = _objects(config, device, {**keys, "data_loader.args.num_workers": 0})
            step = _step_of(objects, compiled)
            batch = next(_endless(objects))
            yield Speed(keys, *_timed(lambda: step(batch), device, seconds))  # noqa: B023


def _together(config: LoadedConfig, device: torch.device, seconds: float) -> Speed:
    """Reading and training as the config says."""
    objects = _objects(config, device, {})
    step = _step_of(objects, config.checked.training.compile is True)
    batches = _endless(objects)
    speed = _timed(lambda: step(next(batches)), device, seconds)
    objects.data_loader.end_workers()
    return Speed({}, *speed)


def _objects(config: LoadedConfig, device: torch.device, keys: dict[str, Any]) -> TrainingObjects:
    changed = config.replace(keys)
    seed_everything(config.checked.seed)
    return training_objects(changed, device)


def _endless(objects: TrainingObjects) -> Iterator[Any]:
    """The batches of one epoch after the other, on the device."""
    for epoch in count(1):
        objects.data_loader.set_epoch(epoch)
        for batch in objects.data_loader:
            yield objects.data_loader.to_device(batch, objects.device)


def _step_of(objects: TrainingObjects, compiled: bool) -> Callable[[Any], int]:
    """A function that trains a step on a batch, and returns the number of its images."""
    training = objects.config.checked.training
    stepper = Stepper(objects.model.train(), objects.optimizer, objects.device, training, compiles=compiled)
    stepper.begin_epoch()

    def step(batch: Any) -> int:
        inputs, masks = batch
        with memory_fault(IN_TRAINING):
            outputs = forward(stepper.model_for(0, 1), inputs, training.precision)
            losses = named_losses(objects.loss, outputs, objects.model.targets(masks))
            stepper.backward(losses["loss"], 0, 1)
        return len(inputs)

    return step


def _timed(work: Callable[[], int], device: torch.device, seconds: float) -> tuple[float, int]:
    """The images a second of some work, and the GPU's peak memory in bytes."""
    on_gpu = device.type == "cuda"
    for _ in range(_WARM_UP):
        work()
    start = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    times = max(1, round(seconds / (time.perf_counter() - start)))
    start = time.perf_counter()
    images = sum(work() for _ in range(times))
    if on_gpu:
        torch.cuda.synchronize(device)
    spent = time.perf_counter() - start
    return images / spent, torch.cuda.max_memory_allocated(device) if on_gpu else 0


def _advice(
    config: LoadedConfig, reading: Sequence[Speed], computing: Sequence[Speed], together: Speed
) -> Iterator[str]:
    """What keeps the training back, and the settings that help."""
    training = config.checked.training
    own = next((s for s in computing if s.settings["training.precision"] == training.precision), computing[0])
    is_reading = reading[0].images < _ENOUGH * own.images
    what, speeds, measured = ("reading", reading, reading[0]) if is_reading else ("computing", computing, own)
    yield (
        f"{'bottleneck':12s} {what}: alone, reading gives {reading[0].images:.1f} images/s and computing "
        f"{own.images:.1f}; together they give {together.images:.1f}"
    )
    best = max(speeds, key=lambda speed: speed.images)
    if best.images > _WORTH_IT * measured.images:
        yield f"{'faster':12s} {best.images / measured.images:.2f} times, with {_assignments(best.settings)}"
    else:
        yield f"{'faster':12s} nothing that was tried is much faster than what the config says"


def _assignments(settings: dict[str, Any]) -> str:
    """Settings as one types them."""
    return " ".join(f"-s {key}={str(value).lower()}" for key, value in settings.items())


def _batch_size_lines(config: LoadedConfig, device: torch.device) -> list[str]:
    """The largest batch that fits with a margin, and `accumulate` for the same images in a step."""
    training = config.checked.training
    largest = largest_batch(lambda images: _try_batch(config, device, images))
    if not largest:
        raise DeviceError("--find-batch-size: not even one image fits; lower the augmentation's crop")
    advised = max(1, math.floor(_MARGIN * largest))
    wanted = config.checked.data_loader.args.get("batch_size", 8) * training.accumulate
    advised = max(size for size in range(1, min(advised, wanted) + 1) if wanted % size == 0)
    keys = {"data_loader.args.batch_size": advised, "training.accumulate": wanted // advised}
    return [
        f"{'batch size':12s} {largest} images fit",
        f"{'':12s} {wanted} images for a step: {_assignments(keys)}",
    ]


def largest_batch(fits: Callable[[int], bool], most: int = _MOST_IMAGES) -> int:
    """The largest number of images that fits, found by doubling and then by halving the distance.

    Example:
        >>> largest_batch(lambda images: images <= 37)
        37

    Args:
        fits: number of images -> whether a step with them fits.
        most: no more are tried.
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _try_batch(config: LoadedConfig, device: torch.device, images: int) -> bool:
    """Whether a step with so many images fits into the GPU's memory."""
    objects = _objects(config, device, {"data_loader.args.num_workers": 0})
    inputs, masks = next(_endless(objects))
    times = -(-images // len(inputs))
    batch = tuple(part.repeat(times, *[1] * (part.ndim - 1))[:images] for part in (inputs, masks))
    try:
        _step_of(objects, compiled=False)(batch)
        torch.cuda.synchronize(device)
    except DeviceError:
        return False
    finally:
        del objects, inputs, masks, batch
        torch.cuda.empty_cache()
    return True
