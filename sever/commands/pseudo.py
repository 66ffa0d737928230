"""`sever pseudo`: unlabelled images -> pseudo-labels."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sever.config.build import class_ids_of
from sever.config.load import LoadedConfig
from sever.config.loader_args import images_folder, input_paths
from sever.config.request import Request
from sever.data_loader.annotations import read_table
from sever.data_loader.image_files import find_images, folders_of
from sever.ensemble_evaluation import device_of
from sever.factory import postprocess_of, prediction_loader
from sever.parallel import collectives
from sever.predictor.pseudo_labels import DISAGREE, MISSED, UNSURE, Rules, write_pseudo_labels
from sever.trained_models import load_ensemble
from sever.utils.errors import ConfigError, DataError
from sever.utils.files import atomic_write
from sever.utils.logger import log_to_console, print_lines
from sever.utils.outputs import CSV, YAML, Output, check_outputs, has_line
from sever.utils.yaml_parser import dump_yaml

logger = logging.getLogger(__name__)

_RECORD = "checkpoints:"  # the first line of each record


def pseudo(request: Request, output: Path, images: Path | None, **options: Any) -> None:
    """Write the confident masks of unlabelled images, and beside them a `.yml` that says how they were made.

    The arguments are the options of `sever pseudo`; `options` are those of `Rules`.
    """
    log_to_console()
    rules = Rules(**options)
    record = output.with_suffix(".yml")
    ensemble = load_ensemble(request)
    config = ensemble.config
    outputs = [
        Output("-o", output, CSV, may_replace=lambda _: record.is_file() and has_line(record, _RECORD)),
        Output("-o, whose record is", record, YAML, may_replace=lambda path: has_line(path, _RECORD)),
    ]
    folder, names = find_images(images) if images else (images_folder(config), None)
    check_outputs(outputs, [*request.files, images, *folders_of(folder, names), *input_paths(config)])
    if not ensemble.lead.gives_masks:
        raise ConfigError("-r: pseudo-labels need a model that gives masks; classifiers can only gate them")
    class_ids = class_ids_of(config)
    device = device_of(request, config)
    training, training_images = _training_counts(config)
    predictor = ensemble.predictor(device, request.precision, keep_each=True)
    named_by = "-i" if images else "keys data_dir and predict.images"
    data_loader = prediction_loader(config, folder, names, device.type == "cuda", named_by)
    to_masks = postprocess_of(config.checked.predict)
    with atomic_write(output) as csv, atomic_write(record) as record_file:
        labels = write_pseudo_labels(predictor, data_loader, to_masks, rules, class_ids, csv)
        if not collectives.is_main():
            return
        if not labels.names:
            raise DataError(f"{folder}: no image is sure enough. {_cures(labels.rejected)}")
        made = {
            **ensemble.provenance,
            "precision": request.precision,
            "rules": vars(rules),
            "predict": config.checked.predict.postprocessing,
            "images": str(folder),
            "kept": len(labels.names),
            "left out": dict(labels.rejected),
            "masks": dict(zip(class_ids, labels.masks_per_class.tolist(), strict=True)),
            "names": labels.names,
        }
        record_file.write(dump_yaml(made).encode())
    print_lines(pseudo_table(made, training, training_images))
    logger.info("Wrote %s and %s", output, record)


_CURES = {DISAGREE: "lower --agreement", UNSURE: "lower --sure or --sure-share", MISSED: "raise --absent"}


def _cures(rejected: Mapping[str, int]) -> str:
    """How many images were rejected for each reason, and the option that would keep more."""
    told = [f"{reason} on {count}: {_CURES[reason]}" for reason, count in rejected.items()]
    return "; ".join(told) or "The folder holds no images"


def _training_counts(config: LoadedConfig) -> tuple[dict[str, int], int]:
    """The number of training images with each class, and of all; nothing if they are not there."""
    args = config.checked.data_loader.args
    data_dir = Path(str(args.get("data_dir", "")))
    csv, images = args.get("csv") or "train.csv", args.get("images") or "train_images"
    if not ((data_dir / csv).is_file() and (data_dir / images).is_dir()):
        return {}, 0
    table = read_table(data_dir, csv, images, len(class_ids_of(config)))
    return dict(zip(table.class_ids, table.present.sum(axis=0).tolist(), strict=True)), len(table)


def pseudo_table(made: Mapping[str, Any], training: Mapping[str, int], training_images: int) -> list[str]:
    """Lines with the number and share of images of each class, in the pseudo-labels and the training data.

    Args:
        made: record of the pseudo-labels with `kept`, `left out`, and `masks` by class.
        training: number of training images with each class; empty if unknown.
        training_images: number of all training images.
    """
    total = made["kept"] + sum(made["left out"].values())
    reasons = "".join(f"; {reason}: {count}" for reason, count in made["left out"].items())
    head = f"{'images with':12s}{'pseudo-labels':>20s}" + (f"{'training images':>20s}" if training else "")
    lines = [f"{made['kept']} of {total} images kept{reasons}", head]
    for class_id, count in made["masks"].items():
        line = f"{f'class {class_id}':12s}{count:11,}{count / made['kept']:9.2%}"
        if class_id in training:
            line += f"{training[class_id]:11,}{training[class_id] / training_images:9.2%}"
        lines.append(line)
    if not training:
        lines.append(
            "how many training images have each class is not known: their CSV or folder is not there"
        )
    return lines
