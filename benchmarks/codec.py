"""Masks per second of `sever.utils.rle`, against pycocotools and the usual functions of the competition.

    python benchmarks/codec.py                              masks of 40 sheets that are drawn
    python benchmarks/codec.py train.csv submission.csv     the masks of CSV files in either layout
    python benchmarks/codec.py --size 200 200 neu/train.csv

Decoding makes a mask (H, W) uint8 of the competition's text `start length start length …`, encoding makes the
text of a mask. The contestants:

sever             `decode` with all its checks, and `encode`. Masks are in C order, as OpenCV and torch take
                  them.
pycocotools, text the same work by way of pycocotools (compiled C), which does not know that text. To decode,
                  NumPy makes counts of the text, `frPyObjects` and `decode` draw the mask, which is left in
                  Fortran order. To encode, the mask is brought into Fortran order, `encode` writes
                  pycocotools's own compressed string, and NumPy makes counts and text of it.
pycocotools, own  `decode` and `encode` alone, between its own compressed string and masks in Fortran order:
                  less work than the competition asks for, and the most that pycocotools can do.
usual way         as in most public solutions: a Python loop over the runs; `np.where` on the flattened mask.

A round takes each mask in turn and lets every contestant work on it, in an order that is drawn anew. Each has
a copy of the mask made just before, so that all find it in the processor's cache, as after a model. Times are
those of the processor, without the time in which other programs had it; they are medians over the rounds, and
a ratio is taken within each round, and then the median. Before that, all results are compared.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from goals import head, print_ratios

from sever.data_loader.synth.write import draw_dataset
from sever.utils.csv_reading import read_csv, split_rows
from sever.utils.errors import DataError, SeverError
from sever.utils.rle import decode, encode

try:
    from pycocotools import mask as coco
except ImportError:
    sys.exit("codec.py: needs pycocotools: pip install 'pycocotools>=2.0.8,<3'")

SEED = 1234
DRAWN_SHEETS = 40
AT_LEAST_COCO = 1.0  # times as many masks per second at the same work

Work = Callable[[Any], Any]


class Contestant:
    """One way to do the work.

    Args:
        name: of it, in the table.
        decode: what it reads -> mask (H, W).
        encode: mask (H, W) uint8 -> what it writes.
        own_string: whether it reads and writes pycocotools's string instead of the competition's text.
        fortran: whether the masks that it encodes are in Fortran order.
    """

    def __init__(
        self, name: str, decode: Work, encode: Work, own_string: bool = False, fortran: bool = False
    ) -> None:
        self.name = name
        self.decode = decode
        self.encode = encode
        self.own_string = own_string
        self.fortran = fortran


def main() -> None:
    options = _options()
    cv2.setNumThreads(0)
    shape = tuple(options.size)
    texts = _texts(options.csv, shape)
    contestants = [
        Contestant("sever", lambda text: decode(text, shape), encode),
        Contestant("pycocotools, text", lambda text: coco_decode_text(text, shape), coco_encode_text),
        Contestant("pycocotools, own", coco.decode, coco.encode, own_string=True, fortran=True),
        Contestant("usual way", lambda text: usual_decode(text, shape), usual_encode),
    ]
    compare(contestants, texts)
    runs = sorted(len(text.split()) // 2 for text in texts)
    print(
        f"{len(texts)} masks of {shape[0]} x {shape[1]} pixels with {runs[0]} to {runs[-1]} runs, median "
        f"{statistics.median(runs):g}; {options.rounds} rounds\n"
    )
    seconds = race(contestants, texts, options.rounds)
    for work in ("decode", "encode"):
        print_speeds(work, {c.name: seconds[work, c.name] for c in contestants}, len(texts))


def coco_decode_text(text: str, shape: tuple[int, int]) -> np.ndarray:
    numbers = np.fromstring(text, dtype=np.int64, sep=" ")
    bounds = np.zeros(numbers.size + 2, dtype=np.int64)
    bounds[1:-1:2] = numbers[::2] - 1
    bounds[2:-1:2] = numbers[::2] - 1 + numbers[1::2]
    bounds[-1] = shape[0] * shape[1]
    counts = {"size": list(shape), "counts": np.diff(bounds).tolist()}
    return coco.decode(coco.frPyObjects(counts, *shape))


def coco_encode_text(mask: np.ndarray) -> str:
    counts = coco_counts(coco.encode(np.asfortranarray(mask))["counts"])
    stops = np.cumsum(counts)
    runs = np.stack([stops[:-1:2] + 1, counts[1::2]], axis=1)
    return " ".join(map(str, runs.ravel().tolist()))


def coco_counts(compressed: bytes) -> np.ndarray:
    """The counts in pycocotools's compressed string, as `rleFrString` in its maskApi.c reads them.

    A letter holds 5 bits and one that says whether the number goes on; from the fourth number on, the
    difference to the number two before it is written.
    """
    letters = np.frombuffer(compressed, dtype=np.uint8) - 48
    lasts = np.flatnonzero(letters < 32)
    firsts = np.r_[0, lasts[:-1] + 1]
    lengths = lasts - firsts + 1
    places = np.arange(letters.size) - np.repeat(firsts, lengths)
    counts = np.add.reduceat((letters & 31).astype(np.int64) << (5 * places), firsts)
    counts -= ((letters[lasts] & 16) > 0).astype(np.int64) << (5 * lengths)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def usual_decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    numbers = [int(number) for number in text.split()]
    mask = np.zeros(shape[0] * shape[1], dtype=np.uint8)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        mask[start - 1 : start - 1 + length] = 1
    return mask.reshape(shape, order="F")


def usual_encode(mask: np.ndarray) -> str:
    pixels = np.concatenate([[0], mask.T.flatten(), [0]])
    edges = np.where(pixels[1:] != pixels[:-1])[0] + 1
    edges[1::2] -= edges[::2]
    return " ".join(str(number) for number in edges)


def compare(contestants: list[Contestant], texts: list[str]) -> None:
    """End the program where two of them disagree about a mask or its text."""
    shape = contestants[0].decode(texts[0]).shape
    for text in texts:
        mask = decode(text, shape)
        own = coco.encode(np.asfortranarray(mask))
        for contestant in contestants:
            read = contestant.decode(own if contestant.own_string else text)
            written = contestant.encode(np.asfortranarray(mask) if contestant.fortran else mask)
            if not np.array_equal(read, mask) or written != (own if contestant.own_string else encode(mask)):
                sys.exit(f"codec.py: {contestant.name} does not agree on the mask '{text[:60]} …'")


def race(contestants: list[Contestant], texts: list[str], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Let them work on each mask in turn; returns the seconds of each in each round, by work and name."""
    seconds = {(work, c.name): [0.0] * rounds for work in ("decode", "encode") for c in contestants}
    shape = contestants[0].decode(texts[0]).shape
    draws = random.Random(SEED)
    for number in range(rounds):
        for text in texts:
            order = draws.sample(contestants, len(contestants))
            mask = decode(text, shape)
            fortran = np.asfortranarray(mask)
            own = coco.encode(fortran)
            for c in order:
                seconds["decode", c.name][number] += _seconds(c.decode, own if c.own_string else text)
            for c in order:
                fresh = (fortran if c.fortran else mask).copy(order="K")
                seconds["encode", c.name][number] += _seconds(c.encode, fresh)
    return seconds


