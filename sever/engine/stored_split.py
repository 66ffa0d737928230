"""The split that a run and its checkpoints store, which a resume or a warm start uses again."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from sever.config.load import LoadedConfig
from sever.config.schema import read_section
from sever.utils.errors import DataError, in_short

logger = logging.getLogger(__name__)

Split = dict[str, list[str]]  # names of images under `training` and `validation`


def split_to_use(
    config: LoadedConfig,
    state: dict[str, Any] | None,
    resume: bool,
    sample_names: Sequence[str],
    is_split: bool,
) -> Split | None:
    """The checkpoint's split; None to split anew, as for a warm start with other images or settings."""
    split = state.get("split") if state else None
    if split is None or not state or resume:
        return split
    named = {name for names in split.values() for name in names}
    same_images = is_split and named == set(sample_names)
    with suppress(ValidationError):  # of a config that this version cannot read
        before = _split_settings(read_section(state["config"].get("data_loader")).args)
        if same_images and before == _split_settings(config.checked.data_loader.args):
            return split
    logger.warning(
        "The validation images are chosen anew, since the images or the way to choose them differ from "
        "the checkpoint's run: its model may have been trained on some of them."
    )
    return None


def _split_settings(args: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a loader that decide which images are validated, with their defaults."""
    folds, share = args.get("folds"), args.get("validation_split")
    if share is None and folds is None:
        share = 0.2
    return share, folds, args.get("fold") or (folds and 1), args.get("groups")


def indices_of(split: Split, sample_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the training and the validation samples of a split.

    Raises:
        DataError: it names other samples than there are, or one for both.
    """
    index_of = {name: index for index, name in enumerate(sample_names)}
    named = {name for names in split.values() for name in names}
    gone, new = sorted(named - set(index_of)), sorted(set(index_of) - named)
    if gone:
        raise DataError(
            f"the data set does not hold any more what the run's split names: {in_short(gone)}; put the data "
            f"back, or start a new run"
        )
    if new:
        raise DataError(
            f"the data set holds what the run's split does not name: {in_short(new)}; take it out, or start "
            f"a new run"
        )
    both = sorted(set(split["training"]) & set(split["validation"]))
    if both:
        raise DataError(
            f"the run's split names for training and for validation: {in_short(both)}; take an unchanged "
            f"checkpoint, or start a new run"
        )
    subsets = (split["training"], split["validation"])
    training, validation = (np.array([index_of[name] for name in names], np.int64) for names in subsets)
    return training, validation


def split_csv(split: Mapping[str, Sequence[str]] | None) -> str:
    """A split as CSV: which image went where.

    Example:
        >>> print(split_csv({"training": ["a.jpg"], "validation": ["b.jpg"]}))
        image,split
        a.jpg,training
        b.jpg,validation
        <BLANKLINE>
    """
    rows = [(name, part) for part, names in (split or {}).items() for name in names]
    return pd.DataFrame(rows, columns=["image", "split"]).to_csv(index=False, lineterminator="\n")
