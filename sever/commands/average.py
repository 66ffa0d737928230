"""The mean of several checkpoints' weights, as one checkpoint."""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import update_bn

from sever.config.check import check_sections
from sever.config.trust import Trust
from sever.engine.checkpoint import average_states, load_checkpoint, save_checkpoint
from sever.engine.run_folder import RunFolder
from sever.factory import trained_model, training_loader
from sever.parallel.device import list_devices, use_device
from sever.utils.errors import CheckpointError
from sever.utils.files import check_output
from sever.utils.logger import log_to_console
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
        recompute_batch_norm: take BatchNorm's statistics from an epoch of the training images; else
            they are averaged like the weights.
        device: to recompute them on, the first of `list_devices`.
        overrides: `KEY=VALUE`, for the data that they are recomputed on.
        trust: import what the checkpoint names for that, whatever it is.

    Returns:
        The path of the file.
    """
    log_to_console()
    paths = list({path.resolve(): path for path in _files(checkpoints)}.values())
    output = output or paths[0].parent / "model_average.pth"
    check_output(output, "-o", suffix=".pth")
    if output.resolve() in {path.resolve() for path in paths}:
        raise CheckpointError(f"-o {output}: is one of the checkpoints to average; choose another name")
    if best is not None:
        paths = _best_of(paths, best)
    state = average_states((load_checkpoint(path) for path in paths), [str(path) for path in paths])
    if recompute_batch_norm:
        state["state_dict"] = _with_new_statistics(state, paths[0], device, overrides, trust)
    save_checkpoint(state, output)
    logger.info("Wrote %s, the mean of %d checkpoints: %s", output, len(paths), ", ".join(map(str, paths)))
    return output


def _files(checkpoints: Sequence[Path]) -> Iterator[Path]:
    for path in checkpoints:
        if not path.is_dir():
            yield path
            continue
        held = [p for p in path.glob("checkpoint_epoch_*.pth") if RunFolder.epoch_of(p) >= 0]
        held.sort(key=RunFolder.epoch_of)
        if not held:
            raise CheckpointError(f"{path}: holds no checkpoint_epoch_*.pth")
        yield from held


def _best_of(paths: Sequence[Path], best: int) -> list[Path]:
    """The best checkpoints by what their runs monitored, in the order of their quality.

    Raises:
        CheckpointError: there are fewer, or their runs did not monitor the same key.
    """
    if best > len(paths):
        raise CheckpointError(f"--best {best}: there are only {len(paths)} checkpoints")
    scored = []
    watched = set()
    for path in paths:
        state = load_checkpoint(path)
        monitored = state.get("monitor", {}).get("watched", "off ")
        watched.add(monitored)
        mode, _, key = monitored.partition(" ")
        value = state.get("log", {}).get(key, math.nan)
        if math.isnan(value):
            what = f"has no value of {key}, which its run monitored" if key else "is of no run with a monitor"
            raise CheckpointError(
                f"--best: {path} {what}. Name the checkpoints to average one by one, without --best"
            )
        scored.append((value if mode == "min" else -value, path, value))
    if len(watched) > 1:
        raise CheckpointError(f"--best: the runs monitored different values: {', '.join(sorted(watched))}")
    chosen = sorted(scored, key=lambda entry: entry[0])[:best]
    for _, path, value in chosen:
        logger.info("%s  %s %.4f", path, watched.copy().pop(), value)
    return [path for _, path, _ in chosen]


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
