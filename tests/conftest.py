"""What several tests share."""

import os
import signal
from pathlib import Path

import pytest

# Several processes run tests at the same time: each, and what it starts, computes in one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests start must hear Ctrl-C and a closed terminal, even where tests run in the background or by nohup.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs, onto which `-d auto` would move, unless tests that need one are asked for (`-m gpu`)."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before CUDA starts, and for all that tests start


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and masks beside the checkout; without it the test is skipped."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder
