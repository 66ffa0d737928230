"""`sever verify`: what is wrong with the data of a config, all of it at once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sever.config.build import bound_args, call, class_ids_of
from sever.config.load import LoadedConfig, load_config
from sever.config.loader_args import images_folder, input_paths, testing_args
from sever.config.registry import LOADERS
from sever.config.section_checks import check_sections, section_faults
from sever.data_loader.annotations import TableScan, scan_table
from sever.data_loader.data_faults import Fault
from sever.data_loader.data_loaders import SteelSegDataLoader, check_batches
from sever.data_loader.image_files import Damaged, list_images, scan_images
from sever.data_loader.training_data import TrainingScan, scan_training
from sever.data_loader.verify.copies import copies, leaks
from sever.data_loader.verify.images_and_masks import (
    InspectedSheets,
    absent_classes,
    inspect_sheets,
    odd_masks,
    odd_sizes,
)
from sever.data_loader.verify.report import Report, Subset, sizes_of
from sever.factory import augmentation_of, training_loader
from sever.parallel.device import choose_device
from sever.utils.errors import ConfigError, DataError, SeverError
from sever.utils.files import write_file
from sever.utils.logger import log_to_console, print_lines
from sever.utils.outputs import JSON, Output, check_outputs

_USED = ("arch", "augmentation", "data_loader")


def verify(config_path: Path, overrides: Sequence[str], output: Path | None, device: str = "cpu") -> bool:
    """Check the data of a config, and print what is wrong with them.

    Returns:
        Whether no command would fail at the data.
    """
    log_to_console()
    config = load_config(config_path, overrides, section_faults)
    check_sections(config, _USED)
    choose_device(device, n_gpu=0)
    if output:
        check_outputs([Output("--json", output, JSON)], input_paths(config))
    found = verified(config)
    print_lines(found.lines())
    if output:
        write_file(output, json.dumps(found.as_dict(), indent=2) + "\n")
    return found.accepted


def verified(config: LoadedConfig) -> Report:
    """Read all data of a config: masks, headers, and the pixels of labelled images.

    Raises:
        ConfigError: its data loader is not for sheets, or has arguments of wrong types.
    """
    loader = LOADERS.find(config.checked.data_loader.type, config.at("data_loader"))
    if not (isinstance(loader, type) and issubclass(loader, SteelSegDataLoader)):
        raise ConfigError(
            f"{config.at('data_loader.type')}: expected SteelSegDataLoader, whose files sever verify knows, "
            f"received {config.checked.data_loader.type}"
        )
    training, testing = _scan_training(config), _scan_testing(config)
    tables = {"training": training.labelled, "pseudo": training.pseudo, "testing": testing}
    scans = {name: scan for name, scan in tables.items() if scan is not None}
    faults = {name: list(scan.faults) for name, scan in scans.items()}
    seen: dict[str, InspectedSheets] = {}
    for name, scan in scans.items():
        seen[name], of_images = inspect_sheets(scan, f"{name} images")
        faults[name] += of_images + odd_sizes(scan.table) + odd_masks(scan, pseudo=name == "pseudo")
    if training.labelled.rows:
        faults["training"] += absent_classes(training.labelled)
    of_batches = _batch_faults(config, training)
    faults["training"] += of_batches
    split = None
    if not any(fault.is_error for fault in training.faults + of_batches):  # which stop the loader
        split = _split(config, faults["training"])
    _compare(seen, split, faults)
    commands = {"training": "sever train", "pseudo": "sever train", "testing": "sever test"}
    subsets = [Subset.of_scan(name, commands[name], scan, faults[name]) for name, scan in scans.items()]
    predict = _predict_subset(config, {subset.folder for subset in subsets if subset.name != "pseudo"})
    return Report(config.source, subsets + predict, split is not None)


def _scan_training(config: LoadedConfig) -> TrainingScan:
    section, where = config.checked.data_loader, config.at("data_loader")
    args = bound_args(LOADERS, section, where)
    files = {name: args[name] for name in ("data_dir", "csv", "images", "groups", "pseudo", "damaged")}
    return call(scan_training, where, section.type, classes=len(class_ids_of(config)), **files)


def _scan_testing(config: LoadedConfig) -> TableScan | None:
    """The labelled images of `testing:`; None without that section."""
    if config.checked.testing is None:
        return None
    args = testing_args(config)
    files = args["data_dir"], args.get("csv") or "test.csv", args.get("images") or "test_images"
    where, classes = config.at("testing"), len(class_ids_of(config))
    scan: TableScan = call(scan_table, where, "it", *files, classes, damaged=_damaged(args))
    named = {"data_dir", "csv", "images"} & set(config.checked.testing.loader_args)
    # Images that the config does not name may be missing: today's Severstal has no test.csv.
    if not named and not (scan.csv.is_file() and scan.table.folder.is_dir()):
        absent = [fault for fault in scan.faults if fault.sort in ("no_folder", "no_csv")]
        return replace(scan, faults=[replace(fault, sort="not_there") for fault in absent])
    return scan


def _damaged(args: Mapping[str, Any]) -> Damaged:
    """What the arguments of a loader say of damaged images."""
    return "warn" if args.get("damaged") == "warn" else "error"


def _batch_faults(config: LoadedConfig, training: TrainingScan) -> list[Fault]:
    """Whether the images that could be read make batches."""
    args = bound_args(LOADERS, config.checked.data_loader, config.at("data_loader"))
    tables = [scan.table for scan in (training.labelled, training.pseudo) if scan]
    try:
        check_batches(tables, augmentation_of(config), args["batch_size"])
    except DataError as error:
        return [Fault.of_error("batches", config.at("data_loader"), error)]
    return []


def _split(config: LoadedConfig, faults: list[Fault]) -> dict[str, list[str]] | None:
    """The names of the images to train and validate on; None where the loader cannot be built or split."""
    try:
        loader = training_loader(config, torch.device("cpu"))
        loader.split_validation()
    except SeverError as error:
        faults.append(Fault.of_error("loader", config.source, error))
        return None
    return loader.split


def _compare(
    seen: dict[str, InspectedSheets], split: dict[str, list[str]] | None, faults: dict[str, list[Fault]]
) -> None:
    """Look for images that come twice, and for held-out ones that are trained on."""
    for_training = [seen[name] for name in ("training", "pseudo") if name in seen]
    for names in (("training", "pseudo"), ("testing",)):
        present = [name for name in names if name in seen]
        for name, found in zip(present, copies([seen[name] for name in present]), strict=True):
            faults[name] += found
    if "testing" in seen:
        cure = "Its score says too much; take one of the two out."
        faults["testing"] += leaks(seen["testing"], for_training, "testing_copy", cure)
    if split is not None:
        trained_on = [seen["training"].of(set(split["training"])), *for_training[1:]]
        held_out = seen["training"].of(set(split["validation"]))
        cure = "Its score says too much; give both one GroupId (data_loader.args.groups)."
        faults["training"] += leaks(held_out, trained_on, "validation_copy", cure)


def _predict_subset(config: LoadedConfig, scanned: set[str]) -> list[Subset]:
    """The images to predict; none where their folder is among the scanned ones."""
    folder = images_folder(config)
    if str(folder) in scanned:
        return []
    names: list[str] = []
    shapes = np.zeros((0, 2), np.int64)
    faults: list[Fault] = []
    try:
        names = list_images(folder, "keys data_dir and predict.images")
        shapes, faults = scan_images(folder, names, _damaged(testing_args(config)))
    except DataError as error:
        sort = "no_folder" if "images" in config.checked.predict.model_fields_set else "not_there"
        faults.append(Fault.of_error(sort, folder, error))
    sizes = sizes_of(shapes.tolist())
    return [Subset("predict", "sever predict", str(folder), None, len(names), 0, sizes, {}, faults)]
