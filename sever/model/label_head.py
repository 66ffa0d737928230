"""The settings of a head that tells which classes an image has: a classifier's, or the second of two."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from sever.config.schema import Classes
from sever.utils.errors import ConfigError

Pooling = Literal["avg", "max"]
Dropout = Annotated[float, Field(ge=0, lt=1)]

DROPOUT = 0.2
POOLING: Pooling = "avg"


@with_config(ConfigDict(extra="forbid"))
class AuxiliaryHead(TypedDict, total=False):
    """The settings of `aux_params`: SMP's for a classification head, with as many classes as the masks."""

    classes: Classes
    pooling: Pooling
    dropout: Dropout


def auxiliary_head(aux_params: AuxiliaryHead | None, classes: int) -> dict[str, Any] | None:
    """The settings of SMP's auxiliary head, which has a label for each of the `classes` of masks.

    Raises:
        ConfigError: `aux_params` asks for another number of classes.
    """
    if aux_params is None:
        return None
    settings = {"classes": classes, "pooling": POOLING, "dropout": DROPOUT, **aux_params}
    if settings["classes"] != classes:
        raise ConfigError(
            f"arch.args.aux_params.classes: expected {classes} as in arch.args.classes, since the labels are "
            f"those of the masks, received {settings['classes']}"
        )
    return settings
