"""Evaluates ensembles on labelled images, those of a test set or the models' validation images."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sever.base import BaseDataLoader, BaseModel, Metric
from sever.base.base_model import part_of
from sever.config.load import LoadedConfig
from sever.config.loader_args import SPLIT_BY
from sever.config.request import Request
from sever.data_loader.augmentation.pipelines import Augmentation
from sever.data_loader.data_loaders import SheetLoader
from sever.factory import augmentation_of, testing_loader, training_loader
from sever.parallel.device import check_precision, choose_device
from sever.parallel.out_of_memory import IN_SCORING, memory_fault
from sever.predictor.ensemble import AveragedModel
from sever.trained_models import Ensemble, TrainedModel
from sever.trainer.evaluate import Tally, evaluate
from sever.utils.errors import ConfigError
from sever.utils.seed import seed_everything

logger = logging.getLogger(__name__)


def check_split_is_kept(request: Request) -> None:
    """Refuse overrides that would choose other validation images than the checkpoint's."""
    for text in request.overrides:
        if text.partition("=")[0] in [f"data_loader.args.{key}" for key in SPLIT_BY]:
            raise ConfigError(
                f"-s {text}: the checkpoint says which images its model was not trained on, and those are "
                f"used; leave it out, or name other labelled images under testing:"
            )


def device_of(request: Request, config: LoadedConfig) -> torch.device:
    """The device of the request, checked for its precision, with the config's seed set."""
    device = choose_device(request.device, config.checked.n_gpu)
    check_precision(device, request.precision)
    seed_everything(config.checked.seed)
    return device


def evaluated(
    loaders: Sequence[tuple[Ensemble, BaseDataLoader]],
    device: torch.device,
    precision: str,
    metrics_on: Callable[[Sequence[str]], list[Metric]],
    label: str,
    loss: nn.Module | Callable | None = None,
) -> tuple[Tally, int]:
    """Evaluate each loader with its own models, and merge the results.

    Returns:
        The merged tally, complete in the main process alone, and the number of images.
    """
    whole = Tally(metrics_on(()))
    images = 0
    for ensemble, loader in loaders:
        images += sum(map(len, loader.whole_batches))
        model, of_model = _model_for(ensemble, loader, precision)
        on_outputs = loss and _loss_on_outputs(loss, ensemble.lead, model, device)
        with memory_fault(IN_SCORING):
            model = model.to(device)
            whole.merge(
                evaluate(
                    *(model, loader, on_outputs, metrics_on, device, label),
                    precision=of_model,
                    checkpoint=_listed(ensemble),
                )
            )
    return whole, images


def labelled_loaders(
    ensemble: Ensemble, device: torch.device, out_of_fold: bool, validation: bool = False
) -> list[tuple[Ensemble, BaseDataLoader]]:
    """Pairs of models and a loader of labelled images for them.

    With `out_of_fold` each fold's models get their own validation images; else all models get the images of
    `testing:` or, without it or with `validation`, the validation images that they have in common.
    """
    if out_of_fold:
        folds = ensemble.folds
        _check_folds(folds)
        scored = {fold.trained[0].validated_on for fold in folds}
        for one in ensemble.left_out:
            if one.validated_on not in scored:
                raise ConfigError(
                    f"--weights: expected one above 0 among the models that share a fold with {one.path}"
                )
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
        if fold.kinds != folds[0].kinds:
            raise ConfigError(
                f"--out-of-fold: expected models of the same kinds for each fold, received "
                f"{' and '.join(sorted(folds[0].kinds))} for that of {folds[0].trained[0].path}, "
                f"{' and '.join(sorted(fold.kinds))} for that of {path}"
            )


def _model_for(ensemble: Ensemble, loader: BaseDataLoader, precision: str) -> tuple[BaseModel, str]:
    """One model, or the average of several or of flips; and the precision to call it with.

    The loader's augmentation is set to what this model needs.
    """
    trained = ensemble.trained
    if not isinstance(loader, SheetLoader):
        if len(trained) > 1 or ensemble.tta != "none":
            raise ConfigError("-r: ensembles and --tta are for sheets, which this data loader does not give")
        return trained[0].model(), precision
    if len(trained) == 1 and ensemble.tta == "none" and ensemble.average != "vote":
        loader.augmentation = augmentation_of(trained[0].config)
        return trained[0].model(), precision
    loader.augmentation = Augmentation([], mean=0.0, std=1 / 255)  # gives grey levels from 0 to 255
    members = [one.member() for one in trained]
    return AveragedModel(members, ensemble.weights, ensemble.average, ensemble.tta, precision), "fp32"


def _loss_on_outputs(
    loss: nn.Module | Callable, lead: TrainedModel, model: BaseModel, device: torch.device
) -> Callable:
    """The lead's loss on the outputs of a model that may give more kinds of output, or probabilities."""
    if hasattr(loss, "set_epoch"):
        loss.set_epoch(max(lead.state["epoch"], 1))
    on_device = loss.to(device) if isinstance(loss, nn.Module) else loss
    kind = lead.kinds[0] if len(lead.kinds) < len(model.output_kinds) else "all"

    def loss_on(outputs: Any, targets: Any) -> Any:
        logits = model.logits(outputs) if isinstance(model, AveragedModel) else outputs
        return on_device(part_of(logits, kind), part_of(targets, kind))

    return loss_on


def class_table(class_ids: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> list[str]:
    """Lines of a table with a column per class and one for their mean; None leaves a cell empty."""
    titles = [*(f"class {class_id}" for class_id in class_ids), "mean"]
    lines = [f"{'':32s}" + "".join(f"{title:>10s}" for title in titles)]
    return lines + [f"{name:32s}" + "".join(map(cell, values)) for name, values in rows.items()]


def cell(value: float | None) -> str:
    """A number, right-aligned in ten characters."""
    if value is None:
        return " " * 10
    return f"{value:10d}" if isinstance(value, int) else f"{value:10.4f}"
