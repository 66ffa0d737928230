"""Checkpoints -> the models of an ensemble, and the config that says what is done with them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sever.base import BaseModel
from sever.config.check import check_sections, class_ids_of, section_faults
from sever.config.load import LoadedConfig, load_config
from sever.config.registries import MODELS
from sever.config.request import Request
from sever.config.trust import Trust
from sever.engine.checkpoint import load_checkpoint
from sever.factory import augmentation_of, trained_model
from sever.predictor.ensemble import Member, RunningAverage, check_weights, flips_of
from sever.predictor.predictor import Predictor
from sever.utils.errors import ConfigError
from sever.utils.files import sha256_of
from sever.utils.yaml12 import parse_yaml

logger = logging.getLogger(__name__)

USED_TO_PREDICT = ("arch", "augmentation", "data_loader")
_OF_MODEL = ("arch", "augmentation")  # sections that belong to a model, whatever is done with it
_HEAVY = ("state_dict", "ema", "optimizer")  # what a checkpoint holds that may be gigabytes


@dataclass(frozen=True, eq=False)
class TrainedModel:
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
    def read(cls, path: Path, trust: Trust, used: Sequence[str]) -> "TrainedModel":
        """Read a checkpoint, and check the sections that make its model.

        Args:
            path: of the checkpoint.
            trust: what of the user's own code its config may name.
            used: the sections of its config that will be used.

        Raises:
            CheckpointError: it cannot be read.
            ConfigError: its config cannot be used.
        """
        state = load_checkpoint(path, lazily=True)
        config = trust.config_of(state, path, used)
        check_sections(config, _OF_MODEL)
        return cls(path, {key: value for key, value in state.items() if key not in _HEAVY}, config)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the model gives: `masks`, `labels` or both."""
        if "output_kinds" in self.state:
            return tuple(self.state["output_kinds"])
        model = MODELS.find(self.config.checked.arch.type, self.config.at("arch"))
        kinds = tuple(getattr(model, "output_kinds", ("masks",)))
        two_heads = self.config.checked.arch.args.get("aux_params") is not None
        return ("masks", "labels") if two_heads else kinds

    @property
    def gives_masks(self) -> bool:
        """Whether a submission can be made of what the model gives."""
        return "masks" in self.kinds and bool(class_ids_of(self.config))

    @property
    def validated_on(self) -> frozenset[str]:
        """The names of the images that the model was validated on."""
        return frozenset((self.state.get("split") or {}).get("validation", ()))

    def model(self) -> BaseModel:
        """The model with its weights, on the CPU."""
        state = load_checkpoint(self.path, lazily=True, check_sums=False)  # once for each chunk of sheets
        return trained_model(self.config, state, self.path)

    def member(self) -> Member:
        """The model with its own normalisation."""
        return Member(self.model(), augmentation_of(self.config).normalize)


