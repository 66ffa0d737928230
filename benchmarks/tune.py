"""Choosing thresholds from counts, against evaluating each combination anew; and the cost of each step.

    python benchmarks/tune.py                          drawn sheets of 256 x 1600 pixels and 4 classes
    python benchmarks/tune.py --sheets 16 --rounds 9

Probabilities are drawn: blurred masks of `draw_sheet` with noise, in part below the thresholds. Side by side,
in each round and on the same sheets, which lie in memory:

anew      `postprocess` and the competition's Dice of every sheet, for a few combinations of threshold, label
          threshold and minimum area drawn from the grid; time per combination.
counting  `Counts.update` of every sheet, once for all combinations.
choosing  `choose` with its folds and bootstrap on as many drawn sheets as `--images` says. They are of
          32 x 200 pixels, since choosing does not see how large a sheet was.

For `--images` sheets, counting and evaluation anew are what they take per sheet, multiplied; choosing is run
as it is. Times are of one core's work (`time.process_time`: nothing here waits), medians over the rounds; the
ratio is taken within each round, and then the median.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from goals import head, print_ratios

from sever.data_loader.synth.draw import draw_sheet
from sever.predictor.postprocess import postprocess
from sever.predictor.threshold_counts import Counts, Values
from sever.predictor.threshold_search import Choice, choose
from sever.utils.dice import dice_of

SHAPE, SMALL_SHAPE = (256, 1600), (32, 200)
CLASSES = 4
SEED = 1234
CURRENT = Values.of(CLASSES, threshold=0.5, min_area=[600, 600, 1000, 2000])
KINDS = ((), (3,), (), (1,), (3, 4), (), (2,), (4,))  # ClassIds of the sheets in turn

Sheet = tuple[np.ndarray, np.ndarray]  # probabilities (C, H, W) float32 and masks (C, H, W) uint8

STEPS: dict[str, dict] = {
    "defaults": {},
    "a threshold per class": {"threshold": [0.5, 0.55, 0.6, 0.5]},
    "label_threshold": {"label_threshold": 0.7},
    "min_area": {"min_area": [600, 600, 1000, 2000]},
    "gate": {"label_probs": np.full(CLASSES, 0.9), "gate_threshold": 0.6, "gate_factor": 5, "min_area": 600},
    "min_component": {"min_component": 100},
    "fill_holes": {"fill_holes": 100},
    "dilate: 2": {"dilate": 2},
    "overlap: keep": {"overlap": "keep"},
    "overlap: dominant": {"overlap": "dominant"},
}


def main() -> None:
    options = _options()
    cv2.setNumThreads(0)
    sheets = draw_sheets(options.sheets, SHAPE)
    combinations = draw_combinations(options.combinations)
    small = count(draw_sheets(options.images, SMALL_SHAPE))
    anew, counting, choosing, ratios = [], [], [], []
    for _ in range(options.rounds):
        of_all, _ = timed(partial(evaluate_anew, sheets, combinations))
        anew.append(of_all / len(combinations) / len(sheets))
        counting.append(timed(partial(count, sheets))[0] / len(sheets))
        seconds, choice = timed(partial(choose, small, CURRENT))
        choosing.append(seconds)
        ours = counting[-1] * options.images + seconds
        ratios.append(anew[-1] * options.images * choice.combinations / ours)
    print_steps(sheets, options.rounds)
    print_choice(options, choice, [statistics.median(times) for times in (anew, counting, choosing)], ratios)


def draw_sheets(count_of_sheets: int, shape: tuple[int, int]) -> list[Sheet]:
    """Drawn masks with probabilities that find most of them, and some that are not there."""
    rng = np.random.default_rng(SEED)
    return [draw_probs(rng, shape, KINDS[index % len(KINDS)]) for index in range(count_of_sheets)]


def draw_probs(rng: np.random.Generator, shape: tuple[int, int], class_ids: Sequence[int]) -> Sheet:
    """The masks of a drawn sheet, blurred and dimmed, with smooth noise."""
    _, masks = draw_sheet(rng, shape, class_ids)
    width = shape[0] / 40
    blurred = [cv2.GaussianBlur(mask.astype(np.float32), (0, 0), width) for mask in masks]
    noise = [cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), width) for _ in masks]
    probs = np.stack(blurred) * rng.uniform(0.6, 1.1, (CLASSES, 1, 1)) + 2.4 * np.stack(noise)
    return np.clip(probs, 0, 1).astype(np.float32), masks


def draw_combinations(number: int) -> list[Values]:
    rng = np.random.default_rng(SEED)
    return [
        Values.of(
            CLASSES,
            rng.uniform(0.3, 0.95, CLASSES),
            rng.uniform(0.5, 1, CLASSES),
            rng.integers(0, 4000, CLASSES),
        )
        for _ in range(number)
    ]


def evaluate_anew(sheets: Sequence[Sheet], combinations: Sequence[Values]) -> list[float]:
    """The competition's Dice of each combination."""
    scores = []
    for values in combinations:
        dice = []
        for probs, truth in sheets:
            masks = postprocess(probs, **values.as_dict())
            areas = [[cv2.countNonZero(mask) for mask in of_all] for of_all in (masks & truth, masks, truth)]
            dice.append(dice_of(*np.array(areas)))
        scores.append(float(np.mean(dice)))
    return scores


