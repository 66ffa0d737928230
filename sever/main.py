"""The composition root: the only file where a config becomes objects."""

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sever.base import BaseDataLoader, BaseModel, BaseTrainer, Metric
from sever.data_loader.annotations import SheetTable, read_table
from sever.data_loader.augmentation import AUGMENTATIONS, Augmentation
from sever.data_loader.data_loaders import LOADERS, PredictionDataLoader
from sever.model.loss import LOSSES
from sever.model.metric import METRICS, FunctionMetric, SubmissionScore, dice
from sever.model.model import MODELS
from sever.model.optimizer import OPTIMIZERS, group_faults, parameter_groups
from sever.model.scheduler import SCHEDULERS
from sever.predictor.postprocess import postprocess
from sever.predictor.predictor import Predictor
from sever.predictor.submission import Layout, read_layout, write_submission
from sever.trainer.evaluation import evaluate
from sever.trainer.trainer import TRAINERS
from sever.utils import registry, report
from sever.utils.checkpoint import load_checkpoint, load_weights
from sever.utils.config import Config, LoadedConfig, Predict, Section, load_config
from sever.utils.device import choose_device, describe
from sever.utils.errors import CheckpointError, ConfigError
from sever.utils.files import written_whole
from sever.utils.logger import log_to_console, log_to_run, set_verbosity
from sever.utils.registry import bound_args, build
from sever.utils.saving import RunFolder
from sever.utils.seed import seed_everything
from sever.utils.visualization import TensorboardWriter, overlay_page, write_picture
from sever.utils.yaml12 import dump_yaml

logger = logging.getLogger("sever.main")

# What the program itself passes, by section; see `registry.build`.
_READY = {
    "data_loader": ("classes", "augmentation", "seed", "training", "pin_memory"),
    "metrics": ("class_ids",),
    "optimizer": ("params",),
    "lr_scheduler": ("optimizer",),
    "trainer": (
        *("model", "optimizer", "data_loader", "run", "device", "config", "epochs"),
        *("valid_data_loader", "lr_scheduler", "writer", "monitor", "early_stop"),
        *("save_period", "verbose", "loss", "metrics"),
    ),
}
# Arguments of the training loader that do not carry over to the one of `testing:`.
_TRAINING_ONLY = ("csv", "images", "shuffle", "validation_split", "validation_batch_size", "drop_last")


@dataclass
class Parts:
    """The objects of a training run."""

    config: LoadedConfig
    device: torch.device
    data_loader: BaseDataLoader
    valid_data_loader: BaseDataLoader | None
    model: BaseModel
    loss: nn.Module | Callable
    metrics: list[Metric]
    optimizer: Optimizer
    lr_scheduler: LRScheduler | None


# --------------------------------------------------------------------------------------- commands


def train(
    config_paths: Sequence[Path],
    checkpoint: Path | None,
    device: str,
    overrides: Sequence[str],
    dry_run: bool,
) -> None:
    """Train each config in turn, or continue the run of a checkpoint.

    Args:
        config_paths: experiment files.
        checkpoint: alone it is continued in its own run folder; with a config it starts a new one.
        device: see `choose_device`.
        overrides: `KEY=VALUE`.
        dry_run: print the plan only.
    """
    log_to_console()
    state = load_checkpoint(checkpoint) if checkpoint else None
    if state is not None and not config_paths:
        stored = LoadedConfig(state["config"], f"{checkpoint} (its config)")
        configs = [stored.override(overrides)]
    else:
        configs = [load_config(path, overrides) for path in config_paths]
    for config in configs:  # all of them before the first one starts
        check_sections(config)
    for config in configs:
        chosen = choose_device(device, config.checked.n_gpu)
        seed_everything(config.checked.seed)
        parts = _training_parts(config, chosen, state)
        if dry_run:
            report.print_lines(_plan(parts))
        elif state is not None and not config_paths:
            assert checkpoint is not None
            _continue_run(parts, state, checkpoint)
        else:
            _start_run(parts, state, checkpoint)


