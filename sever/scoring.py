"""`sever test` and `sever tune`: what a model or an ensemble is worth on labelled images."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sever.base import BaseDataLoader, BaseModel, Metric
from sever.building import (
    augmentation_of,
    loss_of,
    metrics_of,
    postprocess_of,
    testing_loader,
    training_loader,
)
from sever.checking import class_ids_of
from sever.data_loader.data_loaders import SheetLoader
from sever.ensembles import (
    USED_TO_PREDICT,
    AveragedModel,
    Ensemble,
    Options,
    Trained,
    load_ensemble,
    on_grey_levels,
)
from sever.model.competition import SubmissionScore
from sever.model.metric import dice
from sever.predictor.counts import Counts, Values, threshold_grid
from sever.predictor.tune import Choice, choose
from sever.trainer.evaluation import evaluate, part_of
from sever.utils import report
from sever.utils.device import choose_device
from sever.utils.errors import ConfigError
from sever.utils.files import check_output, written_whole
from sever.utils.logger import log_to_console, set_verbosity
from sever.utils.seed import seed_everything
from sever.utils.yaml12 import dump_yaml

logger = logging.getLogger("sever.main")

_WORST = 10  # pairs that are printed; the JSON holds more


def test(
    checkpoints: Sequence[Path],
    config_path: Path | None,
    settings_path: Path | None,
    device: str,
    overrides: Sequence[str],
    output: Path | None,
    options: Options,
    out_of_fold: bool,
) -> dict[str, Any]:
    """Score a model or an ensemble on labelled images, and print and write the scores.

    Args:
        checkpoints: of the models.
        config_path: takes the place of the checkpoint's config.
        settings_path: thresholds and areas as `tune` writes them.
        device: see `choose_device`.
        overrides: `KEY=VALUE`.
        output: a JSON file for the scores.
        options: how the models are put together.
        out_of_fold: score each model on the images that it was validated on, and all of them together.
    """
    log_to_console()
    if output:
        check_output(output, "-o")
    used = (*USED_TO_PREDICT, "loss", "metrics")
    ensemble = load_ensemble(checkpoints, config_path, settings_path, overrides, options, used)
    config = ensemble.config
    chosen = choose_device(device, config.checked.n_gpu)
    seed_everything(config.checked.seed)
    verbose = config.checked.testing.verbose if config.checked.testing else 2
    set_verbosity("sever.main", verbose)
    class_ids = class_ids_of(config)
    to_masks = postprocess_of(config.checked.predict)

    def metrics_on(names: Sequence[str]) -> list[Metric]:
        metrics = metrics_of(config)
        if ensemble.gives_masks:
            metrics += [] if any(isinstance(m, dice) for m in metrics) else [dice(class_ids)]
            metrics.append(SubmissionScore(class_ids, to_masks, names))
        return metrics

    label = "test" if verbose > 1 else ""
    scores, metrics, images = _evaluated(ensemble, options, out_of_fold, chosen, metrics_on, label)
    scores["images"] = images
    submission = next((metric for metric in metrics if isinstance(metric, SubmissionScore)), None)
    if submission:
        low, high = submission.pairs.interval(seed=config.checked.seed)
        scores |= {"competition_dice_low": low, "competition_dice_high": high}
    report.print_lines(report.score_table(scores, class_ids))
    if submission:
        report.print_lines(report.worst_table(submission.pairs.worst(_WORST)))
        scores["worst"] = [vars(pair) | {"kind": pair.kind} for pair in submission.pairs.worst(100)]
    if scores.get("competition_dice", 1.0) < scores.get("competition_dice_of_nothing", 0.0):
        logger.warning("A submission of this model scores less than an empty one: train it longer.")
    if output:
        with written_whole(output) as partial:
            partial.write_text(json.dumps(report.json_ready(scores), indent=2) + "\n")
        logger.info("Wrote %s", output)
    return scores


def tune(
    checkpoints: Sequence[Path],
    config_path: Path | None,
    device: str,
    overrides: Sequence[str],
    output: Path,
    options: Options,
    out_of_fold: bool,
) -> Choice:
    """Choose thresholds and minimum areas on validation images, and write them as YAML.

    Args:
        checkpoints: of the models.
        config_path: takes the place of the checkpoint's config.
        device: see `choose_device`.
        overrides: `KEY=VALUE`.
        output: the YAML file.
        options: how the models are put together.
        out_of_fold: predict each model's validation images by that model, and choose on all of them; else
            all models must have been validated on the same images.
    """
    log_to_console()
    check_output(output, "-o")
    ensemble = load_ensemble(checkpoints, config_path, None, overrides, options, (*USED_TO_PREDICT, "loss"))
    config, settings = ensemble.config, ensemble.config.checked.predict
    if not ensemble.gives_masks:
        raise ConfigError(f"{config.source}: arch: {config.checked.arch.type} gives no masks")
    defaults = type(settings)().postprocessing
    for key in ("min_component", "fill_holes", "dilate", "overlap", "gate_threshold", "gate_factor"):
        value = settings.postprocessing[key]
        if any(part != defaults[key] for part in (value if isinstance(value, list) else [value])):
            raise ConfigError(
                f"{config.source}: predict.{key}: thresholds are chosen for what they do alone; leave the "
                f"key out while tuning (-s predict.{key}={defaults[key]})"
            )
    chosen = choose_device(device, config.checked.n_gpu)
    seed_everything(config.checked.seed)
    class_ids = class_ids_of(config)
    current = Values.of(len(class_ids), settings.threshold, settings.label_threshold, settings.min_area)

    grid = threshold_grid(current.threshold)

    def metrics_on(names: Sequence[str]) -> list[Metric]:
        return [_Counting(Counts(grid), names)]

    _, (counting,), images = _evaluated(
        ensemble, options, out_of_fold, chosen, metrics_on, "tune", validation=True
    )
    assert isinstance(counting, _Counting)
    try:
        choice = choose(counting.counts, current, seed=config.checked.seed)
    except ValueError as error:
        raise ConfigError(f"{config.source}: {images} validation images: {error}") from error
    report.print_lines(report.choice_table(choice, class_ids, images))
    with written_whole(output) as partial:
        partial.write_text(dump_yaml(choice.as_config()), encoding="utf-8")
    logger.info("Wrote %s; use it with --settings %s", output, output)
    return choice


class _Counting(Metric):
    """Counts what the choice of thresholds needs."""

    def __init__(self, counts: Counts, names: Sequence[str]) -> None:
        self.counts = counts
        self.names = names

    def update(self, probs: torch.Tensor, targets: torch.Tensor) -> None:
        for of_image, masks in zip(probs.float().cpu().numpy(), targets.cpu().numpy(), strict=True):
            self.counts.update(self.names[len(self.counts)], of_image, masks.astype("uint8"))

    def compute(self) -> dict[str, float]:
        return {}

    def reset(self) -> None:
        """There is nothing in it yet when it is used."""

    def merge(self, other: "_Counting") -> None:
        self.counts.merge(other.counts)


def _evaluated(
    ensemble: Ensemble,
    options: Options,
    out_of_fold: bool,
    device: torch.device,
    metrics_on: Callable[[Sequence[str]], list[Metric]],
    label: str,
    validation: bool = False,
) -> tuple[dict[str, Any], list[Metric], int]:
    """Scores, metrics and the number of images of an ensemble, or of each fold by its own model."""
    if out_of_fold:
        _check_folds(ensemble, options)
    parts = [(ensemble.trained, None)] if not out_of_fold else [((one,), one) for one in ensemble.trained]
    metrics: list[Metric] = []
    losses: dict[str, float] = {}
    images = 0
    for trained, fold in parts:
        loader = _loader(ensemble, fold, device, validation)
        names = _names(loader)
        images += len(names)
        model, loader = _model(trained, options, loader)
        of_part = metrics_on(names)
        scores = evaluate(model.to(device), loader, _loss(ensemble, model), of_part, device, label)
        own = {key: value for key, value in scores.items() if key.endswith("loss")}
        for key, value in own.items():
            losses[key] = losses.get(key, 0.0) + value * len(names)
        for metric, more in zip(metrics, of_part, strict=bool(metrics)):
            metric.merge(more)
        metrics = metrics or of_part
    scores = {key: total / images for key, total in losses.items()}
    return scores | {n: v for metric in metrics for n, v in metric.compute().items()}, metrics, images


def _check_folds(ensemble: Ensemble, options: Options) -> None:
    if options.weights or options.average != "mean":
        raise ConfigError("--out-of-fold: each image has one model; leave out --weights and --average")
    seen: dict[str, Path] = {}
    for one in ensemble.trained:
        names = (one.state.get("split") or {}).get("validation", ())
        twice = [name for name in names if name in seen]
        if twice:
            raise ConfigError(
                f"--out-of-fold: {len(twice)} images, {twice[0]} among them, were validation images of both "
                f"{seen[twice[0]]} and {one.path}; give one checkpoint of each fold"
            )
        seen |= dict.fromkeys(names, one.path)
    if any(one.model_kinds != ensemble.lead.model_kinds for one in ensemble.trained):
        raise ConfigError("--out-of-fold: expected models that all give the same; leave out classifiers")
    if ensemble.config.checked.predict.has_gate and "labels" not in ensemble.lead.model_kinds:
        raise ConfigError(
            "--out-of-fold: a gate needs models that give labels themselves (arch.args.aux_params)"
        )


def _loader(
    ensemble: Ensemble, fold: Trained | None, device: torch.device, validation: bool
) -> BaseDataLoader:
    """The labelled images: those of `testing:`, or the validation images of a fold or of all models."""
    if fold is None and not validation and (ensemble.config.checked.testing or len(ensemble.trained) == 1):
        return testing_loader(ensemble.config, ensemble.lead.state, device)
    splits = {one.path: one.state.get("split") or {} for one in ([fold] if fold else ensemble.trained)}
    held_out = [sorted(split.get("validation", ())) for split in splits.values()]
    if not held_out[0] or any(names != held_out[0] for names in held_out):
        raise ConfigError(
            f"-r: {', '.join(map(str, splits))}: expected models that were validated on the same images, and "
            f"on some at all; use --out-of-fold for the models of several folds"
        )
    split = next(iter(splits.values()))
    loader = training_loader(ensemble.config, device).split_validation(split)
    assert loader is not None
    return loader


def _names(loader: BaseDataLoader) -> list[str]:
    """The names of a loader's images in the order in which they come."""
    names = loader.sample_names
    return [names[index] for batch in loader.batch_sampler or () for index in batch]


