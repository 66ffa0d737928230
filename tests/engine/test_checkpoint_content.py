"""Whatever a checkpoint holds: it is used, or refused with one message, and no other file is touched."""

import copy
import math
import re
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import done, mistake, run_folder, sever, steel_config, synthetic_sheets, write_config

from sever.engine.checkpoint import load_checkpoint
from sever.utils.errors import CheckpointError


def referred_to(times):
    """A list of so many levels, each of which holds the one below twice."""
    value = ["x"]
    for _ in range(times):
        value = [value, value]
    return value


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def test_a_value_that_is_nested_without_end_is_refused(tmp_path):
    state = {"arch": "x", "epoch": 1, "state_dict": {}, "config": {}, "format": 1}
    torch.save({**state, "log": "MARK"}, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "m.pth").read_bytes()
    text = b"X\x04\x00\x00\x00MARK"  # how pickle writes it
    assert text in content
    (tmp_path / "m.pth").write_bytes(content.replace(text, b"]" * 5000 + b"a" * 4999))
    with pytest.raises(CheckpointError, match="is nested deeper than 60 levels"):
        load_checkpoint(tmp_path / "m.pth")


ELSEWHERE = "x/../../../../../victim/precious"
LEFT_OUT = object()
ODD = [
    LEFT_OUT, None, True, -1, 0, 7, 2**62, 10**30, 1.5, math.nan, math.inf,
    "x", ELSEWHERE, "/etc/x", "\ud800", "a\0", "long" * 500_000, b"x",
    [], [1], ["x"], [None, None], {}, {"step": 5, "state_dict": 1}, nested(500), referred_to(50),
    torch.tensor(1.0), torch.zeros(3), torch.full((2,), math.nan), torch.zeros(2, 2).to_sparse(),
    *(torch.zeros(7, dtype=dtype) for dtype in (torch.int64, torch.uint8, torch.complex64)),
    torch.zeros(1).expand(10**6, 10**6), torch.zeros(3, device="meta"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that was stopped within its first epoch, with all that a checkpoint can hold; and a victim."""
    folder = tmp_path_factory.mktemp("content") / "a" / "b"
    config = steel_config(synthetic_sheets(folder / "data"), folder / "saved")
    config["optimizer"]["lookahead"] = {"k": 2}
    config["lr_scheduler"] |= {"interval": "step", "warmup": {"length": 2}}
    config["training"] |= {"ema_decay": 0.9, "keep_best": 1, "precision": "fp16", "verbose": 0}
    stop = ("-s", "training.max_time=0.001s", "-s", "training.verbose=1")
    run = run_folder(done("train", "-c", write_config(folder / "c.yml", config), *stop))
    run.rename(folder / "run")
    for path in (
        "victim/precious.pth",
        "victim/checkpoint_epoch_x.pth",
        "run/notes.pth",
        "run/checkpoint_epoch_x.pth",
    ):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("mine")
    return folder


@pytest.fixture
def run(folder, tmp_path):
    """A copy of its folder, deep enough for paths that lead to the victim."""
    return shutil.copytree(folder / "run", tmp_path / "saved" / "small" / "run")


@pytest.fixture(scope="module")
def content(folder):
    content = torch.load(folder / "run" / "checkpoint_last.pth", weights_only=True)
    del content["config"]["training"]["max_time"]
    return content


def changed(content, path, value):
    """The content with another value at a path of keys, or without one."""
    content = node = copy.copy(content)
    *above, last = path
    for key in above:
        node[key] = copy.copy(node[key])
        node = node[key]
    if value is LEFT_OUT:
        del node[last]
    else:
        node[last] = value
    return content


def spoilt(run, content, path, value):
    """The run's checkpoint, with another value in it."""
    torch.save(changed(content, path, value), run / "checkpoint_last.pth")
    return run / "checkpoint_last.pth"


FIRST = "its first weight"
SHAPE = (16, 1, 3, 3)  # of that weight
MOMENTS = ("optimizer", "state", 0)
NO_FIT = "does not fit what the config describes"
REFUSED = {  # path, value, words of the message
    "config: a list many times over": (("config", "own"), referred_to(18), "'config'", "refers to a list"),
    "config: deep": (("config", "own"), nested(100), "nested deeper than 60 levels"),
    "config: a long text": (("config", "own"), "x" * 20_000_000, "'config'", "more than 100,000 values"),
    "config: half a character": (("config", "own"), ["\udfff"], "'config'", "half a character"),
    "config: a name that leads out": (("config", "name"), "../../x", "name: is the name of a folder"),
    "weights: sparse": (("state_dict", FIRST), torch.zeros(2, 2).to_sparse(), "sparse"),
    "weights: expanded": (("state_dict", FIRST), torch.zeros(1).expand(10**5, 10**5), "not in the file"),
    "weights: whole numbers": (("state_dict", FIRST), torch.zeros(SHAPE).int(), "torch.int32"),
    "weights: without numbers": (("state_dict", FIRST), torch.zeros(SHAPE, device="meta"), "numbers"),
    "epoch: true": (("epoch",), True, "'epoch'"),
    "epoch: huge": (("epoch",), 10**30, "'epoch'"),
    "position: huge": (("position", "batches"), 10**9, "'position'", "1000000000 batches of 3"),
    "position: an unknown key": (("position", "random_states"), "x", "'position'"),
    "kept as best: paths": (("kept_as_best",), [ELSEWHERE], "'kept_as_best'", "at '0'"),
    "monitor: no best": (("monitor", "best"), LEFT_OUT, "'monitor'", "nothing at 'best'"),
    "monitor: NaN": (("monitor", "best"), math.nan, "'monitor'", "nan at 'best'"),
    "monitor: none": (("monitor",), None, "'monitor'", NO_FIT),
    "optimizer: none": (("optimizer",), None, "'optimizer'", NO_FIT),
    "optimizer: other groups": (("optimizer", "param_groups"), [{"params": []}], "'optimizer'", NO_FIT),
    "optimizer: a NaN rate": (("optimizer", "param_groups", 0, "lr"), math.nan, "param_groups.0.lr"),
    "optimizer: a decay": (("optimizer", "param_groups", 0, "betas"), [0.9, 2.0**40], "param_groups.0.betas"),
    "optimizer: a NaN moment": ((*MOMENTS, "exp_avg"), torch.full(SHAPE, math.nan), "a moment is NaN"),
    "optimizer: slow weights": ((*MOMENTS, "lookahead_slow"), torch.zeros(3), "lookahead_slow"),
    "random states: short": (("random_states", "torch"), torch.zeros(7).byte(), "'random_states'", NO_FIT),
    "random states: an index": (("random_states", "numpy", 2), 10**6, "'random_states'", "at 'numpy.2'"),
    "schedule: no state": (("lr_scheduler", "scheduler"), LEFT_OUT, "'lr_scheduler'", NO_FIT),
    "schedule: for a method": (("lr_scheduler", "scheduler", "state_dict"), 1, "'lr_scheduler'", NO_FIT),
    "schedule: three factors": (("lr_scheduler", "start_factor"), torch.zeros(3), "'lr_scheduler'", NO_FIT),
    "scaler: empty": (("scaler", "scale"), LEFT_OUT, "'scaler'", NO_FIT),
    "counted: other classes": (("counted", "metrics", 0, "sums"), torch.zeros(1, 3), "'counted'", NO_FIT),
    "counted: a short sum": (("counted", "losses", "loss"), torch.zeros(1), "'counted'", "losses.loss"),
    "weights: of another type": (
        ("state_dict", FIRST),
        torch.zeros(1).half(),
        "checkpoint_last.pth: its weights are of another architecture",
        "expected torch.float32, received torch.float16",
    ),
    "ema: of another shape": (("ema", FIRST), torch.zeros(3), "checkpoint_last.pth: ema", "expected shape"),
    "format: a tensor": (("format",), torch.zeros(3), "in format a Tensor"),
    "kinds: unknown": (("output_kinds",), ["x"], "'output_kinds'"),
    "saved at: NaN": (("saved_at",), math.nan, "'saved_at'"),
}
FAIL_IN_A_STEP = {
    "optimizer: of another shape": ((*MOMENTS, "exp_avg"), torch.zeros(3), "'optimizer'", NO_FIT),
    "optimizer: no moment": ((*MOMENTS, "exp_avg"), LEFT_OUT, "'optimizer'", NO_FIT),
    "optimizer: a text": (("optimizer", "param_groups", 0, "lookahead_steps"), "x", "'optimizer'", NO_FIT),
    "schedule: texts": (("lr_scheduler", "scheduler", "base_lrs"), ["x", "y"], "'lr_scheduler'", NO_FIT),
    "schedule: an optimizer": (("lr_scheduler", "optimizer"), 5, "'lr_scheduler'", NO_FIT),
}


def entries(cases):
    """The cases as parameters of a test."""
    parameters = [pytest.param(path, value, words, id=name) for name, (path, value, *words) in cases.items()]
    return pytest.mark.parametrize(("path", "value", "words"), parameters)


@entries(REFUSED)
def test_an_entry_that_does_not_fit_is_named_before_the_run_goes_on(path, value, words, run, content):
    path = [next(iter(content["state_dict"])) if key is FIRST else key for key in path]
    checkpoint = spoilt(run, content, path, value)
    before = files_in(run)
    message = mistake("train", "-r", checkpoint)
    assert message.startswith(f"sever: {checkpoint}")
    assert [word for word in words if word not in message] == [], message
    assert files_in(run) == before


@entries(FAIL_IN_A_STEP)
def test_an_entry_that_fails_in_the_first_step_is_named(path, value, words, run, content):
    checkpoint = spoilt(run, content, path, value)
    message = mistake("train", "-r", checkpoint)
    assert message.startswith(f"sever: {checkpoint}")
    assert [word for word in words if word not in message] == [], message
    assert load_checkpoint(checkpoint)["epoch"] == 0  # nothing is written over it


def test_moments_of_a_warm_start_are_named_too(folder, run, content, tmp_path):
    path = spoilt(run, content, ("optimizer", "state", 0, "exp_avg"), torch.zeros(3))
    message = mistake("train", "-c", folder / "c.yml", "-r", path, "-s", f"save_dir={tmp_path}")
    assert f"{path}: 'optimizer' does not fit" in message


def test_a_warm_start_from_a_huge_epoch_is_refused_at_once(folder, run, content, tmp_path):
    path = spoilt(run, content, ("epoch",), 10**9)
    message = mistake("train", "-c", folder / "c.yml", "-r", path, "-s", f"save_dir={tmp_path}")
    assert f"{path} is at epoch 1000000000 already" in message


# ---------------------------------------------------------------------------------- any key, any value


def paths_in(value, path=()):
    """The paths of the values in a checkpoint: of the first two of many that are alike."""
    yield path
    if isinstance(value, dict):
        alike = path in (("state_dict",), ("ema",), ("optimizer", "state"))
        parts = list(value.items())[: 2 if alike else None]
    else:
        parts = list(enumerate(value))[:2] if isinstance(value, list) else []
    for key, part in parts:
        if path != ("config",) or key in ("name", "save_dir", "seed", "training", "data_loader"):
            yield from paths_in(part, (*path, key))


def files_in(folder, but=()):
    """What is in each file, but those that a run replaces."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in but}


WRITTEN = ("config.yml", "split.csv", "checkpoint_last.pth", "checkpoint_epoch_1.pth", "model_best.pth")


def check_any_content(examples, folder, run, content, *args):
    """Use checkpoints with an odd value somewhere: each is one message or none, and leaves files alone."""
    paths = [path for path in paths_in(content) if path]
    given_by_users = files_in(folder), files_in(run, (*WRITTEN, "info.log", "errors.log"))

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(paths), st.sampled_from(ODD))
    def each(path, value):
        result = sever(*args, "-r", spoilt(run, content, path, value))
        assert result.exit_code in (0, 2), result.output
        messages = re.findall("^sever: ", result.stderr, re.MULTILINE)
        assert len(messages) == (result.exit_code == 2), result.stderr
        assert "Traceback" not in result.output
        assert len(result.stderr) < 3000
        now = files_in(folder), {p: data for p, data in files_in(run).items() if p in given_by_users[1]}
        assert now == given_by_users

    each()


@pytest.mark.parametrize("examples", [5, pytest.param(150, marks=pytest.mark.slow)])
def test_any_content_is_loaded_or_refused(examples, folder, run, content):
    check_any_content(examples, folder, run, content, "train", "--dry-run")


@pytest.mark.slow
def test_a_run_goes_on_from_any_content_or_says_why_not(folder, run, content):
    check_any_content(100, folder, run, content, "train", "-s", "training.epochs=1")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["test", "predict", "average"])
def test_any_content_is_used_or_refused(command, folder, run, content, tmp_path):
    output = () if command == "test" else ("-o", tmp_path / ("s.csv" if command == "predict" else "m.pth"))
    check_any_content(40, folder, run, content, command, *output)


def test_epochs_that_are_removed_are_numbers_of_this_runs_checkpoints(folder, run, content):
    """Those that a checkpoint calls kept as the best, and are not, are outdated after the next epoch."""
    (run / "checkpoint_epoch_7.pth").write_text("earlier")
    before = files_in(folder), files_in(run, WRITTEN)
    done("train", "-r", spoilt(run, content, ("kept_as_best",), [7, 8, 10**17]), "-s", "training.epochs=1")
    after = files_in(folder), files_in(run)
    assert after[0] == before[0]
    assert [path.name for path in before[1] if path not in after[1]] == ["checkpoint_epoch_7.pth"]


def test_what_is_not_known_is_left_to_the_trainer_that_wrote_it(run, content):
    state = load_checkpoint(spoilt(run, content, ("own",), {"moments": [torch.zeros(3)], 5: None}))
    assert state["own"][5] is None


@pytest.mark.parametrize("key", ["arch", "epoch", "state_dict", "config"])
def test_an_entry_that_every_command_needs_is_missed(key, run, content):
    with pytest.raises(CheckpointError, match=f"it lacks {key}"):
        load_checkpoint(spoilt(run, content, (key,), LEFT_OUT))