def print_speeds(work: str, seconds: dict[str, list[float]], masks: int) -> None:
    print(f"{work:20s} µs per mask")
    for name, of_rounds in seconds.items():
        print(f"  {name:18s} {1e6 * statistics.median(of_rounds) / masks:11.1f}")
    print(head(f"{work}, speed in that of"))
    for name, of_rounds in seconds.items():
        if name != "sever":
            ratios = [theirs / ours for theirs, ours in zip(of_rounds, seconds["sever"], strict=True)]
            at_least = AT_LEAST_COCO if name == "pycocotools, text" else None
            print_ratios(f"{work}, speed / {name}", ratios, at_least)
    print()


def _seconds(work: Work, given: Any) -> float:
    start = time.process_time()
    work(given)
    return time.process_time() - start


def _texts(paths: list[Path], shape: tuple[int, int]) -> list[str]:
    """The text of every mask that is not empty, as `encode` writes it."""
    with tempfile.TemporaryDirectory() as drawn:
        if not paths:
            draw_dataset(drawn, DRAWN_SHEETS, SEED)
            paths = [Path(drawn) / "train.csv"]
        rows = [(path, *row) for path in paths for row in split_rows(read_csv(path), path)]
    texts = []
    for path, row, _, _, runs in rows:
        try:
            texts.append(encode(decode(runs, shape)))
        except ValueError as error:
            raise DataError(f"{path}, row {row}: {error} (--size)") from error
    texts = [text for text in texts if text]
    if not texts:
        raise DataError("expected masks, received none that is not empty")
    return texts


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Speed of the run-length codec against pycocotools and the usual functions."
    )
    parser.add_argument(
        "csv",
        nargs="*",
        type=Path,
        metavar="CSV",
        help=f"masks in either layout; default: those of {DRAWN_SHEETS} drawn sheets",
    )
    parser.add_argument(
        "--size", nargs=2, type=int, default=(256, 1600), metavar=("H", "W"), help="of all masks, in pixels"
    )
    parser.add_argument("--rounds", type=int, default=7, help="in which each works on all masks (default 7)")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except SeverError as error:
        sys.exit(f"codec.py: {error}")
