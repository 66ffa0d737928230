"""What each command does."""

import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sever.base import BaseTrainer
from sever.building import (
    DRAWN_BY,
    SPLIT_BY,
    Parts,
    augmentation_of,
    loss_of,
    metrics_of,
    postprocess_of,
    testing_loader,
    trained_model,
    trainer_of,
    training_parts,
)
from sever.checking import OF_TRAINER, check_sections, class_ids_of, gives_masks, section_faults, testing_args
from sever.data_loader.annotations import SheetTable, read_table
from sever.data_loader.data_loaders import PredictionDataLoader
from sever.model.metric import SubmissionScore, dice
from sever.plan import plan_of
from sever.predictor.predictor import Predictor
from sever.predictor.submission import Layout, read_layout, write_submission
from sever.trainer.evaluation import evaluate
from sever.utils import registry, report
from sever.utils.checkpoint import load_checkpoint
from sever.utils.config import LoadedConfig, load_config
from sever.utils.device import choose_device
from sever.utils.errors import CheckpointError, ConfigError
from sever.utils.files import check_output, written_whole
from sever.utils.logger import log_to_console, log_to_run, set_verbosity
from sever.utils.saving import RunFolder
from sever.utils.seed import seed_everything
from sever.utils.visualization import overlay_page, write_picture
from sever.utils.yaml12 import dump_yaml

logger = logging.getLogger("sever.main")

_USED_TO_PREDICT = ("arch", "augmentation", "data_loader")


def train(
    config_paths: Sequence[Path],
    checkpoint: Path | None,
    device: str,
    overrides: Sequence[str],
    dry_run: bool,
    all_folds: bool = False,
) -> None:
    """Train each config in turn, or continue the run of a checkpoint.

    Args:
        config_paths: experiment files.
        checkpoint: alone it is continued in its own run folder; with a config it starts a new one.
        device: see `choose_device`.
        overrides: `KEY=VALUE`.
        dry_run: print the plan only.
        all_folds: train each config once for each of its folds.
    """
    log_to_console()
    state = load_checkpoint(checkpoint) if checkpoint else None
    if checkpoint and state is not None and not config_paths:
        configs = [_config_to_continue(state, checkpoint, overrides)]
    else:
        configs = [load_config(path, overrides, section_faults) for path in config_paths]
    if all_folds:
        configs = [fold for config in configs for fold in _folds_of(config)]
    for config in configs:
        check_sections(config)
    runs = [partial(_prepared, config, state, checkpoint, bool(config_paths), device) for config in configs]
    if len(runs) > 1:  # all of them before the first one starts, and one at a time in memory
        for prepare in runs:
            prepare()
    for prepare in runs:
        parts, trainer = prepare()
        if dry_run:
            report.print_lines(plan_of(parts))
        else:
            _train(parts, trainer)


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
    if output:
        check_output(output, "-o")
    checkpoint = _the_one(checkpoints)
    state = load_checkpoint(checkpoint)
    config = _config_of(state, checkpoint, config_path, overrides, (*_USED_TO_PREDICT, "loss", "metrics"))
    checked = config.checked
    chosen = choose_device(device, checked.n_gpu)
    seed_everything(checked.seed)
    verbose = checked.testing.verbose if checked.testing else 2
    set_verbosity("sever.main", verbose)
    data_loader = testing_loader(config, state, chosen)
    model = trained_model(config, state, checkpoint).to(chosen)
    metrics = metrics_of(config)
    class_ids = class_ids_of(config)
    if gives_masks(config):
        metrics += [] if any(isinstance(m, dice) for m in metrics) else [dice(class_ids)]
        metrics.append(SubmissionScore(class_ids, postprocess_of(checked.predict)))
    label = "test" if verbose > 1 else ""
    loss = loss_of(config)
    if hasattr(loss, "set_epoch"):
        loss.set_epoch(max(state["epoch"], 1))
    scores: dict[str, Any] = evaluate(model, data_loader, loss, metrics, chosen, label)
    scores["images"] = len(data_loader.indices)
    report.print_lines(report.score_table(scores, class_ids))
    if scores.get("competition_dice", 1.0) < scores.get("competition_dice_of_nothing", 0.0):
        logger.warning("A submission of this model scores less than an empty one: train it longer.")
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
    check_output(output, "-o")
    if overlays:
        check_output(overlays / "a picture", "--overlays")
    checkpoint = _the_one(checkpoints)
    state = load_checkpoint(checkpoint)
    config = _config_of(state, checkpoint, config_path, overrides, _USED_TO_PREDICT)
    class_ids = class_ids_of(config)
    if not gives_masks(config):
        raise ConfigError(f"{config.source}: arch: {config.checked.arch.type} gives no masks")
    chosen = choose_device(device, config.checked.n_gpu)
    layout = read_layout(sample_submission) if sample_submission else Layout()
    settings = config.checked.predict
    folder = images or Path(str(testing_args(config).get("data_dir", "data"))) / settings.images
    data_loader = _prediction_loader(config, folder, layout.images, pin_memory=chosen.type == "cuda")
    model = trained_model(config, state, checkpoint)
    predictor = Predictor(model, augmentation_of(config).normalize, chosen)
    truth = _truth_of(config, folder) if overlays else None
    counts = np.zeros(len(class_ids), dtype=int)

    def predicted() -> Iterator[tuple[str, np.ndarray]]:
        to_masks = postprocess_of(settings)
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


