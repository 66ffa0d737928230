"""What every model has, and what it gives for a batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from typing_extensions import Self

from sever.parallel.device import autocast
from sever.utils.errors import CheckpointError, in_short


class MasksAndLabels(NamedTuple):
    """Outputs of a model with two heads, or their targets.

    Attributes:
        masks: (N, C, H, W) float: logits, probabilities or targets per pixel and class.
        labels: (N, C) float: the same per image and class.
    """

    masks: torch.Tensor
    labels: torch.Tensor


# What a model gives for a batch, or the targets of that.
Outputs = torch.Tensor | MasksAndLabels


def part_of(outputs: Any, on: str) -> Any:
    """The `masks` or the `labels` of a model with two heads; anything else, or `all`, as it is."""
    if isinstance(outputs, MasksAndLabels) and on != "all":
        return outputs.masks if on == "masks" else outputs.labels
    return outputs


def forward(model: Callable[..., Any], inputs: torch.Tensor, precision: str) -> Outputs:
    """What a model gives for a batch, in float32 whatever the precision it was computed in."""
    with autocast(inputs.device, precision):
        outputs = model(inputs)
    if isinstance(outputs, MasksAndLabels):
        return MasksAndLabels(*(of_kind.float() for of_kind in outputs))
    return outputs.float() if outputs.is_floating_point() else outputs


def finite_images(outputs: Outputs) -> torch.Tensor:
    """(N,) bool: the images of a batch for which all outputs are finite."""
    parts = outputs if isinstance(outputs, MasksAndLabels) else (outputs,)
    return torch.stack([part.isfinite().reshape(len(part), -1).all(dim=1) for part in parts]).all(dim=0)


def check_outputs_finite(finite: Sequence[bool], names: Sequence[str], model: str) -> None:
    """Raise a `CheckpointError` with the images of a batch for which a model's outputs are not finite.

    Args:
        finite: for each image of the batch, see `finite_images`.
        names: names of the images.
        model: the model's checkpoint, or several.
    """
    bad = [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]
    if bad:
        raise CheckpointError(
            f"{model}: its outputs are not finite for {in_short(bad)}. Take another "
            f"checkpoint; with --precision fp16, whose numbers overflow first, try fp32 or bf16"
        )


class BaseModel(nn.Module, ABC):
    """A model: implement `forward`.

    Attributes:
        output_kinds: what `forward` gives: `("masks",)`, `("labels",)` for a classifier, or both for
            `MasksAndLabels`. A model whose targets are something else keeps `("masks",)`.

    Example:
        class Threshold(BaseModel):
            def __init__(self, classes: int = 4) -> None:
                super().__init__()
                self.level = nn.Parameter(torch.zeros(1, classes, 1, 1))

            def forward(self, images):
                return images - self.level
    """

    output_kinds: tuple[str, ...] = ("masks",)
    _encoder_is_frozen: bool = False
    _thawed_with_encoder: tuple[str, ...] = ()  # names of the parameters that freezing stopped

    @abstractmethod
    def forward(self, images: torch.Tensor) -> Any:
        """Images (N, 1, H, W) float -> logits: (N, C, H, W), (N, C) for a classifier, or both."""

    def targets(self, masks: torch.Tensor) -> torch.Tensor | MasksAndLabels:
        """The targets of the outputs.

        Args:
            masks: what the loader gives: (N, C, H, W) in {0, 1} for a model of masks or labels.

        Returns:
            `masks` for `("masks",)`; for `("labels",)` labels (N, C) float32, 1 where the class has a
            pixel in the image; for both kinds both.
        """
        if "labels" not in self.output_kinds:
            return masks
        labels = (masks > 0).flatten(2).any(dim=2).float()
        return MasksAndLabels(masks, labels) if "masks" in self.output_kinds else labels

    def probabilities(self, outputs: Any) -> Any:
        """What `forward` returned as probabilities in [0, 1] of the same shape."""
        if isinstance(outputs, MasksAndLabels):
            return MasksAndLabels(outputs.masks.sigmoid(), outputs.labels.sigmoid())
        return outputs.sigmoid()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by the config's optimizer group: `encoder` is pretrained, `decoder` the rest.

        A model without an encoder has the one group `all`. Frozen parameters are among them.
        """
        return {"all": list(self.parameters())}

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Keep the encoder as it is, or let it learn again.

        A frozen encoder gets no gradients and stays in evaluation mode, so that the statistics of its
        BatchNorm layers stay too, also after `train()`. With `frozen` False, those parameters learn again
        that learned before.

        Raises:
            ValueError: the model has no parameter group `encoder`.
        """
        groups = self.parameter_groups()
        if "encoder" not in groups:
            raise ValueError(
                f"expected a model with an encoder to freeze, one whose parameter_groups() has 'encoder'; "
                f"received {type(self).__name__} with {', '.join(groups)}"
            )
        if frozen == self._encoder_is_frozen:
            return
        if frozen:
            encoder = {id(parameter) for parameter in groups["encoder"]}
            self._thawed_with_encoder = tuple(
                name for name, p in self.named_parameters() if id(p) in encoder and p.requires_grad
            )
        for name in self._thawed_with_encoder:
            self.get_parameter(name).requires_grad_(not frozen)
        self._encoder_is_frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all layers except a frozen encoder's."""
        super().train(mode)
        if self._encoder_is_frozen:
            for module in self._encoder_modules():
                module.training = False
        return self

    def _encoder_modules(self) -> Iterator[nn.Module]:
        """The modules whose parameters all belong to the encoder, with their submodules."""
        encoder = {id(parameter) for parameter in self.parameter_groups()["encoder"]}
        for module in self.modules():
            held = {id(parameter) for parameter in module.parameters()}
            if held and held <= encoder:
                yield from module.modules()

    def parameter_count(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def __str__(self) -> str:
        """The layers, and below them the number of trainable parameters."""
        return f"{super().__str__()}\nTrainable parameters: {self.parameter_count():,}"
