"""What an experiment file may hold: its sections, their keys, types and defaults."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

# Higher numbers overflow somewhere, fill the memory or seem to hang, and are never meant.
_MOST = 10**9
Count = Annotated[int, Field(ge=1, le=_MOST)]
CountFrom0 = Annotated[int, Field(ge=0, le=_MOST)]
# For constructors, which say themselves what is too low.
BatchSize = Annotated[int, Field(le=2**16)]
Workers = Annotated[int, Field(le=1024)]
Side = Annotated[int, Field(le=2**14)]  # of a crop, in pixels
MOST_CLASSES = 1000  # each is a mask of its own in memory
Classes = Annotated[int, Field(ge=1, le=MOST_CLASSES)]
Folds = Annotated[int, Field(le=1000)]  # --all-folds trains each


class Section(BaseModel):
    """`type` + `args`, or a bare name where there are no args."""

    model_config = _STRICT
    type: str
    args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, node: object) -> object:
        if isinstance(node, str):
            return {"type": node}
        return {**node, "args": {}} if isinstance(node, dict) and node.get("args", 0) is None else node


class _AnySection(Section):
    """A section of any kind, without what stands beside `type` and `args`."""

    model_config = ConfigDict(extra="ignore", strict=True)


def read_section(node: object) -> Section:
    """A section of any kind from its plain value.

    Raises:
        pydantic.ValidationError: it is neither a name nor `type` and `args`.
    """
    return _AnySection.model_validate(node)


class Lookahead(BaseModel):
    """Slow weights that follow the optimizer's, https://arxiv.org/abs/1907.08610.

    Args:
        k: steps of the optimizer between two steps of the slow weights.
        alpha: how far a slow step goes towards the optimizer's weights.
    """

    model_config = _STRICT
    k: Count = 6
    alpha: float = Field(0.5, gt=0, le=1)


class OptimizerSection(Section):
    """An optimizer with settings of its own for the encoder and for all the rest (`decoder`).

    Args:
        encoder: options of the encoder's parameters, e.g. `lr`.
        decoder: options of all other parameters.
        decay_biases_and_norms: False takes biases and norms' parameters out of the weight decay.
        lookahead: put Lookahead around the optimizer.
    """

    encoder: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    decay_biases_and_norms: bool = True
    lookahead: Lookahead | None = None

    @model_validator(mode="after")
    def _both_groups(self) -> "OptimizerSection":
        if (self.encoder is None) != (self.decoder is None):
            raise ValueError("needs both 'encoder:' and 'decoder:', or neither")
        return self

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        """The options by the name of the group; none where all parameters share one."""
        groups = {"encoder": self.encoder, "decoder": self.decoder}
        return {name: options for name, options in groups.items() if options is not None}


class Warmup(BaseModel):
    """A linear rise of the rates over the first intervals of the schedule.

    Args:
        length: how many of the schedule's intervals the rise takes.
        start_factor: the share of the full rate at its beginning.
    """

    model_config = _STRICT
    length: Count
    start_factor: float = Field(0.01, gt=0, le=1)


class SchedulerSection(Section):
    """A learning-rate schedule.

    Args:
        interval: whether it moves on after each epoch or after each step of the optimizer.
        warmup: a linear rise at its beginning.
    """

    interval: Literal["epoch", "step"] = "epoch"
    warmup: Warmup | None = None


_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_FORM = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")


def seconds_of(text: object) -> float:
    """A length of time in seconds.

    Example:
        >>> seconds_of("8h50m"), seconds_of("90s"), seconds_of("1.5h")
        (31800.0, 90.0, 5400.0)

    Args:
        text: numbers with the units d, h, m and s, without spaces.

    Raises:
        ValueError: it has another form, or is 0.
    """
    if isinstance(text, str) and _FORM.fullmatch(text):
        parts = re.findall(r"([\d.]+)([dhms])", text)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        if seconds > 0:
            return float(seconds)
    raise ValueError("expected a length of time above 0 such as 8h50m, 45m or 90s")


_Duration = Annotated[float, BeforeValidator(seconds_of)]  # seconds


class LoopSettings(BaseModel):
    """How long to train, what to watch and what to keep: what every trainer obeys.

    Args:
        epochs: passes over the training images.
        early_stop: validations without improvement of `monitor` before the run ends; 0 is off.
        monitor: `min KEY` or `max KEY` of the log, or `off`.
        save_period: epochs between two checkpoints; the last and the best are always saved.
        keep_best: how many of the best epochs by `monitor` keep their checkpoints whatever `save_period`
            says, e.g. for `sever average`.
        keep_last: how many other checkpoints of epochs are kept, but at least two, since the newest may be
            one file with `checkpoint_last.pth`; None keeps all.
        save_every: time after which `checkpoint_last.pth` is written in the middle of an epoch too.
        max_time: time from the start of the command after which it stops as if it had been told to.
        sync_bn: with several GPUs, whether BatchNorm takes its statistics over the whole batch instead of
            each process's shard; by default where a shard has fewer than 8 images.
        tensorboard: write events for TensorBoard.
        verbose: 0 warnings only, 1 a line per epoch, 2 the progress bar too.
    """

    model_config = _STRICT
    epochs: Count
    early_stop: CountFrom0 = 0
    monitor: str = "off"
    save_period: Count = 1
    keep_best: CountFrom0 = 0
    keep_last: Count | None = None
    save_every: _Duration | None = None
    max_time: _Duration | None = None
    sync_bn: bool | None = None
    tensorboard: bool = True
    verbose: Literal[0, 1, 2] = 2

    @field_validator("monitor")
    @classmethod
    def _mode_and_key(cls, monitor: str) -> str:
        if monitor != "off" and not re.fullmatch(r"(min|max) \S+", monitor):
            raise ValueError("expected 'min KEY', 'max KEY' or 'off', e.g. 'max val_dice_mean'")
        return monitor


class Training(LoopSettings):
    """The whole of `training:`, with the settings of the training step, which `Trainer` obeys.

    A trainer not derived from it is refused where one of them is set. A resumed run keeps them, but for
    those in `CHANGEABLE`.

    Args:
        precision: of the forward pass: `bf16` and `fp16` compute in 16 bits where that is safe.
        accumulate: batches whose gradients are averaged for one step of the optimizer.
        clip_grad_norm: norm to which longer gradients are cut; None cuts none.
        ema_decay: of a moving average of the weights, which then is what is validated, tested and
            used to predict; None keeps none.
        unfreeze_encoder: epoch from which the encoder is trained; until then neither its weights nor
            its BatchNorm statistics move. 1 trains it from the start.
        skip_limit: steps in a row that may be skipped because loss or gradients are not finite.
        compile: whether the forward pass of training is compiled; `auto` compiles long runs on a GPU.
        memory_format: how the model's weights lie in memory; `auto` is `channels_last` on a GPU with `bf16`
            or `fp16`, else `contiguous`.
    """

    CHANGEABLE: ClassVar[frozenset[str]] = frozenset(("skip_limit", "compile", "memory_format"))

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: Count = 1
    clip_grad_norm: float | None = Field(None, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    unfreeze_encoder: Count = 1
    skip_limit: Count = 10
    compile: bool | Literal["auto"] = "auto"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"

    @classmethod
    def of_step(cls) -> list[str]:
        """The names of the settings of the training step."""
        return [name for name in cls.model_fields if name not in LoopSettings.model_fields]


_Number = TypeVar("_Number")
# One number, or one for each class; errors name the form that was given.
ONE, EACH = "[one]", "[each]"
_PerClass = Annotated[
    Annotated[_Number, Tag(ONE)] | Annotated[list[_Number], Tag(EACH)],
    Discriminator(lambda value: EACH if isinstance(value, list) else ONE),
]
_Share = _PerClass[Annotated[float, Field(ge=0, le=1)]]
_Pixels = _PerClass[CountFrom0]
_Radius = _PerClass[Annotated[int, Field(ge=0, le=100)]]  # one of 100 takes a tenth of a second
_Factor = _PerClass[Annotated[float, Field(ge=1, le=_MOST)]]


class Predict(BaseModel):
    """From probabilities to a submission.

    Args:
        images: folder of the images to predict, under `data_dir`.
        threshold: probability above which a pixel belongs to a class. This and all other numbers but the
            last two: one for all classes, or one per class.
        label_threshold: what the highest probability of a class on an image must exceed for its mask.
        min_area: pixels that a class must cover on an image to be kept.
        min_component: pixels that a connected component needs to be kept.
        fill_holes: pixels of the largest hole that is filled.
        dilate: radius in pixels by which masks grow.
        overlap: what becomes of pixels of several classes: `highest`, `dominant` or `keep`.
        gate_threshold: a classifier's probability below which a class is emptied.
        gate_factor: times `min_area` that a class needs whose probability is 0 for the classifier.
        batch_size: images in one forward pass; default that of `testing` or `data_loader`.
        num_workers: processes that read images; default that of `testing` or `data_loader` on a GPU, none
            on a CPU.
        class_names: what people call the classes, in tables and pictures; default `class 1` and so on.
        mm_per_pixel: the side of a pixel in millimetres, for tables of defects.
    """

    model_config = _STRICT
    images: str = "test_images"
    threshold: _Share = 0.5
    label_threshold: _Share = 0.0
    min_area: _Pixels = 0
    min_component: _Pixels = 0
    fill_holes: _Pixels = 0
    dilate: _Radius = 0
    overlap: Literal["highest", "dominant", "keep"] = "highest"
    gate_threshold: _Share = 0.0
    gate_factor: _Factor = 1.0
    batch_size: Annotated[BatchSize, Field(ge=1)] | None = None
    num_workers: Annotated[Workers, Field(ge=0)] | None = None
    class_names: list[str] | None = None
    mm_per_pixel: Annotated[float, Field(gt=0, le=1000)] | None = None

    @property
    def postprocessing(self) -> dict[str, Any]:
        """The settings that make masks out of probabilities, by name."""
        others = {"images", "batch_size", "num_workers", "class_names", "mm_per_pixel"}
        return self.model_dump(exclude=others)

    def names_of(self, class_ids: Sequence[str]) -> list[str]:
        """What people call the classes."""
        return self.class_names or [f"class {class_id}" for class_id in class_ids]

    @property
    def has_gate(self) -> bool:
        """Whether a classifier's labels are used."""
        none = {"gate_threshold": 0, "gate_factor": 1}
        chosen = {key: getattr(self, key) for key in none}
        return any({*(v if isinstance(v, list) else [v])} - {none[key]} for key, v in chosen.items())


