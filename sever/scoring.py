"""`sever test` and `sever tune`: what a model or an ensemble is worth on labelled images."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sever.base import BaseDataLoader, BaseModel, Metric
from sever.base.outputs import part_of
from sever.building import (
    SPLIT_BY,
    augmentation_of,
    loss_of,
    metrics_of,
    postprocess_of,
    testing_loader,
    training_loader,
)
from sever.checking import class_ids_of
from sever.data_loader.data_loaders import SheetLoader
from sever.ensembles import USED_TO_PREDICT, AveragedModel, Ensemble, load_ensemble
from sever.model.competition import SubmissionScore
from sever.model.loss import output_faults
from sever.model.metric import dice
from sever.predictor.counts import Counts, Values, threshold_grid
from sever.predictor.tune import Choice, choose
from sever.trainer.evaluation import MeanLosses, Tally, evaluate
from sever.utils import distributed, report
from sever.utils.config import LoadedConfig
from sever.utils.device import check_precision, choose_device, memory_fault
from sever.utils.errors import ConfigError
from sever.utils.files import check_output, written_whole
from sever.utils.logger import log_to_console, set_verbosity
from sever.utils.request import Request
from sever.utils.seed import seed_everything
from sever.utils.yaml12 import dump_yaml

logger = logging.getLogger("sever.main")

_LESS_MEMORY = (
    "Lower testing.batch_size (or, where validation images are used, "
    "data_loader.args.validation_batch_size), or take --precision bf16"
)
_WORST = 10  # pairs that are printed; the JSON holds more


def test(request: Request, output: Path | None, out_of_fold: bool) -> dict[str, Any]:
    """Score a model or an ensemble on labelled images, and print and write the scores.

    Args:
        request: the models and what is changed of their config.
        output: a JSON file for the scores.
        out_of_fold: score the images that models were validated on by those models alone, and all of them
            together.
    """
    log_to_console()
    if output:
        check_output(output, "-o", request.files, ".json")
    ensemble = load_ensemble(request, (*USED_TO_PREDICT, "loss", "metrics"))
    config = ensemble.config
    if out_of_fold or config.checked.testing is None:
        _check_split_is_kept(request)
    device = _device(request, config)
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
    loaders = _loaders(ensemble, device, out_of_fold)
    loss = loss_of(config)
    faults = output_faults(loss, ensemble.lead.kinds, config.at("loss"))
    if faults:
        raise ConfigError("\n".join(faults))
    tally, images = _evaluated(loaders, device, request.precision, metrics_on, label, loss)
    if not distributed.is_main():
        return {}
    scores: dict[str, Any] = {**tally.compute(), "images": images}
    submission = next((metric for metric in tally.metrics if isinstance(metric, SubmissionScore)), None)
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


def tune(request: Request, output: Path, out_of_fold: bool) -> Choice | None:
    """Choose thresholds and minimum areas on validation images, and write them as YAML.

    Args:
        request: the models and what is changed of their config.
        output: the YAML file.
        out_of_fold: predict the images that models were validated on by those models alone, and choose on
            all of them; else all models must have been validated on the same images.
    """
    log_to_console()
    check_output(output, "-o", request.files, ".yml")
    _check_split_is_kept(request)
    ensemble = load_ensemble(request)
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
    device = _device(request, config)
    class_ids = class_ids_of(config)
    current = Values.of(len(class_ids), settings.threshold, settings.label_threshold, settings.min_area)
    grid = threshold_grid(current.threshold)

    def metrics_on(names: Sequence[str]) -> list[Metric]:
        return [_Counting(Counts(grid), names)]

    loaders = _loaders(ensemble, device, out_of_fold, validation=True)
    tally, images = _evaluated(loaders, device, request.precision, metrics_on, "tune")
    if not distributed.is_main():
        return None
    (counting,) = tally.metrics
    assert isinstance(counting, _Counting)
    try:
        groups = _groups_of([loader for _, loader in loaders], counting.counts.names)
        choice = choose(counting.counts, current, seed=config.checked.seed, groups=groups)
    except ValueError as error:
        raise ConfigError(f"{config.source}: {images} validation images: {error}") from error
    report.print_lines(report.choice_table(choice, class_ids, images))
    with written_whole(output) as partial:
        values = {**choice.as_config(), "tuned_for": ensemble.provenance}
        partial.write_text(dump_yaml(values), encoding="utf-8")
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
        """Forget all that was counted."""
        self.counts = Counts(self.counts.thresholds)

    def state_dict(self) -> dict[str, Any]:
        """What was counted."""
        return {"counts": self.counts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what another one counted."""
        self.counts.load_state_dict(state["counts"])

    def merge(self, other: "_Counting") -> None:
        self.counts.merge(other.counts)


def _check_split_is_kept(request: Request) -> None:
    """Refuse to choose other validation images than those that the models were not trained on."""
    for text in request.overrides:
        if text.partition("=")[0] in [f"data_loader.args.{key}" for key in SPLIT_BY]:
            raise ConfigError(
                f"-s {text}: the checkpoint says which images its model was not trained on, and those are "
                f"used; leave it out, or name other labelled images under testing:"
            )


def _device(request: Request, config: LoadedConfig) -> torch.device:
    """The device that is asked for, ready to compute on."""
    device = choose_device(request.device, config.checked.n_gpu)
    check_precision(device, request.precision)
    seed_everything(config.checked.seed)
    return device


