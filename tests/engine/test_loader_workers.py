"""How the processes that read samples start and end."""

import errno
import os
import signal
import sys

import pytest
import torch
from launched import started
from runs import run_folder, sever, steel_config, synthetic_sheets, write_config
from torch.utils.data import TensorDataset

from sever.base import BaseDataLoader
from sever.engine.signals import StopSignals

needs_stops = pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no processes")


@needs_stops
def test_a_second_signal_ends_workers_that_are_stopped():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM)}
    loader = BaseDataLoader(TensorDataset(torch.zeros(40)), num_workers=2)
    batches = iter(loader)
    try:
        next(batches)
        workers = loader._running()._workers
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        with StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(SystemExit):
                os.kill(os.getpid(), signal.SIGTERM)
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 2
    finally:
        for worker in workers:
            worker.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        batches.close()


STOPPED_WORKERS = """
import os, signal, time, torch
from sever.base import BaseDataLoader

loader = BaseDataLoader(torch.utils.data.TensorDataset(torch.zeros(40)), num_workers=2, keep_workers=True)
next(iter(loader))
while not all(loader.worker_status.pids):  # 0 would stand for this whole process group, and who tests it
    time.sleep(0.01)
for worker in loader.worker_status.pids.tolist():
    os.kill(worker, signal.SIGSTOP)
{}
"""


@pytest.mark.slow
@needs_stops
@pytest.mark.parametrize(
    ("end", "status"),
    [("raise SystemExit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
)
def test_workers_that_are_stopped_end_with_the_program(end, status, tmp_path):
    with started("-W", "ignore", "-c", STOPPED_WORKERS.format(end), folder=tmp_path) as command:
        assert command.status() == status


def test_workers_that_the_system_does_not_start_are_one_message(tmp_path, monkeypatch):
    config = steel_config(synthetic_sheets(tmp_path / "data"), tmp_path / "saved")
    config["data_loader"]["args"]["num_workers"] = 3
    fork, forked = os.fork, []

    def limited():
        if len(forked) == 2:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        forked.append(fork())
        return forked[-1]

    monkeypatch.setattr(os, "fork", limited)
    result = sever("train", "-c", write_config(tmp_path / "c.yml", config))
    assert result.exit_code == 1
    assert result.stderr == (
        "sever: num_workers: 3 processes that read images cannot be started: "
        f"{os.strerror(errno.EAGAIN)}. Lower it\n"
    )
    assert run_folder(result.output).is_dir()
    for process in forked:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
