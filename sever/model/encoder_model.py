"""The base of all networks on a pretrained encoder: weights, input planes, padding, parameter groups."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sever.base import BaseModel
from sever.model import encoder_weights as pretrained
from sever.model.padding import pad_to_multiple
from sever.utils.errors import ConfigError

# What networks raise for an image or a feature of a size that they cannot take.
_SIZE_FAULTS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)
_PROBE = 64  # least height and width of the image that a new network is tried on, in pixels
_LIKELY_STRIDE = 32  # some encoders need multiples of it even where fewer of their stages are used


class EncoderModel(BaseModel):
    """A network on a pretrained encoder, for grey sheets of any size.

    Args:
        make_network: called with `encoder_name`, `encoder_weights` (a name or None), `in_channels` and
            `network_args`; returns a module with an `encoder`.
        encoder_name: an encoder's name, as for `SegmentationModel`.
        encoder_weights: a name, None, or the path of a file, as for `SegmentationModel`.
        in_channels: `r`, `g`, `b`, `rgb`, …, as for `SegmentationModel`.
        network_args: further arguments of the network.

    Raises:
        ConfigError: an argument is wrong, or the weights cannot be had or do not fit.
    """

    network: nn.Module

    def __init__(
        self,
        make_network: Callable[..., nn.Module],
        encoder_name: str,
        encoder_weights: str | None,
        in_channels: str | int,
        **network_args: Any,
    ) -> None:
        super().__init__()
        planes = _planes(in_channels)
        pretrained.check_encoder_name(encoder_name)
        from_file = encoder_weights is not None and pretrained.is_file(encoder_weights)
        named = None if encoder_weights is None or from_file else encoder_weights
        self.encoder_name = encoder_name
        self.input_channels = len(planes)
        self.stride = 1
        self.least_size = 1
        try:
            self.network = pretrained.for_any_size(
                make_network,
                encoder_name=encoder_name,
                encoder_weights=named and pretrained.hub_name(encoder_name, named),
                in_channels=3,
                **network_args,
            )
        except OSError as error:
            if named is None:
                raise
            raise pretrained.download_failed(encoder_name, named, error) from error
        except ValueError as error:
            if "downsampling pattern" not in str(error):
                raise
            raise ConfigError(
                f"arch.args.encoder_name: {encoder_name} makes no features of the strides 2, 4, 8, … that "
                f"{type(self).__name__} needs; plain vision transformers are for DPT"
            ) from error
        if from_file:
            pretrained.load_from_file(self.encoder, str(encoder_weights))
        pretrained.set_input_planes(self.encoder, planes)
        # Convolutions are faster on both kinds of device with the channels last.
        self.network.to(memory_format=torch.channels_last)

    @property
    def encoder(self) -> Any:
        """The pretrained part of the network."""
        return self.network.encoder

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """`encoder`, and `decoder` with all other parameters, those of heads too."""
        encoder = list(self.encoder.parameters())
        of_encoder = {id(parameter) for parameter in encoder}
        rest = [p for p in self.parameters() if id(p) not in of_encoder]
        return {"encoder": encoder, "decoder": rest}

    def _padded(self, images: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """The network's input, and the row and column in it where the image begins."""
        if images.shape[1] == 1 and self.input_channels > 1:
            images = images.expand(-1, self.input_channels, -1, -1)
        return pad_to_multiple(images, self.stride, self.least_size)

    def _choose_stride(self, *strides: int) -> Any:
        """Set `stride` to the first of these (or 32) that the network takes; returns the probe's outputs."""
        for self.stride in (*strides, *[s for s in (_LIKELY_STRIDE,) if s > max(strides)]):
            try:
                return self._probe(self.network, self._probe_size())
            except _SIZE_FAULTS as error:
                reason = str(error) or type(error).__name__
        size = self._probe_size()
        raise ConfigError(
            f"arch.args.encoder_name: {type(self).__name__} cannot take {self.encoder_name} with these "
            f"arguments; on an image of {size} x {size} pixels: {reason}"
        )

    def _probe_size(self) -> int:
        """A small odd multiple of the stride, which shows whether the network needs even ones."""
        return self.stride * (math.ceil(max(_PROBE, self.least_size) / self.stride) | 1)

    def _probe(self, network: nn.Module, size: int) -> Any:
        """The outputs of a network for an empty image; changes no state and draws no random number."""
        training = self.training
        self.eval()
        watched = [m for m in network.modules() if type(m) is nn.BatchNorm2d]
        handles = [module.register_forward_pre_hook(_mark_pooled) for module in watched]
        try:
            with torch.no_grad():
                return network(torch.zeros(1, self.input_channels, size, size))
        finally:
            for handle in handles:
                handle.remove()
            self.train(training)


class _PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm behind a global pooling, where each image has but one value per channel.

    A batch of a single image has no variance there, and torch refuses to train; the last batch of an
    epoch may be one. It is normalised by the running statistics.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.training and values.numel() == self.num_features:
            running = (self.running_mean, self.running_var)
            return F.batch_norm(values, *running, self.weight, self.bias, training=False, eps=self.eps)
        return super().forward(values)


def _mark_pooled(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    if inputs[0].shape[2:] == (1, 1):
        # The same parameters and buffers under the same names: only what it computes differs.
        module.__class__ = _PooledBatchNorm


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
