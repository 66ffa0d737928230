"""What a run writes for TensorBoard: values, histograms of weights, pictures of sheets with their masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from sever.utils.draw_masks import overlay
from sever.utils.tensorboard_writer import TensorboardWriter

_PICTURES = 4  # sheets of a batch that are drawn


def write_scalars(writer: TensorboardWriter, log: Mapping[str, Any]) -> None:
    """Write the values of a log by their names."""
    for name, value in log.items():
        writer.add_scalar(name, value)


def write_histograms(writer: TensorboardWriter, model: nn.Module) -> None:
    """Write a histogram of each parameter of a model."""
    if writer.enabled:
        for name, parameter in model.named_parameters():
            if parameter.isfinite().all():  # a histogram of NaN is an error
                writer.add_histogram(name, parameter.detach().cpu())


def write_pictures(writer: TensorboardWriter, tag: str, inputs: torch.Tensor, *masks: torch.Tensor) -> None:
    """Draw the first images of a batch, each above itself with its masks.

    Args:
        writer: draws nothing where it is disabled.
        tag: name of the pictures; `input` where there are no masks to draw.
        inputs: (N, C, H, W) normalised images, of which the first channel is drawn; others are left out.
        *masks: (N, C, H, W), not 0 where the class is; those of another form are left out.
    """
    if not writer.enabled or inputs.ndim != 4:
        return
    drawn = [of_kind for of_kind in masks if of_kind.ndim == 4]
    for number in range(min(_PICTURES, len(inputs))):
        grey = _as_grey(inputs[number])
        rows = [np.zeros((0, *grey.shape)), *(of_kind[number].cpu().numpy() for of_kind in drawn)]
        picture = np.concatenate([overlay(grey, row) for row in rows])
        writer.add_image(f"{tag if drawn else 'input'}_{number}", picture, dataformats="HWC")


def _as_grey(image: torch.Tensor) -> np.ndarray:
    """A normalised image (C, H, W) -> (H, W) uint8, its darkest pixel black, its lightest white."""
    plane = image[0].float()
    low, high = plane.min(), plane.max()
    return ((plane - low) / (high - low).clamp(min=1e-6) * 255).byte().cpu().numpy()