def test(
    checkpoints: Sequence[Path],
    config_path: Path | None,
    device: str,
    overrides: Sequence[str],
    output: Path | None,
) -> dict[str, Any]:
    """Score a model on labelled images, and print and write the scores.

    Args:
        checkpoints: of the model.
        config_path: takes the place of the checkpoint's config.
        device: see `choose_device`.
        overrides: `KEY=VALUE`.
        output: a JSON file for the scores.
    """
    log_to_console()
    checkpoint = _the_one(checkpoints)
    state = load_checkpoint(checkpoint)
    config = _config_of(state, checkpoint, config_path, overrides)
    checked = config.checked
    chosen = choose_device(device, checked.n_gpu)
    seed_everything(checked.seed)
    verbose = checked.testing.verbose if checked.testing else 2
    set_verbosity("sever.main", max(verbose, 1))
    data_loader = _testing_loader(config, state, chosen)
    model = _trained_model(config, state, checkpoint).to(chosen)
    metrics = _metrics(config)
    class_ids = _class_ids(config)
    if class_ids:
        metrics += [] if any(isinstance(m, dice) for m in metrics) else [dice(class_ids)]
        metrics.append(SubmissionScore(class_ids, _postprocess(checked.predict)))
    label = "test" if verbose > 1 else ""
    scores: dict[str, Any] = evaluate(model, data_loader, _loss(config), metrics, chosen, label)
    scores["images"] = len(data_loader.indices)
    report.print_lines(report.score_table(scores, class_ids))
    if output:
        with written_whole(output) as partial:
            partial.write_text(json.dumps(report.json_ready(scores), indent=2) + "\n")
        logger.info("Wrote %s", output)
    return scores


def predict(
    checkpoints: Sequence[Path],
    config_path: Path | None,
    device: str,
    overrides: Sequence[str],
    output: Path,
    images: Path | None,
    sample_submission: Path | None,
    overlays: Path | None,
) -> None:
    """Write a submission, and pictures of it.

    Args:
        checkpoints: of the model.
        config_path: takes the place of the checkpoint's config.
        device: see `choose_device`.
        overrides: `KEY=VALUE`.
        output: the CSV.
        images: folder of the images; default the config's.
        sample_submission: a CSV whose images, order and columns are taken over.
        overlays: folder for pictures.
    """
    log_to_console()
    checkpoint = _the_one(checkpoints)
    state = load_checkpoint(checkpoint)
    config = _config_of(state, checkpoint, config_path, overrides)
    class_ids = _class_ids(config)
    if not class_ids:
        raise ConfigError(f"{config.source}: arch: {config.checked.arch.type} gives no masks")
    chosen = choose_device(device, config.checked.n_gpu)
    layout = read_layout(sample_submission) if sample_submission else Layout()
    settings = config.checked.predict
    loader_args = _testing_args(config)
    folder = images or Path(str(loader_args["data_dir"])) / settings.images
    data_loader = PredictionDataLoader(
        folder,
        layout.images,
        settings.batch_size or loader_args.get("batch_size", 8),
        loader_args.get("num_workers", 0) if settings.num_workers is None else settings.num_workers,
        pin_memory=chosen.type == "cuda",
    )
    model = _trained_model(config, state, checkpoint)
    predictor = Predictor(model, _augmentation(config).normalize, chosen)
    truth = _truth_of(config, folder) if overlays else None
    counts = np.zeros(len(class_ids), dtype=int)

    def predicted() -> Iterator[tuple[str, np.ndarray]]:
        to_masks = _postprocess(settings)
        for index, sheet, probs in predictor.predict(data_loader, label="predict"):
            name = data_loader.names[index]
            masks = to_masks(probs)
            counts[:] += masks.any(axis=(1, 2))
            if overlays:
                _draw(overlays / f"{name}.jpg", name, sheet, masks, truth, class_ids)
            yield name, masks

    rows = write_submission(output, layout, class_ids, predicted())
    found = ", ".join(f"class {i}: {n}" for i, n in zip(class_ids, counts, strict=True))
    logger.info("Wrote %s: %d rows for %d images (%s)", output, rows, len(data_loader.names), found)
    if overlays:
        logger.info("Wrote %d pictures to %s", len(data_loader.names), overlays)


# ----------------------------------------------------------------------------------------- checks


def check_sections(config: LoadedConfig) -> None:
    """Check every section's name and arguments, and build nothing.

    Raises:
        ConfigError: with all mistakes of the config.
    """
    checked = config.checked
    faults = _faults(config, MODELS, checked.arch, "arch")
    if checked.augmentation:
        faults += _faults(config, AUGMENTATIONS, checked.augmentation, "augmentation")
    faults += _faults(config, LOADERS, checked.data_loader, "data_loader")
    faults += _faults(config, LOSSES, checked.loss, "loss")
    for metric in checked.metrics:
        faults += _faults(config, METRICS, metric, "metrics")
    faults += _faults(config, OPTIMIZERS, checked.optimizer, "optimizer")
    if checked.lr_scheduler:
        faults += _faults(config, SCHEDULERS, checked.lr_scheduler, "lr_scheduler")
    faults += _faults(config, TRAINERS, checked.trainer, "trainer")
    if not faults:
        faults = _faults_between_sections(config)
    if faults:
        raise ConfigError("\n".join(faults))