def _folds_of(config: LoadedConfig) -> list[LoadedConfig]:
    """The config with each of its folds held out, under a name of its own."""
    folds = config.checked.data_loader.args.get("folds")
    if not isinstance(folds, int) or folds < 2:
        raise ConfigError(
            f"--all-folds: {config.source}: data_loader.args.folds: expected a number of at least 2, received"
            f" {'nothing' if folds is None else repr(folds)}; give it there, or with -s "
            f"data_loader.args.folds=5"
        )
    return [
        config.replace(
            {
                "data_loader.args.fold": fold,
                "data_loader.args.validation_split": None,
                "name": f"{config.checked.name}-fold{fold}",
            }
        )
        for fold in range(1, folds + 1)
    ]


# What a run cannot change on its way; `report.differing_keys` names keys like these.
_FIXED = (
    *("arch", "optimizer", "lr_scheduler", "loss", "seed", "name", "save_dir"),
    *("augmentation", "data_loader.type", *(f"data_loader.args.{key}" for key in (*SPLIT_BY, *DRAWN_BY))),
    *(f"training.{key}" for key in OF_TRAINER),
)


def _config_to_continue(state: dict[str, Any], checkpoint: Path, overrides: Sequence[str]) -> LoadedConfig:
    """The config of a checkpoint's run with overrides that a run can take on its way.

    Raises:
        CheckpointError: the checkpoint is not in the folder of its run.
        ConfigError: an override would make it another run.
    """
    run = RunFolder(checkpoint.resolve().parent)
    if state.get("averaged"):
        raise CheckpointError(
            f"{checkpoint}: is the mean of {len(state['averaged'])} checkpoints, which no run can go on "
            f"from. To start a new run with its weights: -c FILE -r {checkpoint}"
        )
    if not (run.config.is_file() and run.split.is_file()):
        raise CheckpointError(
            f"{checkpoint}: is not in the folder of its run (there is no config.yml and split.csv beside "
            f"it). Put it back, or start a new run from it with -c FILE -r {checkpoint}"
        )
    stored = LoadedConfig(state["config"], f"{checkpoint} (its config)")
    config = stored.override(overrides)
    fixed = [
        line
        for line in report.differing_keys(stored.values, config.values)
        if f"{line.partition(': ')[0]}.".startswith(tuple(f"{key}." for key in _FIXED))
    ]
    if fixed:
        raise ConfigError(
            f"-s: a run goes on with what it began with, and cannot change {'; '.join(fixed)}. To start a "
            f"new run from the checkpoint: -c {run.config} -r {checkpoint}"
        )
    return config


