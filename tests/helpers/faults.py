"""A disk that fails: one call of this process that writes, chosen by its number, ends with an error."""

import builtins
import errno
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

_NAMES = (
    *("EACCES", "EROFS", "EIO", "ESTALE", "ENAMETOOLONG", "ELOOP", "ENOTDIR", "EMFILE", "ETXTBSY"),
    *("EPERM", "ENOSPC", "EDQUOT", "EFBIG", "ENXIO", "ENOLCK", "ETIMEDOUT"),
)
ERRORS = [getattr(errno, name) for name in _NAMES]


@dataclass
class FailingDisk:
    """Counts the calls that write below a folder, and lets one of them fail.

    Attributes:
        folder: calls elsewhere are left alone.
        failing: number of the call that fails, from 1; None lets all through.
        error: its errno; None takes another one for each number.
        lasting: whether all calls after it fail too.
        calls: what was called, and on which path, as far as it is known.
    """

    folder: Path
    failing: int | None = None
    error: int | None = None
    lasting: bool = False
    calls: list[tuple[str, str]] = field(default_factory=list)
    _is_mounted: bool = False

    @property
    def failed(self) -> tuple[str, str] | None:
        """The call that failed; None if there were fewer."""
        return self.calls[self.failing - 1] if self.failing and self.failing <= len(self.calls) else None

    @property
    def is_log(self) -> bool:
        """Whether that was a call for a log file of a run, or for TensorBoard."""
        return self.failed is not None and bool({"logs", "runs"} & set(Path(self.failed[1]).parts))

    @property
    def reason(self) -> str:
        """The system's name of the error."""
        return os.strerror(self._number)

    @property
    def _number(self) -> int:
        return self.error or ERRORS[(self.failing or 0) % len(ERRORS)]

    def pass_or_fail(self, what: str, path: Any) -> None:
        """Note a call; raise an `OSError` if it is the one that fails."""
        if isinstance(path, int) and os.path.exists(f"/proc/self/fd/{path}"):
            path = os.readlink(f"/proc/self/fd/{path}")
        text = os.path.abspath(os.fsdecode(path)) if not isinstance(path, int) else str(path)
        is_below = isinstance(path, int) or text.startswith(f"{self.folder}{os.sep}")
        if not (is_below and self._is_mounted):
            return
        self.calls.append((what, text))
        at = len(self.calls) - (self.failing or 0)
        if self.failing and (at == 0 or (self.lasting and at > 0)):
            named = () if what in ("write", "fsync") else (text,)
            raise OSError(self._number, self.reason, *named)

    @contextmanager
    def mounted(self) -> Iterator["FailingDisk"]:
        """Within this all calls go through here."""
        places = [
            os,
            *([pathlib._NormalAccessor] if hasattr(pathlib, "_NormalAccessor") else []),
        ]  # Python 3.10
        names = ("mkdir", "replace", "rename", "link", "unlink", "remove", "fsync")
        patches = [
            patch.object(place, name, self._checked(name, getattr(os, name)))
            for place in places
            for name in names
            if hasattr(place, name)
        ]
        opener = self._open(builtins.open)
        patches += [patch.object(place, "open", opener) for place in (builtins, io, *places[1:])]
        with ExitStack() as stack:
            for one in patches:
                stack.enter_context(one)
            self._is_mounted = True
            try:
                yield self
            finally:
                self._is_mounted = False  # files may be closed later

    def _checked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any, *args: Any, **kwargs: Any) -> Any:
            if not (name == "mkdir" and os.path.isdir(path)):
                self.pass_or_fail(name, args[0] if name in ("replace", "rename", "link") else path)
            return function(path, *args, **kwargs)

        return checked

    def _open(self, original: Callable[..., Any]) -> Callable[..., Any]:
        disk = self

        class Raw(io.FileIO):
            def write(self, content: Any) -> int:
                disk.pass_or_fail("write", self.name)
                return super().write(content)

        def checked(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if (mode.startswith("r") and "+" not in mode) or isinstance(file, int):
                return original(file, mode, buffering, encoding, errors, newline, closefd, opener)
            disk.pass_or_fail("open", file)
            raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        return checked