def _evaluated(
    loaders: Sequence[tuple[Ensemble, BaseDataLoader]],
    device: torch.device,
    precision: str,
    metrics_on: Callable[[Sequence[str]], list[Metric]],
    label: str,
    loss: nn.Module | Callable | None = None,
) -> tuple[Tally, int]:
    """What was counted, and of how many images: of each loader by its own models, all together.

    Of several processes the main one has all, the others what they computed.
    """
    whole = Tally(MeanLosses(), metrics_on(()))
    images = 0
    for ensemble, loader in loaders:
        images += sum(map(len, loader.whole_batches))
        model, of_model = _model(ensemble, loader, precision)
        on_outputs = loss and _on_outputs(loss, ensemble, model, device)
        with memory_fault(_LESS_MEMORY):
            model = model.to(device)
            whole.merge(evaluate(model, loader, on_outputs, metrics_on, device, label, precision=of_model))
    return whole, images


def _loaders(
    ensemble: Ensemble, device: torch.device, out_of_fold: bool, validation: bool = False
) -> list[tuple[Ensemble, BaseDataLoader]]:
    """The labelled images and the models that predict them.

    With `out_of_fold` those that each group of models was validated on; else, for all models, those of
    `testing:` or (where there is none, or `validation` is asked for) those that all were validated on.
    """
    if out_of_fold:
        folds = ensemble.folds
        _check_folds(folds)
        images = " + ".join(str(len(fold.trained[0].validated_on)) for fold in folds)
        logger.info("Out of fold: models of %d different splits, on %s images", len(folds), images)
        return [(fold, _validation_loader(fold, device)) for fold in folds]
    if not validation and (ensemble.config.checked.testing or len(ensemble.trained) == 1):
        return [(ensemble, testing_loader(ensemble.config, ensemble.lead.state, device))]
    if len(ensemble.folds) > 1:
        raise ConfigError(
            f"-r: {_listed(ensemble)}: expected models that were validated on the same images; use "
            f"--out-of-fold for the models of several folds"
        )
    return [(ensemble, _validation_loader(ensemble, device))]


def _validation_loader(ensemble: Ensemble, device: torch.device) -> BaseDataLoader:
    loader = None
    first = ensemble.trained[0]
    if first.validated_on:
        loader = training_loader(ensemble.config, device).split_validation(first.state["split"])
    if loader is None:
        raise ConfigError(f"-r: {_listed(ensemble)}: expected models that were validated on some images")
    return loader


def _listed(ensemble: Ensemble) -> str:
    return ", ".join(str(one.path) for one in ensemble.trained)


def _check_folds(folds: Sequence[Ensemble]) -> None:
    seen: dict[str, Path] = {}
    for fold in folds:
        held_out, path = fold.trained[0].validated_on, fold.trained[0].path
        twice = [name for name in sorted(held_out) if name in seen]
        if twice:
            raise ConfigError(
                f"--out-of-fold: {len(twice)} images, {twice[0]} among them, were validation images of both "
                f"{seen[twice[0]]} and {path}, though others were not; give the models of one split"
            )
        seen |= dict.fromkeys(held_out, path)
        if not fold.counted.trained:
            raise ConfigError(f"--weights: expected one above 0 among {_listed(fold)}, which share a fold")
        if fold.counted.kinds != folds[0].counted.kinds:
            raise ConfigError(
                f"--out-of-fold: expected models of the same kinds for each fold, received "
                f"{' and '.join(sorted(folds[0].counted.kinds))} for that of {folds[0].trained[0].path}, "
                f"{' and '.join(sorted(fold.counted.kinds))} for that of {path}"
            )


def _groups_of(loaders: Sequence[BaseDataLoader], names: Sequence[str]) -> np.ndarray | None:
    """The group of each image by its name, where the data have groups."""
    group_of: dict[str, int] = {}
    for loader in loaders:
        if isinstance(loader, SheetLoader) and loader.groups is not None:
            group_of |= zip(loader.table.names, loader.groups.tolist(), strict=True)
    return np.array([group_of[name] for name in names]) if group_of else None


def _model(ensemble: Ensemble, loader: BaseDataLoader, precision: str) -> tuple[BaseModel, str]:
    """One model as it is, several (or flipped sheets) as an average; and the precision to call it with.

    The loader is made to give the images as the model takes them.
    """
    trained = ensemble.counted.trained
    if not isinstance(loader, SheetLoader):
        if len(trained) > 1 or ensemble.tta != "none":
            raise ConfigError("-r: ensembles and --tta are for sheets, which this data loader does not give")
        return trained[0].model(), precision
    if len(trained) == 1 and ensemble.tta == "none" and ensemble.average != "vote":
        loader.augmentation = augmentation_of(trained[0].config)
        return trained[0].model(), precision
    counted = ensemble.counted
    members = [one.member() for one in counted.trained]
    averaged = AveragedModel(members, counted.weights, counted.average, counted.tta, precision)
    loader.augmentation = averaged.grey_levels
    return averaged, "fp32"


def _on_outputs(
    loss: nn.Module | Callable, ensemble: Ensemble, model: BaseModel, device: torch.device
) -> Callable:
    """The loss of the lead's config, for the outputs of a model that may give more, or probabilities.

    Raises:
        ConfigError: the model lacks what it is a loss of.
    """
    lacking = set(ensemble.lead.kinds) - set(model.output_kinds)
    if lacking:
        raise ConfigError(
            f"--weights: expected one above 0 among the models that give {' and '.join(lacking)}, as "
            f"{ensemble.lead.path} does, whose loss is computed"
        )
    if hasattr(loss, "set_epoch"):
        loss.set_epoch(max(ensemble.lead.state["epoch"], 1))
    on_device = loss.to(device) if isinstance(loss, nn.Module) else loss
    one_kind = len(ensemble.lead.kinds) < len(model.output_kinds)
    on = ensemble.lead.kinds[0] if one_kind else "all"

    def of(outputs: Any, targets: Any) -> Any:
        logits = model.logits(outputs) if isinstance(model, AveragedModel) else outputs
        return on_device(part_of(logits, on), part_of(targets, on))

    return of
