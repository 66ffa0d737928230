"""What a GPU does with the experiments: one table. It needs no data set and no network.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --experiments demo --side 64 96 --batch-size 2 --steps 2

1. Training steps on random crops: images a second and peak memory of each experiment in fp32 (TF32 off and
   on), bf16, bf16 with channels last, and compiled; the largest batch of powers of 2 that fits.
2. A step of `Stepper` against the plain loop and, where it is installed, Lightning's Trainer with the same
   parts; in fp16, and with averaged weights.
3. An epoch of `Trainer` on drawn sheets, reading included, with and without a cache, against the steps alone.
4. `sever predict` in each precision, a run that is stopped and resumed, a run by NCCL with one process, and
   `pytest -m gpu`: whether they pass, and how long they take.

On a CPU memory is not measured, and what is for GPUs alone is left out. The goals come last.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from goals import head, print_ratios

from sever.base.base_model import forward
from sever.config.build import build
from sever.config.load import LoadedConfig, load_config
from sever.config.registry import MODELS
from sever.data_loader.synth.write import draw_dataset
from sever.engine.run_folder import RunFolder
from sever.factory import build_trainer, loss_of, training_objects
from sever.parallel.device import check_precision, describe
from sever.parallel.sharded_batch import named_losses
from sever.trainer.compiled import CompiledModel
from sever.trainer.step import Stepper
from sever.utils.errors import DeviceError

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ("fpn-b5", "seed-fpn-se_resnext50", "unet-lite0")
# Name -> precision, TF32, channels last, compiled.
SETTINGS = {
    "fp32, TF32 off": ("fp32", False, False, False),
    "fp32": ("fp32", True, False, False),
    "bf16": ("bf16", True, False, False),
    "bf16, channels last": ("bf16", True, True, False),
    "bf16, channels last, compiled": ("bf16", True, True, True),
    "fp16, channels last": ("fp16", True, True, False),
}
WARM_UP = 3  # steps that are not counted
ROUNDS = 5  # of steps that are compared in turn
DRAWN_SHEETS = 64

AT_LEAST = {"fpn-b5": 2.5, "seed-fpn-se_resnext50": 4.0}  # fp32 without TF32 -> bf16 in its fastest form

Row = tuple[str, str, str]  # what, figure, remark
goals: dict[str, tuple[list[float], dict[str, float]]] = {}  # what -> ratios, goal of `print_ratios`


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    rows: list[Row] = [("device", describe(device), f"torch {torch.__version__}")]
    for experiment in options.experiments:
        rows += training_rows(experiment, device, options)
        rows += loop_rows(experiment, device, options)
    with tempfile.TemporaryDirectory(prefix="sever-") as folder:
        draw_dataset(Path(folder, "data"), DRAWN_SHEETS if device.type == "cuda" else 8, 1234)
        for experiment in options.experiments:
            rows += epoch_rows(experiment, device, Path(folder), options)
        rows += command_rows(options.experiments[-1], device, Path(folder), options)
    width = max(len(what) for what, _, _ in rows)
    print("\n".join(f"{what:{width}s}  {figure:>24s}  {remark}".rstrip() for what, figure, remark in rows))
    print(f"\n{head('goals')}")
    for what, (ratios, goal) in goals.items():
        print_ratios(what, ratios, **goal)


def config_of(experiment: str) -> LoadedConfig:
    """An experiment with random weights."""
    config = load_config(ROOT / "experiments" / f"{experiment}.yml")
    return config.replace({"arch.args.encoder_weights": None})


class Parts:
    """Model, loss, optimizer and a random batch of an experiment."""

    def __init__(self, experiment: str, device: torch.device, size: Sequence[int], batch_size: int) -> None:
        config = config_of(experiment)
        torch.manual_seed(1)
        self.training = config.checked.training.model_copy(update={"precision": "fp32", "ema_decay": None})
        self.device = device
        self.model = build(MODELS, config.checked.arch, "arch").to(device).train()
        self.loss = loss_of(config)
        self.optimizer = torch.optim.RAdam(self.model.parameters(), lr=1e-4, decoupled_weight_decay=True)
        self.inputs = torch.randn(batch_size, 1, *size, device=device)
        classes = self.model(self.inputs[:2]).shape[1]
        self.masks = (torch.rand(batch_size, classes, *size, device=device) > 0.98).float()

    def plain_step(self, precision: str = "fp32", model: Callable[..., Any] | None = None) -> None:
        """A step as in any tutorial."""
        outputs = forward(model or self.model, self.inputs, precision)
        named_losses(self.loss, outputs, self.masks)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def training_rows(experiment: str, device: torch.device, options: argparse.Namespace) -> list[Row]:
    """Images a second of the plain step in each setting, as a table's rows."""
    rows: list[Row] = []
    first, fits = None, {}
    for name, (precision, tf32, last, compiled) in SETTINGS.items():
        if device.type == "cpu" and (name == "fp32" or precision == "fp16"):
            continue
        try:
            check_precision(device, precision)
        except DeviceError as error:
            rows.append((f"{experiment}, {name}", "left out", str(error)))
            continue
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        parts = Parts(experiment, device, options.side, options.batch_size)
        if last:
            parts.model.to(memory_format=torch.channels_last)
        model = CompiledModel(parts.model) if compiled else parts.model
        seconds, memory = measured(lambda: parts.plain_step(precision, model), device, options.steps)  # noqa: B023
        first = first or seconds
        rows.append(
            (f"{experiment}, {name}", f"{options.batch_size / seconds:.1f} images/s",
             f"{first / seconds:.2f} of the first{f', peak {memory / 2**30:.1f} GiB' if memory else ''}")
        )  # fmt: skip
        if compiled and experiment in AT_LEAST:
            goals[f"{experiment}: {name} / fp32, TF32 off"] = (
                [first / seconds],
                {"at_least": AT_LEAST[experiment]},
            )
        if device.type == "cuda" and not compiled and precision != "fp16":
            fits[precision] = largest_batch(experiment, device, options.side, precision, last)
            rows.append((f"{experiment}, {name}, largest batch", str(fits[precision]), "of powers of 2"))
    if "bf16" in fits:
        goals[f"{experiment}: largest batch in bf16 / fp32"] = (
            [fits["bf16"] / fits["fp32"]],
            {"at_least": 2.0},
        )
    return rows


