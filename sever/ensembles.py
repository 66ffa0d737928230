"""Checkpoints -> the models of an ensemble, and the config that says what is done with them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sever.base import BaseModel, MasksAndLabels
from sever.base.outputs import part_of
from sever.building import augmentation_of, trained_model
from sever.checking import check_sections, class_ids_of, gives_masks, section_faults
from sever.data_loader.augmentation import Augmentation
from sever.predictor.ensemble import RunningAverage, check_weights, flips_of
from sever.predictor.predictor import Member
from sever.trainer.evaluation import forward
from sever.utils.checkpoint import load_checkpoint
from sever.utils.config import LoadedConfig, load_config
from sever.utils.errors import ConfigError
from sever.utils.request import Request
from sever.utils.yaml12 import parse_yaml

logger = logging.getLogger("sever.main")

USED_TO_PREDICT = ("arch", "augmentation", "data_loader")
_OF_MODEL = ("arch", "augmentation")  # sections that belong to a model, whatever is done with it
_HEAVY = ("state_dict", "ema", "optimizer")  # what a checkpoint holds that may be gigabytes


@dataclass(frozen=True, eq=False)
class Trained:
    """A checkpoint with the config of its model.

    Attributes:
        path: of the checkpoint.
        state: what it holds but for weights and optimizer, which are read again when they are needed.
        config: of the model.
    """

    path: Path
    state: dict[str, Any]
    config: LoadedConfig

    @classmethod
    def read(cls, path: Path) -> "Trained":
        """Read a checkpoint, and check the sections that make its model.

        Raises:
            CheckpointError: it cannot be read.
            ConfigError: its config cannot be used.
        """
        state = load_checkpoint(path)
        config = LoadedConfig(state["config"], f"{path} (its config)")
        check_sections(config, _OF_MODEL)
        return cls(path, {key: value for key, value in state.items() if key not in _HEAVY}, config)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the model gives: `masks`, `labels` or both."""
        if "output_kinds" in self.state:
            return tuple(self.state["output_kinds"])
        if not gives_masks(self.config):
            return ("labels",) if class_ids_of(self.config) else ("masks",)
        has_labels = self.config.checked.arch.args.get("aux_params") is not None
        return ("masks", "labels") if has_labels else ("masks",)

    @property
    def validated_on(self) -> frozenset[str]:
        """The names of the images that the model was validated on."""
        return frozenset((self.state.get("split") or {}).get("validation", ()))

    def model(self) -> BaseModel:
        """The model with its weights, on the CPU."""
        return trained_model(self.config, load_checkpoint(self.path), self.path)

    def member(self) -> Member:
        """The model with its own normalisation."""
        return Member(self.model(), augmentation_of(self.config).normalize)


@dataclass(frozen=True)
class Ensemble:
    """Models that predict together, and the config that says what is done with them.

    Attributes:
        config: of the data, `testing:`, `predict:`, loss and metrics.
        trained: one or more checkpoints; the first of those that give masks is the one that `config` is of.
        weights: of the models; None weighs them alike.
        average: see `RunningAverage`.
        tta: see `flips_of`.
    """

    config: LoadedConfig
    trained: tuple[Trained, ...]
    weights: tuple[float, ...] | None = None
    average: str = "mean"
    tta: str = "none"

    @property
    def lead(self) -> Trained:
        """The checkpoint whose config is used."""
        return _lead(self.trained)

    @property
    def kinds(self) -> frozenset[str]:
        """What the models give together: `masks`, `labels` or both."""
        return frozenset(kind for one in self.trained for kind in one.kinds)

    @property
    def gives_masks(self) -> bool:
        """Whether a submission can be made of its predictions."""
        return gives_masks(self.lead.config)

    @property
    def counted(self) -> "Ensemble":
        """The same without the models whose weight is 0."""
        return self.part([one for one, weight in zip(self.trained, self._weights, strict=True) if weight])

    @property
    def folds(self) -> list["Ensemble"]:
        """The models that were validated on the same images, together, for each such set of images."""
        names = dict.fromkeys(one.validated_on for one in self.trained)
        return [self.part([one for one in self.trained if one.validated_on == held]) for held in names]

    def part(self, trained: Sequence[Trained]) -> "Ensemble":
        """Some of the models, with their weights."""
        weights = tuple(w for one, w in zip(self.trained, self._weights, strict=True) if one in trained)
        return replace(self, trained=tuple(trained), weights=weights if self.weights else None)

    def check(self) -> None:
        """Refuse what gives no prediction.

        Raises:
            ConfigError: the weights leave nobody to say something, or a gate has no model of labels.
        """
        for kind in sorted(self.kinds - self.counted.kinds):
            giving = next(one.path for one in self.trained if kind in one.kinds)
            raise ConfigError(f"--weights: expected one above 0 among the models that give {kind}: {giving}")
        if self.config.checked.predict.has_gate and "labels" not in self.kinds:
            raise ConfigError(
                f"{self.config.at('predict')}: gate_threshold and gate_factor need a model of labels: add -r "
                f"with the checkpoint of a Classifier, or train with arch.args.aux_params"
            )

    @property
    def _weights(self) -> Sequence[float]:
        return self.weights or [1.0] * len(self.trained)


