"""Whether two runs took the same course."""

from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sever.engine.checkpoint import load_checkpoint

NO_LIMITS = dict.fromkeys(("scalars", "images", "histograms"), 0)


def events(run: Path) -> dict[str, list]:
    """Everything in TensorBoard's files, if there are any, but the wall times."""
    folder = run.parent.parent / "runs" / run.parent.name / run.name
    if not folder.is_dir():
        return {}
    accumulator = EventAccumulator(str(folder), size_guidance=NO_LIMITS).Reload()
    tags = accumulator.Tags()
    return {
        **{tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"]},
        **{
            tag: [(e.step, e.encoded_image_string) for e in accumulator.Images(tag)] for tag in tags["images"]
        },
        **{
            tag: [(e.step, e.histogram_value) for e in accumulator.Histograms(tag)]
            for tag in tags["histograms"]
        },
    }


def same(one: Any, other: Any) -> bool:
    """Whether two parts of checkpoints are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def assert_same_course(straight: Path, stopped: Path, epochs: int = 3) -> None:
    """Hold two runs to the same checkpoints, files and events."""
    one, other = (
        torch.load(run / f"checkpoint_epoch_{epochs}.pth", weights_only=True) for run in (straight, stopped)
    )
    for key in one.keys() - {"config", "saved_at"}:
        assert same(one[key], other[key]), key
    assert {path.name for path in straight.iterdir()} == {path.name for path in stopped.iterdir()}
    before, after = events(straight), events(stopped)
    assert before.keys() == after.keys()
    for tag in before:
        assert before[tag] == after[tag], tag


def without_batch_norm(config):
    """So that a run of several processes on the CPU computes what one computes: BatchNorm takes its shard."""
    config["arch"]["args"]["decoder_use_norm"] = False
    config["training"]["unfreeze_encoder"] = 1000
    return config


# Of a run that is stopped from outside.
LONG = {"epochs": 100_000, "save_every": "0.001s", "keep_last": 3, "tensorboard": False}


def weights_of(run, name="checkpoint_last.pth"):
    return load_checkpoint(run / name)["state_dict"]


def assert_close(one, other, rounding=1e-5):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=10 * rounding, atol=rounding, msg=name)
