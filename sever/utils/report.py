"""What the commands print and write about a run."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import click

from sever.utils.processes import place_of


def print_lines(lines: Sequence[str]) -> None:
    """Print to standard output; of several processes the main one alone."""
    if not place_of(os.environ).is_main:
        return
    for line in lines:
        click.echo(line)


def score_table(scores: Mapping[str, Any], class_ids: Sequence[str]) -> list[str]:
    """The scores with a column per class.

    Args:
        scores: by name; `<name>_<ClassId>` and `<name>_mean` make a row.
        class_ids: of the classes.
    """
    columns = [*class_ids, "mean"]
    rows: dict[str, dict[str, float]] = {}
    single: list[tuple[str, Any]] = []
    for name, value in scores.items():
        stem, _, column = name.rpartition("_")
        if class_ids and stem and column in columns:
            rows.setdefault(stem, {})[column] = value
        elif name == "competition_dice":
            rows.setdefault(name, {})["mean"] = value
        else:
            single.append((name, value))
    lines = []
    if rows:
        lines.append(f"{'':32s}" + "".join(f"{_title(c):>10s}" for c in columns))
    for name, values in rows.items():
        cells = (f"{values[c]:10.4f}" if c in values else " " * 10 for c in columns)
        lines.append(f"{name:32s}" + "".join(cells))
    return lines + [
        f"{name:32s}{value:10.4f}" if isinstance(value, float) else f"{name:32s}{value:10d}"
        for name, value in single
    ]


def worst_table(worst: Sequence[Any]) -> list[str]:
    """The pairs that lose the most, one a line.

    Args:
        worst: with `image`, `class_id`, `dice`, `kind`, `true_pixels` and `predicted_pixels`.
    """
    if not worst:
        return []
    head = f"{'worst pairs':24s}{'class':>6s}{'dice':>8s}{'true px':>10s}{'found px':>10s}"
    return [head] + [
        f"{pair.image:24s}{pair.class_id:>6s}{pair.dice:8.3f}{pair.true_pixels:10d}"
        f"{pair.predicted_pixels:10d}  {pair.kind}"
        for pair in worst
    ]


def choice_table(choice: Any, class_ids: Sequence[str], images: int) -> list[str]:
    """What was tuned, and what it is worth.

    Args:
        choice: of `sever.predictor.tune.choose`.
        class_ids: of the classes.
        images: that it was chosen on.
    """
    rows = {
        "threshold": choice.values.threshold,
        "label_threshold": choice.values.label_threshold,
        "min_area": choice.values.min_area,
        "competition_dice before": (*choice.current_scores, choice.current_score),
        "competition_dice tuned": (*choice.scores, choice.score),
        "competition_dice held out": (*choice.held_out_scores, choice.held_out_score),
    }
    lines = [f"{'':32s}" + "".join(f"{_title(c):>10s}" for c in [*class_ids, "mean"])]
    for name, values in rows.items():
        cells = (f"{v:10d}" if isinstance(v, int) else f"{v:10.4f}" for v in values)
        lines.append(f"{name:32s}" + "".join(cells))
    gain, held_out = choice.gain, choice.held_out_gain
    return [
        *lines,
        *_fold_lines(choice.fold_values, class_ids),
        f"{images} images, {choice.combinations:,} combinations for each class",
        f"gain on the images it was chosen on  {gain.mean:+.4f}  (95 %: {gain.low:+.4f} to {gain.high:+.4f})",
        f"gain on folds that were held out     {held_out.mean:+.4f}  (95 %: {held_out.low:+.4f} to "
        f"{held_out.high:+.4f}): what to expect",
    ]


def _fold_lines(of_folds: Sequence[Any], class_ids: Sequence[str]) -> list[str]:
    """From where to where the values go that were chosen without each fold in turn, a line per class."""
    lines = [f"chosen without each of {len(of_folds)} folds; where they differ much, the images are too few"]
    for place, class_id in enumerate(class_ids):
        ranges = []
        for name in ("threshold", "label_threshold", "min_area"):
            chosen = [getattr(values, name)[place] for values in of_folds]
            low, high = min(chosen), max(chosen)
            ranges.append(f"{name} {low:g}" + (f" to {high:g}" if high > low else ""))
        lines.append(f"  class {class_id}: {', '.join(ranges)}")
    return lines


def pseudo_table(made: Mapping[str, Any], training: Mapping[str, int], training_images: int) -> list[str]:
    """How many images have each class, and their share: pseudo-labelled ones beside the training images.

    Args:
        made: `kept`, `left out` and `masks` by class.
        training: how many training images have each class; empty where it is not known.
        training_images: how many there are.
    """
    total = made["kept"] + sum(made["left out"].values())
    reasons = "".join(f"; {reason}: {count}" for reason, count in made["left out"].items())
    head = f"{'images with':12s}{'pseudo-labels':>20s}" + (f"{'training images':>20s}" if training else "")
    lines = [f"{made['kept']} of {total} images kept{reasons}", head]
    for class_id, count in made["masks"].items():
        line = f"{_title(class_id):12s}{count:11,}{count / made['kept']:9.2%}"
        if class_id in training:
            line += f"{training[class_id]:11,}{training[class_id] / training_images:9.2%}"
        lines.append(line)
    if not training:
        lines.append(
            "how many training images have each class is not known: their CSV or folder is not there"
        )
    return lines


def _title(column: str) -> str:
    return column if column == "mean" else f"class {column}"


def bar_plot(values: Sequence[float], height: int = 6, width: int = 60) -> list[str]:
    r"""Values at least 0 as a plot of vertical bars, scaled to the highest of them.

    Example:
        >>> print("\n".join(bar_plot([4.0, 4.0, 3.0, 2.0, 0.5], height=2)))
        ██▄
        ████▂

    Args:
        values: from left to right; where there are more than `width`, neighbours are averaged.
        height: in lines.
        width: in characters, at most.
    """
    columns = min(width, len(values))
    edges = [round(column * len(values) / columns) for column in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    top = max(means, default=0.0)
    eighths = [round(8 * height * mean / top) if top > 0 else 0 for mean in means]
    return [
        "".join(" ▁▂▃▄▅▆▇█"[min(max(bar - 8 * line, 0), 8)] for bar in eighths).rstrip()
        for line in reversed(range(height))
    ]


def json_ready(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores with `null` in the place of NaN and infinity, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in scores.items()
    }


def split_csv(split: Mapping[str, Sequence[str]] | None) -> str:
    """A split as CSV: which image went where.

    Example:
        >>> print(split_csv({"training": ["a.jpg"], "validation": ["b.jpg"]}))
        image,split
        a.jpg,training
        b.jpg,validation
        <BLANKLINE>
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "split"])
    writer.writerows([name, half] for half, names in (split or {}).items() for name in names)
    return text.getvalue()


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which two configs differ, with both values.

    Example:
        >>> differing_keys({"training": {"epochs": 2}}, {"training": {"epochs": 4}})
        ['training.epochs: 2 -> 4']
    """
    before, after = _flat(old), _flat(new)
    return [
        f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}"
        for key in {**before, **after}
        if before.get(key, _NOT_SET) != after.get(key, _NOT_SET)
    ]


_NOT_SET = object()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
