"""Reads checkpoints as an ensemble, with the config that says how it is used."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sever.base import BaseModel
from sever.config.build import class_ids_of
from sever.config.load import LoadedConfig, load_config
from sever.config.registry import MODELS
from sever.config.request import Request
from sever.config.section_checks import check_sections, section_faults
from sever.config.settings_file import check_tuned_for, read_settings
from sever.config.trust import Trust
from sever.engine.checkpoint import Identity, identity_of, load_checkpoint
from sever.factory import augmentation_of, trained_model
from sever.predictor.ensemble import Member, check_weights
from sever.predictor.predictor import Predictor
from sever.utils.errors import ConfigError
from sever.utils.files import sha256_of

logger = logging.getLogger(__name__)

USED_TO_PREDICT = ("arch", "augmentation", "data_loader")
_OF_MODEL = ("arch", "augmentation")  # sections that each model of an ensemble keeps
_HEAVY = ("state_dict", "ema", "optimizer")  # entries of a checkpoint that may take gigabytes


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A checkpoint with the config of its model.

    Attributes:
        path: path of the checkpoint.
        state: content of the checkpoint without weights and optimizer; `model` reads the weights.
        config: config of the model.
        checked: the file that was read, since another one may be put in its place.
    """

    path: Path
    state: dict[str, Any]
    config: LoadedConfig
    checked: Identity | None

    @classmethod
    def read(cls, path: Path, trust: Trust, used: Sequence[str]) -> "TrainedModel":
        """Read a checkpoint of whose config these sections will be used, and check those of the model."""
        checked = identity_of(path)
        state = load_checkpoint(path, lazily=True)
        config = trust.config_of(state, path, used)
        check_sections(config, _OF_MODEL)
        plain = {key: value for key, value in state.items() if key not in _HEAVY}
        return cls(path, plain, config, checked)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The model's outputs: `masks`, `labels` or both."""
        if "output_kinds" in self.state:
            return tuple(self.state["output_kinds"])
        model = MODELS.find(self.config.checked.arch.type, self.config.at("arch"))
        kinds = tuple(getattr(model, "output_kinds", ("masks",)))
        two_heads = self.config.checked.arch.args.get("aux_params") is not None
        return ("masks", "labels") if two_heads else kinds

    @property
    def gives_masks(self) -> bool:
        """Whether a submission can be made with the model."""
        return "masks" in self.kinds and bool(class_ids_of(self.config))

    @property
    def validated_on(self) -> frozenset[str]:
        """The names of the images that the model was validated on."""
        return frozenset((self.state.get("split") or {}).get("validation", ()))

    def model(self) -> BaseModel:
        """The model with its weights, on the CPU."""
        state = load_checkpoint(self.path, checked=self.checked)  # for each chunk of sheets, so without sums
        return trained_model(self.config, state, self.path)

    def member(self) -> Member:
        """The model with its own normalisation."""
        return Member(self.model(), augmentation_of(self.config).normalize, str(self.path))


@dataclass(frozen=True)
class Ensemble:
    """Models that predict together, and the config that says how their predictions are used.

    Attributes:
        config: config of the data, `testing:`, `predict:`, loss and metrics.
        trained: one or more models.
        weights: weights of the models, above 0.
        lead: the first model that gives masks, else the first; `config` is its config if none is given.
        average: see `RunningAverage`.
        tta: see `FLIPS`.
        left_out: models of weight 0.
    """

    config: LoadedConfig
    trained: tuple[TrainedModel, ...]
    weights: tuple[float, ...]
    lead: TrainedModel
    average: str = "mean"
    tta: str = "none"
    left_out: tuple[TrainedModel, ...] = ()

    @property
    def kinds(self) -> frozenset[str]:
        """The outputs of all models: `masks`, `labels` or both."""
        return frozenset(kind for one in self.trained for kind in one.kinds)

    def check_masks(self) -> None:
        """Raise a `ConfigError` unless a submission can be made with the models."""
        if not self.lead.gives_masks:
            raise ConfigError(f"{self.config.at('arch')}: {self.config.checked.arch.type} gives no masks")

    @property
    def provenance(self) -> dict[str, Any]:
        """The digests of the checkpoints and the options of the ensemble, as values for YAML."""
        return {
            "checkpoints": {str(one.path): f"sha256 {sha256_of(one.path)}" for one in self.trained},
            "average": self.average,
            "weights": list(self.weights) if len(set(self.weights)) > 1 else None,
            "tta": self.tta,
        }

    @property
    def folds(self) -> list["Ensemble"]:
        """An ensemble for each set of validation images, of the models that were validated on it."""
        members: dict[frozenset[str], list[tuple[TrainedModel, float]]] = {}
        for one, weight in zip(self.trained, self.weights, strict=True):
            members.setdefault(one.validated_on, []).append((one, weight))
        groups = [zip(*weighed, strict=True) for weighed in members.values()]
        return [replace(self, trained=trained, weights=weights) for trained, weights in groups]

    def predictor(self, device: torch.device, precision: str, **options: bool) -> Predictor:
        """A `Predictor` that reads the models when it needs them; the options are its own."""
        return Predictor(
            [one.member for one in self.trained],
            device,
            weights=self.weights,
            average=self.average,
            tta=self.tta,
            precision=precision,
            **options,
        )


