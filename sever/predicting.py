"""`sever predict`, `pseudo` and `check`: a submission or pseudo-labels out of images, and their check."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sever.building import postprocess_of
from sever.checking import class_ids_of, gives_masks, testing_args
from sever.data_loader.annotations import SheetTable, list_images, read_shapes, read_table
from sever.data_loader.data_loaders import PredictionDataLoader
from sever.ensembles import load_ensemble
from sever.predictor.predictor import Prediction, Predictor, predict_to_submission
from sever.predictor.pseudo import Rules
from sever.predictor.submission import Layout, read_layout, write_submission
from sever.predictor.submission_check import check_submission
from sever.predictor.sure_sheets import SureSheets
from sever.utils import registry, report
from sever.utils.config import LoadedConfig
from sever.utils.device import check_precision, choose_device
from sever.utils.errors import ConfigError, DataError, first_few
from sever.utils.files import check_output, sha256_of, written_whole
from sever.utils.logger import log_to_console
from sever.utils.request import Request
from sever.utils.visualization import overlay_page, write_picture
from sever.utils.yaml12 import dump_yaml

logger = logging.getLogger("sever.main")


def predict(
    request: Request,
    output: Path,
    images: Path | None = None,
    sample_submission: Path | None = None,
    overlays: Path | None = None,
    one_at_a_time: bool = False,
) -> None:
    """Write a submission, and pictures of it.

    Args:
        request: the models and what is changed of their config.
        output: the CSV.
        images: folder of the images; default the config's.
        sample_submission: a CSV whose images, order and columns are taken over.
        overlays: folder for pictures.
        one_at_a_time: hold one model in memory, not all.
    """
    log_to_console()
    check_output(output, "-o")
    if overlays:
        check_output(overlays / "a picture", "--overlays")
    ensemble = load_ensemble(request)
    config = ensemble.config
    class_ids = class_ids_of(config)
    if not ensemble.gives_masks:
        raise ConfigError(f"{config.at('arch')}: {config.checked.arch.type} gives no masks")
    device = choose_device(request.device, config.checked.n_gpu)
    check_precision(device, request.precision)
    layout = read_layout(sample_submission) if sample_submission else Layout()
    folder = images or _images_folder(config)
    data_loader = _prediction_loader(config, folder, layout.images, pin_memory=device.type == "cuda")
    predictor = Predictor(
        [one.member for one in ensemble.trained],
        device,
        weights=ensemble.weights,
        average=ensemble.average,
        tta=ensemble.tta,
        precision=request.precision,
        at_once=not one_at_a_time,
    )
    draw = _overlays(overlays, data_loader.names, _truth_of(config, folder), class_ids) if overlays else None
    to_masks = postprocess_of(config.checked.predict)
    counts = predict_to_submission(
        predictor, data_loader, to_masks, layout, class_ids, output, draw, "predict"
    )
    found = ", ".join(f"class {i}: {n}" for i, n in zip(class_ids, counts, strict=True))
    rows = len(data_loader.names) * len(class_ids)
    logger.info("Wrote %s: %d rows for %d images (%s)", output, rows, len(data_loader.names), found)
    if overlays:
        logger.info("Wrote %d pictures to %s", len(data_loader.names), overlays)


def pseudo(request: Request, output: Path, images: Path | None, rules: Mapping[str, float]) -> None:
    """Write the masks of unlabelled images on which the models are sure, for `data_loader.args.pseudo`.

    Args:
        request: the models and what is changed of their config; a model of weight 0 has no say.
        output: the CSV; beside it a `.yml` of the same name says how it was made.
        images: folder of the images; default the config's.
        rules: of `Rules`.
    """
    log_to_console()
    record = output.with_suffix(".yml")
    check_output(output, "-o")
    check_output(record, "-o")
    if output == record:
        raise ConfigError(
            f"-o {output}: expected the name of a CSV; what made it is written to a .yml beside it"
        )
    checked_rules = _rules(rules)
    ensemble = load_ensemble(request).counted
    config = ensemble.config
    if any("masks" not in one.kinds or not gives_masks(one.config) for one in ensemble.trained):
        raise ConfigError("-r: pseudo-labels come from models that give masks; leave out classifiers")
    class_ids = class_ids_of(config)
    device = choose_device(request.device, config.checked.n_gpu)
    check_precision(device, request.precision)
    folder = images or _images_folder(config)
    training = _training_shares(config)
    sure = SureSheets(
        [
            Predictor([one.member()], device, tta=ensemble.tta, precision=request.precision)
            for one in ensemble.trained
        ],
        [_prediction_loader(config, folder, None, device.type == "cuda") for _ in ensemble.trained],
        postprocess_of(config.checked.predict),
        checked_rules,
        len(class_ids),
        ensemble.average,
        ensemble.weights,
    )
    with written_whole(output) as partial, written_whole(record) as partial_record:
        write_submission(partial, Layout(), class_ids, sure)
        if not sure.names:
            told = ", ".join(f"{reason}: {count}" for reason, count in sure.left_out.items())
            raise DataError(
                f"{folder}: of no image all models are sure ({told}); lower --agreement or --sure"
            )
        made = {
            "checkpoints": {str(one.path): f"sha256 {sha256_of(one.path)}" for one in ensemble.trained},
            "average": ensemble.average,
            "weights": list(ensemble.weights) if ensemble.weights else None,
            "tta": ensemble.tta,
            "precision": request.precision,
            "rules": vars(checked_rules),
            "predict": config.checked.predict.postprocessing,
            "images": str(folder),
            "kept": len(sure.names),
            "left out": dict(sure.left_out),
            "masks": dict(zip(class_ids, sure.masks_per_class.tolist(), strict=True)),
            "names": sure.names,
        }
        partial_record.write_text(dump_yaml(made), encoding="utf-8")
    report.print_lines(report.pseudo_table(made, training))
    logger.info("Wrote %s and %s", output, record)


def _rules(values: Mapping[str, float]) -> Rules:
    try:
        return Rules(**values)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f"--{str(error).replace('_', '-', 1)}") from error


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


def _images_folder(config: LoadedConfig) -> Path:
    """The folder of the images that `predict:` names."""
    return Path(str(testing_args(config).get("data_dir", "data"))) / config.checked.predict.images


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
        config.at("predict"),
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