def _faults(config: LoadedConfig, known: registry.Registry, section: Section, key: str) -> list[str]:
    return registry.check(known, section, f"{config.source}: {key}", _READY.get(key, ()))


def _faults_between_sections(config: LoadedConfig) -> list[str]:
    checked, source = config.checked, config.source
    optimizer = OPTIMIZERS.find(checked.optimizer.type, f"{source}: optimizer")
    faults = group_faults(optimizer, _group_settings(checked), f"{source}: optimizer")
    if checked.testing:
        faults += registry.check(
            LOADERS,
            checked.data_loader,
            f"{source}: testing",
            _READY["data_loader"],
            _testing_args(config),
        )
    classes = len(_class_ids(config))
    for key in ("threshold", "min_area"):
        value = getattr(checked.predict, key)
        if isinstance(value, list) and len(value) != classes:
            faults.append(
                f"{source}: predict.{key}: expected one value, or one for each of {classes} classes, "
                f"received {len(value)}"
            )
    return faults


# -------------------------------------------------------------------------------- config to object


def _training_parts(config: LoadedConfig, device: torch.device, state: dict[str, Any] | None) -> Parts:
    checked = config.checked
    data_loader = _training_loader(config, device)
    split = _kept_split(state, data_loader)
    valid_data_loader = data_loader.split_validation(split)
    model = build(MODELS, _without_download(checked.arch) if state else checked.arch, _at(config, "arch"))
    model = model.to(device)
    optimizer_class = OPTIMIZERS.find(checked.optimizer.type, _at(config, "optimizer"))
    optimizer = registry.call(
        optimizer_class,
        _at(config, "optimizer"),
        checked.optimizer.type,
        parameter_groups(model, _group_settings(checked)),
        **checked.optimizer.args,
    )
    loss = _loss(config)
    return Parts(
        config,
        device,
        data_loader,
        valid_data_loader,
        model,
        loss.to(device) if isinstance(loss, nn.Module) else loss,
        _metrics(config),
        optimizer,
        _lr_scheduler(config, optimizer),
    )


def _at(config: LoadedConfig, key: str) -> str:
    return f"{config.source}: {key}"


def _group_settings(checked: Config) -> dict[str, dict[str, Any]]:
    """The options of the optimizer's groups; none where all parameters share one."""
    if checked.optimizer.encoder is None or checked.optimizer.decoder is None:
        return {}
    return {"encoder": checked.optimizer.encoder, "decoder": checked.optimizer.decoder}


def _without_download(arch: Section) -> Section:
    """The same model for a checkpoint's weights: no pretrained ones are fetched first."""
    if "encoder_weights" not in bound_args(MODELS, arch, "arch"):
        return arch
    return arch.model_copy(update={"args": {**arch.args, "encoder_weights": None}})


def _class_ids(config: LoadedConfig) -> list[str]:
    """The names of the classes, `"1"` first; none for a model without masks."""
    classes = bound_args(MODELS, config.checked.arch, _at(config, "arch")).get("classes")
    if isinstance(classes, int) and classes < 1:
        raise ConfigError(f"{config.source}: arch.args.classes: expected at least 1, received {classes}")
    return [str(c + 1) for c in range(classes)] if isinstance(classes, int) else []


def _augmentation(config: LoadedConfig) -> Augmentation:
    section = config.checked.augmentation
    if section is None:
        return Augmentation([])
    return build(AUGMENTATIONS, section, _at(config, "augmentation"))


def _loader_ready(config: LoadedConfig, device: torch.device) -> dict[str, Any]:
    return {
        "classes": len(_class_ids(config)),
        "augmentation": _augmentation(config),
        "seed": config.checked.seed,
        "pin_memory": device.type == "cuda",
    }


def _training_loader(config: LoadedConfig, device: torch.device) -> BaseDataLoader:
    ready = _loader_ready(config, device)
    where = _at(config, "data_loader")
    return build(LOADERS, config.checked.data_loader, where, **ready, training=True)


def _testing_args(config: LoadedConfig) -> dict[str, Any]:
    """The arguments of the loader of `testing:`: its own over those of the training loader."""
    inherited = {
        name: value for name, value in config.checked.data_loader.args.items() if name not in _TRAINING_ONLY
    }
    return inherited | (config.checked.testing.loader_args if config.checked.testing else {})


