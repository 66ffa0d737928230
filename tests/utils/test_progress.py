"""The progress bar counts what was done before a resume once."""

import io
import time

import sever.utils.progress
from sever.utils.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class LastOfFour:
    """A loader of four batches of which three are left out."""

    def __len__(self):
        return 4

    def __iter__(self):
        time.sleep(0.2)  # longer than the bar waits between two updates
        yield 3


def test_batches_before_a_resume_are_counted_once(monkeypatch):
    terminal, bars = Terminal(), []
    monkeypatch.setattr("sys.stderr", terminal)
    made = sever.utils.progress.tqdm
    monkeypatch.setattr(
        "sever.utils.progress.tqdm", lambda *args, **kwargs: bars.append(made(*args, **kwargs)) or bars[0]
    )
    assert list(progress(LastOfFour(), "epoch 1/2", done=3)) == [3]
    assert (bars[0].n, bars[0].total) == (4, 4)
    assert "3/4" in terminal.getvalue()
