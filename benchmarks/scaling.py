"""Training in two processes against one, and the cost of what processes exchange; on the CPU.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --rounds 3 --experiments demo

1. A step of `Trainer` on drawn sheets of 128 x 128, reading included: one process of two threads against two
   processes of one thread, each with its shard of the batches. A round is an epoch of each in turn.
2. A step of `Stepper` in two processes of one thread, on random crops: without any exchange of gradients, and
   with it. The exchange looks for parameters that the loss does not depend on, which some networks have;
   where there are none, it is measured without looking too. A round is a step of each in turn.
3. The agreements of a step: `all_reduce_max` on two numbers, which happens twice (before a batch, whether all
   could read theirs; after a step, whether to stop or save), and `all_reduce_and` on whether the loss is
   finite.

The two processes talk over the loopback device, by gloo. The first round of each is not counted. Ratios are
taken within each round, and then the median.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from first_step import SEED, SIDE, write_config
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sever.config.build import build
from sever.config.load import load_config
from sever.config.registry import MODELS
from sever.data_loader.synth.write import draw_dataset
from sever.engine.run_folder import RunFolder
from sever.factory import build_trainer, loss_of, training_objects
from sever.parallel import collectives
from sever.parallel.sharded_batch import Shard, named_losses, sharded_batch
from sever.trainer import step as stepping
from sever.trainer.step import Stepper
from sever.utils.errors import SeverError
from sever.utils.launcher_env import World
from sever.utils.seed import seed_everything

ROOT = Path(__file__).resolve().parents[1]
ENCODERS = ("tu-mobilenetv3_small_050", "efficientnet-b0")
LIGHT = ("demo", "unet-lite0", "fpn-b5")
AGREEMENTS = 200  # in a round
CPU = torch.device("cpu")

Rounds = dict[str, list[float]]  # what is compared -> seconds in each round


class Alone(Stepper):
    """Exchanges no gradients."""

    def model_for(self, number: int, batches: int) -> nn.Module:
        """The model."""
        self._is_exchanging = True
        return self.model


class AllUsed(Stepper):
    """Exchanges gradients without looking for unused parameters."""

    def model_for(self, number: int, batches: int) -> nn.Module:
        """What exchanges its gradients."""

        def wrapped(*args: Any, **kwargs: Any) -> DistributedDataParallel:
            return DistributedDataParallel(*args, **{**kwargs, "find_unused_parameters": False})

        with patch.object(stepping, "DistributedDataParallel", wrapped):
            return super().model_for(number, batches)


class Team:
    """Processes that call the same functions together, and keep what these made in between.

    Args:
        processes: how many.
        threads: of torch, of each.
    """

    def __init__(self, processes: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._ends: list[Connection] = []
        self._members = []
        for rank in range(processes):
            own, others = context.Pipe()
            world = World(rank, processes, rank, processes)
            member = context.Process(target=_member, args=(others, world, threads, port), daemon=True)
            member.start()
            others.close()
            self._members.append(member)
            self._ends.append(own)

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What each of them returns."""
        for end in self._ends:
            end.send((function, args))
        return [end.recv() for end in self._ends]

    def end(self) -> None:
        """Let them go."""
        for end in self._ends:
            end.send(None)
        for member in self._members:
            member.join()


def _member(commands: Connection, world: World, threads: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads)}
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(threads)
    with collectives.process_group(world):
        for function, args in iter(commands.recv, None):
            commands.send(function(*args))


def main() -> None:
    options = _options()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns where no parameter is unused
    tables: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        draw_dataset(work / "data", options.steps * options.batch_size, SEED, shape=(SIDE, SIDE))
        config = write_config(work, options.batch_size)
        solo, pair = Team(1, 2), Team(2, 1)
        for encoder in options.encoders:
            tables += step_table(encoder, step_seconds(solo, pair, config, encoder, options), options)
        solo.end()
        for name in options.experiments:
            tables += exchange_table(name, *pair.call(exchange_seconds, name, options)[0])
        tables += agreement_table(pair.call(agreement_seconds, options.rounds)[0])
        pair.end()
    print(f"{options.rounds} rounds, {os.cpu_count()} CPU cores, torch {torch.__version__}")
    print("\n".join(tables))


_trainers: dict[str, Any] = {}  # of this process


def make_trainer(config_path: Path, encoder: str) -> None:
    """Make a trainer of the name of what is compared, for `train_epoch`."""
    config = load_config(config_path, [f"arch.args.encoder_name={encoder}"])
    seed_everything(SEED)
    processes = collectives.world_size()
    run = RunFolder(Path(config.checked.save_dir) / f"{encoder} {processes}")
    run.path.mkdir(parents=True, exist_ok=True)
    _trainers[encoder] = build_trainer(training_objects(config, CPU), run)


def train_epoch(encoder: str) -> float:
    """The seconds of a step in the next epoch, from the end of its first step on."""
    trainer = _trainers[encoder]
    trainer.ends.clear()
    trainer.epochs = trainer.last_epoch + 1
    trainer.train()
    return (trainer.ends[-1] - trainer.ends[0]) / (len(trainer.ends) - 1)


def step_seconds(solo: Team, pair: Team, config: Path, encoder: str, options: argparse.Namespace) -> Rounds:
    """The seconds of a training step in one process and in two."""
    compared = {"1 process of 2 threads": solo, "2 processes of 1 thread": pair}
    for team in compared.values():
        team.call(make_trainer, config, encoder)
    runs = {name: partial(team.call, train_epoch, encoder) for name, team in compared.items()}
    return race({name: lambda run=run: max(run()) for name, run in runs.items()}, options.rounds)


