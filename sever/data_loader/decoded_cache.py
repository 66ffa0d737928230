"""A cache of decoded images, from which a crop is read without decoding the image.

The grey levels lie column after column, so that a crop of a few columns is one piece of memory. All processes
of a machine map the same file: on a disk, where later runs find it again, or in memory alone.
"""

import json
import mmap
import os
import shutil
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from sever.data_loader.image_files import Damaged, Shape, read_grey
from sever.parallel import collectives
from sever.utils.errors import ConfigError, DataError, ElsewhereError, SeverError
from sever.utils.files import atomic_write, remove_abandoned, storage_errors
from sever.utils.progress import progress

Kind = Literal["off", "ram", "disk"]
SUFFIX = ".images"

_MARK = b"sever decoded images 1\n"  # at the end of a whole file, after the index and its length
_LENGTH = 8  # bytes of the length of the index
_SPARE = 1 << 30  # bytes of memory that a cache leaves to the models
_CGROUP = Path("/sys/fs/cgroup")

# The size in bytes and the time of the last change of an image's file.
Stamp = tuple[int, int]


@dataclass(frozen=True)
class _Place:
    """Where the grey levels of an image are in a file, and which file of the image they are from."""

    offset: int
    height: int
    width: int
    stamp: Stamp


class DecodedCache:
    """The decoded images of a folder; `build` decodes them, unless a file of an earlier run holds them.

    It can be pickled for worker processes.

    Args:
        folder: the folder of the images.
        names: the file names of N images.
        shapes: (N, 2) int64, their (H, W) in pixels.
        directory: the folder of the file; None holds the images in memory.
        damaged: what a damaged image is, see `scan_images`; each has a file of its own.

    Attributes:
        path: the file; None in memory.
        size: of all grey levels, in bytes.

    Raises:
        DataError: an image is gone.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        shapes: np.ndarray,
        directory: Path | None = None,
        damaged: Damaged = "error",
    ) -> None:
        self.folder = folder
        self.names = list(names)
        self.path = None if directory is None else directory / cache_name(folder, damaged)
        self.size = int(shapes.prod(axis=1).sum())
        sizes = shapes.prod(axis=1)
        offsets = (sizes.cumsum() - sizes).tolist()
        stamps = [_stamp(folder / name) for name in self.names]
        self._places = [
            _Place(offset, height, width, stamp)
            for offset, (height, width), stamp in zip(offsets, shapes.tolist(), stamps, strict=True)
        ]
        self._file: str | None = None  # what is mapped
        self._levels: np.ndarray | None = None
        found = _read_index(self.path) if self.path else {}
        if found and all(_is_same(found.get(name), own) for name, own in self._by_name().items()):
            self._places = [found[name] for name in self.names]
            self._file = str(self.path)

    @property
    def is_built(self) -> bool:
        """Whether images are read from it."""
        return self._file is not None

    def read(self, index: int) -> np.ndarray | None:
        """The grey levels of an image: (H, W) uint8 in [0, 255], read-only, columns one after the other.

        Returns:
            None before they are there.
        """
        if self._file is None:
            return None
        if self._levels is None:
            self._levels = np.memmap(self._file, dtype=np.uint8, mode="r")
        place = self._places[index]
        end = place.offset + place.height * place.width
        return self._levels[place.offset : end].reshape(place.width, place.height).T

    def build(self) -> None:
        """Decode all images, unless that is done; a collective.

        Raises:
            ConfigError: they do not fit.
            DataError: an image cannot be read.
            StorageError: the disk cannot be written.
        """
        if self.is_built:
            return
        fault: SeverError | None = None
        file = str(self.path)
        world = collectives.world()
        with collectives.main_first():
            if world.local_rank == 0:
                try:
                    self.check_fits()
                    if self.path is None:
                        file = self._decode_in_memory()
                    else:
                        self._decode_to_disk(self.path)
                except SeverError as error:
                    fault = error
        if collectives.on_any_rank(fault is not None):
            raise fault or ElsewhereError("another process could not decode the images")
        if self.path is None:
            file = collectives.all_gather(file)[world.rank - world.local_rank]
            if world.local_rank:
                file = self._opened(os.open(file, os.O_RDONLY))
            collectives.barrier()  # before a process ends, and its file with it
        self._file = file

    def _decode_to_disk(self, path: Path) -> None:
        remove_abandoned(path.parent)
        with atomic_write(path, by_all=True) as file, storage_errors(path):
            self._decode_into(file.file)
            text = json.dumps({name: astuple(place) for name, place in self._by_name().items()}).encode()
            file.write(text + len(text).to_bytes(_LENGTH, "little") + _MARK)

    def _decode_in_memory(self) -> str:
        """Decode into a file that is in memory alone, and ends with the processes that have it open."""
        memory = os.memfd_create("sever-cache")
        file = self._opened(memory)
        with os.fdopen(memory, "w+b", closefd=False) as content:
            self._decode_into(content)
        return file

    def _opened(self, descriptor: int) -> str:
        """A path to a file that stays open as long as this cache is there."""
        weakref.finalize(self, os.close, descriptor)
        return f"/proc/{os.getpid()}/fd/{descriptor}"

    def _decode_into(self, file: BinaryIO) -> None:
        """Write the grey levels of all images to their places in a file, and leave it at their end."""
        lock = threading.Lock()

        def decode(index: int) -> None:
            path, place = self.folder / self.names[index], self._places[index]
            image = read_grey(path)
            if image.shape != (place.height, place.width) or _stamp(path) != place.stamp:
                raise DataError(f"{path}: was changed since the start; start again")
            columns = np.ascontiguousarray(image.T)
            with lock:
                file.seek(place.offset)
                file.write(columns.data)

        pool = ThreadPoolExecutor()
        try:
            done = pool.map(decode, range(len(self.names)))
            for _ in progress(range(len(self.names)), "decoded", unit="image"):
                next(done)
        finally:
            pool.shutdown(cancel_futures=True)
        file.seek(self.size)

    def check_fits(self) -> None:
        """Check that there is room for the images, unless they are there.

        Raises:
            ConfigError: there is not.
        """
        if self.is_built:
            return
        where, cure = "memory", "data_loader.args.cache: disk, or off"
        if self.path is None:
            if not hasattr(os, "memfd_create"):
                raise ConfigError("data_loader.args.cache: ram is for Linux; take disk, or off")
            free = _free_memory() - _SPARE
        else:
            there = next(folder for folder in self.path.absolute().parents if folder.is_dir())
            where, cure = str(there), "another data_loader.args.cache_dir, or cache: off"
            free = shutil.disk_usage(there).free
        if self.size > free:
            raise ConfigError(
                f"data_loader.args.cache: the {len(self.names)} images of {self.folder} take "
                f"{self.size:,} bytes once decoded, and {max(free, 0):,} are free in {where}; "
                f"choose {cure}"
            )

    def _by_name(self) -> dict[str, _Place]:
        return dict(zip(self.names, self._places, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_levels": None}


def cache_name(folder: Path, damaged: Damaged) -> str:
    """The name of the file of a folder of images."""
    digest = sha256(os.fsencode(folder.resolve()) + damaged.encode()).hexdigest()
    return f"{folder.name}-{digest[:16]}{SUFFIX}"


def shapes_in_cache(directory: Path, folder: Path, names: Sequence[str]) -> dict[str, Shape]:
    """The (H, W) of those images of a folder that a cache holds as they are, all of which are whole."""
    places = _read_index(directory / cache_name(folder, "error"))
    return {
        name: (places[name].height, places[name].width)
        for name in names
        if name in places and _stamp(folder / name) == places[name].stamp
    }


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _is_same(stored: _Place | None, own: _Place) -> bool:
    mine = own.height, own.width, own.stamp
    return stored is not None and (stored.height, stored.width, stored.stamp) == mine


def _read_index(path: Path) -> dict[str, _Place]:
    """The index of a whole file; an empty one where there is none."""
    with suppress(OSError, ValueError, TypeError, KeyError), path.open("rb") as file:
        end = file.seek(-len(_MARK) - _LENGTH, os.SEEK_END)
        length = int.from_bytes(file.read(_LENGTH), "little")
        if file.read() != _MARK or length > end:
            return {}
        file.seek(end - length)
        places = {
            str(name): _Place(int(offset), int(height), int(width), (int(size), int(changed)))
            for name, (offset, height, width, (size, changed)) in json.loads(file.read(length)).items()
        }
        levels = end - length
        if all(0 <= p.offset <= levels - p.height * p.width for p in places.values()):
            return places
    return {}


def _free_memory() -> int:
    """The bytes of memory that this machine, or its container, has left."""
    free = [os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE]
    with suppress(OSError, StopIteration), open("/proc/meminfo", "rb") as lines:
        free.append(next(int(line.split()[1]) << 10 for line in lines if line.startswith(b"MemAvailable")))
    with suppress(OSError, ValueError):  # "max" is no number
        limit, used = ((_CGROUP / f"memory.{name}").read_bytes() for name in ("max", "current"))
        free.append(int(limit) - int(used))
    return min(free)
