"""Checkpoints: plain values and tensors, written whole, loaded without running anything."""

import errno
import io
import os
import time
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from sever.engine.checkpoint_schema import check_extent, content_fault
from sever.engine.run_folder import check_checkpoint_path
from sever.parallel.out_of_memory import memory_fault
from sever.utils.errors import CheckpointError, DeviceError, SeverError, first_few, in_short
from sever.utils.files import write_file

FORMAT = 1  # raised when a change makes older checkpoints unreadable
_KEYS = ("arch", "epoch", "state_dict", "config")
_ZIP, _PICKLE = b"PK\3\4", b"\x80"  # how torch's files begin, the older ones being pickles
_UNREADABLE = "is damaged or not a file of torch.save"
_LOCAL_HEADER = 30  # bytes before the name and content of an entry
_FOLDER = 0x10  # attribute of an entry, for which torch would return memory that nothing was read into

Identity = tuple[int, ...]  # of a file: device, inode, size and time of the last change


def save_checkpoint(state: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint to a temporary file and rename it; see `packed`."""
    write_file(path, packed(state))


def packed(state: dict[str, Any]) -> memoryview:
    """The bytes of a checkpoint's file.

    Args:
        state: tensors and plain values under the keys `arch, epoch, state_dict, optimizer, monitor_best,
            config` and others that an exact resume needs.
    """
    # In memory first: torch's own writer says nothing of a full disk, and ends the whole program where a
    # signal interrupts it.
    content = io.BytesIO()
    for key in ("state_dict", "ema"):
        if state.get(key):
            state = {**state, key: {name: _whole(tensor) for name, tensor in state[key].items()}}
    torch.save({**state, "format": FORMAT, "saved_at": time.time()}, content)
    return content.getbuffer()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with memory for each of its numbers, as one that was expanded has not."""
    is_expanded = tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    return tensor.contiguous() if is_expanded else tensor


def load_checkpoint(
    path: str | Path, lazily: bool = False, checked: Identity | None = None
) -> dict[str, Any]:
    """Read a checkpoint on the CPU with `weights_only=True`, so nothing in it can run.

    Args:
        path: of the file.
        lazily: read the plain values alone; tensors are on the `meta` device, without their numbers.
        checked: the `identity_of` a file whose check sums were compared: they are not compared again, and
            any other file is refused.

    Raises:
        CheckpointError: the file is missing, damaged, changed or not a checkpoint of this program.
    """
    path = Path(path)
    check_checkpoint_path(path)
    try:
        state = read_tensors(path, lazily, checked)
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
    written_in = state.get("format")
    if type(written_in) is not int or written_in != FORMAT:
        shown = written_in if isinstance(written_in, int | None) else f"a {type(written_in).__name__}"
        raise CheckpointError(
            f"{path}: written in format {shown}, this program reads format {FORMAT}. Use the "
            f"version of sever that wrote it, or train again with the config.yml of its run"
        )
    fault = content_fault(state)
    if fault:
        raise CheckpointError(
            f"{path}: damaged, or not written by sever: {fault}. Take another checkpoint of its run"
        )
    return state


def identity_of(path: Path) -> Identity | None:
    """What changes when a file is replaced or written: device, inode, size, time; None without a file."""
    with suppress(OSError):
        return _identity(path.stat())
    return None


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_tensors(path: Path, lazily: bool = False, checked: Identity | None = None) -> Any:
    """Read what `torch.save` wrote, as `load_checkpoint` does.

    Raises:
        ValueError: the file is empty, damaged or changed, or holds more than tensors and plain values.
    """
    try:
        with path.open("rb") as file:  # so that torch reads the very file that is checked
            before = _identity(os.fstat(file.fileno()))
            is_same = checked in (None, before)
            with memory_fault(f"Free some, or take another machine: {path} is read as a whole"):
                content = _content_of(file, lazily, with_sums=checked is None) if is_same else None
            is_same &= before == _identity(os.fstat(file.fileno()))
    except UnpicklingError as error:
        raise ValueError("holds more than tensors and plain values, or is damaged") from error
    except (_FileError, DeviceError):
        raise
    except OSError as error:
        is_damage = error.errno in (None, errno.EINVAL)  # of a place that a damaged file names
        raise ValueError(_UNREADABLE if is_damage else f"cannot be read: {error.strerror}") from error
    except Exception as error:  # what zipfile and torch raise on a file of any other kind is not bounded
        raise ValueError(_UNREADABLE) from error
    if not is_same:
        raise ValueError("was changed or replaced while it was in use, as by a run that goes on")
    check_extent(content, device="meta" if lazily else "cpu")
    return content


class _FileError(ValueError):
    """What is wrong with a file, as the rest of a sentence about it."""


def _content_of(file: IO[bytes], lazily: bool, with_sums: bool) -> Any:
    start = file.read(len(_ZIP))
    if not start:
        raise _FileError("is empty (0 bytes)")
    if start == _ZIP:
        _check_archive(file, with_sums)
    elif not start.startswith(_PICKLE):
        raise _FileError(_UNREADABLE)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kinds of tensors that are refused below
        return torch.load(file, map_location="meta" if lazily else "cpu", weights_only=True)


def _check_archive(file: IO[bytes], with_sums: bool) -> None:
    """Refuse an archive that torch could read as another one than `zipfile`, which compares check sums.

    torch writes each entry once, without compression, and takes names of other case for the same.
    """
    with zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise _FileError("holds two entries of one name")
        if entries[0].header_offset:
            raise _FileError("is damaged: an archive begins within it")
        ends = [*(entry.header_offset for entry in entries[1:]), archive.start_dir]
        for entry, end in zip(entries, ends, strict=True):
            is_encrypted = entry.flag_bits & 1
            if entry.compress_type != zipfile.ZIP_STORED or is_encrypted:
                raise _FileError(f"was packed again: {entry.filename} in it is compressed or encrypted")
            if entry.compress_size != entry.file_size or (entry.external_attr & _FOLDER and entry.file_size):
                raise _FileError(f"is damaged: {entry.filename} in it has two sizes, or is called a folder")
            if entry.header_offset + _LOCAL_HEADER + len(entry.filename) + entry.file_size > end:
                raise _FileError(f"is damaged: {entry.filename} in it reaches into another entry")
        damaged = archive.testzip() if with_sums else None
    if damaged:
        raise _FileError(f"is damaged: {damaged} in it is not what was written")


@contextmanager
def loading(key: str, source: str | None) -> Iterator[None]:
    """Turn any error in using an entry of a checkpoint into a `CheckpointError`.

    Args:
        key: of the entry.
        source: the checkpoint's name; None where there is none, and errors come through.
    """
    try:
        yield
    except (SeverError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what torch raises on a state of any other form is not bounded
        if source is None or str(error).startswith("DataLoader worker"):  # torch raises it anywhere
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"{source}: '{key}' does not fit what the config describes: {reason}. Take another checkpoint of "
            f"its run"
        ) from error


def not_finite(tensors: Mapping[str, torch.Tensor], ignored: Collection[str] = ()) -> list[str]:
    """The names of the tensors with a NaN or an infinite value, but the ignored ones.

    It waits for the device once, unless there are any.
    """
    floats = {n: t for n, t in tensors.items() if t.is_floating_point() and t.numel() and n not in ignored}
    if not floats or get_total_norm(floats.values(), torch.inf).isfinite():
        return []
    return [name for name, tensor in floats.items() if not tensor.isfinite().all()]


def check_finite(weights: Mapping[str, torch.Tensor], source: str, ignored: Collection[str] = ()) -> None:
    """Refuse weights and statistics that are not finite, but the ignored ones.

    Raises:
        CheckpointError: names them.
    """
    raise_not_finite(not_finite(weights, ignored), source)


def raise_not_finite(names: Sequence[str], source: str) -> None:
    """Raise the `CheckpointError` of tensors that are not finite, if there are any."""
    if names:
        raise CheckpointError(
            f"{source}: expected finite weights and statistics, which these are not: {in_short(names)}. Take "
            f"another checkpoint of its run"
        )


def load_weights(model: nn.Module, state_dict: dict[str, torch.Tensor], source: str) -> None:
    """Load a model's state, key by key.

    Raises:
        CheckpointError: keys, shapes or types differ, or a value is not finite where the model's own is; the
            message lists them.
    """
    own = model.state_dict()
    faults = key_faults(own, state_dict)
    if faults:
        raise CheckpointError(
            f"{source}: its weights are of another architecture than the config's arch:",
            *first_few(faults, 6),
            "  Use the config that it was trained with (leave out -c).",
        )
    check_finite(state_dict, source, ignored=not_finite(own))
    model.load_state_dict(state_dict)


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def key_faults(
    expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], extra: bool = True
) -> list[str]:
    """How two state dicts differ: missing keys, other shapes or types, unknown keys.

    Without `extra`, as for weights of somebody else's, unknown keys are no fault, nor is another precision.
    """
    missing = [f"  missing: {key}" for key in expected if key not in found]
    unknown = [f"  unknown: {key}" for key in found if key not in expected] if extra else []
    both = [(key, tensor, found[key]) for key, tensor in expected.items() if key in found]
    shapes = [
        f"  {key}: expected shape {tuple(own.shape)}, received {tuple(other.shape)}"
        for key, own, other in both
        if own.shape != other.shape
    ]
    types = [
        f"  {key}: expected {own.dtype}, received {other.dtype}"
        for key, own, other in both
        if own.dtype != other.dtype and (extra or _kind(own) != _kind(other))
    ]
    return missing + shapes + unknown + types