class Testing(BaseModel):
    """The labelled images of `sever test`: arguments that replace those of `data_loader`."""

    model_config = ConfigDict(extra="allow", strict=True)
    verbose: Literal[0, 1, 2] = 2

    @property
    def loader_args(self) -> dict[str, Any]:
        """The arguments for the data loader."""
        return dict(self.model_extra or {})


class Config(BaseModel):
    """An experiment. Sections that are not named here are the user's own and reach the trainer."""

    model_config = ConfigDict(extra="allow", strict=True)
    name: str
    n_gpu: int = Field(1, ge=0)
    save_dir: str = "saved/"
    seed: int = Field(0, ge=0, lt=2**63)
    arch: Section
    augmentation: Section | None = None
    data_loader: Section
    loss: Section
    metrics: list[Section] = Field(default_factory=list)
    optimizer: OptimizerSection
    lr_scheduler: SchedulerSection | None = None
    trainer: Section = Section(type="Trainer")
    training: Training
    testing: Testing | None = None
    predict: Predict = Predict()

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str) -> str:
        if not name.strip() or name in (".", "..") or re.search(r"[/\\\0]", name):
            raise ValueError("is the name of a folder, so it cannot be empty or hold a slash")
        return name


def fields_at(path: list[str]) -> list[str]:
    """The known keys of the section that a path of keys leads to."""
    model: type[BaseModel] = Config
    for part in path:
        field = model.model_fields.get(part)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), Section)
    return ["data_dir", "csv", "images"] if model is Testing else list(model.model_fields)