def race(runs: dict[str, Callable[[], float]], rounds: int) -> Rounds:
    """What the runs return, each once in a round; the first round is not counted."""
    seconds: Rounds = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            spent = run()
            if number:
                seconds[name].append(spent)
    return seconds


def exchange_seconds(name: str, options: argparse.Namespace) -> tuple[int, int, Rounds]:
    """Parameters that an experiment trains, those of them without gradients, and the seconds of its steps."""
    path = ROOT / "experiments" / f"{name}.yml"
    config = load_config(path, ["arch.args.encoder_weights=null"])
    shard = Shard.of(options.batch_size, collectives.world().rank, collectives.world_size())
    loss = loss_of(config)

    def made() -> nn.Module:
        seed_everything(SEED)
        return build(MODELS, config.checked.arch, config.at("arch")).train()

    model = made()
    images = torch.randn(shard.images, model.input_channels, SIDE, SIDE)
    masks = (torch.rand(shard.images, config.checked.arch.args["classes"], SIDE, SIDE) > 0.9).float()
    named_losses(loss, model(images), model.targets(masks))["loss"].backward()
    unused = sum(parameter.numel() for parameter in model.parameters() if parameter.grad is None)
    model.zero_grad()
    variants = {"no exchange": (Alone, model), "exchange": (Stepper, made())}
    if not unused:
        variants["exchange, not looking for unused"] = (AllUsed, made())
    runs = {}
    for variant, (kind, of_variant) in variants.items():
        stepper = kind(of_variant, torch.optim.RAdam(of_variant.parameters(), lr=1e-6), CPU)
        runs[variant] = partial(step, stepper, loss, images, masks, shard)
    return sum(parameter.numel() for parameter in model.parameters()), unused, race(runs, options.rounds)


def step(stepper: Stepper, loss: Any, images: torch.Tensor, masks: torch.Tensor, shard: Shard) -> float:
    """The seconds of a step on a process's shard of a batch."""
    collectives.barrier()
    start = time.perf_counter()
    with sharded_batch(shard):
        outputs = stepper.model_for(0, 1)(images)
        losses = named_losses(loss, outputs, stepper.model.targets(masks))
    stepper.backward(losses["loss"], 0, 1, shard.weight)
    return time.perf_counter() - start


def agreement_seconds(rounds: int) -> Rounds:
    """The seconds of one agreement."""
    fact = torch.ones((), dtype=torch.bool)

    def timed(agree: Callable[[], Any]) -> float:
        collectives.barrier()
        start = time.perf_counter()
        for _ in range(AGREEMENTS):
            agree()
        return (time.perf_counter() - start) / AGREEMENTS

    runs = {
        "all_reduce_max": lambda: collectives.all_reduce_max(0, 0),
        "all_reduce_and": lambda: collectives.all_reduce_and(fact),
    }
    return race({name: partial(timed, agree) for name, agree in runs.items()}, rounds)


def step_table(encoder: str, seconds: Rounds, options: argparse.Namespace) -> list[str]:
    first = next(iter(seconds))
    title = f"Unet on {encoder}, batch of {options.batch_size} x {SIDE} x {SIDE}"
    lines = [f"\n{title:54s} ms a step  images a second      speed in that of the first"]
    for name, of_rounds in seconds.items():
        middle = statistics.median(of_rounds)
        rate = f"{1000 * middle:9.1f}  {options.batch_size / middle:15.1f}"
        lines.append(f"  {name:52s} {rate}  {_ratio(seconds[first], of_rounds):>30s}")
    return lines


def exchange_table(name: str, parameters: int, unused: int, seconds: Rounds) -> list[str]:
    title = f"{name}: {4 * parameters / 1e6:.1f} MB of gradients, {4 * unused / 1e6:.1f} of them unused"
    lines = [f"\n{title:54s} ms a step       time in that of no exchange"]
    for variant, of_rounds in seconds.items():
        middle = 1000 * statistics.median(of_rounds)
        lines.append(f"  {variant:52s} {middle:9.1f}  {_ratio(of_rounds, seconds['no exchange']):>30s}")
    return lines


def agreement_table(seconds: Rounds) -> list[str]:
    lines = [f"\n{'agreements of 2 processes':54s}        µs     lowest – highest"]
    for name, of_rounds in seconds.items():
        low, middle, high = (1e6 * pick(of_rounds) for pick in (min, statistics.median, max))
        lines.append(f"  {name:52s} {middle:9.0f}  {f'{low:.0f} – {high:.0f}':>19s}")
    return lines


def _ratio(upper: list[float], lower: list[float]) -> str:
    ratios = [up / low for up, low in zip(upper, lower, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Training in two processes against one, and the cost of what processes exchange."
    )
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, help="of the Unets whose steps are timed")
    parser.add_argument(
        "--experiments", nargs="+", default=LIGHT, metavar="NAME", help=f"default: {' '.join(LIGHT)}"
    )
    for name, default, text in (
        ("rounds", 5, "that are counted"),
        ("steps", 5, "in an epoch"),
        ("batch-size", 8, "images in a batch, of all processes together"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except SeverError as error:
        sys.exit(f"scaling.py: {error}")
