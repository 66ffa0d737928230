"""`sever predict`: images -> a submission, masks, probabilities, tables, pictures."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sever.config.build import class_ids_of
from sever.config.load import LoadedConfig
from sever.config.loader_args import images_folder, input_paths, testing_args
from sever.config.request import Request
from sever.data_loader.annotations import read_table
from sever.data_loader.image_files import find_images, folders_of, list_images
from sever.ensemble_evaluation import device_of
from sever.factory import postprocess_of, prediction_loader
from sever.parallel import collectives
from sever.predictor.overlays import file_stems, overlay_writer
from sever.predictor.result_files import (
    CocoTable,
    DefectsTable,
    OfImage,
    SubmissionTable,
    Table,
    mask_writer,
    predict_to_files,
    probability_writer,
)
from sever.predictor.submission.read import read_layout
from sever.predictor.submission.write import Layout
from sever.trained_models import load_ensemble
from sever.utils.errors import ConfigError, DataError, first_few
from sever.utils.logger import log_to_console
from sever.utils.outputs import CSV, JSON, PICTURES, Output, check_outputs

logger = logging.getLogger(__name__)

_KINDS = {
    **{"-o": CSV, "--defects": CSV + JSON, "--coco": JSON},
    **dict.fromkeys(("--overlays", "--masks", "--probabilities"), PICTURES),
}


def predict(
    request: Request,
    output: Path | None = None,
    images: Path | None = None,
    sample_submission: Path | None = None,
    overlays: Path | None = None,
    masks: Path | None = None,
    probabilities: Path | None = None,
    probability_type: str = "float16",
    defects: Path | None = None,
    coco: Path | None = None,
    skip_existing: bool = False,
    one_at_a_time: bool = False,
) -> None:
    """Write what is found on images; the arguments are the options of `sever predict`."""
    log_to_console()
    ensemble = load_ensemble(request)
    config = ensemble.config
    folders = _given({"--overlays": overlays, "--masks": masks, "--probabilities": probabilities})
    files = _given({"-o": output, "--defects": defects, "--coco": coco})
    if not (files or masks or probabilities or skip_existing):
        files = {"-o": Path("submission.csv")}
    folder, names = find_images(images) if images else (images_folder(config), None)
    read = [*request.files, sample_submission, images, *folders_of(folder, names), *input_paths(config)]
    outputs = [Output(option, path, _KINDS[option]) for option, path in (files | folders).items()]
    check_outputs(outputs, read)
    if skip_existing and (files or not folders):
        raise ConfigError(
            f"--skip-existing: is for --masks, --probabilities and --overlays, which have a file for each "
            f"image; leave {', '.join(files) or 'it'} out"
        )
    class_ids = class_ids_of(config)
    ensemble.check_masks()
    device = device_of(request, config)
    layout = read_layout(sample_submission, class_ids) if sample_submission else Layout()
    if sample_submission and names is not None:
        raise ConfigError("--sample-submission: names the images of a folder; give that with -i")
    named_by = "-i" if images else "keys data_dir and predict.images"
    names = names or _sampled(list_images(folder, named_by), layout.images, folder, named_by)
    stem_of = dict(zip(names, file_stems(names), strict=True))
    if skip_existing:
        names = _without_files(stem_of, folders.values())
        if not names:
            logger.info("All images have their files already")
            return
    data_loader = prediction_loader(config, folder, names, device.type == "cuda", named_by)
    stems = [stem_of[name] for name in names]
    counts = predict_to_files(
        ensemble.predictor(device, request.precision, at_once=not one_at_a_time),
        data_loader,
        postprocess_of(config.checked.predict),
        _tables(files, config, layout),
        _writers(folders, config, folder, names, stems, probability_type),
        "predict",
    )
    if collectives.is_main():
        found = ", ".join(f"class {i}: {n}" for i, n in zip(class_ids, counts, strict=True))
        rows = f"{len(names) * len(class_ids)} rows for " if "-o" in files else ""
        written = ", ".join(str(each.path) for each in outputs)
        logger.info("Wrote %s: %s%d images (%s)", written, rows, len(names), found)


def _sampled(present: list[str], sample: list[str] | None, folder: Path, named_by: str) -> list[str]:
    """The images of a sample submission, all in the folder; without a sample all images of the folder."""
    if absent := sorted(set(sample or ()) - set(present)):
        told = f"is not there; give its folder ({named_by})"
        raise DataError(*first_few([f"{folder}: image '{name}' {told}" for name in absent]))
    return present if sample is None else sample


def _given(paths: Mapping[str, Path | None]) -> dict[str, Path]:
    return {option: path for option, path in paths.items() if path}


def _tables(files: Mapping[str, Path], config: LoadedConfig, layout: Layout) -> list[Table]:
    """The files of all images, by option."""
    class_ids, settings = class_ids_of(config), config.checked.predict
    names = settings.names_of(class_ids)
    make: dict[str, Callable[[Path], Table]] = {
        "-o": lambda path: SubmissionTable(path, layout, class_ids),
        "--defects": lambda path: DefectsTable(path, class_ids, names, settings.mm_per_pixel),
        "--coco": lambda path: CocoTable(path, class_ids, names),
    }
    return [make[option](path) for option, path in files.items()]


def _writers(
    folders: Mapping[str, Path],
    config: LoadedConfig,
    images: Path,
    names: Sequence[str],
    stems: Sequence[str],
    kind: str,
) -> list[OfImage]:
    """What writes the files of each image, by option."""
    class_names = config.checked.predict.names_of(class_ids_of(config))
    make: dict[str, Callable[[Path], OfImage]] = {
        "--overlays": lambda path: overlay_writer(path, names, stems, _truth_of(config, images), class_names),
        "--masks": lambda path: mask_writer(path, stems),
        "--probabilities": lambda path: probability_writer(path, stems, kind),
    }
    return [make[option](path) for option, path in folders.items()]


def _without_files(stem_of: Mapping[str, str], folders: Iterable[Path]) -> list[str]:
    """The images that lack a file in one of the folders."""
    written = [{path.stem for path in folder.iterdir()} if folder.is_dir() else set() for folder in folders]
    return [name for name, stem in stem_of.items() if not all(stem in of_folder for of_folder in written)]


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