def load_ensemble(request: Request, used: Sequence[str] = USED_TO_PREDICT) -> Ensemble:
    """Read checkpoints and the config of what is done with them.

    Args:
        request: what the user asks for.
        used: the sections of the config that will be used, and are checked.

    Raises:
        ConfigError: with all mistakes of the config, or the classes of the models differ.
        CheckpointError: a checkpoint cannot be read.
    """
    _check_options(request)
    trained = tuple(map(Trained.read, request.checkpoints))
    _check_classes(trained)
    lead = _lead(trained)
    config = _config_of(request, lead, len(trained))
    check_sections(config, used)
    if class_ids_of(config) != class_ids_of(lead.config):
        raise ConfigError(
            f"{config.at('arch.args.classes')}: expected {len(class_ids_of(lead.config))} as in "
            f"{lead.path}, received {len(class_ids_of(config))}"
        )
    if len(trained) == 1:
        trained = (replace(lead, config=config),)
    ensemble = Ensemble(config, trained, request.weights, request.average, request.tta)
    ensemble.check()
    return ensemble


def _lead(trained: Sequence[Trained]) -> Trained:
    return next((one for one in trained if gives_masks(one.config)), trained[0])


def _check_options(request: Request) -> None:
    try:
        RunningAverage(request.average)
        flips_of(request.tta)
        check_weights(request.weights, len(request.checkpoints))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _config_of(request: Request, lead: Trained, models: int) -> LoadedConfig:
    """The config of what is done with the models, with all that the user changes of it."""
    if models > 1:
        of_models = [text for text in request.overrides if text.split("=")[0].split(".")[0] in _OF_MODEL]
        if of_models:
            raise ConfigError(f"-s {of_models[0]}: several models keep what they were trained with")
    config = lead.config
    if request.config:
        config = load_config(request.config, request.overrides, section_faults)
        if models > 1 and any(config.values.get(key) != lead.config.values.get(key) for key in _OF_MODEL):
            logger.info(
                "Of several models each keeps its own arch and augmentation: those of %s are not used.",
                request.config,
            )
    return _with_settings(config, request.settings).override(request.overrides)


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
        ensemble: whose checkpoints are read.
        precision: of each model's forward pass; the averages are float32.
    """

    def __init__(self, ensemble: Ensemble, precision: str = "fp32") -> None:
        super().__init__()
        self.members = [one.member() for one in ensemble.trained]
        self.models = torch.nn.ModuleList([member.model for member in self.members])  # to move them
        self.weights = check_weights(ensemble.weights, len(self.members))
        self.flips = flips_of(ensemble.tta)
        self.average = ensemble.average
        self.precision = precision
        kinds = [kind for member in self.members for kind in member.model.output_kinds]
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
                inputs = normalize(images.flip(axes) if axes else images)
                probs = model.probabilities(forward(model, inputs, self.precision))
                for kind in model.output_kinds:
                    part = part_of(probs, kind)
                    of_model[kind].add(part.flip(axes) if axes and kind == "masks" else part)
            for kind, of_kind in of_model.items():
                totals[kind].add(of_kind.result(), weight)
        logits = [torch.logit(totals[kind].result(), eps=1e-7) for kind in self.output_kinds]
        return logits[0] if len(logits) == 1 else MasksAndLabels(*logits)