def load_ensemble(request: Request, used: Sequence[str] = USED_TO_PREDICT) -> Ensemble:
    """Read the checkpoints of a request, but those of weight 0, and check the sections of its config.

    Raises:
        ConfigError: the config has mistakes, or the models do not go together or with the options.
        CheckpointError: a checkpoint cannot be read.
    """
    weights = _check_options(request)
    own = load_config(request.config, request.overrides, section_faults) if request.config else None
    trust = Trust.given(request.trust, request.overrides, own)
    of_stored = _OF_MODEL if own else used
    given = [TrainedModel.read(path, trust, of_stored) for path in request.checkpoints]
    _check_classes(given)
    trained = tuple(one for one, weight in zip(given, weights, strict=True) if weight)
    lead = next((one for one in trained if one.gives_masks), trained[0])
    settings = read_settings(request.settings) if request.settings else {}
    config = _config_of(request, own, lead, settings)
    check_sections(config, used)
    if class_ids_of(config) != class_ids_of(lead.config):
        raise ConfigError(
            f"{config.at('arch.args.classes')}: expected {len(class_ids_of(lead.config))} as in "
            f"{lead.path}, received {len(class_ids_of(config))}"
        )
    if len(given) == 1:
        lead = replace(lead, config=config)
        trained = (lead,)
    kept = tuple(weight for weight in weights if weight)
    left_out = tuple(one for one in given if one not in trained) if len(given) > 1 else ()
    ensemble = Ensemble(config, trained, kept, lead, request.average, request.tta, left_out)
    _check_kinds(ensemble, given)
    if request.settings and isinstance(settings.get("tuned_for"), dict):
        check_tuned_for(settings["tuned_for"], ensemble.provenance, request.settings)
    return ensemble


def _check_options(request: Request) -> tuple[float, ...]:
    """The weights of the models, once the options for several models are checked."""
    try:
        weights = check_weights(request.weights, len(request.checkpoints))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    paths = [path.resolve() for path in request.checkpoints]
    twice = [path for path, there in zip(request.checkpoints, paths, strict=True) if paths.count(there) > 1]
    if twice:
        raise ConfigError(f"-r {twice[0]}: is given twice; --weights gives a model more say")
    if len(paths) == 1 and (request.average != "mean" or request.weights):
        option = "--weights" if request.weights else f"--average {request.average}"
        raise ConfigError(f"{option}: is for several models (-r several times), and one is given")
    return weights


def _check_classes(given: Sequence[TrainedModel]) -> None:
    classes = {one.path: class_ids_of(one.config) for one in given}
    if len({tuple(ids) for ids in classes.values()}) > 1:
        listed = "; ".join(f"{path} has {', '.join(ids) or 'none'}" for path, ids in classes.items())
        raise ConfigError(f"-r: the models of an ensemble must have the same classes: {listed}")


def _check_kinds(ensemble: Ensemble, given: Sequence[TrainedModel]) -> None:
    for kind in sorted({kind for one in given for kind in one.kinds} - ensemble.kinds):
        giving = next(one.path for one in given if kind in one.kinds)
        raise ConfigError(f"--weights: expected one above 0 among the models that give {kind}: {giving}")
    if ensemble.config.checked.predict.has_gate and "labels" not in ensemble.kinds:
        raise ConfigError(
            f"{ensemble.config.at('predict')}: gate_threshold and gate_factor need a model of labels: add -r "
            f"with the checkpoint of a Classifier, or train with arch.args.aux_params"
        )


def _config_of(
    request: Request, own: LoadedConfig | None, lead: TrainedModel, settings: Mapping[str, Any]
) -> LoadedConfig:
    """The user's own config or the lead's, with the settings and overrides of the request."""
    config = own or lead.config
    if len(request.checkpoints) > 1:
        of_models = [text for text in request.overrides if text.split("=")[0].split(".")[0] in _OF_MODEL]
        if of_models:
            raise ConfigError(f"-s {of_models[0]}: several models keep what they were trained with")
        if any(config.values.get(key) != lead.config.values.get(key) for key in _OF_MODEL):
            logger.info(
                "Each of several models keeps its own arch and augmentation; those of %s are not used.",
                request.config,
            )
    if settings:
        predict = {**config.values.get("predict", {}), **settings["predict"]}
        source = f"{config.source}, {request.settings}"
        config = LoadedConfig({**config.values, "predict": predict}, source, files=config.files)
    return config.override(request.overrides)