def _testing_loader(config: LoadedConfig, state: dict[str, Any], device: torch.device) -> BaseDataLoader:
    if config.checked.testing is None:
        loader = _training_loader(config, device).split_validation(state.get("split"))
        if loader is None:
            raise ConfigError(
                f"{config.source}: has no 'testing:' section, and the run has no validation images"
            )
        logger.info("No 'testing:' section: scoring the run's validation images.")
        return loader
    section = config.checked.data_loader.model_copy(update={"args": _testing_args(config)})
    ready = _loader_ready(config, device)
    return build(LOADERS, section, _at(config, "testing"), **ready, training=False)


def _loss(config: LoadedConfig) -> nn.Module | Callable:
    where = _at(config, "loss")
    thing = LOSSES.find(config.checked.loss.type, where)
    if isinstance(thing, type):
        return build(LOSSES, config.checked.loss, where)
    return partial(thing, **config.checked.loss.args)


def _metrics(config: LoadedConfig) -> list[Metric]:
    metrics: list[Metric] = []
    for section in config.checked.metrics:
        where = _at(config, "metrics")
        thing = METRICS.find(section.type, where)
        if isinstance(thing, type):
            metrics.append(build(METRICS, section, where, class_ids=_class_ids(config)))
        else:
            name = section.type.rpartition(".")[2]
            metrics.append(FunctionMetric(partial(thing, **section.args), name))
    return metrics


def _lr_scheduler(config: LoadedConfig, optimizer: Optimizer) -> LRScheduler | None:
    section = config.checked.lr_scheduler
    if section is None:
        return None
    return build(SCHEDULERS, section, _at(config, "lr_scheduler"), optimizer=optimizer)


def _postprocess(settings: Predict) -> Callable[[np.ndarray], np.ndarray]:
    return partial(postprocess, threshold=settings.threshold, min_area=settings.min_area)


# -------------------------------------------------------------------------------------------- runs


def _trainer(parts: Parts, run: RunFolder, first_step: int = 0) -> BaseTrainer:
    checked = parts.config.checked
    training = checked.training
    writer = TensorboardWriter(lambda: run.tensorboard, training.tensorboard, first_step)
    ready = {
        "model": parts.model,
        "optimizer": parts.optimizer,
        "data_loader": parts.data_loader,
        "valid_data_loader": parts.valid_data_loader,
        "lr_scheduler": parts.lr_scheduler,
        "loss": parts.loss,
        "metrics": parts.metrics,
        "run": run,
        "device": parts.device,
        "config": parts.config.values,
        "writer": writer,
        "epochs": training.epochs,
        "monitor": training.monitor,
        "early_stop": training.early_stop,
        "save_period": training.save_period,
        "verbose": training.verbose,
    }
    return build(TRAINERS, checked.trainer, _at(parts.config, "trainer"), **ready)


def _start_run(parts: Parts, state: dict[str, Any] | None, checkpoint: Path | None) -> None:
    checked = parts.config.checked
    run = RunFolder.planned(checked.save_dir, checked.name)
    trainer = _trainer(parts, run)
    if state is not None:
        for line in report.differing_keys(state["config"], parts.config.values):
            logger.info("Differs from %s: %s", checkpoint, line)
        trainer.load_state_under_new_config(state, str(checkpoint))
    run.make()
    _train_in(run, parts, trainer)


def _continue_run(parts: Parts, state: dict[str, Any], checkpoint: Path) -> None:
    run = RunFolder(checkpoint.resolve().parent)
    steps = state["epoch"] * len(parts.data_loader)
    trainer = _trainer(parts, run, first_step=steps + 1)
    trainer.load_state_dict(state, str(checkpoint))
    _train_in(run, parts, trainer)


def _train_in(run: RunFolder, parts: Parts, trainer: BaseTrainer) -> None:
    run.logs.mkdir(exist_ok=True)
    log_to_run(run.logs)
    with written_whole(run.config) as partial_file:
        partial_file.write_text(dump_yaml(parts.config.values), encoding="utf-8")
    with written_whole(run.split) as partial_file:
        partial_file.write_text(report.split_csv(parts.data_loader.split), encoding="utf-8")
    for line in _plan(parts):
        logger.info("%s", line)
    logger.info("%-14s %s", "run folder", run.path)
    trainer.train()
    kept = run.best if run.best.is_file() else run.epoch(trainer.last_epoch)
    logger.info("Trained. Checkpoint: %s", kept)


def _kept_split(state: dict[str, Any] | None, data_loader: BaseDataLoader) -> dict[str, list[str]] | None:
    """The split of the checkpoint, where it is one of the same images."""
    split = state.get("split") if state else None
    if split is None:
        return None
    named = {name for half in split.values() for name in half}
    return split if named & set(data_loader.sample_names) else None


