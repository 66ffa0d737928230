"""TensorBoard's event files, written by the calling thread.

TensorBoard writes them in a thread of its own, which prints a traceback where the disk fails, and keeps what
fails at the end to itself.
"""

import os
import socket
import time
from itertools import count
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

_numbers = count()


class EventWriter(SummaryWriter):
    """torch's `SummaryWriter`, each of whose methods raises the `OSError` of what it writes itself.

    Args:
        folder: made if missing.
        first_step: events from here on in earlier files of the folder are dropped; 0 drops none.
    """

    file_writer: Any
    all_writers: Any

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        super().__init__(str(folder), purge_step=first_step or None)

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = _FileWriter(self.log_dir)
            self.all_writers = {self.log_dir: self.file_writer}
            if self.purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                self.file_writer.add_event(Event(session_log=start), self.purge_step)
                self.purge_step = None
        return self.file_writer


class _FileWriter(FileWriter):
    def __init__(self, folder: str) -> None:
        self.event_writer = _EventFile(folder)


class _EventFile:
    """Has the methods of `EventFileWriter` that `FileWriter` calls."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        os.makedirs(folder, exist_ok=True)
        marks = f"{int(time.time()):010d}", socket.gethostname(), os.getpid(), next(_numbers)
        path = Path(folder, ".".join(["events.out.tfevents", *map(str, marks)]))
        self._file = path.open("wb", buffering=0)
        self._records = RecordWriter(self)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def write(self, record: bytes) -> None:
        """Write what the `RecordWriter` makes of an event; after an error the file is closed."""
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.close()
            raise

    def get_logdir(self) -> str:
        return self._folder

    def flush(self) -> None:
        return

    def close(self) -> None:
        self._file.close()
