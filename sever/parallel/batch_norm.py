"""BatchNorm whose statistics are those of the whole batch, of which each process has a part."""

from typing import TypeVar

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sever.parallel.batch import all_sum, is_shared

_Model = TypeVar("_Model", bound=nn.Module)

# Below so many images BatchNorm's statistics are poor: https://arxiv.org/abs/1803.08494, figure 1.
SMALL_PART = 8


def synchronised(model: _Model, device: torch.device) -> _Model:
    """Let the BatchNorm layers of a model take their statistics over all processes; changed in place.

    On GPUs they become torch's `SyncBatchNorm`, which does not compute on the CPU.

    Args:
        model: whose parameters, buffers and their names stay.
        device: to train on.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SharedBatchNorm):
                setattr(module, name, SharedBatchNorm(child))
    return model


class SharedBatchNorm(_BatchNorm):
    """A BatchNorm layer of a batch that is divided over processes.

    Outside of training steps, it is the layer that it was made of.

    Args:
        norm: of which it takes parameters, buffers and, where timm has joined one to it, the activation.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        for name in ("drop", "act"):
            if hasattr(norm, name):
                self.add_module(name, getattr(norm, name))
        self.train(norm.training)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Values (n, C, …) of this process's part of the batch -> normalised, of the same shape."""
        if self.training and is_shared():
            # Sums over the pixels of a batch overflow fp16 and lose their last digits in bf16.
            wide = values.float() if values.dtype.itemsize == 2 else values
            normalised = self._of_whole_batch(wide).to(values.dtype)
        else:
            normalised = super().forward(values)
        for name in ("drop", "act"):
            if hasattr(self, name):
                normalised = getattr(self, name)(normalised)
        return normalised

    def _of_whole_batch(self, values: torch.Tensor) -> torch.Tensor:
        axes = [axis for axis in range(values.ndim) if axis != 1]
        form = [1, -1] + [1] * (values.ndim - 2)
        of_channel = values.new_full((1,), values.numel() / values.shape[1])
        sums, count = all_sum(torch.cat([values.sum(axes), of_channel])).split([values.shape[1], 1])
        centred = values - (sums / count).view(form)
        variance = all_sum(centred.square().sum(axes)) / count
        self._move_running(sums / count, variance * count / (count - 1).clamp(min=1))
        normalised = centred * (variance + self.eps).rsqrt().view(form)
        if self.weight is None:
            return normalised
        return normalised * self.weight.view(form) + self.bias.view(form)

    @torch.no_grad()
    def _move_running(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Take the statistics of a batch into the running ones."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        factor = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(variance, factor)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Of layers for signals, images and volumes."""
