"""What a training step of each experiment exchanges over many GPUs, and what must hide it; not measured.

    python benchmarks/exchange.py                     the table of docs/several_machines.rst
    python benchmarks/exchange.py --gpus 16           for another number of GPUs
    python benchmarks/exchange.py experiments/x.yml   for other experiments

Networks are built without numbers (torch's meta device) and without pretrained weights, which takes half a
minute and no GPU.

gradients    4 bytes for each trainable parameter, also for those that the loss does not depend on. A ring
             all-reduce over n GPUs sends 2 (n - 1) / n times that from each, https://arxiv.org/abs/1802.05799.
forward      floating-point operations of a forward pass of one crop, two for a multiplication and its
             addition, by torch's counter. The backward pass takes twice as many, for gradients by inputs and
             by weights. The counter is not asked for it: it counts the weight gradient of a grouped
             convolution as that of a dense one.
kept         bytes that a forward pass keeps for the backward pass, in fp32; bf16 has half of them.
backward     the time of the backward pass for the images of one GPU: that of its operations or that of its
             memory, whichever is longer, at shares of an A100's peaks that are assumed (see the constants).
             Each kept value is read, the gradient of its like is read and another one written, so that three
             times the kept bytes go to and from memory at least. In this time the exchange can hide, apart
             from that of the last gradients.
needed       GB/s that each GPU must send for the exchange to take no longer.
enough       the slowest network between machines that does, at an assumed share of its nominal rate.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from sever.base import BaseModel
from sever.config.build import build
from sever.config.load import LoadedConfig, load_config
from sever.config.registry import MODELS
from sever.factory import augmentation_of
from sever.utils.errors import SeverError

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
NOT_STEEL = "config.yml"  # the template's digits
WHOLE_SHEET = (200, 200)  # height and width in pixels where nothing is cropped: NEU-Seg's
# Of an A100 of 40 GB, without sparsity and without TF32, https://www.nvidia.com/en-us/data-center/a100/
TERAFLOPS = {"bf16": 312.0, "fp32": 19.5}
SUSTAINED = 0.3  # of them
MEMORY = 1555e9  # bytes a second
MEMORY_REACHED = 0.7  # of them
TRAFFIC = 3  # times the kept bytes
NETWORKS = (10, 100, 400)  # Gb/s of a machine, in each direction
REACHED = 0.8  # of the nominal rate


@dataclass(frozen=True)
class Exchange:
    """What a step of an experiment computes and exchanges.

    Attributes:
        name: of the experiment.
        parameters: that are trained.
        unused: of them, those that the loss does not depend on; they are exchanged all the same.
        forward: operations for one crop.
        kept: bytes in float32 that it keeps for the backward pass of one crop.
    """

    name: str
    parameters: int
    unused: int
    forward: float
    kept: float

    @property
    def gradient_bytes(self) -> int:
        """Of all gradients in float32."""
        return 4 * self.parameters

    def sent_bytes(self, gpus: int) -> float:
        """What each GPU sends in a step."""
        return 2 * (gpus - 1) / gpus * self.gradient_bytes

    def backward_seconds(self, images: int, precision: str) -> float:
        """The time of the backward pass of so many crops."""
        computing = 2 * self.forward / (SUSTAINED * TERAFLOPS[precision] * 1e12)
        kept = self.kept if precision == "fp32" else self.kept / 2
        return images * max(computing, TRAFFIC * kept / (MEMORY_REACHED * MEMORY))


def main() -> None:
    options = _options()
    experiments = options.experiments or steel_experiments()
    exchanges = [exchange_of(load_config(path, ["arch.args.encoder_weights=null"])) for path in experiments]
    print_table(exchanges, options.gpus, options.images)


def steel_experiments() -> list[Path]:
    return sorted(path for path in EXPERIMENTS.glob("*.yml") if path.name != NOT_STEEL)


def exchange_of(config: LoadedConfig) -> Exchange:
    """What a step of an experiment exchanges; its config asks for no pretrained weights."""
    arch = config.checked.arch
    with torch.device("meta"):
        model: BaseModel = build(MODELS, arch, config.at("arch"))
    crop = augmentation_of(config).crop
    size = crop.size if crop else WHOLE_SHEET
    # BatchNorm takes no single value, which one image has behind a global pooling.
    images = torch.zeros(2, model.input_channels, *size, device="meta")
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()  # the graph holds it, so that no other takes its place
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        outputs = model.train()(images)
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.stack([part.sum() for part in parts]).sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Exchange(
        config.checked.name,
        sum(parameter.numel() for parameter in trained),
        sum(parameter.numel() for parameter in trained if parameter.grad is None),
        counter.get_total_flops() / len(images),
        sum(kept.values()) / len(images),
    )


def print_table(exchanges: list[Exchange], gpus: int, images: int) -> None:
    """Print a simple table of reStructuredText, whose header has several lines."""
    header = [
        [
            "experiment",
            "trained",
            "of them",
            "gradients",
            "sent",
            "forward",
            "kept",
            "backward",
            "needed",
            "enough",
        ],
        ["", "parameters", "unused", "MB", "MB", "GFLOP", "MB", "ms", "GB/s", "Gb/s"],
        ["", "", "", "", f"{gpus} GPUs", "a crop", "a crop", f"{images} crops", "a GPU", "a machine"],
    ]
    body = [_row(exchange, gpus, images) for exchange in exchanges]
    widths = [max(map(len, column)) for column in zip(*header, *body, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (*header, *body)]
    print("\n".join([rule, *lines[: len(header)], rule, *lines[len(header) :], rule]))


def _row(exchange: Exchange, gpus: int, images: int) -> list[str]:
    seconds = [exchange.backward_seconds(images, precision) for precision in TERAFLOPS]
    rates = [exchange.sent_bytes(gpus) / spent for spent in seconds]
    return [
        f"``{exchange.name}``",
        f"{exchange.parameters:,}",
        f"{exchange.unused:,}",
        f"{exchange.gradient_bytes / 1e6:.1f}",
        f"{exchange.sent_bytes(gpus) / 1e6:.1f}",
        f"{exchange.forward / 1e9:.1f}",
        f"{exchange.kept / 1e6:.0f}",
        " / ".join(f"{1000 * spent:.1f}" for spent in seconds),
        " / ".join(f"{rate / 1e9:.1f}" for rate in rates),
        " / ".join(map(_enough, rates)),
    ]


def _enough(rate: float) -> str:
    """The slowest network over which machines can send so many bytes a second, in Gb/s."""
    return next((f"{gigabits}" for gigabits in NETWORKS if REACHED * gigabits * 1e9 / 8 >= rate), "none")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="What a training step of each experiment exchanges over many GPUs, computed."
    )
    parser.add_argument(
        "experiments", nargs="*", type=Path, metavar="FILE.yml", help="default: those of experiments/"
    )
    parser.add_argument("--gpus", type=int, default=64, help="that share a batch (default 64)")
    parser.add_argument("--images", type=int, default=8, help="of a batch on each GPU (default 8)")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except SeverError as error:
        sys.exit(f"exchange.py: {error}")