def _the_one(checkpoints: Sequence[Path]) -> Path:
    if len(checkpoints) > 1:
        raise CheckpointError("-r: one checkpoint is all that can be used at once yet")
    return checkpoints[0]


def _config_of(
    state: dict[str, Any], checkpoint: Path, config_path: Path | None, overrides: Sequence[str]
) -> LoadedConfig:
    if config_path:
        config = load_config(config_path, overrides)
    else:
        config = LoadedConfig(state["config"], f"{checkpoint} (its config)").override(overrides)
    check_sections(config)
    return config


def _trained_model(config: LoadedConfig, state: dict[str, Any], checkpoint: Path) -> BaseModel:
    model = build(MODELS, _without_download(config.checked.arch), _at(config, "arch"))
    load_weights(model, state["state_dict"], str(checkpoint))
    return model


def _truth_of(config: LoadedConfig, folder: Path) -> SheetTable | None:
    """The masks of the images in a folder, if the config names a CSV for just that folder."""
    classes = len(_class_ids(config))
    for half, args in (("train", config.checked.data_loader.args), ("test", _testing_args(config))):
        data_dir = Path(str(args.get("data_dir", "")))
        images = args.get("images") or f"{half}_images"
        csv = args.get("csv") or f"{half}.csv"
        if (data_dir / images).resolve() == folder.resolve() and (data_dir / csv).is_file():
            return read_table(data_dir, csv, images, classes)
    return None


def _draw(
    path: Path,
    name: str,
    sheet: np.ndarray,
    masks: np.ndarray,
    truth: SheetTable | None,
    class_ids: Sequence[str],
) -> None:
    known = truth.masks(truth.names.index(name)) if truth and name in truth.names else None
    titles = [f"class {class_id}" for class_id in class_ids]
    write_picture(overlay_page(sheet, masks, known, name, titles), path)


def _plan(parts: Parts) -> list[str]:
    """What a run will do, as lines of text."""
    checked = parts.config.checked
    groups = ", ".join(
        f"{group.get('name', 'all')} {sum(p.numel() for p in group['params']):,}"
        for group in parts.optimizer.param_groups
    )
    lines = [
        ("experiment", f"{checked.name} ({parts.config.source})"),
        ("device", describe(parts.device)),
        ("model", f"{checked.arch.type}, {parts.model.parameter_count():,} parameters ({groups})"),
        ("training", _sample_counts(parts.data_loader)),
        ("validation", _sample_counts(parts.valid_data_loader)),
        ("steps", f"{len(parts.data_loader)} an epoch, {checked.training.epochs} epochs"),
        *(("learning rate", line) for line in _learning_rates(parts)),
        ("monitor", f"{checked.training.monitor}, early stop {checked.training.early_stop or 'off'}"),
    ]
    own = list(checked.model_extra or {})
    lines += [("own sections", ", ".join(own))] if own else []
    return [f"{title:14s} {text}" for title, text in lines]


def _sample_counts(data_loader: BaseDataLoader | None) -> str:
    if data_loader is None:
        return "none"
    text = f"{len(data_loader.indices):,} images"
    table = getattr(data_loader, "table", None)
    if isinstance(table, SheetTable):
        present = table.present[data_loader.indices]
        counts = [f"class {c}: {n}" for c, n in zip(table.class_ids, present.sum(axis=0), strict=True)]
        text += f" ({', '.join(counts)}, clean: {(~present.any(axis=1)).sum()})"
    return text


def _learning_rates(parts: Parts) -> list[str]:
    """The rates at some epochs, found by stepping the schedule over an optimizer of no weights."""
    groups = parts.optimizer.param_groups
    stand_in = torch.optim.SGD(
        [
            {
                "params": [nn.Parameter(torch.zeros(1))],
                "name": g.get("name", "all"),
                "lr": g.get("initial_lr", g["lr"]),
            }
            for g in groups
        ]
    )
    scheduler = _lr_scheduler(parts.config, stand_in)
    epochs = parts.config.checked.training.epochs
    shown = sorted({1, *(max(1, math.ceil(epochs * share)) for share in (0.25, 0.5, 0.75, 1.0))})
    lines = []
    for epoch in range(1, epochs + 1):
        if epoch in shown:
            rates = ", ".join(f"{g['name']} {g['lr']:.3g}" for g in stand_in.param_groups)
            lines.append(f"epoch {epoch}: {rates}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stand_in.step()
            if scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
    return lines
