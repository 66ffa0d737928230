"""Models: SMP's architectures behind `BaseModel`, and the template's LeNet."""

import inspect
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F

from sever.base import BaseModel
from sever.model import encoder_weights as pretrained
from sever.utils.errors import ConfigError
from sever.utils.logger import set_verbosity
from sever.utils.registry import Registry

MODELS = Registry("arch", base=BaseModel)

# Of SMP's own arguments these have no place here: models give logits, for masks alone.
_NOT_TAKEN = ("self", "activation", "aux_params", "kwargs")


class SegmentationModel(BaseModel):
    """An architecture of segmentation_models_pytorch for grey sheets of any size.

    Subclasses name it in `network_class`; its other arguments are taken by their own names.

    Args:
        encoder_name: an encoder of SMP, or `tu-` and the name of one of timm's.
        encoder_weights: `imagenet` (or another name that SMP has), None for random weights, or the
            path of a `.safetensors` or `.pth` file.
        in_channels: the pretrained planes that the first convolution takes, a letter for each input
            channel: `r`, `g`, `b`, `rgb`, …; 3 is `rgb`, and 1 the sum of the three planes, as in SMP.
        classes: number of defect classes, C.

    Raises:
        ConfigError: an argument is wrong, or the weights cannot be had or do not fit.
    """

    network_class: type[nn.Module]

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_weights: str | None = "imagenet",
        in_channels: str | int = "rgb",
        classes: int = 4,
        **network_args: Any,
    ) -> None:
        super().__init__()
        planes = _planes(in_channels)
        pretrained.check_encoder_name(encoder_name)
        from_file = encoder_weights is not None and pretrained.is_file(encoder_weights)
        named = None if encoder_weights is None or from_file else encoder_weights
        self.classes = classes
        self.input_channels = len(planes)
        try:
            self.network = self.network_class(
                encoder_name=encoder_name,
                encoder_weights=named and pretrained.hub_name(encoder_name, named),
                in_channels=3,
                classes=classes,
                **network_args,
            )
        except OSError as error:
            raise pretrained.download_failed(encoder_name, str(named), error) from error
        encoder: Any = self.network.encoder
        if from_file:
            pretrained.load_from_file(encoder, str(encoder_weights))
        pretrained.take_planes(encoder, planes)
        # Convolutions are faster on both kinds of device with the channels last.
        self.network.to(memory_format=torch.channels_last)
        needs_padding = getattr(self.network, "requires_divisible_input_shape", True)
        self.stride = int(encoder.output_stride) if needs_padding else 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in vars(cls):
            cls.__signature__ = _signature(cls.network_class)  # type: ignore[attr-defined]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 1, H, W) float, normalised -> logits (N, C, H, W), for any H and W."""
        if images.shape[1] == 1 and self.input_channels > 1:
            images = images.expand(-1, self.input_channels, -1, -1)
        height, width = images.shape[-2:]
        padded, top, left = pad_to_multiple(images, self.stride)
        logits = self.network(padded)
        return logits[..., top : top + height, left : left + width]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """`encoder`, and `decoder` with all the rest, the segmentation head among it."""
        encoder = list(self.network.encoder.parameters())  # type: ignore[union-attr]
        of_encoder = {id(parameter) for parameter in encoder}
        rest = [p for p in self.parameters() if id(p) not in of_encoder]
        return {"encoder": encoder, "decoder": rest}


def _signature(network_class: type[nn.Module]) -> inspect.Signature:
    """Our own parameters, then those of SMP's class; its open `**kwargs` takes nothing."""
    own = inspect.signature(SegmentationModel.__init__).parameters
    theirs = inspect.signature(network_class.__init__).parameters
    merged = {name: p for name, p in {**theirs, **own}.items() if name not in _NOT_TAKEN}
    del merged["network_args"]
    return inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in merged.values()])


@MODELS.register
class Unet(SegmentationModel):
    """U-Net, https://arxiv.org/abs/1505.04597."""

    network_class = smp.Unet


@MODELS.register
class FPN(SegmentationModel):
    """Feature pyramid network, https://arxiv.org/abs/1612.03144."""

    network_class = smp.FPN


@MODELS.register
class MnistModel(BaseModel):
    """The template's LeNet for 28 x 28 digits, after https://github.com/pytorch/examples.

    Args:
        num_classes: of the digits.
        verbose: 2 logs the layers.
    """

    def __init__(self, num_classes: int = 10, verbose: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, num_classes)
        set_verbosity("sever.model", min(max(verbose, 0), 2)).debug("%s", self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 1, 28, 28) -> log-probabilities (N, num_classes)."""
        features = F.relu(F.max_pool2d(self.conv1(images), 2))
        features = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(features)), 2))
        features = F.relu(self.fc1(features.flatten(1)))
        features = F.dropout(features, training=self.training)
        return F.log_softmax(self.fc2(features), dim=1)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (N, num_classes) -> probabilities that sum to 1."""
        return logits.exp()


def pad_to_multiple(images: torch.Tensor, multiple: int) -> tuple[torch.Tensor, int, int]:
    """Pad images on all sides, by reflection, to a size that an encoder can take.

    Args:
        images: (N, C, H, W).
        multiple: of which height and width shall be multiples, in pixels.

    Returns:
        (N, C, H', W') images, and the row and column where the original begins.
    """
    height, width = images.shape[-2:]
    extra_rows, extra_columns = -height % multiple, -width % multiple
    top, left = extra_rows // 2, extra_columns // 2
    if not extra_rows and not extra_columns:
        return images, 0, 0
    sides = (left, extra_columns - left, top, extra_rows - top)
    can_reflect = sides[1] < width and sides[3] < height
    return F.pad(images, sides, mode="reflect" if can_reflect else "replicate"), top, left


def _planes(in_channels: str | int) -> tuple[tuple[int, ...], ...]:
    """The RGB planes, by number, that are summed for each input channel."""
    if in_channels in (1, 3):
        return ((0, 1, 2),) if in_channels == 1 else ((0,), (1,), (2,))
    if not isinstance(in_channels, str) or not in_channels or set(in_channels) - set("rgb"):
        raise ConfigError(
            f"arch.args.in_channels: expected letters out of r, g, b (a pretrained plane for each input "
            f"channel, e.g. r or rgb), 1 or 3, received {in_channels!r}"
        )
    return tuple(("rgb".index(letter),) for letter in in_channels)
