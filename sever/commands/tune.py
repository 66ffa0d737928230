"""`sever tune`: chooses thresholds and minimum areas on validation images."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sever.base import BaseDataLoader, Metric
from sever.config.build import class_ids_of
from sever.config.load import LoadedConfig
from sever.config.loader_args import input_paths
from sever.config.request import Request
from sever.data_loader.data_loaders import SheetLoader
from sever.ensemble_evaluation import check_split_is_kept, class_table, device_of, evaluated, labelled_loaders
from sever.parallel import collectives
from sever.predictor.threshold_counts import Counts, Values
from sever.predictor.threshold_search import Choice, choose, threshold_grid
from sever.trained_models import load_ensemble
from sever.utils.errors import ConfigError
from sever.utils.files import write_file
from sever.utils.logger import log_to_console, print_lines
from sever.utils.outputs import YAML, Output, check_outputs, has_line
from sever.utils.yaml_parser import dump_yaml

logger = logging.getLogger(__name__)


def tune(request: Request, output: Path, out_of_fold: bool) -> Choice | None:
    """Choose thresholds and minimum areas, and write them; the arguments are `sever tune`'s options."""
    log_to_console()
    check_split_is_kept(request)
    ensemble = load_ensemble(request)
    tuned = Output("-o", output, YAML, may_replace=lambda path: has_line(path, "tuned_for:"))
    check_outputs([tuned], [*request.files, *input_paths(ensemble.config)])
    config, settings = ensemble.config, ensemble.config.checked.predict
    ensemble.check_masks()
    _check_other_settings(config)
    device = device_of(request, config)
    class_ids = class_ids_of(config)
    current = Values.of(len(class_ids), settings.threshold, settings.label_threshold, settings.min_area)
    grid = threshold_grid(current.threshold)

    def metrics_on(names: Sequence[str]) -> list[Metric]:
        return [_Counting(grid, names)]

    loaders = labelled_loaders(ensemble, device, out_of_fold, validation=True)
    tally, images = evaluated(loaders, device, request.precision, metrics_on, "tune")
    if not collectives.is_main():
        return None
    (counting,) = tally.metrics
    assert isinstance(counting, _Counting)
    try:
        groups = _groups_of([loader for _, loader in loaders], counting.names)
        choice = choose(counting, current, seed=config.checked.seed, groups=groups)
    except ValueError as error:
        raise ConfigError(f"{config.source}: {images} validation images: {error}") from error
    print_lines(choice_table(choice, class_ids, images))
    write_file(output, dump_yaml({**choice.as_config(), "tuned_for": ensemble.provenance}))
    logger.info("Wrote %s; use it with --settings %s", output, output)
    return choice


def _check_other_settings(config: LoadedConfig) -> None:
    """Refuse other post-processing than the three settings that are chosen: the counts leave it out."""
    settings = config.checked.predict
    defaults = type(settings)().postprocessing
    for key in ("min_component", "fill_holes", "dilate", "overlap", "gate_threshold", "gate_factor"):
        value = settings.postprocessing[key]
        if any(entry != defaults[key] for entry in (value if isinstance(value, list) else [value])):
            raise ConfigError(
                f"{config.source}: predict.{key}: thresholds are tuned without other post-processing; leave "
                f"the key out while tuning (-s predict.{key}={defaults[key]})"
            )


class _Counting(Counts, Metric):
    """`Counts` as a metric, on batches of images with these names."""

    def __init__(self, thresholds: Sequence[float], batch_names: Sequence[str]) -> None:
        super().__init__(thresholds)
        self.batch_names = batch_names

    def update(self, probs: torch.Tensor, targets: torch.Tensor) -> None:
        for of_image, masks in zip(probs.float().cpu().numpy(), targets.cpu().numpy(), strict=True):
            self.add(self.batch_names[len(self)], of_image, masks)

    def compute(self) -> dict[str, float]:
        return {}

    def reset(self) -> None:
        """Forget all counts."""
        super().__init__(self.thresholds)


def _groups_of(loaders: Sequence[BaseDataLoader], names: Sequence[str]) -> np.ndarray | None:
    """The group of each named image (N,), or None if the data have no groups."""
    group_of: dict[str, int] = {}
    for loader in loaders:
        if isinstance(loader, SheetLoader) and loader.groups is not None:
            group_of |= zip(loader.table.names, loader.groups.tolist(), strict=True)
    return np.array([group_of[name] for name in names]) if group_of else None


def choice_table(choice: Choice, class_ids: Sequence[str], images: int) -> list[str]:
    """Lines with the chosen values and their scores on so many images."""
    rows = {
        "threshold": choice.values.threshold,
        "label_threshold": choice.values.label_threshold,
        "min_area": choice.values.min_area,
        "competition_dice before": (*choice.current_scores, choice.current_score),
        "competition_dice tuned": (*choice.scores, choice.score),
        "competition_dice held out": (*choice.held_out_scores, choice.held_out_score),
    }
    gain, held_out = choice.gain, choice.held_out_gain
    return [
        *class_table(class_ids, rows),
        *_fold_lines(choice.fold_values, class_ids),
        f"{images} images, {choice.combinations:,} combinations for each class",
        f"gain on the images it was chosen on  {gain.mean:+.4f}  (95 %: {gain.low:+.4f} to {gain.high:+.4f})",
        f"gain on folds that were held out     {held_out.mean:+.4f}  (95 %: {held_out.low:+.4f} to "
        f"{held_out.high:+.4f}): what to expect",
    ]


def _fold_lines(of_folds: Sequence[Values], class_ids: Sequence[str]) -> list[str]:
    """Lines with the range of each class's values over the choices without each fold."""
    lines = [f"chosen without each of {len(of_folds)} folds; where they differ much, the images are too few"]
    for index, class_id in enumerate(class_ids):
        ranges = []
        for name in ("threshold", "label_threshold", "min_area"):
            chosen = [getattr(values, name)[index] for values in of_folds]
            low, high = min(chosen), max(chosen)
            ranges.append(f"{name} {low:g}" + (f" to {high:g}" if high > low else ""))
        lines.append(f"  class {class_id}: {', '.join(ranges)}")
    return lines
