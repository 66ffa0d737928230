"""`sever predict`, `pseudo` and `check`: a submission or pseudo-labels out of images, and their check."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sever.building import postprocess_of
from sever.checking import class_ids_of, gives_masks, testing_args
from sever.data_loader.annotations import SheetTable, list_images, read_shapes, read_table
from sever.data_loader.data_loaders import PredictionDataLoader
from sever.ensembles import Options, load_ensemble
from sever.predictor.ensemble import average
from sever.predictor.predictor import Prediction, Predictor, predict_to_submission
from sever.predictor.pseudo import Rules, doubt
from sever.predictor.submission import Layout, read_layout, write_submission
from sever.predictor.submission_check import check_submission
from sever.utils import registry, report
from sever.utils.config import LoadedConfig
from sever.utils.device import check_precision, choose_device
from sever.utils.errors import ConfigError, DataError, first_few
from sever.utils.files import check_output, written_whole
from sever.utils.logger import log_to_console
from sever.utils.visualization import overlay_page, write_picture
from sever.utils.yaml12 import dump_yaml

logger = logging.getLogger("sever.main")


def predict(
    checkpoints: Sequence[Path],
    config_path: Path | None,
    settings_path: Path | None,
    device: str,
    overrides: Sequence[str],
    output: Path,
    images: Path | None,
    sample_submission: Path | None,
    overlays: Path | None,
    options: Options,
    precision: str = "fp32",
    one_at_a_time: bool = False,
) -> None:
    """Write a submission, and pictures of it.

    Args:
        checkpoints: of the models.
        config_path: takes the place of the checkpoint's config.
        settings_path: thresholds and areas as `sever tune` writes them.
        device: see `choose_device`.
        overrides: `KEY=VALUE`.
        output: the CSV.
        images: folder of the images; default the config's.
        sample_submission: a CSV whose images, order and columns are taken over.
        overlays: folder for pictures.
        options: how the models are put together.
        precision: of the models.
        one_at_a_time: hold one model in memory, not all.
    """
    log_to_console()
    check_output(output, "-o")
    if overlays:
        check_output(overlays / "a picture", "--overlays")
    ensemble = load_ensemble(checkpoints, config_path, settings_path, overrides, options)
    config, settings = ensemble.config, ensemble.config.checked.predict
    class_ids = class_ids_of(config)
    if not ensemble.gives_masks:
        raise ConfigError(f"{config.source}: arch: {config.checked.arch.type} gives no masks")
    chosen = choose_device(device, config.checked.n_gpu)
    check_precision(chosen, precision)
    layout = read_layout(sample_submission) if sample_submission else Layout()
    folder = images or Path(str(testing_args(config).get("data_dir", "data"))) / settings.images
    data_loader = _prediction_loader(config, folder, layout.images, pin_memory=chosen.type == "cuda")
    predictor = Predictor(
        [one.member for one in ensemble.trained],
        chosen,
        weights=options.weights,
        average=options.average,
        tta=options.tta,
        precision=precision,
        at_once=not one_at_a_time,
    )
    draw = _overlays(overlays, data_loader.names, _truth_of(config, folder), class_ids) if overlays else None
    counts = predict_to_submission(
        predictor, data_loader, postprocess_of(settings), layout, class_ids, output, draw, "predict"
    )
    found = ", ".join(f"class {i}: {n}" for i, n in zip(class_ids, counts, strict=True))
    rows = len(data_loader.names) * len(class_ids)
    logger.info("Wrote %s: %d rows for %d images (%s)", output, rows, len(data_loader.names), found)
    if overlays:
        logger.info("Wrote %d pictures to %s", len(data_loader.names), overlays)


def pseudo(
    checkpoints: Sequence[Path],
    config_path: Path | None,
    settings_path: Path | None,
    device: str,
    overrides: Sequence[str],
    output: Path,
    images: Path | None,
    options: Options,
    rules: Mapping[str, float],
) -> None:
    """Write the masks of unlabelled images on which the models are sure, for `data_loader.args.pseudo`.

    Args:
        checkpoints: of the models.
        config_path: takes the place of the checkpoint's config.
        settings_path: thresholds and areas as `sever tune` writes them.
        device: see `choose_device`.
        overrides: `KEY=VALUE`.
        output: the CSV; beside it a `.yml` of the same name says how it was made.
        images: folder of the images; default the config's.
        options: how the models are put together.
        rules: of `Rules`.
    """
    log_to_console()
    check_output(output, "-o")
    check_output(output.with_suffix(".yml"), "-o")
    if output.suffix == ".yml":
        raise ConfigError(
            f"-o {output}: expected the name of a CSV; what made it is written to a .yml beside it"
        )
    try:
        checked_rules = Rules(**rules)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f"--{str(error).replace('_', '-', 1)}") from error
    ensemble = load_ensemble(checkpoints, config_path, settings_path, overrides, options)
    config, settings = ensemble.config, ensemble.config.checked.predict
    if any("masks" not in one.model_kinds or not gives_masks(one.config) for one in ensemble.trained):
        raise ConfigError("-r: pseudo-labels come from models that give masks; leave out classifiers")
    class_ids = class_ids_of(config)
    chosen = choose_device(device, config.checked.n_gpu)
    folder = images or Path(str(testing_args(config).get("data_dir", "data"))) / settings.images
    to_masks = postprocess_of(settings)
    training = _training_shares(config)
    members = [one.member() for one in ensemble.trained]
    loaders = [_prediction_loader(config, folder, None, chosen.type == "cuda") for _ in members]
    names = loaders[0].names
    alone = [Predictor([member], chosen, tta=options.tta) for member in members]
    reasons: Counter[str] = Counter()
    kept: list[str] = []
    counts = np.zeros(len(class_ids), dtype=int)

    def sure() -> Iterator[tuple[str, np.ndarray]]:
        bars = ["pseudo", *[""] * (len(members) - 1)]
        streams = [p.predict(lo, bar) for p, lo, bar in zip(alone, loaders, bars, strict=True)]
        for of_models in zip(*streams, strict=True):
            each = [p.probs for p in of_models if p.probs is not None]
            probs = average(each, options.average, options.weights)
            labels_of = [p.label_probs for p in of_models if p.label_probs is not None]
            labels = average(labels_of) if labels_of else None
            masks = to_masks(probs, labels)
            single = [
                to_masks(p, labels if q.label_probs is None else q.label_probs)
                for p, q in zip(each, of_models, strict=True)
            ]
            reason = doubt(probs, masks, single, checked_rules)
            reasons[reason or "sure"] += 1
            if reason is None:
                name = names[of_models[0].number]
                kept.append(name)
                counts[:] += masks.any(axis=(1, 2))
                yield name, masks

    with written_whole(output) as partial:
        write_submission(partial, Layout(), class_ids, sure())
        if not kept:
            told = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
            raise DataError(
                f"{folder}: of no image all models are sure ({told}); lower --agreement or --sure"
            )
    made = {
        "checkpoints": [str(path) for path in checkpoints],
        "average": options.average,
        "weights": list(options.weights) if options.weights else None,
        "tta": options.tta,
        "rules": vars(checked_rules),
        "predict": settings.postprocessing,
        "images": str(folder),
        "kept": len(kept),
        "left out": {reason: count for reason, count in reasons.items() if reason != "sure"},
        "masks": dict(zip(class_ids, counts.tolist(), strict=True)),
        "names": kept,
    }
    with written_whole(output.with_suffix(".yml")) as partial:
        partial.write_text(dump_yaml(made), encoding="utf-8")
    report.print_lines(report.pseudo_table(made, training))
    logger.info("Wrote %s and %s", output, output.with_suffix(".yml"))


def check(
    submission: Path,
    sample_submission: Path | None,
    images: Path | None,
    size: tuple[int, int] | None,
    classes: int | None,
    reference: Path | None,
    reference_images: Path | None,
    against: Path | None,
    output: Path | None,
) -> bool:
    """Check a submission file, and print what is wrong with it.

    Args:
        submission: the CSV.
        sample_submission: for its images and classes.
        images: folder of the images, for their names and sizes.
        size: (height, width) of images whose size is not known otherwise, in pixels.
        classes: how many there are.
        reference: a training CSV or a submission, to compare how often each class occurs.
        reference_images: folder of the images of `reference`, for their number.
        against: another submission.
        output: a JSON file for the report.

    Returns:
        Whether it would be accepted.
    """
    if output:
        check_output(output, "--json")
    found = check_submission(
        submission,
        classes=classes,
        sizes=_sizes_of(images) if images else None,
        sample_submission=sample_submission,
        reference=reference,
        reference_images=len(list_images(reference_images)) if reference_images else None,
        against=against,
        **({"size": size} if size else {}),
    )
    report.print_lines(found.lines())
    if output:
        with written_whole(output) as partial:
            partial.write_text(json.dumps(found.as_dict(), indent=2) + "\n", encoding="utf-8")
    return found.accepted


def _sizes_of(folder: Path) -> dict[str, tuple[int, int]]:
    names = list_images(folder)
    shapes, faults = read_shapes(folder, names)
    if faults:
        raise DataError(first_few(faults))
    return {name: (height, width) for name, (height, width) in zip(names, shapes.tolist(), strict=True)}


def _prediction_loader(
    config: LoadedConfig, folder: Path, names: list[str] | None, pin_memory: bool
) -> PredictionDataLoader:
    """The sheets of a folder, in batches as `predict:` says or, where it does not, as `testing:` does."""
    settings, loader_args = config.checked.predict, testing_args(config)
    # On a CPU a thread reads ahead, and worker processes would take cores from the models.
    default = loader_args.get("num_workers", 0) if pin_memory else 0
    workers = default if settings.num_workers is None else settings.num_workers
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


def _training_shares(config: LoadedConfig) -> dict[str, float]:
    """The share of the labelled images that has each class, where they are there."""
    args = config.checked.data_loader.args
    data_dir = Path(str(args.get("data_dir", "")))
    csv, images = args.get("csv") or "train.csv", args.get("images") or "train_images"
    if not ((data_dir / csv).is_file() and (data_dir / images).is_dir()):
        return {}
    table = read_table(data_dir, csv, images, len(class_ids_of(config)))
    return dict(zip(table.class_ids, table.present.mean(axis=0).tolist(), strict=True))


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


def _overlays(
    folder: Path, names: Sequence[str], truth: SheetTable | None, class_ids: Sequence[str]
) -> Callable[[Prediction, np.ndarray], None]:
    """What draws each sheet with its truth, where known, and its prediction."""
    titles = [f"class {class_id}" for class_id in class_ids]
    places = {name: place for place, name in enumerate(truth.names)} if truth else {}

    def draw(prediction: Prediction, masks: np.ndarray) -> None:
        name = names[prediction.number]
        known = truth.masks(places[name]) if truth and name in places else None
        page = overlay_page(prediction.sheet, masks, known, name, titles)
        write_picture(page, folder / f"{name}.jpg")

    return draw
