"""What several tests share."""

import os
from pathlib import Path

import pytest

# Several processes run tests at the same time: each, and what it starts, computes in one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and masks beside the checkout; without it the test is skipped."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder
