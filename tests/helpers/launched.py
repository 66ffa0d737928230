"""Commands in processes of their own, which tests send signals to, and whose end they wait for."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from typing_extensions import Self

PATIENCE = 120  # seconds, after which something hangs
_MARK = "SEVER_TEST"  # in the environment of all processes of a command
# A program started in the background ignores SIGINT, as what it starts does; one in a terminal does not.
_LISTENING = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Command:
    """A command that runs in a process of its own, and starts others.

    Args:
        args: of Python.
        folder: where its output goes.
        environment: variables beside those of this process.
    """

    def __init__(self, args: Sequence[str | Path], folder: Path, environment: dict[str, str] | None = None):
        self.mark = uuid.uuid4().hex
        self.files = [folder / f"{self.mark}.{name}" for name in ("out", "err")]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", _MARK: self.mark, **(environment or {})}
        with self.files[0].open("wb") as out, self.files[1].open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _LISTENING, *map(str, args)],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env=variables,
            )

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self.files[0].read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        """What it has printed on standard error so far."""
        return self.files[1].read_text(encoding="utf-8")

    @property
    def output(self) -> str:
        """Both, for messages."""
        return f"{self.stdout}\n{self.stderr}"

    @property
    def left(self) -> list[int]:
        """All its processes that live."""
        return [process for process, variables in _environments() if variables.get(_MARK) == self.mark]

    def rank(self, rank: int) -> int:
        """The process of a rank."""
        (found,) = (
            process
            for process, variables in _environments()
            if variables.get(_MARK) == self.mark and variables.get("RANK") == str(rank)
        )
        return found

    def listening_at(self, rank: int | None = None) -> set[str]:
        """The addresses at which its processes, or that of a rank, listen: hexadecimal, as /proc has them."""
        sockets = set()
        for process in self.left if rank is None else [self.rank(rank)]:
            with suppress(OSError):
                sockets |= {os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir()}
        addresses = set()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                    addresses.add(fields[1].partition(":")[0])
        return addresses

    def wait_for(self, fact: Callable[[], object]) -> Self:
        """Wait until something is so."""
        end = time.monotonic() + PATIENCE
        while not fact():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.02)
        return self

    def wait_for_line(self, text: str) -> Self:
        """Wait until it has printed something."""
        return self.wait_for(lambda: text in self.stdout)

    def send(self, number: int) -> Self:
        """Send its first process a signal."""
        self.process.send_signal(number)
        return self

    def ended(self, seconds: float = PATIENCE) -> Self:
        """Wait for the end of all its processes."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hangs: {self.output}") from None
        end = time.monotonic() + seconds
        while self.left and time.monotonic() < end:
            time.sleep(0.05)
        assert not self.left, f"{self.left} are left behind: {self.output}"
        return self

    def done(self) -> str:
        """Wait for its end, which must be a good one without a word on standard error; what it printed."""
        self.ended()
        assert self.process.returncode == 0, self.output
        assert self.stderr == "", self.stderr
        return self.stdout

    def status(self, seconds: float = PATIENCE) -> int:
        """Wait for its end, and return its exit status."""
        return self.ended(seconds).process.returncode


@contextmanager
def started(*args: str | Path, folder: Path, environment: dict[str, str] | None = None) -> Iterator[Command]:
    """A Python command that is ended at the end, whatever happened."""
    command = Command(args, folder, environment)
    try:
        yield command
    finally:
        for process in command.left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        command.process.wait()


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    """The processes of this machine that can be looked at, with their environment variables."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            pairs = (entry.partition("=") for entry in path.read_text(errors="replace").split("\0"))
            variables = {name: value for name, _, value in pairs}
            yield int(path.parent.name), variables
