"""Every architecture of segmentation_models_pytorch (SMP) under its own name."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F

from sever.model.segmentation_model import SegmentationModel
from sever.utils.errors import ConfigError

# Decoders, of those without a class below, that resize to the next feature whatever its size.
_ANY_FEATURE_SIZES = ("UPerNet", "Segformer", "PSPNet")


class Unet(SegmentationModel):
    """U-Net, https://arxiv.org/abs/1505.04597."""

    network_class = smp.Unet
    takes_output_stride = True


class FPN(SegmentationModel):
    """Feature pyramid network, https://arxiv.org/abs/1612.03144."""

    network_class = smp.FPN
    takes_output_stride = True

    def _match_strides(self, strides: Sequence[int]) -> None:
        """Resize to the features of a dilated encoder, where SMP's blocks double each time."""
        decoder: Any = self.network.decoder
        for name in ("p4", "p3", "p2"):
            setattr(decoder, name, _LateralBlock(getattr(decoder, name)))
        finest, *coarser = strides[-4:]
        for block, stride in zip(decoder.seg_blocks, [*reversed(coarser), finest], strict=True):
            doublings = int(math.log2(stride // finest))
            for number, convolution in enumerate(block.block):
                # The last convolutions upsample, so that the others work on smaller features.
                convolution.upsample = number >= len(block.block) - doublings

    def _strides(self) -> tuple[int, ...]:
        if len(self.encoder.out_channels) < 5 and self.input_channels != 3:
            raise ConfigError(
                "arch.args.encoder_depth: expected 4 or 5, received 3: there FPN takes the image itself as a "
                "feature, which must be of three channels (in_channels: rgb)"
            )
        return super()._strides()


class _LateralBlock(nn.Module):
    """A block of SMP's FPN with the same weights that resizes to the next feature."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.skip_conv = block.skip_conv
        self.interpolation_mode = block.interpolation_mode

    def forward(self, coarser: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
        lateral = self.skip_conv(feature)
        return lateral + F.interpolate(coarser, size=lateral.shape[-2:], mode=self.interpolation_mode)


class PAN(SegmentationModel):
    """Pyramid attention network, https://arxiv.org/abs/1805.10180."""

    network_class = smp.PAN
    least_features = 8  # it halves the last feature three times


class DPT(SegmentationModel):
    """Dense prediction transformer, https://arxiv.org/abs/2103.13413, on a vision transformer of timm.

    Encoders whose position embeddings timm can resize take any sheet; patches of 8, 16 or 32 pixels.
    """

    network_class = smp.DPT
    encoder_args: ClassVar[Mapping[str, Any]] = {"num_classes": 0}  # no ImageNet head, which learns nothing

    def _strides(self) -> tuple[int, ...]:
        # The decoder makes features of the strides 4, 8, 16, … out of each, and doubles them back.
        coarsest = 2 ** (len(self.encoder.output_strides) + 1)
        return (math.lcm(int(self.encoder.output_stride), coarsest),)


def _all_architectures() -> dict[str, type[SegmentationModel]]:
    """SMP's architectures by name, those without a class of their own above made here."""
    own: dict[str, type[SegmentationModel]] = {cls.__name__: cls for cls in (Unet, FPN, PAN, DPT)}
    made = {}
    for network_class in smp.MODEL_ARCHITECTURES_MAPPING.values():
        name = network_class.__name__
        body = {
            "network_class": network_class,
            "takes_output_stride": name in _ANY_FEATURE_SIZES,
            "__doc__": f"SMP's {name}; see `SegmentationModel`.",
            "__module__": __name__,
        }
        made[name] = own.get(name) or type(name, (SegmentationModel,), body)
    return made


ARCHITECTURES = _all_architectures()
globals().update(ARCHITECTURES)
