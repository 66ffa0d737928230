"""Time from `sever train` to the end of its first step, on one device and on two.

    python benchmarks/first_step.py
    python benchmarks/first_step.py --rounds 9

Whole processes, in turn, `-d cpu` and `-d cpu,cpu`, on a light network and a few drawn sheets. The first run
of each, which fills the disk cache, is not counted. Parts of the time, of the process that came last in each:

processes started       until the process that trains has started: for several devices the command has seen
                        that they are several, imported torch, and starts a process for each
imports, meeting        until it has imported what it needs, and met the others
data, model, trainer    until these are made
first step              until it is over

In each round a process that only imports segmentation_models_pytorch and builds the network is timed too.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goals import head, print_ratios

from sever.data_loader.synth.write import draw_dataset
from sever.parallel import collectives
from sever.trainer.trainer import Trainer
from sever.utils.yaml_parser import dump_yaml

IMPORTED = time.monotonic()  # as a trainer of the user's own this file is imported last
ROOT = Path(__file__).resolve().parents[1]
SEED = 1234
SIDE = 128  # of a sheet, in pixels
ENCODER = "tu-mobilenetv3_small_050"
BATCH_SIZE = 8
DEVICES = ("cpu", "cpu,cpu")
ALONE = f"import segmentation_models_pytorch as smp; smp.Unet({ENCODER!r}, encoder_weights=None)"
AT_MOST = 1.3  # times the seconds of `ALONE`
TIMES = "SEVER_BENCHMARK_TIMES"  # the folder for the times of `StepTimes`

Seconds = dict[str, list[float]]  # of each part of the time, in each round


class StepTimes(Trainer):
    """Notes when steps ended; of the first one in a file too, where there is a folder for it.

    Attributes:
        ends: of steps, by time.monotonic.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._made = time.monotonic()
        self.ends: list[float] = []

    def _end_step(self, batches: int) -> None:
        self.ends.append(time.monotonic())
        folder = os.environ.get(TIMES)
        if folder and len(self.ends) == 1:
            times = [process_start(), IMPORTED, self._made, *self.ends]
            (Path(folder) / f"{collectives.world().rank}.json").write_text(json.dumps(times))
        super()._end_step(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time from `sever train` to the end of its first step.")
    parser.add_argument("--rounds", type=int, default=5, help="runs on each device (default 5)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as work:
        draw_dataset(Path(work) / "data", 2 * BATCH_SIZE, SEED, shape=(SIDE, SIDE))
        config = write_config(Path(work), BATCH_SIZE)
        seconds, imports = start_seconds(config, DEVICES, rounds)
    print_table(seconds, rounds)
    ratios = [whole / alone for whole, alone in zip(seconds["cpu"]["together"], imports, strict=True)]
    print(f"\n{head('ratio')}")
    print_ratios("command to first step / imports and building the network", ratios, at_most=AT_MOST)


def write_config(work: Path, batch_size: int) -> Path:
    """A light experiment on the sheets in `work / "data"`, without validation."""
    arch = {"encoder_name": ENCODER, "encoder_weights": None, "in_channels": "r", "classes": 4}
    data = {"data_dir": str(work / "data"), "batch_size": batch_size, "validation_split": 0}
    values = {
        "name": "benchmark",
        "save_dir": str(work / "saved"),
        "seed": SEED,
        "arch": {"type": "Unet", "args": arch},
        "data_loader": {"type": "SteelSegDataLoader", "args": data},
        "loss": "BCEDiceLoss",
        "metrics": ["dice"],
        "optimizer": {"type": "RAdam", "args": {"lr": 1e-4}},
        "trainer": {"type": "first_step.StepTimes"},
        "training": {"epochs": 1, "tensorboard": False, "verbose": 0, "keep_last": 1},
    }
    path = work / "benchmark.yml"
    path.write_text(dump_yaml(values), encoding="utf-8")
    return path


def start_seconds(
    config: Path, devices: Sequence[str], rounds: int
) -> tuple[dict[str, Seconds], list[float]]:
    """The seconds from a command to the end of its first step, by parts, for each device; and of `ALONE`."""
    stages = ("processes started", "imports, meeting", "data, model, trainer", "first step", "together")
    spent: dict[str, Seconds] = {device: {stage: [] for stage in stages} for device in devices}
    imports = []
    for number in range(rounds + 1):
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", ALONE], check=True)
        imports += [time.monotonic() - start] if number else []
        for device in devices:
            times = first_step_times(config, device)
            parts = [after - before for before, after in itertools.pairwise(times)]
            for stage, seconds in zip(stages, [*parts, times[-1] - times[0]], strict=True):
                if number:
                    spent[device][stage].append(seconds)
    return spent, imports


def first_step_times(config: Path, device: str) -> list[float]:
    """When a command began, and what `StepTimes` noted of the process that came last, by time.monotonic."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        paths = [str(Path(__file__).parent), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {"PYTHONPATH": os.pathsep.join(paths), TIMES: folder}
        command = [sys.executable, "-m", "sever", "train", "-c", str(config), "-d", device]
        start = time.monotonic()
        subprocess.run(
            [*command, "-s", "training.max_time=1s"], check=True, capture_output=True, env=environment
        )
        of_processes = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    return [start, *map(max, zip(*of_processes, strict=True))]


def process_start() -> float:
    """When this process started, by time.monotonic; on Linux alone, to a hundredth of a second."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic() - (since_boot - ticks / os.sysconf("SC_CLK_TCK"))


def print_table(seconds: dict[str, Seconds], rounds: int) -> None:
    title = f"{rounds} rounds, in turn; s, median (range)"
    print(f"{title:40s}" + "".join(f"{f'-d {device}':>26s}" for device in seconds))
    for stage in next(iter(seconds.values())):
        cells = [of_device[stage] for of_device in seconds.values()]
        texts = [f"{statistics.median(c):.2f} ({min(c):.2f} – {max(c):.2f})" for c in cells]
        print(f"  {stage:38s}" + "".join(f"{text:>26s}" for text in texts))


if __name__ == "__main__":
    main()