@dataclass(frozen=True)
class Ensemble:
    """Models that predict together, and the config that says what is done with them.

    Attributes:
        config: of the data, `testing:`, `predict:`, loss and metrics.
        trained: one or more checkpoints.
        lead: the checkpoint that `config` is of: the first that gives masks. It need not be among `trained`.
        weights: of the models; None weighs them alike.
        average: see `RunningAverage`.
        tta: see `flips_of`.
    """

    config: LoadedConfig
    trained: tuple[TrainedModel, ...]
    lead: TrainedModel
    weights: tuple[float, ...] | None = None
    average: str = "mean"
    tta: str = "none"

    @property
    def kinds(self) -> frozenset[str]:
        """What the models give together: `masks`, `labels` or both."""
        return frozenset(kind for one in self.trained for kind in one.kinds)

    @property
    def gives_masks(self) -> bool:
        """Whether a submission can be made of its predictions."""
        return self.lead.gives_masks

    @property
    def provenance(self) -> dict[str, Any]:
        """What identifies the ensemble, as plain values: the digests of its checkpoints and its options."""
        return {
            "checkpoints": {str(one.path): f"sha256 {sha256_of(one.path)}" for one in self.trained},
            "average": self.average,
            "weights": list(self.weights) if self.weights else None,
            "tta": self.tta,
        }

    @property
    def counted(self) -> "Ensemble":
        """The same without the models whose weight is 0."""
        return self.part([one for one, weight in zip(self.trained, self._weights, strict=True) if weight])

    @property
    def folds(self) -> list["Ensemble"]:
        """The models that were validated on the same images, together, for each such set of images."""
        names = dict.fromkeys(one.validated_on for one in self.trained)
        return [self.part([one for one in self.trained if one.validated_on == held]) for held in names]

    def part(self, trained: Sequence[TrainedModel]) -> "Ensemble":
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

    def predictor(self, device: torch.device, precision: str, **options: bool) -> Predictor:
        """What predicts with the models, which are read when they are needed; see `Predictor`."""
        return Predictor(
            [one.member for one in self.trained],
            device,
            weights=self.weights,
            average=self.average,
            tta=self.tta,
            precision=precision,
            **options,
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
    own = load_config(request.config, request.overrides, section_faults) if request.config else None
    trust = Trust.given(request.trust, request.overrides, own)
    of_stored = _OF_MODEL if own else used
    trained = tuple(TrainedModel.read(path, trust, of_stored) for path in request.checkpoints)
    _check_classes(trained)
    lead = next((one for one in trained if one.gives_masks), trained[0])
    config = _config_of(request, own, lead, len(trained))
    check_sections(config, used)
    if class_ids_of(config) != class_ids_of(lead.config):
        raise ConfigError(
            f"{config.at('arch.args.classes')}: expected {len(class_ids_of(lead.config))} as in "
            f"{lead.path}, received {len(class_ids_of(config))}"
        )
    if len(trained) == 1:
        lead = replace(lead, config=config)
        trained = (lead,)
    ensemble = Ensemble(config, trained, lead, request.weights, request.average, request.tta)
    ensemble.check()
    if request.settings:
        _check_provenance(ensemble, request.settings)
    return ensemble


def _check_options(request: Request) -> None:
    try:
        RunningAverage(request.average)
        flips_of(request.tta)
        check_weights(request.weights, len(request.checkpoints))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    paths = [path.resolve() for path in request.checkpoints]
    twice = [path for path, there in zip(request.checkpoints, paths, strict=True) if paths.count(there) > 1]
    if twice:
        raise ConfigError(f"-r {twice[0]}: is given twice; --weights gives a model more say")
    if len(paths) == 1 and (request.average != "mean" or request.weights):
        option = "--weights" if request.weights else f"--average {request.average}"
        raise ConfigError(f"{option}: is for several models (-r several times), and one is given")


def _config_of(request: Request, own: LoadedConfig | None, lead: TrainedModel, models: int) -> LoadedConfig:
    """The config of what is done with the models, with all that the user changes of it.

    Args:
        request: what the user asks for.
        own: the config that the user gives.
        lead: the checkpoint whose config is taken without one.
        models: how many there are.
    """
    if models > 1:
        of_models = [text for text in request.overrides if text.split("=")[0].split(".")[0] in _OF_MODEL]
        if of_models:
            raise ConfigError(f"-s {of_models[0]}: several models keep what they were trained with")
    config = own or lead.config
    if models > 1 and any(config.values.get(key) != lead.config.values.get(key) for key in _OF_MODEL):
        logger.info(
            "Of several models each keeps its own arch and augmentation: those of %s are not used.",
            request.config,
        )
    return _with_settings(config, request.settings).override(request.overrides)


def _check_classes(trained: Sequence[TrainedModel]) -> None:
    classes = {one.path: class_ids_of(one.config) for one in trained}
    if len({tuple(ids) for ids in classes.values()}) > 1:
        listed = "; ".join(f"{path} has {', '.join(ids) or 'none'}" for path, ids in classes.items())
        raise ConfigError(f"-r: the models of an ensemble must have the same classes: {listed}")


def _with_settings(config: LoadedConfig, path: Path | None) -> LoadedConfig:
    if path is None:
        return config
    predict = {**config.values.get("predict", {}), **_settings(path)["predict"]}
    return LoadedConfig({**config.values, "predict": predict}, f"{config.source}, {path}")


def _settings(path: Path) -> dict[str, Any]:
    """What `sever tune` wrote: `predict`, and maybe `tuned_for`."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--settings {path}: cannot be read: {reason}. sever tune writes one") from error
    sections = set(values) - {"tuned_for"} if isinstance(values, dict) else set()
    if sections != {"predict"} or not isinstance(values["predict"], dict):
        found = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise ConfigError(
            f"--settings {path}: expected a section 'predict:' with keys in it and nothing else, as sever "
            f"tune writes it, received {found}"
        )
    return values


def _check_provenance(ensemble: Ensemble, path: Path) -> None:
    """Warn where settings were chosen for other predictions than these."""
    tuned_for = _settings(path).get("tuned_for")
    if not isinstance(tuned_for, dict):
        return
    now = ensemble.provenance
    same = {key: tuned_for.get(key) == now[key] for key in ("average", "weights", "tta")}
    digests = tuned_for.get("checkpoints")
    same["checkpoints"] = isinstance(digests, dict) and list(digests.values()) == list(
        now["checkpoints"].values()
    )
    if not all(same.values()):
        differing = ", ".join(key for key, is_same in same.items() if not is_same)
        logger.warning(
            "--settings %s: was tuned for other %s; its values may not hold here.", path, differing
        )
