"""`sever predict`: images -> a submission."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sever.config.build import class_ids_of
from sever.config.load import LoadedConfig
from sever.config.loader_args import images_folder, input_paths, testing_args
from sever.config.request import Request
from sever.data_loader.annotations import read_table
from sever.ensemble_evaluation import device_of
from sever.factory import postprocess_of, prediction_loader
from sever.predictor.overlays import overlay_writer
from sever.predictor.predictor import predict_to_submission
from sever.predictor.submission.read import read_layout
from sever.predictor.submission.write import Layout
from sever.trained_models import load_ensemble
from sever.utils.logger import log_to_console
from sever.utils.outputs import CSV, PICTURES, Output, check_outputs

logger = logging.getLogger(__name__)


def predict(
    request: Request,
    output: Path,
    images: Path | None = None,
    sample_submission: Path | None = None,
    overlays: Path | None = None,
    one_at_a_time: bool = False,
) -> None:
    """Write a submission and overlays; the arguments are the options of `sever predict`."""
    log_to_console()
    ensemble = load_ensemble(request)
    config = ensemble.config
    outputs = [Output("-o", output, CSV), *([Output("--overlays", overlays, PICTURES)] if overlays else [])]
    check_outputs(outputs, [*request.files, sample_submission, images, *input_paths(config)])
    class_ids = class_ids_of(config)
    ensemble.check_masks()
    device = device_of(request, config)
    layout = read_layout(sample_submission, class_ids) if sample_submission else Layout()
    folder = images or images_folder(config)
    named_by = "-i" if images else "keys data_dir and predict.images"
    data_loader = prediction_loader(config, folder, layout.images, device.type == "cuda", named_by)
    predictor = ensemble.predictor(device, request.precision, at_once=not one_at_a_time)
    draw = (
        overlay_writer(
            overlays,
            data_loader.names,
            _truth_of(config, folder),
            config.checked.predict.names_of(class_ids),
        )
        if overlays
        else None
    )
    to_masks = postprocess_of(config.checked.predict)
    counts = predict_to_submission(
        predictor, data_loader, to_masks, layout, class_ids, output, draw, "predict"
    )
    found = ", ".join(f"class {i}: {n}" for i, n in zip(class_ids, counts, strict=True))
    rows = len(data_loader.names) * len(class_ids)
    logger.info("Wrote %s: %d rows for %d images (%s)", output, rows, len(data_loader.names), found)
    if overlays:
        logger.info("Wrote pictures to %s", overlays)


def _truth_of(config: LoadedConfig, folder: Path) -> Callable[[str], np.ndarray | None]:
    """The true masks of an image in a folder by its name, if the config names a CSV for that folder."""
    classes = len(class_ids_of(config))
    for subset, args in (("train", config.checked.data_loader.args), ("test", testing_args(config))):
        data_dir = Path(str(args.get("data_dir", "")))
        images = args.get("images") or f"{subset}_images"
        csv = args.get("csv") or f"{subset}.csv"
        if (data_dir / images).resolve() == folder.resolve() and (data_dir / csv).is_file():
            table = read_table(data_dir, csv, images, classes)
            index_of = {name: index for index, name in enumerate(table.names)}
            return lambda name: table.masks(index_of[name]) if name in index_of else None
    return lambda name: None
