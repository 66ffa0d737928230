"""What a config says to its data loaders: arguments for training and testing, and the paths of the data."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sever.config.load import LoadedConfig

# Arguments of the loader that say how validation images are chosen, and how batches are drawn.
SPLIT_BY = ("validation_split", "folds", "fold", "groups")
DRAWN_BY = ("batch_size", "shuffle", "drop_last", "balance", "pseudo")
# Those that do not carry over to the one of `testing:`.
TRAINING_ONLY = (
    *("csv", "images", "shuffle", "drop_last", "balance", "pseudo"),
    *("validation_batch_size", *SPLIT_BY),
)


def testing_args(config: LoadedConfig) -> dict[str, Any]:
    """The arguments of the loader of `testing:`: its own over those of the training loader."""
    inherited = {
        name: value for name, value in config.checked.data_loader.args.items() if name not in TRAINING_ONLY
    }
    return inherited | (config.checked.testing.loader_args if config.checked.testing else {})


def input_paths(config: LoadedConfig) -> list[Path]:
    """The files that a config stands in, and the files and folders of its data."""
    paths = [*config.files, images_folder(config)]
    for subset, args in (("train", config.checked.data_loader.args), ("test", testing_args(config))):
        pseudo = args.get("pseudo")
        names = [args.get("csv") or f"{subset}.csv", args.get("images") or f"{subset}_images"]
        names += ["test_images"] if isinstance(pseudo, Mapping) else []
        texts = list(_texts_in(args))  # data_dir, and what a loader of one's own reads under it or not
        data_dir = Path(str(args.get("data_dir", "")))
        paths += [data_dir / name for name in (*names, *texts) if isinstance(name, str)]
        paths += map(Path, texts)
    return paths


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(part)


def images_folder(config: LoadedConfig) -> Path:
    """The folder of the images that `predict:` names."""
    return Path(str(testing_args(config).get("data_dir", "data"))) / config.checked.predict.images


def cache_folder(config: LoadedConfig) -> Path:
    """The folder of the decoded images that runs of a config share."""
    chosen = config.checked.data_loader.args.get("cache_dir")
    return Path(str(chosen)) if chosen else Path(config.checked.save_dir, "cache")
