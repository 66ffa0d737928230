"""The architectures of segmentation_models_pytorch (SMP) as a `BaseModel`."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from segmentation_models_pytorch.base import SegmentationModel as SMPModel
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from sever.base import MasksAndLabels
from sever.model.encoder_model import EncoderModel
from sever.model.label_head import AuxiliaryHead, Classes, Dropout, auxiliary_head
from sever.utils.errors import ConfigError, SeverError

_WHERE = "arch.args"
# SMP's arguments that are not taken: models give logits, and its `**kwargs` has no use.
_NOT_TAKEN = ("self", "activation", "kwargs", "network_args")
# Arguments that mean something else here than in SMP.
_OURS = ("encoder_weights", "in_channels", "classes", "aux_params", "upsampling")


class SegmentationModel(EncoderModel):
    """An architecture of segmentation_models_pytorch for grey sheets of any size.

    Subclasses name it in `network_class`; its further arguments keep SMP's names.

    Args:
        encoder_name: an encoder of SMP, or `tu-` and the name of one of timm's.
        encoder_weights: `imagenet` (or another name that SMP has), None for random weights, or the
            path of a `.safetensors` or `.pth` file.
        in_channels: the pretrained planes that the first convolution takes, a letter for each input
            channel: `r`, `g`, `b`, `rgb`, …; 3 is `rgb`, and 1 the sum of the three planes, as in SMP.
        classes: number of defect classes, C.
        aux_params: `pooling` and `dropout` of a second head, which gives logits of the classes per image;
            `forward` then returns `MasksAndLabels`. An empty mapping takes SMP's defaults; None has no
            such head.
        encoder_output_stride: stride of the encoder's last features, in pixels. 8 and 16 dilate its last
            stages instead of striding (https://arxiv.org/abs/1705.09914); 32 is the usual encoder.
        decoder_dropout: probability in [0, 1) with which a channel is dropped between decoder and
            head in training, or that of the architecture's own dropout where it has one.
        upsampling: factor of the head from the decoder's size to the image's; None measures it.

    Raises:
        ConfigError: an argument is wrong, or the weights cannot be had or do not fit.
    """

    network_class: ClassVar[type[nn.Module]]
    takes_output_stride: ClassVar[bool] = False  # where SMP's class has no such argument of its own
    encoder_args: ClassVar[Mapping[str, Any]] = {}
    least_features: ClassVar[int] = 1  # height and width of the last feature that the decoder can take

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_weights: str | None = "imagenet",
        in_channels: str | int = "rgb",
        classes: Classes = 4,
        aux_params: AuxiliaryHead | None = None,
        encoder_output_stride: Literal[8, 16, 32] = 32,
        decoder_dropout: Dropout = 0.0,
        upsampling: int | None = None,
        **network_args: Any,
    ) -> None:
        theirs = inspect.signature(self.network_class.__init__).parameters
        auxiliary = auxiliary_head(aux_params, classes)
        dilation = self._dilation_args(encoder_output_stride)
        if "decoder_dropout" in theirs:
            network_args["decoder_dropout"] = decoder_dropout
        if upsampling is not None:
            network_args["upsampling"] = upsampling
        network_args |= {"classes": classes, "aux_params": auxiliary, **self.encoder_args}
        try:
            super().__init__(
                self.network_class, encoder_name, encoder_weights, in_channels, **network_args, **dilation
            )
        except (SeverError, OSError):
            raise
        except Exception as error:
            if encoder_output_stride != 32:
                depth = network_args.get("encoder_depth", 5)
                _check_dilation(encoder_name, depth, encoder_output_stride, error)
            raise
        self.classes = classes
        self.output_kinds = ("masks",) if auxiliary is None else ("masks", "labels")
        if encoder_output_stride != 32:
            self._match_strides(self._encoder_strides(encoder_output_stride))
        if self.least_features > 1:
            self.least_size = self.least_features * int(self.encoder.output_stride)
        self._fit_head(self._choose_stride(*self._strides()), upsampling)
        if decoder_dropout and "decoder_dropout" not in theirs:
            _add_dropout(self.network, decoder_dropout)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "network_class" in vars(cls) and "__init__" not in vars(cls):
            signature = _signature(cls.network_class)
            cls.__signature__ = signature  # type: ignore[attr-defined]
            cls.__init__ = _constructor(signature)  # type: ignore[method-assign]

    def forward(self, images: torch.Tensor) -> torch.Tensor | MasksAndLabels:
        """Images to logits, for any H and W.

        Args:
            images: (N, 1, H, W) float, normalised.

        Returns:
            Logits (N, C, H, W); with `aux_params` those and the labels' logits (N, C).
        """
        height, width = images.shape[-2:]
        padded, top, left = self._padded(images)
        outputs = self.network(padded)
        masks, labels = outputs if "labels" in self.output_kinds else (outputs, None)
        masks = masks[..., top : top + height, left : left + width]
        return masks if labels is None else MasksAndLabels(masks, labels)

    def _strides(self) -> tuple[int, ...]:
        """Numbers that an image's height and width may have to be multiples of, the likeliest first."""
        stride = int(self.encoder.output_stride)
        divisible = getattr(self.network, "requires_divisible_input_shape", True)
        return (stride,) if divisible else (1, stride)

    def _dilation_args(self, stride: int) -> dict[str, int]:
        if _has_output_stride(self.network_class):
            return {"encoder_output_stride": stride}
        if stride not in (8, 16, 32):
            raise ConfigError(f"{_WHERE}.encoder_output_stride: expected 8, 16 or 32, received {stride!r}")
        if stride != 32 and not self.takes_output_stride:
            others = SegmentationModel.__subclasses__()
            able = sorted(
                o.__name__ for o in others if o.takes_output_stride or _has_output_stride(o.network_class)
            )
            raise ConfigError(
                f"{_WHERE}.encoder_output_stride: expected 32, received {stride}: the decoder of "
                f"{type(self).__name__} takes features of fixed sizes. These take a dilated encoder: "
                f"{', '.join(able)}."
            )
        return {} if stride == 32 else {"output_stride": stride}

    def _encoder_strides(self, wanted: int) -> list[int]:
        """The strides that the encoder's features really have, in pixels."""
        size = 8 * wanted
        strides = [size // feature.shape[-1] for feature in self._probe(self.encoder, size)]
        if max(strides) > wanted:
            raise ConfigError(
                f"{_WHERE}.encoder_output_stride: {self.encoder_name} cannot be dilated: expected features "
                f"of stride {wanted} at most, received {strides}"
            )
        return strides

    def _match_strides(self, strides: Sequence[int]) -> None:
        """Make a decoder of fixed factors follow the strides of a dilated encoder."""

    def _fit_head(self, outputs: Any, upsampling: int | None) -> None:
        """Make the head upsample to the size of the image, or refuse the config's factor."""
        masks = outputs[0] if "labels" in self.output_kinds else outputs
        factor = self._probe_size() / masks.shape[-1]
        if factor == 1:
            return
        head: Any = self.network.segmentation_head
        resize = head[1] if isinstance(head, nn.Sequential) else None
        right = factor * float(getattr(resize, "scale_factor", 1))
        if upsampling is not None:
            raise ConfigError(
                f"{_WHERE}.upsampling: expected {right:g}, which brings the masks to the size of the image, "
                f"received {upsampling}"
            )
        if resize is None or right < 1 or not right.is_integer():
            raise ConfigError(
                f"{_WHERE}.encoder_name: with {self.encoder_name} and these arguments {type(self).__name__} "
                f"makes masks of {1 / factor:g} times the image's size"
            )
        head[1] = nn.UpsamplingBilinear2d(scale_factor=right) if right > 1 else nn.Identity()


def _has_output_stride(network_class: type[nn.Module]) -> bool:
    return "encoder_output_stride" in inspect.signature(network_class.__init__).parameters


def _check_dilation(encoder_name: str, depth: int, stride: int, error: Exception) -> None:
    """Raise an error about the stride where the encoder can be built without it."""
    for tried in (32, stride):
        try:
            get_encoder(encoder_name, depth=depth, weights=None, output_stride=tried)
        except Exception as cause:  # libraries refuse with errors of many kinds
            if tried == 32:
                return
            raise ConfigError(
                f"{_WHERE}.encoder_output_stride: {encoder_name} cannot be dilated to stride {stride}: "
                f"{str(cause).rstrip('.!') or type(cause).__name__}. ResNets can: resnet34, resnet50, "
                f"se_resnext50_32x4d, tu-res2net50_26w_4s, …"
            ) from error


def _add_dropout(network: Any, probability: float) -> None:
    """Put channel dropout before the head, and keep the names of its weights."""
    layers = network.segmentation_head.named_children()
    network.segmentation_head = nn.Sequential(OrderedDict([("dropout", nn.Dropout2d(probability)), *layers]))


def _signature(network_class: type[nn.Module]) -> inspect.Signature:
    """Our own parameters, then those of SMP's class, whose defaults hold where it has them."""
    own = inspect.signature(SegmentationModel.__init__).parameters
    theirs = inspect.signature(network_class.__init__).parameters
    merged = {**own, **theirs, **{name: own[name] for name in _OURS}}
    if "upsampling" not in theirs:
        del merged["upsampling"]
    has_dropout = any("dropout" in name for name in theirs)
    if "decoder_dropout" in theirs:
        default = theirs["decoder_dropout"].default
        merged["decoder_dropout"] = own["decoder_dropout"].replace(default=default)
    elif has_dropout or network_class.forward is not SMPModel.forward:
        del merged["decoder_dropout"]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([p.replace(kind=kind) for n, p in merged.items() if n not in _NOT_TAKEN])


def _constructor(signature: inspect.Signature) -> Callable[..., None]:
    """An `__init__` that takes exactly a signature's arguments, with their types for checks."""

    def __init__(self: SegmentationModel, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        SegmentationModel.__init__(self, **bound.arguments)

    __init__.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return __init__