def measured(step: Callable[[], None], device: torch.device, steps: int) -> tuple[float, int]:
    """The seconds of a step, and the peak memory in bytes (0 on a CPU)."""
    for _ in range(WARM_UP):
        step()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    seconds = (time.perf_counter() - start) / steps
    return seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def largest_batch(
    experiment: str, device: torch.device, size: Sequence[int], precision: str, last: bool
) -> int:
    """The largest power of 2 of images whose step fits into the memory."""
    fits, images = 0, 8
    while images <= 4096:
        try:
            parts = Parts(experiment, device, size, images)
            if last:
                parts.model.to(memory_format=torch.channels_last)
            parts.plain_step(precision)
        except torch.OutOfMemoryError:
            break
        finally:
            parts = None  # type: ignore[assignment]
            torch.cuda.empty_cache()
        fits, images = images, 2 * images
    return fits


def loop_rows(experiment: str, device: torch.device, options: argparse.Namespace) -> list[Row]:
    """A step of `Stepper` against the plain one, in turn."""
    rows: list[Row] = []
    torch.backends.cudnn.allow_tf32 = True
    for name, changes in {
        "step": {},
        "step with averaged weights": {"ema_decay": 0.999},
        "step in fp16": {"precision": "fp16"},
    }.items():
        precision = changes.get("precision", "fp32")
        if device.type == "cpu" and precision != "fp32":
            continue
        parts = Parts(experiment, device, options.side, options.batch_size)
        stepper = Stepper(parts.model, parts.optimizer, device, parts.training.model_copy(update=changes))
        stepper.begin_epoch()

        def step(parts: Parts = parts, stepper: Stepper = stepper, precision: str = precision) -> None:
            outputs = forward(stepper.model_for(0, 1), parts.inputs, precision)
            stepper.backward(named_losses(parts.loss, outputs, parts.masks)["loss"], 0, 1)

        ratios, lightnings = [], []
        for _ in range(ROUNDS):
            plain, _ = measured(lambda: parts.plain_step(precision), device, options.steps)  # noqa: B023
            ours, _ = measured(step, device, options.steps)
            ratios.append(ours / plain)
            if not changes and (theirs := lightning_seconds(parts, options.steps)):
                lightnings.append(ours / theirs)
        ratio = statistics.median(ratios)
        rows.append((f"{experiment}, {name} / plain step", f"{ratio:.3f}", f"{1000 * ours:.1f} ms"))
        if not changes:
            goals[f"{experiment}: step of Trainer / plain step"] = ratios, {"at_most": 1.02}
        if lightnings:
            goals[f"{experiment}: step of Trainer / Lightning's"] = lightnings, {}
    return rows


