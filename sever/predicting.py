"""`sever predict` and `pseudo`: a submission or pseudo-labels out of images."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from sever.building import postprocess_of
from sever.checking import class_ids_of, label_files, testing_args
from sever.data_loader.annotations import SheetTable, read_table
from sever.data_loader.data_loaders import PredictionDataLoader
from sever.ensembles import Ensemble, load_ensemble
from sever.predictor.predictor import Prediction, Predictor, predict_to_submission
from sever.predictor.pseudo import DISAGREE, MISSED, UNSURE, Rules
from sever.predictor.submission import Layout, read_layout, write_submission
from sever.predictor.sure_sheets import SureSheets
from sever.utils import distributed, registry, report
from sever.utils.config import LoadedConfig
from sever.utils.device import check_precision, choose_device
from sever.utils.errors import ConfigError, DataError
from sever.utils.files import check_output, written_whole
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
    check_output(output, "-o", [*request.files, sample_submission], ".csv")
    if overlays and overlays.is_file():
        raise ConfigError(f"--overlays {overlays}: is a file; give the name of a folder")
    if overlays:
        check_output(overlays / "picture.jpg", "--overlays", makes_folder=True)
    ensemble = load_ensemble(request)
    config = ensemble.config
    check_output(output, "-o", label_files(config))
    class_ids = class_ids_of(config)
    if not ensemble.gives_masks:
        raise ConfigError(f"{config.at('arch')}: {config.checked.arch.type} gives no masks")
    device = choose_device(request.device, config.checked.n_gpu)
    check_precision(device, request.precision)
    layout = read_layout(sample_submission, class_ids) if sample_submission else Layout()
    folder = images or _images_folder(config)
    named_by = "-i" if images else "keys data_dir and predict.images"
    data_loader = _prediction_loader(config, folder, layout.images, device.type == "cuda", named_by)
    predictor = _predictor_of(ensemble, device, request.precision, at_once=not one_at_a_time)
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
    check_output(output, "-o", request.files, ".csv")
    check_output(record, "-o, whose record is", request.files)
    checked_rules = _rules(rules)
    ensemble = load_ensemble(request).counted
    config = ensemble.config
    check_output(output, "-o", label_files(config))
    if not ensemble.gives_masks:
        raise ConfigError("-r: pseudo-labels need a model that gives masks; classifiers gate them alone")
    class_ids = class_ids_of(config)
    device = choose_device(request.device, config.checked.n_gpu)
    check_precision(device, request.precision)
    folder = images or _images_folder(config)
    training, training_images = _training_counts(config)
    predictor = _predictor_of(ensemble, device, request.precision, keep_each=True)
    named_by = "-i" if images else "keys data_dir and predict.images"
    data_loader = _prediction_loader(config, folder, None, device.type == "cuda", named_by)
    to_masks = postprocess_of(config.checked.predict)
    sure = SureSheets(predictor, data_loader, to_masks, checked_rules, len(class_ids))
    with written_whole(output) as partial, written_whole(record) as partial_record:
        write_submission(partial, Layout(), class_ids, sure)
        if not distributed.is_main():
            return
        if not sure.names:
            raise DataError(f"{folder}: no image is sure enough. {_cures(sure.left_out)}")
        made = {
            **ensemble.provenance,
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
    report.print_lines(report.pseudo_table(made, training, training_images))
    logger.info("Wrote %s and %s", output, record)


_CURES = {DISAGREE: "lower --agreement", UNSURE: "lower --sure or --sure-share", MISSED: "raise --absent"}


def _cures(left_out: Mapping[str, int]) -> str:
    """How many images were left out by each reason, and which option lets more in."""
    told = [f"{reason} on {count}: {_CURES[reason]}" for reason, count in left_out.items()]
    return "; ".join(told) or "The folder holds no images"


def _rules(values: Mapping[str, float]) -> Rules:
    try:
        return Rules(**values)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f"--{str(error).replace('_', '-', 1)}") from error


def _images_folder(config: LoadedConfig) -> Path:
    """The folder of the images that `predict:` names."""
    return Path(str(testing_args(config).get("data_dir", "data"))) / config.checked.predict.images


def _predictor_of(ensemble: Ensemble, device: torch.device, precision: str, **options: bool) -> Predictor:
    """What predicts with an ensemble; its models are read when they are needed."""
    return Predictor(
        [one.member for one in ensemble.trained],
        device,
        weights=ensemble.weights,
        average=ensemble.average,
        tta=ensemble.tta,
        precision=precision,
        **options,
    )


def _prediction_loader(
    config: LoadedConfig, folder: Path, names: list[str] | None, pin_memory: bool, named_by: str
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
        named_by=named_by,
    )


def _training_counts(config: LoadedConfig) -> tuple[dict[str, int], int]:
    """How many labelled images have each class, and how many there are; nothing where they are not there."""
    args = config.checked.data_loader.args
    data_dir = Path(str(args.get("data_dir", "")))
    csv, images = args.get("csv") or "train.csv", args.get("images") or "train_images"
    if not ((data_dir / csv).is_file() and (data_dir / images).is_dir()):
        return {}, 0
    table = read_table(data_dir, csv, images, len(class_ids_of(config)))
    return dict(zip(table.class_ids, table.present.sum(axis=0).tolist(), strict=True)), len(table)


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
    stems = Counter(Path(name).stem for name in names)
    places = {name: place for place, name in enumerate(truth.names)} if truth else {}

    def draw(prediction: Prediction, masks: np.ndarray) -> None:
        name = names[prediction.number]
        known = truth.masks(places[name]) if truth and name in places else None
        page = overlay_page(prediction.sheet, masks, known, name, titles)
        alone = stems[Path(name).stem] == 1  # there may be x.jpg and x.png
        write_picture(page, folder / f"{Path(name).stem if alone else name}.jpg")

    return draw
