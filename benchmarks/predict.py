"""Sheets a second that `predict` writes, against the bare forward pass of the same model; and its memory.

    python benchmarks/predict.py                              31 sheets of 256 x 1600, drawn
    python benchmarks/predict.py data/severstal/test_images   a folder of sheets
    python benchmarks/predict.py --memory                     peak memory for 40 and for 1,000 sheets

The model is that of a config (default: the light one of experiments/demo.yml) with random weights; thresholds
are set so that 2 % of the pixels belong to each class.

end to end     from the folder to the finished CSV: headers and sheets are read, `Predictor` runs the model,
               the masks are post-processed, encoded and written.
forward pass   `model(images)` alone, logits out, on the same sheets, normalised and in memory already, with
               torch's threads as they are by default: once sheet by sheet and once in batches. On a CPU the
               first is the faster one, since a batch fits into no cache.
in Python      the same sheets by `sever.load`, with their masks.

A round is each of them once, one after the other; the first is not counted. Ratios are taken within each
round, and then the median. Memory is the highest resident size of a process of its own that predicts so many
sheets, links to those of the folder, and of another one.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from goals import head, print_ratios

from sever.base import BaseModel
from sever.config.build import build
from sever.config.load import load_config
from sever.config.registry import MODELS
from sever.data_loader.prediction_loader import PredictionDataLoader
from sever.data_loader.synth.write import draw_dataset
from sever.engine.checkpoint import save_checkpoint
from sever.factory import augmentation_of
from sever.inference import Model, load
from sever.predictor.ensemble import Member
from sever.predictor.postprocess import postprocess
from sever.predictor.predictor import Predictor
from sever.predictor.result_files import SubmissionTable, predict_to_files
from sever.predictor.submission.write import Layout
from sever.utils.errors import SeverError

SEED = 1234
DRAWN_SHEETS = 31
SHARE = 0.02  # of the pixels that belong to each class
MIN_AREA = 600
AT_LEAST = 0.93  # of the forward pass's rate
AT_MOST_MEMORY = 1.05
AT_MOST_IN_PYTHON = 1.05  # of the time of a sheet
FEW, MANY = 40, 1000
CPU = torch.device("cpu")

ToMasks = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as work:
        folder = options.folder
        if folder is None:
            draw_dataset(work, DRAWN_SHEETS, SEED)
            folder = Path(work) / "train_images"
        if options.peak:
            print(peak_megabytes(options, folder, Path(work) / "submission.csv"))
        elif options.memory:
            compare_memory(options, folder, Path(work))
        else:
            compare_speed(options, folder, Path(work) / "submission.csv")


def compare_speed(options: argparse.Namespace, folder: Path, output: Path) -> None:
    member = member_of(options.config)
    predictor = Predictor([member], CPU)
    loader = PredictionDataLoader(folder, batch_size=options.batch_size)
    levels = levels_of(predictor, loader)
    to_masks = masks_above(levels)
    in_python = model_of(options.config, member, levels, output.with_name("model.pth"))
    batches = [member.normalize(images) for images, _ in loader]
    sheets = [sheet for batch in batches for sheet in batch.split(1)]
    in_batches = f"forward pass, batches of {options.batch_size}"
    runs = {
        "end to end": lambda: end_to_end(predictor, folder, options, to_masks, output),
        "in Python": lambda: sum(1 for _ in in_python(folder)),
        "forward pass, sheet by sheet": lambda: forward(member.model, sheets),
        in_batches: lambda: forward(member.model, batches),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    print(
        f"{len(sheets)} sheets of {tuple(sheets[0].shape[2:])}, {options.folder or 'drawn'}; {options.config}"
    )
    print(f"{options.rounds} rounds, {torch.get_num_threads()} threads of torch\n")
    print(f"{'':40s} sheets per s   ms per sheet")
    for name, of_rounds in seconds.items():
        middle = statistics.median(of_rounds) / len(sheets)
        print(f"  {name:38s} {1 / middle:12.2f} {1000 * middle:14.1f}")
    print(f"\n{head('sheets a second')}")
    ratios = [
        python / whole for python, whole in zip(seconds["in Python"], seconds["end to end"], strict=True)
    ]
    print_ratios("time of a sheet by sever.load / of sever predict", ratios, at_most=AT_MOST_IN_PYTHON)
    for name in list(runs)[2:]:
        ratios = [bare / whole for bare, whole in zip(seconds[name], seconds["end to end"], strict=True)]
        print_ratios(f"sheets a second of sever predict / {name}", ratios, at_least=AT_LEAST)


def member_of(config_path: Path) -> Member:
    """The model of a config, with random weights."""
    torch.manual_seed(SEED)
    config = load_config(config_path)
    arch = config.checked.arch
    arch = arch.model_copy(update={"args": arch.args | {"encoder_weights": None}})
    model: BaseModel = build(MODELS, arch, "arch")
    return Member(model, augmentation_of(config).normalize)


def model_of(config_path: Path, member: Member, levels: list[float], path: Path) -> Model:
    """The same model with the same thresholds from a checkpoint, as `sever.load` gives it."""
    values = load_config(config_path).values
    state = {"arch": values["arch"]["type"], "epoch": 1, "optimizer": None, "monitor_best": 0.0}
    save_checkpoint({**state, "config": values, "state_dict": member.model.state_dict()}, path)
    return load(path, device="cpu", overrides=[f"predict.min_area={MIN_AREA}", f"predict.threshold={levels}"])


def levels_of(predictor: Predictor, loader: PredictionDataLoader) -> list[float]:
    """The thresholds with which each class has its share of the pixels of the first sheets."""
    predictions = (prediction.probs for prediction in predictor.predict(loader))
    some = [probs for _, probs in zip(range(4), predictions, strict=False) if probs is not None]
    return [float(np.quantile([probs[c] for probs in some], 1 - SHARE)) for c in range(len(some[0]))]


def masks_above(levels: list[float]) -> ToMasks:
    """Post-processing with such thresholds."""
    settings = {"threshold": levels, "min_area": MIN_AREA}
    return lambda probs, label_probs: postprocess(probs, label_probs=label_probs, **settings)


def end_to_end(
    predictor: Predictor,
    folder: Path,
    options: argparse.Namespace,
    to_masks: ToMasks,
    output: Path,
    names: list[str] | None = None,
) -> None:
    loader = PredictionDataLoader(folder, names, options.batch_size, options.workers)
    class_ids = [str(number + 1) for number in range(4)]
    predict_to_files(predictor, loader, to_masks, [SubmissionTable(output, Layout(), class_ids)])


@torch.inference_mode()
def forward(model: BaseModel, batches: list[torch.Tensor]) -> None:
    for batch in batches:
        model(batch)


def compare_memory(options: argparse.Namespace, folder: Path, work: Path) -> None:
    """Print the peaks of processes that predict few and many sheets, in turn."""
    images = sorted(path.resolve() for path in folder.iterdir())
    links = work / "links"
    links.mkdir()
    for number, path in enumerate(islice(cycle(images), MANY)):
        (links / f"{number:04d}{path.suffix}").symlink_to(path)
    peaks: dict[int, list[float]] = {FEW: [], MANY: []}
    for _ in range(options.rounds):
        for sheets, of_rounds in peaks.items():
            command = [sys.executable, __file__, str(links), "--peak", str(sheets), "-c", str(options.config)]
            command += ["--batch-size", str(options.batch_size), "--workers", str(options.workers)]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            of_rounds.append(float(run.stdout))
    print(f"{'peak memory':24s}  MiB, median   lowest – highest")
    for sheets, of_rounds in peaks.items():
        spread = f"{min(of_rounds):.0f} – {max(of_rounds):.0f}"
        print(f"  {f'{sheets} sheets':22s} {statistics.median(of_rounds):12.0f} {spread:>18s}")
    ratio = statistics.median(peaks[MANY]) / statistics.median(peaks[FEW])
    print(f"\n  {f'{MANY} sheets / {FEW}':22s} {ratio:12.3f}   target: at most {AT_MOST_MEMORY:g}")


def peak_megabytes(options: argparse.Namespace, folder: Path, output: Path) -> float:
    """Predict the first sheets of a folder; returns the highest resident size of this process, in MiB."""
    predictor = Predictor([member_of(options.config)], CPU)
    names = sorted(path.name for path in folder.iterdir())[: options.peak]
    to_masks = masks_above(levels_of(predictor, PredictionDataLoader(folder, names, options.batch_size)))
    end_to_end(predictor, folder, options, to_masks, output, names)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Sheets a second that `predict` writes, against the bare forward pass; and its memory."
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        help=f"of sheets of one size; default: {DRAWN_SHEETS} sheets of 256 x 1600 pixels are drawn",
    )
    light = Path(__file__).resolve().parents[1] / "experiments" / "demo.yml"
    parser.add_argument("-c", "--config", type=Path, default=light, help="of the model (default demo.yml)")
    parser.add_argument("--memory", action="store_true", help=f"peak memory for {FEW} and {MANY} sheets")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    for name, default, text in (
        ("rounds", 5, "in which each runs once"),
        ("batch-size", 8, "sheets in a batch"),
        ("workers", 0, "processes that read sheets beside the reading thread"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except SeverError as error:
        sys.exit(f"predict.py: {error}")