def count(sheets: Sequence[Sheet]) -> Counts:
    counts = Counts()
    for index, (probs, masks) in enumerate(sheets):
        counts.add(str(index), probs, masks)
    return counts


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds of the processor that a call takes, and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def print_steps(sheets: Sequence[Sheet], rounds: int) -> None:
    """Milliseconds of `postprocess` per sheet, for each step alone and for all together."""
    height, width = SHAPE
    print(f"{f'postprocess, {CLASSES} x {height} x {width}':32s} ms per sheet   lowest – highest")
    everything = {name: value for settings in STEPS.values() for name, value in settings.items()}
    for name, settings in (STEPS | {"all of them": everything}).items():
        times = []
        for _ in range(rounds):
            start = time.process_time()
            for probs, _ in sheets:
                postprocess(probs, **settings)
            times.append(1000 * (time.process_time() - start) / len(sheets))
        spread = f"{min(times):.2f} – {max(times):.2f}"
        print(f"  {name:30s} {statistics.median(times):12.2f}   {spread:>16s}")


def print_choice(
    options: argparse.Namespace, choice: Choice, times: Sequence[float], ratios: Sequence[float]
) -> None:
    """The medians of the seconds per sheet and combination anew, per sheet counted, and of choosing."""
    anew, counting, choosing = times
    images, combinations = options.images, choice.combinations
    print(f"\n{f'{images} sheets, {combinations} combinations':32s}      seconds")
    rows = [
        (f"anew, {1000 * anew:.2f} ms each, multiplied", anew * images * combinations),
        (f"counting, {1000 * counting:.2f} ms, multiplied", counting * images),
        ("choosing, folds, bootstrap", choosing),
    ]
    for title, seconds in rows:
        print(f"  {title:30s} {seconds:12.1f}")
    ours = (counting * images + choosing) / images / combinations
    print(f"  per sheet and combination {1e6 * anew:.0f} µs anew, {1e6 * ours:.3f} µs from counts")
    print(f"\n{head('ratio')}")
    print_ratios("time of choosing thresholds anew / from counts", ratios)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Choosing thresholds from counts, against evaluating each combination anew."
    )
    for name, default, text in (
        ("sheets", 8, "whole sheets in memory, counted and evaluated anew"),
        ("combinations", 5, "that are evaluated anew in a round"),
        ("images", 2500, "labelled sheets to choose from"),
        ("rounds", 5, "of everything"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    return parser.parse_args()


if __name__ == "__main__":
    main()
