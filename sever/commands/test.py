"""`sever test`: scores of a model or an ensemble on labelled images."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sever.base import Metric
from sever.config.build import class_ids_of
from sever.config.loader_args import input_paths
from sever.config.request import Request
from sever.ensemble_evaluation import (
    cell,
    check_split_is_kept,
    class_table,
    device_of,
    evaluated,
    labelled_loaders,
)
from sever.factory import loss_of, metrics_of, postprocess_of
from sever.model.combined_loss import output_faults
from sever.model.competition_metric import SubmissionScore
from sever.model.metric import dice
from sever.parallel import collectives
from sever.trained_models import USED_TO_PREDICT, load_ensemble
from sever.utils.errors import ConfigError
from sever.utils.files import write_file
from sever.utils.logger import log_to_console, print_lines, set_verbosity
from sever.utils.outputs import JSON, Output, check_outputs

logger = logging.getLogger(__name__)

_WORST = 10  # pairs that are printed; the JSON holds more


def test(request: Request, output: Path | None, out_of_fold: bool) -> dict[str, Any]:
    """Print and write the scores of an ensemble; the arguments are the options of `sever test`."""
    log_to_console()
    ensemble = load_ensemble(request, (*USED_TO_PREDICT, "loss", "metrics"))
    config = ensemble.config
    if output:
        check_outputs([Output("-o", output, JSON)], [*request.files, *input_paths(config)])
    if out_of_fold or config.checked.testing is None:
        check_split_is_kept(request)
    device = device_of(request, config)
    verbose = config.checked.testing.verbose if config.checked.testing else 2
    set_verbosity("sever", verbose)
    class_ids = class_ids_of(config)
    to_masks = postprocess_of(config.checked.predict)

    def metrics_on(names: Sequence[str]) -> list[Metric]:
        metrics = metrics_of(config)
        if ensemble.lead.gives_masks:
            metrics += [] if any(isinstance(m, dice) for m in metrics) else [dice(class_ids)]
            metrics.append(SubmissionScore(class_ids, to_masks, names))
        return metrics

    label = "test" if verbose > 1 else ""
    loaders = labelled_loaders(ensemble, device, out_of_fold)
    loss = loss_of(config)
    faults = output_faults(loss, ensemble.lead.kinds, config.at("loss"))
    if faults:
        raise ConfigError(*faults)
    tally, images = evaluated(loaders, device, request.precision, metrics_on, label, loss)
    if not collectives.is_main():
        return {}
    scores: dict[str, Any] = {**tally.compute(), "images": images}
    submission = next((metric for metric in tally.metrics if isinstance(metric, SubmissionScore)), None)
    if submission:
        low, high = submission.interval(seed=config.checked.seed)
        scores |= {"competition_dice_low": low, "competition_dice_high": high}
    print_lines(score_table(scores, class_ids))
    if submission:
        print_lines(worst_table(submission.worst(_WORST)))
        scores["worst"] = [vars(pair) | {"kind": pair.kind} for pair in submission.worst(100)]
    if scores.get("competition_dice", 1.0) < scores.get("competition_dice_of_nothing", 0.0):
        logger.warning("A submission of this model scores less than an empty one: train it longer.")
    if output:
        # JSON has neither NaN nor infinity.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in scores.items()}
        write_file(output, json.dumps(finite, indent=2) + "\n")
        logger.info("Wrote %s", output)
    return scores


def score_table(scores: Mapping[str, Any], class_ids: Sequence[str]) -> list[str]:
    """Lines of the scores, where those named `<name>_<ClassId>` and `<name>_mean` make a row."""
    columns = [*class_ids, "mean"]
    rows: dict[str, dict[str, float]] = {}
    single = {}
    for name, value in scores.items():
        stem, _, column = name.rpartition("_")
        if class_ids and stem and column in columns:
            rows.setdefault(stem, {})[column] = value
        elif name == "competition_dice":
            rows.setdefault(name, {})["mean"] = value
        else:
            single[name] = value
    cells = {name: [values.get(column) for column in columns] for name, values in rows.items()}
    lines = class_table(class_ids, cells) if rows else []
    return lines + [f"{name:32s}{cell(value)}" for name, value in single.items()]


def worst_table(worst: Sequence[Any]) -> list[str]:
    """Lines of the pairs of image and class with the lowest Dice."""
    if not worst:
        return []
    head = f"{'worst pairs':24s}{'class':>6s}{'dice':>8s}{'true px':>10s}{'found px':>10s}"
    return [head] + [
        f"{pair.image:24s}{pair.class_id:>6s}{pair.dice:8.3f}{pair.true_pixels:10d}"
        f"{pair.predicted_pixels:10d}  {pair.kind}"
        for pair in worst
    ]
