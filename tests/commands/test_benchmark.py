"""`sever benchmark` measures what it says, advises settings that work, and leaves nothing behind."""

import importlib
import re
import time

import pytest
import torch
from runs import done, mistake, steel_config, synthetic_sheets, write_config

from sever.commands.benchmark import largest_batch


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    return synthetic_sheets(tmp_path_factory.mktemp("benchmark") / "data")


@pytest.fixture
def path(sheets, tmp_path):
    return write_config(tmp_path / "c.yml", steel_config(sheets, tmp_path / "saved"))


def test_reading_computing_and_both_are_measured_and_every_line_can_be_typed(path, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    output = done("benchmark", "-c", path, "-d", "cpu", "--seconds", "0.01")
    speeds = re.findall(r"^(reading|computing|together) +([\d.]+) images/s *(.*)$", output, re.MULTILINE)
    kinds = [kind for kind, _, _ in speeds]
    assert kinds == ["reading"] * 4 + ["computing"] * 2 + ["together"]
    assert all(float(images) > 0 for _, images, _ in speeds)
    assert speeds[0][2] == "-s data_loader.args.num_workers=0 -s data_loader.args.cache=off"  # the config's
    for settings in (speeds[1][2], speeds[4][2]):
        done("train", "-c", path, "--dry-run", *settings.split())
    assert re.search(r"^bottleneck +(reading|computing): alone, reading gives", output, re.MULTILINE)
    assert re.search(r"^faster +", output, re.MULTILINE)
    assert not (tmp_path / "saved").exists()


@pytest.mark.slow
@pytest.mark.parametrize("slow", ["read_grey", pytest.param("forward", marks=pytest.mark.slow)])
def test_the_bottleneck_is_what_takes_the_time(slow, path, monkeypatch):
    places = {"read_grey": "sever.data_loader.annotations", "forward": "sever.commands.benchmark"}
    module = importlib.import_module(places[slow])
    work = getattr(module, slow)
    waits = []

    def slowly(*args):
        waits.append(1)
        time.sleep(0.05)
        return work(*args)

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(module, slow, slowly)
    output = done("benchmark", "-c", path, "-d", "cpu", "--seconds", "0.3")
    assert f"bottleneck   {'reading' if slow == 'read_grey' else 'computing'}: " in output
    if slow == "read_grey":  # a cache reads none of them
        assert re.search(r"^faster +[\d.]+ times, with .*cache=ram", output, re.MULTILINE)
    assert waits


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 100, 4095])
def test_the_largest_batch_is_found_in_few_tries(limit):
    tried = []

    def fits(images):
        tried.append(images)
        return images <= limit

    assert largest_batch(fits) == limit
    assert len(tried) <= 25
    assert max(tried) <= max(1, 2 * limit)


def test_a_batch_size_is_not_looked_for_on_a_cpu(path):
    message = mistake("benchmark", "-c", path, "-d", "cpu", "--find-batch-size")
    assert "--find-batch-size: a CPU's memory has no sharp end; give a GPU with -d" in message


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_largest_batch_of_a_gpu_can_be_trained_on(path):
    output = done("benchmark", "-c", path, "-d", "0", "--seconds", "0.1", "--find-batch-size")
    assert re.search(r"^batch size +\d+ images fit$", output, re.MULTILINE)
    found = re.search(r"images for a step: (.*)$", output, re.MULTILINE)
    done("train", "-c", path, "-d", "0", "-s", "training.epochs=1", *found[1].split())