def _model(
    trained: Sequence[Trained], options: Options, loader: BaseDataLoader
) -> tuple[BaseModel, BaseDataLoader]:
    """One model as it is, several (or flipped sheets) as an average on grey levels."""
    if not isinstance(loader, SheetLoader):
        if len(trained) > 1 or options.tta != "none":
            raise ConfigError("-r: ensembles and --tta are for sheets, which this data loader does not give")
        return trained[0].model(), loader
    if len(trained) == 1 and options.tta == "none" and options.average != "vote":
        loader.augmentation = augmentation_of(trained[0].config)
        return trained[0].model(), loader
    alone = Options(options.average, None, options.tta)
    model = AveragedModel([one.member() for one in trained], options if len(trained) > 1 else alone)
    return model, on_grey_levels(loader, model)


def _loss(ensemble: Ensemble, model: BaseModel) -> nn.Module | Callable:
    """The loss of the config, on the kind of output that it is for."""
    loss = loss_of(ensemble.config)
    if hasattr(loss, "set_epoch"):
        loss.set_epoch(max(ensemble.lead.state["epoch"], 1))
    kinds = ensemble.lead.model_kinds
    if len(kinds) == len(model.output_kinds):
        return loss
    return lambda outputs, targets: loss(part_of(outputs, kinds[0]), part_of(targets, kinds[0]))
