"""Checkpoints -> the models of an ensemble, and the config that says what is done with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sever.base import BaseDataLoader, BaseModel, MasksAndLabels
from sever.building import augmentation_of, trained_model
from sever.checking import check_sections, class_ids_of, gives_masks, section_faults
from sever.data_loader.augmentation import Augmentation
from sever.predictor.ensemble import RunningAverage, check_weights, flips_of
from sever.predictor.predictor import Member
from sever.utils.checkpoint import load_checkpoint
from sever.utils.config import LoadedConfig, load_config
from sever.utils.errors import ConfigError
from sever.utils.yaml12 import parse_yaml

USED_TO_PREDICT = ("arch", "augmentation", "data_loader")


@dataclass(frozen=True)
class Options:
    """How the models of an ensemble are put together.

    Attributes:
        average: `mean`, `rms`, `geometric`, `max` or `vote`.
        weights: of the models; None weighs them alike.
        tta: `none`, `hflip`, `vflip` or `both`.
    """

    average: str = "mean"
    weights: tuple[float, ...] | None = None
    tta: str = "none"

    def check(self, models: int) -> None:
        """Refuse what makes no ensemble of so many models.

        Raises:
            ConfigError: with the name of the option.
        """
        try:
            RunningAverage(self.average)
            flips_of(self.tta)
            check_weights(self.weights, models)
        except ValueError as error:
            raise ConfigError(str(error)) from error


@dataclass(frozen=True)
class Trained:
    """A checkpoint with the config of its model."""

    path: Path
    state: dict[str, Any]
    config: LoadedConfig

    @property
    def model_kinds(self) -> tuple[str, ...]:
        """What the model gives: `masks`, `labels` or both."""
        if not gives_masks(self.config):
            return ("labels",) if class_ids_of(self.config) else ("masks",)
        has_labels = self.config.checked.arch.args.get("aux_params") is not None
        return ("masks", "labels") if has_labels else ("masks",)

    def model(self) -> BaseModel:
        """The model with its weights, on the CPU."""
        return trained_model(self.config, self.state, self.path)

    def member(self) -> Member:
        """The model with its own normalisation."""
        return Member(self.model(), augmentation_of(self.config).normalize)


@dataclass(frozen=True)
class Ensemble:
    """Checkpoints, and the config that says what is done with them.

    Attributes:
        config: of the data, `testing:`, `predict:`, loss and metrics.
        trained: one or more checkpoints; the first of those that give masks is the one that `config` is of.
    """

    config: LoadedConfig
    trained: tuple[Trained, ...]

    @property
    def lead(self) -> Trained:
        """The checkpoint whose config is used."""
        return next((one for one in self.trained if gives_masks(one.config)), self.trained[0])

    @property
    def gives_masks(self) -> bool:
        """Whether a submission can be made of its predictions."""
        return gives_masks(self.lead.config)


def load_ensemble(
    checkpoints: Sequence[Path],
    config_path: Path | None,
    settings_path: Path | None,
    overrides: Sequence[str],
    options: Options,
    used: Sequence[str] = USED_TO_PREDICT,
) -> Ensemble:
    """Read checkpoints and the config of what is done with them.

    Args:
        checkpoints: files.
        config_path: takes the place of the checkpoint's config; of several checkpoints each keeps its model
            and normalisation.
        settings_path: YAML with a `predict:` section, as `sever tune` writes it, merged over the config.
        overrides: `KEY=VALUE`.
        options: how the models are put together.
        used: the sections of the config that will be used, and are checked.

    Raises:
        ConfigError: with all mistakes of the config, or the classes of the models differ.
        CheckpointError: a checkpoint cannot be read.
    """
    options.check(len(checkpoints))
    states = [load_checkpoint(path) for path in checkpoints]
    stored = [
        LoadedConfig(state["config"], f"{path} (its config)")
        for state, path in zip(states, checkpoints, strict=True)
    ]
    if len(stored) > 1:
        of_models = [
            text for text in overrides if text.split("=")[0].split(".")[0] in ("arch", "augmentation")
        ]
        if of_models:
            raise ConfigError(f"-s {of_models[0]}: several models keep what they were trained with")
    trained = tuple(map(Trained, checkpoints, states, stored))
    for one in trained:
        check_sections(one.config, ("arch", "augmentation"))
    _check_classes(trained)
    lead = Ensemble(stored[0], trained).lead
    config = load_config(config_path, overrides, section_faults) if config_path else lead.config
    config = _with_settings(config, settings_path).override(overrides)
    check_sections(config, used)
    if class_ids_of(config) != class_ids_of(lead.config):
        raise ConfigError(
            f"{config.source}: arch.args.classes: expected {len(class_ids_of(lead.config))} as in "
            f"{lead.path}, received {len(class_ids_of(config))}"
        )
    if len(trained) == 1:
        trained = (Trained(lead.path, lead.state, config),)
    ensemble = Ensemble(config, trained)
    counted = [
        one for one, weight in zip(trained, options.weights or [1] * len(trained), strict=True) if weight
    ]
    for kind in ("masks", "labels"):
        giving = [one.path for one in trained if kind in one.model_kinds]
        if giving and not any(kind in one.model_kinds for one in counted):
            raise ConfigError(
                f"--weights: expected one above 0 among the models that give {kind}: {giving[0]}"
            )
    if config.checked.predict.has_gate and all("labels" not in one.model_kinds for one in trained):
        raise ConfigError(
            f"{config.source}: predict: gate_threshold and gate_factor need a model of labels: add -r with "
            f"the checkpoint of a Classifier, or train with arch.args.aux_params"
        )
    return ensemble


def _check_classes(trained: Sequence[Trained]) -> None:
    classes = {one.path: class_ids_of(one.config) for one in trained}
    if len({tuple(ids) for ids in classes.values()}) > 1:
        listed = "; ".join(f"{path} has {', '.join(ids) or 'none'}" for path, ids in classes.items())
        raise ConfigError(f"-r: the models of an ensemble must have the same classes: {listed}")


def _with_settings(config: LoadedConfig, path: Path | None) -> LoadedConfig:
    if path is None:
        return config
    try:
        values = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--settings {path}: cannot be read: {reason}. sever tune writes one") from error
    if not isinstance(values, dict) or set(values) != {"predict"} or not isinstance(values["predict"], dict):
        found = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise ConfigError(
            f"--settings {path}: expected a section 'predict:' with keys in it and nothing else, as sever "
            f"tune writes it, received {found}"
        )
    predict = {**config.values.get("predict", {}), **values["predict"]}
    return LoadedConfig({**config.values, "predict": predict}, f"{config.source}, {path}")


class AveragedModel(BaseModel):
    """The models of an ensemble as one, on grey levels that are not normalised yet.

    Args:
        members: of the ensemble.
        options: how they are put together.
    """

    def __init__(self, members: Sequence[Member], options: Options) -> None:
        super().__init__()
        self.members = list(members)
        self.models = torch.nn.ModuleList([member.model for member in members])  # to move them
        self.weights = check_weights(options.weights, len(members))
        self.flips = flips_of(options.tta)
        self.average = options.average
        kinds = [kind for member in members for kind in member.model.output_kinds]
        self.output_kinds = tuple(dict.fromkeys(sorted(kinds, reverse=True)))  # masks before labels

    @property
    def grey_levels(self) -> Augmentation:
        """For a loader: gives images as the grey levels 0 to 255 that `forward` takes."""
        return Augmentation([], mean=0.0, std=1 / 255)

    def forward(self, images: torch.Tensor) -> torch.Tensor | MasksAndLabels:
        """Grey levels (N, 1, H, W) float in [0, 255] -> the logits of the averaged probabilities."""
        totals = {kind: RunningAverage(self.average) for kind in self.output_kinds}
        for member, weight in zip(self.members, self.weights, strict=True):
            model, normalize = member.model, member.normalize
            of_model = {kind: RunningAverage() for kind in model.output_kinds}
            for axes in self.flips:
                outputs = model(normalize(images.flip(axes) if axes else images))
                probs = model.probabilities(outputs)
                for kind in model.output_kinds:
                    part = getattr(probs, kind) if isinstance(probs, MasksAndLabels) else probs
                    of_model[kind].add(part.flip(axes) if axes and kind == "masks" else part)
            for kind, of_kind in of_model.items():
                totals[kind].add(of_kind.result(), weight)
        logits = [torch.logit(totals[kind].result(), eps=1e-7) for kind in self.output_kinds]
        return logits[0] if len(logits) == 1 else MasksAndLabels(*logits)


def on_grey_levels(data_loader: BaseDataLoader, model: AveragedModel) -> BaseDataLoader:
    """A loader of sheets whose images come as an `AveragedModel` takes them."""
    data_loader.augmentation = model.grey_levels
    return data_loader
