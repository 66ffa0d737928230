"""What a checkpoint may hold: types and bounds of its entries, checked before any of them is used."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
)

from sever.config.schema_messages import expected_by, shown

_DEEPEST = 60  # levels of lists and mappings
_MOST_VALUES = 10_000_000  # in a file
_MOST_IN_CONFIG = 100_000  # as in YAML
_TEXT_PER_VALUE = 100  # characters of a text that count as one value more
_LONGEST_INT = 1400  # bits; YAML reads no longer ones either


def check_extent(content: Any, most: int = _MOST_VALUES, device: str = "cpu") -> None:
    """Refuse values that take too long to walk through, and tensors that are larger than the file.

    Args:
        content: what a file of `torch.save` holds.
        most: number of values; a list or mapping counts each time that it is referred to.
        device: where all tensors must be.

    Raises:
        ValueError: says what is wrong, as the rest of a sentence about the file.
    """
    known: dict[int, tuple[int, int]] = {}  # what `extent` returned for each container so far, by id

    def extent(value: Any, depth: int = 0) -> tuple[int, int]:
        """The number of values and of levels in a value that lies at some depth."""
        if isinstance(value, str):
            return 1 + len(value) // _TEXT_PER_VALUE, 0
        if isinstance(value, int) and value.bit_length() > _LONGEST_INT:
            raise ValueError(f"holds a whole number of {value.bit_length():,} bits")
        if isinstance(value, torch.Tensor):
            _check_tensor(value, device)
        if not isinstance(value, dict | list | tuple):
            return 1, 0
        if depth > _DEEPEST:  # before Python's own limit
            raise ValueError(f"is nested deeper than {_DEEPEST} levels")
        if id(value) not in known:
            known[id(value)] = most, _DEEPEST  # if it holds itself
            size = levels = 1
            for part in (*value, *value.values()) if isinstance(value, dict) else value:
                more, below = extent(part, depth + 1)
                size, levels = size + more, max(levels, 1 + below)
                if size > most:
                    raise ValueError(f"holds more than {most:,} values, or refers to a list too often")
                if levels > _DEEPEST:
                    raise ValueError(f"is nested deeper than {_DEEPEST} levels")
            known[id(value)] = size, levels
        return known[id(value)]

    extent(content)


def _check_tensor(tensor: torch.Tensor, device: str) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        raise ValueError("holds a tensor that is sparse, nested or quantized")
    if tensor.device.type != device:
        raise ValueError("holds a tensor without numbers")
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        raise ValueError(f"holds a tensor of {size:,} bytes, most of which are not in the file")


def _must(is_right: Callable[[Any], bool], expected: str) -> Callable[[Any], Any]:
    """A validator that raises an error unless a fact is true."""

    def check(value: Any) -> Any:
        if not is_right(value):
            raise ValueError(f"expected {expected}")
        return value

    return check


def _plain_config(values: Any) -> Any:
    """Refuse what could not stand in a config file."""
    check_extent(values, _MOST_IN_CONFIG)
    left, seen = [values], set()
    while left:
        value = left.pop()
        if isinstance(value, str) and ("\0" in value or not _is_encodable(value)):
            raise ValueError(f"holds half a character or a NUL: {value[:40]!a}")
        if isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict) and not all(type(key) in (str, int) for key in value):
                raise ValueError("expected names as keys")
            left += [*value, *value.values()] if isinstance(value, dict) else value
        elif not isinstance(value, dict | list | str | int | float | None):
            raise ValueError(f"holds a {type(value).__name__}")
    return values


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_Name = Annotated[str, Field(max_length=1000)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Epoch = Annotated[int, Field(ge=0, le=10**9)]
# pydantic itself would take a tensor for a number.
_Number = Annotated[float, BeforeValidator(_must(lambda value: type(value) in (int, float), "a number"))]
_NotNan = Annotated[_Number, AfterValidator(_must(lambda number: not math.isnan(number), "no NaN"))]
_Finite = Annotated[_Number, AfterValidator(_must(math.isfinite, "a finite number"))]
_Weights = dict[_Name, torch.Tensor]
_Log = dict[_Name, _Number]
_Bytes = Annotated[
    torch.Tensor,
    AfterValidator(_must(lambda tensor: tensor.dtype == torch.uint8 and tensor.ndim == 1, "bytes")),
]
_SumAndCount = Annotated[
    torch.Tensor,
    AfterValidator(
        _must(
            lambda tensor: tensor.dtype == torch.float64 and tensor.shape == (2,),
            "a sum and a number of images, float64",
        )
    ),
]
_Words = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(max_length=625)]


class _Entries(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)


class _RandomStates(_Entries):
    """See `sever.utils.seed.random_states`."""

    torch: _Bytes
    cuda: _Bytes | None = None
    python: tuple[Literal[3], _Words, _Number | None] = Field(strict=False)  # a list does too
    numpy: tuple[
        Literal["MT19937"], _Words, Annotated[StrictInt, Field(ge=0, le=624)], Literal[0, 1], _Number
    ] = Field(strict=False)


class _Counted(_Entries):
    losses: dict[_Name, _SumAndCount]
    metrics: list[dict[str, Any]]


class _OfProcess(_Entries):
    random_states: _RandomStates | None = Field(None, description="states of random generators")
    counted: _Counted | None = Field(None, description="what was counted within the epoch")


class _Position(_Entries):
    model_config = ConfigDict(extra="forbid")
    batches: _Count = 0
    log: _Log | None = None


class _Monitor(_Entries):
    watched: _Name
    best: _NotNan
    without_improvement: _Count
    ranking: list[Annotated[tuple[_NotNan, Annotated[StrictInt, Field(ge=1)]], Field(strict=False)]] = Field(
        default_factory=list
    )


class _ParameterGroup(_Entries):
    params: list[_Count]


class _Optimizer(_Entries):
    state: dict[int | str, Any]
    param_groups: list[_ParameterGroup]


class _Scaler(_Entries):
    """Empty unless the precision is fp16."""

    scale: Annotated[_Finite, Field(gt=0)] = 1.0
    growth_factor: Annotated[_Finite, Field(gt=1)] = 2.0
    backoff_factor: Annotated[_Finite, Field(gt=0, lt=1)] = 0.5
    growth_interval: _Count = 1
    growth_tracker: _Count = Field(0, alias="_growth_tracker")


class _Split(_Entries):
    __pydantic_extra__: dict[str, list[str]] = Field(init=False)
    training: list[str]
    validation: list[str]


class _Checkpoint(_OfProcess):
    """The entries of every checkpoint; a trainer of the user's own may add some."""

    arch: _Name = Field(description="a name")
    config: Annotated[dict, BeforeValidator(_plain_config)] = Field(description="the config's plain values")
    state_dict: _Weights = Field(description="names with tensors")
    ema: _Weights | None = Field(None, description="names with tensors")
    epoch: _Epoch = Field(description="a number")
    optimizer: _Optimizer | None = Field(None, description="an optimizer's state")
    optimizer_type: _Name = Field("", description="a name")
    lr_scheduler: dict[str, Any] | None = Field(None, description="a schedule's state")
    scaler: _Scaler = Field(_Scaler(), description="a scaler's state")
    steps: _Count = Field(0, description="a number")
    skipped: _Count = Field(0, description="a number")
    position: _Position = Field(_Position(), description="a place in an epoch")
    monitor: _Monitor | None = Field(None, description="a monitor's state")
    monitor_best: _Number = Field(0, description="a number")
    kept_as_best: list[Annotated[int, Field(ge=1)]] = Field([], description="numbers of epochs")
    log: _Log = Field({}, description="names with numbers")
    other_processes: list[_OfProcess] = Field([], description="a list of states")
    split: _Split | None = Field(None, description="the names of training and validation images")
    output_kinds: Annotated[list[Literal["masks", "labels"]], Field(min_length=1)] = Field(
        ["masks"], description="'masks', 'labels' or both"
    )
    averaged: list[str] = Field([], description="the checkpoints that were averaged")
    saved_at: Annotated[_Finite, Field(ge=0)] = Field(0, description="a time")


def content_fault(content: Mapping[str, Any]) -> str | None:
    """The first entry of a checkpoint that is of another type or out of bounds, in words for the user."""
    try:
        _Checkpoint.model_validate(content)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
    else:
        return None
    key, *path = detail["loc"] or ("its keys",)
    field = _Checkpoint.model_fields.get(str(key))
    description = field.description if field else "names"
    received = "nothing" if detail["type"] == "missing" else _summary(detail["input"])
    at = f" at '{'.'.join(map(str, path))}'" if path else ""
    if detail["type"] == "value_error":
        why = f" ({detail['ctx']['error']})"
    else:
        why = "" if detail["type"] == "missing" else f" (should be {expected_by(detail)})"
    return f"expected {description} under '{key}', received {received}{at}{why}"


def _summary(value: object) -> str:
    is_short = value is None or isinstance(value, bool | int | float)
    return shown(value) if is_short else f"a {type(value).__name__}"
