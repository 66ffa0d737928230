"""The mean of several checkpoints' weights, as one checkpoint."""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import update_bn

from sever.config.section_checks import check_sections
from sever.config.trust import Trust
from sever.engine.checkpoint import (
    check_finite,
    key_faults,
    load_checkpoint,
    not_finite,
    raise_not_finite,
    save_checkpoint,
)
from sever.engine.run_folder import RunFolder
from sever.factory import trained_model, training_loader
from sever.parallel.device import list_devices, use_device
from sever.utils.errors import CheckpointError, first_few
from sever.utils.logger import log_to_console
from sever.utils.outputs import CHECKPOINT, Output, check_outputs
from sever.utils.progress import progress
from sever.utils.seed import seed_everything

logger = logging.getLogger(__name__)


def average(
    checkpoints: Sequence[Path],
    best: int | None,
    output: Path | None,
    recompute_batch_norm: bool,
    device: str,
    overrides: Sequence[str],
    trust: bool = False,
) -> Path:
    """Write a checkpoint whose weights are the mean of others' (https://arxiv.org/abs/1803.05407).

    Args:
        checkpoints: files, or folders of runs, which stand for all their `checkpoint_epoch_*.pth`.
        best: how many of them to take, by the value that their runs monitored; None takes all.
        output: default `model_average.pth` beside the first of them.
        recompute_batch_norm: take BatchNorm's statistics from an epoch of the training images, on the first
            device and after the overrides; else they are averaged like the weights.
        device: see `list_devices`.
        overrides: `KEY=VALUE`.
        trust: import what the checkpoint names, whatever it is.

    Returns:
        The path of the file.
    """
    log_to_console()
    paths = list({path.resolve(): path for path in _files(checkpoints)}.values())
    output = output or paths[0].parent / "model_average.pth"
    mean = Output("-o", output, CHECKPOINT, may_replace=lambda p: p not in RunFolder(p.parent).newest_first)
    check_outputs([mean], paths)
    if best is not None:
        paths = _best_of(paths, best)
    state = _mean_of(paths)
    if recompute_batch_norm:
        never_finite = not_finite(state["state_dict"])
        state["state_dict"] = _with_new_statistics(state, paths[0], device, overrides, trust)
        check_finite(state["state_dict"], "--recompute-batch-norm", never_finite)
    save_checkpoint(state, output)
    logger.info("Wrote %s, the mean of %d checkpoints: %s", output, len(paths), ", ".join(map(str, paths)))
    return output


def _files(checkpoints: Sequence[Path]) -> Iterator[Path]:
    for path in checkpoints:
        if not path.is_dir():
            yield path
            continue
        run = RunFolder(path)
        if not run.epochs:
            raise CheckpointError(f"{path}: holds no checkpoint_epoch_*.pth")
        yield from map(run.epoch, run.epochs)


def _best_of(paths: Sequence[Path], best: int) -> list[Path]:
    """The best checkpoints by the value that their runs monitored, the best first."""
    if best > len(paths):
        raise CheckpointError(f"--best {best}: there are only {len(paths)} checkpoints")
    watched, values = set(), {}
    for path in paths:
        state = load_checkpoint(path, lazily=True)
        monitored = (state.get("monitor") or {}).get("watched", "off ")
        watched.add(monitored)
        mode, _, key = monitored.partition(" ")
        values[path] = state.get("log", {}).get(key, math.nan)
        if math.isnan(values[path]):
            what = f"has no value of {key}, which its run monitored" if key else "is of no run with a monitor"
            raise CheckpointError(
                f"--best: {path} {what}. Name the checkpoints to average one by one, without --best"
            )
    if len(watched) > 1:
        raise CheckpointError(f"--best: the runs monitored different values: {', '.join(sorted(watched))}")
    chosen = sorted(values, key=lambda path: values[path] if mode == "min" else -values[path])[:best]
    for path in chosen:
        logger.info("%s  %s %.4f", path, monitored, values[path])
    return chosen


def _mean_of(paths: Sequence[Path]) -> dict[str, Any]:
    """A checkpoint with the mean of several checkpoints' weights: the averaged ones of a run that has them.

    Whole numbers (BatchNorm's counters), config and epoch are those of the newest epoch. The split is kept
    only if it is the same for all: else each model was trained on images that another was validated on.
    """
    sums: dict[str, torch.Tensor] = {}
    newest: dict[str, Any] = {}
    splits = []
    infinite: dict[Path, list[str]] = {}
    for path in paths:  # one at a time in memory
        state = load_checkpoint(path)
        weights = state.get("ema") or state["state_dict"]
        infinite[path] = not_finite(weights)
        faults = key_faults(newest.get("ema") or newest["state_dict"], weights) if newest else []
        if faults:
            raise CheckpointError(
                f"{path}: is of another architecture than {paths[0]}:", *first_few(faults, 6)
            )
        if newest and _normalisation(state) != _normalisation(newest):
            raise CheckpointError(
                f"{path}: was trained with another mean or std of the augmentation than {paths[0]}"
            )
        sums = {key: tensor.double() + sums.get(key, 0) for key, tensor in weights.items()}
        splits.append(state.get("split"))
        newest = state if not newest or state["epoch"] >= newest["epoch"] else newest
    # In all of them such as a mask of attention; where it is none, the mean is refused when it is loaded.
    never_finite = set.intersection(*map(set, infinite.values())) if len(infinite) > 1 else set()
    for path, names in infinite.items():
        raise_not_finite([name for name in names if name not in never_finite], str(path))
    means = {
        key: (sums[key] / len(paths)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for key, tensor in (newest.get("ema") or newest["state_dict"]).items()
    }
    lasting = ("arch", "epoch", "config", "monitor_best", "output_kinds")
    return {
        **{key: newest[key] for key in lasting if key in newest},
        "split": splits[0] if all(split == splits[0] for split in splits) else None,
        "state_dict": means,
        "optimizer": None,
        "averaged": [str(path) for path in paths],
    }


def _normalisation(state: dict[str, Any]) -> tuple[Any, Any]:
    """The mean and std of the grey levels that a checkpoint's model expects; None are the defaults."""
    augmentation = state["config"].get("augmentation")
    args = augmentation.get("args") if isinstance(augmentation, dict) else None
    return (args.get("mean"), args.get("std")) if isinstance(args, dict) else (None, None)


def _with_new_statistics(
    state: dict[str, Any], checkpoint: Path, device: str, overrides: Sequence[str], trust: bool
) -> dict[str, torch.Tensor]:
    config = Trust.given(trust, overrides).config_of(state, checkpoint).override(overrides)
    check_sections(config)
    chosen = use_device(list_devices(device, 1)[0])
    seed_everything(config.checked.seed)
    loader = training_loader(config, chosen)
    loader.split_validation(state["split"])
    model = trained_model(config, state, checkpoint).to(chosen)
    inputs = (loader.to_device(batch, chosen)[0] for batch in progress(loader, "batch norm"))
    update_bn(inputs, model, chosen)
    return model.cpu().state_dict()
