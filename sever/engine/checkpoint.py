"""Checkpoints: plain values and tensors, written whole, loaded without running anything."""

import io
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sever.utils.errors import CheckpointError, first_few
from sever.utils.files import neighbours, write_file

FORMAT = 1  # raised when a change makes older checkpoints unreadable
_DEEPEST = 60  # levels of a config
_KEYS = ("arch", "epoch", "state_dict", "config")


def save_checkpoint(state: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint to a temporary file and rename it.

    Args:
        state: tensors and plain values under the keys `arch, epoch, state_dict, optimizer, monitor_best,
            config` and others that an exact resume needs.
        path: of the finished file.
    """
    # In memory first: torch's own writer says nothing of a full disk, and ends the whole program where a
    # signal interrupts it.
    content = io.BytesIO()
    torch.save({**state, "format": FORMAT, "saved_at": time.time()}, content)
    write_file(path, content.getbuffer())


def load_checkpoint(path: str | Path, lazily: bool = False, check_sums: bool = True) -> dict[str, Any]:
    """Read a checkpoint on the CPU with `weights_only=True`, so nothing in it can run.

    Args:
        path: of the file.
        lazily: map the file into memory, so that only tensors that are used are read.
        check_sums: compare the check sums of all tensors; needless for a file that was read before.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint of this program.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder{_in_folder(path)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file{neighbours(path)}")
    try:
        state = read_tensors(path, lazily, check_sums)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {error}. Take a fresh copy of it, or another checkpoint of its run"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path}: expected a checkpoint as sever train writes it, received a {type(state).__name__}"
        )
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise CheckpointError(
            f"{path}: not a checkpoint of sever: it lacks {', '.join(missing)}. Weights alone belong "
            f"in arch.args.encoder_weights."
        )
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: written in format {state.get('format')}, this program reads format {FORMAT}. Use the "
            f"version of sever that wrote it, or train again with the config.yml of its run"
        )
    for key, (of, is_right) in _CONTENTS.items():
        if not is_right(state.get(key)):
            raise CheckpointError(
                f"{path}: damaged, or not written by sever: expected {of} under '{key}', received a "
                f"{type(state.get(key)).__name__}. Take another checkpoint"
            )
    return state


def _in_folder(path: Path) -> str:
    """The checkpoints in a folder, or in the newest runs below it, as the end of a message."""
    held = sorted(p.name for p in path.glob("*.pth"))
    if held:
        return f"; name one of its checkpoints: {', '.join(held[:8])}{', …' if held[8:] else ''}"
    below = sorted((*path.glob("*/*.pth"), *path.glob("*/*/*.pth")), key=lambda p: p.stat().st_mtime)
    newest = sorted({p.parent: str(p) for p in below}.values())  # of each run
    if not newest:
        return " without a checkpoint; name the .pth file of a run"
    count = "one run" if len(newest) == 1 else f"{len(newest)} runs"
    return f" of {count}; name a checkpoint, such as {', '.join(newest[:4])}{', …' if newest[4:] else ''}"


def _is_weights(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items()
    )


def _is_plain(value: object, depth: int = 0) -> bool:
    """Whether a value could stand in YAML, and is not so deep that reading it overflows the stack."""
    if depth > _DEEPEST:
        return False
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_plain(part, depth + 1) for key, part in value.items())
    if isinstance(value, list):
        return all(_is_plain(part, depth + 1) for part in value)
    return value is None or isinstance(value, str | int | float)


def _is_split(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("training"), list) and "validation" in value


# What must stand under a key where another program could have written something else.
_CONTENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "config": ("the config's plain values", lambda value: isinstance(value, dict) and _is_plain(value)),
    "state_dict": ("names with tensors", _is_weights),
    "ema": ("names with tensors", lambda value: value is None or _is_weights(value)),
    "epoch": ("a number", lambda value: isinstance(value, int) and value >= 0),
    "other_processes": ("a list of states", lambda value: isinstance(value, list | None)),
    "split": ("the names of training and validation images", lambda value: value is None or _is_split(value)),
}


def read_tensors(path: Path, lazily: bool = False, check_sums: bool = True) -> Any:
    """Read what `torch.save` wrote, as `load_checkpoint` does.

    Raises:
        ValueError: the file is empty, damaged, or holds more than tensors and plain values.
    """
    if not path.stat().st_size:
        raise ValueError("is empty (0 bytes)")
    damaged = None
    try:
        if check_sums and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch compares no check sums
                damaged = archive.testzip()
        if not damaged:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except pickle.UnpicklingError as error:
        raise ValueError("holds more than tensors and plain values, or is damaged") from error
    except Exception as error:  # what torch raises on a file of any other kind is not bounded
        raise ValueError("is damaged or not a file of torch.save") from error
    raise ValueError(f"is damaged: {damaged} in it is not what was written")


def load_weights(model: nn.Module, state_dict: dict[str, torch.Tensor], source: str) -> None:
    """Load a model's state, key by key.

    Raises:
        CheckpointError: keys or shapes differ; the message lists them.
    """
    faults = key_faults(model.state_dict(), state_dict)
    if faults:
        raise CheckpointError(
            f"{source}: its weights are of another architecture than the config's arch:\n"
            f"{first_few(faults, 6)}\n  Use the config that it was trained with (leave out -c)."
        )
    model.load_state_dict(state_dict)


def key_faults(
    expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], extra: bool = True
) -> list[str]:
    """How two state dicts differ: missing keys, other shapes and (if `extra`) unknown keys."""
    missing = [f"  missing: {key}" for key in expected if key not in found]
    unknown = [f"  unknown: {key}" for key in found if key not in expected] if extra else []
    shapes = [
        f"  {key}: expected shape {tuple(tensor.shape)}, received {tuple(found[key].shape)}"
        for key, tensor in expected.items()
        if key in found and tensor.shape != found[key].shape
    ]
    return missing + shapes + unknown