def _prepared(
    config: LoadedConfig,
    state: dict[str, Any] | None,
    checkpoint: Path | None,
    new_run: bool,
    device: str,
) -> tuple[Parts, BaseTrainer]:
    """All that a run needs, its trainer at the checkpoint's state; nothing is written yet."""
    checked = config.checked
    chosen = choose_device(device, checked.n_gpu)
    seed_everything(checked.seed)
    parts = training_parts(config, chosen, state, new_run)
    if state is None or checkpoint is None:
        return parts, trainer_of(parts, RunFolder.planned(checked.save_dir, checked.name))
    if not new_run:
        steps = state["epoch"] * len(parts.data_loader)
        trainer = trainer_of(parts, RunFolder(checkpoint.resolve().parent), first_step=steps + 1)
        trainer.load_state_dict(state, str(checkpoint))
        _warn_of_later_checkpoints(trainer)
        return parts, trainer
    trainer = trainer_of(parts, RunFolder.planned(checked.save_dir, checked.name))
    trainer.load_state_under_new_config(state, str(checkpoint))
    if trainer.last_epoch >= trainer.epochs:
        raise ConfigError(
            f"{config.source}: training.epochs: is {trainer.epochs}, but {checkpoint} is at epoch "
            f"{trainer.last_epoch} already; raise it"
        )
    for line in report.differing_keys(state["config"], config.values):
        logger.info("Differs from %s: %s", checkpoint, line)
    return parts, trainer


def _warn_of_later_checkpoints(trainer: BaseTrainer) -> None:
    run = trainer.run_folder
    later = [
        path for path in run.path.glob("checkpoint_epoch_*.pth") if run.epoch_of(path) > trainer.last_epoch
    ]
    if later:
        logger.warning(
            "%s holds %d checkpoints of later epochs. They are replaced as the run goes on from epoch %d; "
            "until then they are those of the earlier course.",
            *(run.path, len(later), trainer.last_epoch),
        )


def _train(parts: Parts, trainer: BaseTrainer) -> None:
    plan = plan_of(parts)
    run = trainer.run_folder
    if not run.path.is_dir():
        run.make()
    run.logs.mkdir(exist_ok=True)
    log_to_run(run.logs)
    with written_whole(run.config) as unfinished:
        unfinished.write_text(dump_yaml(parts.config.values), encoding="utf-8")
    with written_whole(run.split) as unfinished:
        unfinished.write_text(report.split_csv(parts.data_loader.split), encoding="utf-8")
    for line in plan:
        logger.info("%s", line)
    logger.info("%-14s %s", "run folder", run.path)
    if trainer.last_epoch >= trainer.epochs or trainer.monitor.exhausted:
        trainer.train()  # which says why there is nothing left
        return
    trainer.train()
    kept = [path for path in (run.best, run.epoch(trainer.last_epoch)) if path.is_file()]
    logger.info("Trained. Checkpoints: %s", ", ".join(map(str, kept)))


def _the_one(checkpoints: Sequence[Path]) -> Path:
    if len(checkpoints) > 1:
        raise CheckpointError("-r: one checkpoint is all that can be used at once yet")
    return checkpoints[0]


def _config_of(
    state: dict[str, Any],
    checkpoint: Path,
    config_path: Path | None,
    overrides: Sequence[str],
    used: Sequence[str],
) -> LoadedConfig:
    if config_path:
        config = load_config(config_path, overrides, section_faults)
    else:
        config = LoadedConfig(state["config"], f"{checkpoint} (its config)").override(overrides)
    check_sections(config, used)
    return config


def _prediction_loader(
    config: LoadedConfig, folder: Path, names: list[str] | None, pin_memory: bool
) -> PredictionDataLoader:
    """The sheets of a folder, in batches as `predict:` says or, where it does not, as `testing:` does."""
    settings, loader_args = config.checked.predict, testing_args(config)
    workers = loader_args.get("num_workers", 0) if settings.num_workers is None else settings.num_workers
    return registry.call(
        PredictionDataLoader,
        f"{config.source}: predict",
        "its data loader",
        folder,
        names,
        settings.batch_size or loader_args.get("batch_size", 8),
        workers,
        pin_memory=pin_memory,
    )


def _truth_of(config: LoadedConfig, folder: Path) -> SheetTable | None:
    """The masks of the images in a folder, if the config names a CSV for just that folder."""
    classes = len(class_ids_of(config))
    for half, args in (("train", config.checked.data_loader.args), ("test", testing_args(config))):
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