def lightning_seconds(parts: Parts, steps: int) -> float | None:
    """The seconds of a step of Lightning's Trainer; None where it is not installed."""
    try:
        import lightning
    except ImportError:
        return None
    ends: list[float] = []

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = parts.model

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            inputs, masks = batch
            return named_losses(parts.loss, self.model(inputs), masks)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return parts.optimizer

        def on_train_batch_end(self, *_: Any) -> None:
            if len(ends) + 1 in (WARM_UP, WARM_UP + steps):
                synchronize(parts.device)
            ends.append(time.perf_counter())

    trainer = lightning.Trainer(
        max_steps=WARM_UP + steps, accelerator=parts.device.type, devices=1, logger=False, barebones=True
    )
    batch = (parts.inputs, parts.masks)
    trainer.fit(Module(), torch.utils.data.DataLoader([batch] * (WARM_UP + steps), batch_size=None))
    return (ends[-1] - ends[WARM_UP - 1]) / steps


def epoch_rows(experiment: str, device: torch.device, folder: Path, options: argparse.Namespace) -> list[Row]:
    """An epoch of `Trainer` with reading against its steps alone, without and with a cache."""
    rows: list[Row] = []
    sheets = len(list((folder / "data" / "train_images").iterdir()))
    for cache in ("off", "ram"):
        changes = settings_of(experiment, folder, options)
        changes |= {"data_loader.args.cache": cache, "trainer": "first_step.StepTimes"}
        path = ROOT / "experiments" / f"{experiment}.yml"
        objects = training_objects(load_config(path, [f"{k}={v}" for k, v in changes.items()]), device)
        assert objects.data_loader.split is not None
        times = max(1, 2 * options.steps * options.batch_size // sheets)
        names = objects.data_loader.split["training"] * times
        objects.data_loader.split_validation({"training": names, "validation": []})
        run = RunFolder(folder / "epochs" / experiment / cache)
        run.path.mkdir(parents=True)
        trainer: Any = build_trainer(objects, run)
        for trainer.epochs in (1, 2):  # the first one warms up
            trainer.ends.clear()
            trainer.train()
        epoch = (trainer.ends[-1] - trainer.ends[0]) / (len(trainer.ends) - 1)
        batch = next(iter(objects.data_loader))
        objects.data_loader.end_workers()
        alone, _ = measured(partial(trainer_step, trainer, batch), device, options.steps)
        rate = f"{options.batch_size / epoch:.1f} images/s"
        rows.append((f"{experiment}, epoch, cache {cache}", rate, f"{alone / epoch:.3f} of the steps alone"))
        goals[f"{experiment}: end to end / compute, cache {cache}"] = [alone / epoch], {"at_least": 0.97}
    return rows


def trainer_step(trainer: Any, batch: Any) -> None:
    """A step of a trainer on a batch, without reading."""
    inputs, masks = trainer.data_loader.to_device(batch, trainer.device)
    outputs = forward(trainer.stepper.model_for(0, 1), inputs, trainer.training.precision)
    trainer.stepper.backward(named_losses(trainer.loss, outputs, masks)["loss"], 0, 1)


def settings_of(experiment: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The changes of an experiment with which it trains on the drawn sheets."""
    height, width = options.side
    return {
        "save_dir": folder / "saved", "name": "gpu", "arch.args.encoder_weights": "null",
        "data_loader.args.data_dir": folder / "data", "data_loader.args.batch_size": options.batch_size,
        "data_loader.args.num_workers": options.workers, "data_loader.args.validation_split": 0,
        "augmentation": f"{{type: HeavyCropTransforms, args: {{height: {height}, width: {width}}}}}",
        "training.epochs": options.epochs, "training.monitor": "off", "training.tensorboard": "false",
        "training.early_stop": 0, "predict.threshold": 0.9, "testing": "null",
    }  # fmt: skip


def command_rows(
    experiment: str, device: torch.device, folder: Path, options: argparse.Namespace
) -> list[Row]:
    """The commands on drawn sheets: `sever train` and `predict`, resume, NCCL, the tests for GPUs."""
    settings = settings_of(experiment, folder, options)
    given = [text for key, value in settings.items() for text in ("-s", f"{key}={value}")]
    train = ["train", "-c", str(ROOT / "experiments" / f"{experiment}.yml"), "-d", options.device, *given]
    rows: list[Row] = []
    output, seconds = run_sever(train)
    rows.append((f"{experiment}, sever train", f"{seconds:.1f} s", last_line(output)))
    found = re.search(r"^run folder\s+(\S+)", output, re.MULTILINE)
    run = found[1] if found else ""
    for what in ("stopped run", "resumed run"):
        more = ["-r", "auto", "-s", "name=stopped", "-s", "training.epochs=10000"]
        output, seconds = run_sever([*train, *more, "-s", "training.max_time=5s"])
        rows.append((what, f"{seconds:.1f} s", last_line(output)))
    for precision in ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32",):
        more = ["-d", options.device, "--precision", precision, "-o", str(folder / f"{precision}.csv")]
        output, seconds = run_sever(["predict", "-r", f"{run}/checkpoint_last.pth", *more])
        rows.append((f"{experiment}, sever predict, {precision}", f"{seconds:.1f} s", last_line(output)))
    if device.type == "cuda":
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
        output, seconds = timed([*launcher, "-m", "sever", *train, "-s", "name=nccl"])
        rows.append(("torchrun, one process by NCCL", f"{seconds:.1f} s", last_line(output)))
        output, seconds = timed([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-n", "0"])
        rows.append(("pytest -m gpu", f"{seconds:.1f} s", last_line(output)))
    return rows


def run_sever(args: Sequence[str]) -> tuple[str, float]:
    """What a command prints, and how long it takes."""
    return timed([sys.executable, "-m", "sever", *args])


def timed(command: Sequence[str]) -> tuple[str, float]:
    """What a command prints, and how long it takes."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    failed = f"\nexit status {done.returncode}: {last_line(done.stderr)}" if done.returncode else ""
    return done.stdout + failed, time.perf_counter() - start


def last_line(text: str) -> str:
    """The end of what was printed."""
    return (text.strip().splitlines() or [""])[-1][:160]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a GPU does with the experiments: one table.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS)
    parser.add_argument("--side", nargs=2, type=int, default=(256, 416), help="height and width of a crop")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="that are timed")
    parser.add_argument("--epochs", type=int, default=3, help="of sever train")
    parser.add_argument("--workers", type=int, default=8 if torch.cuda.is_available() else 1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
