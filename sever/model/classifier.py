"""A classifier of the defects per image."""

from typing import Any

import torch
from segmentation_models_pytorch.base import ClassificationHead
from segmentation_models_pytorch.base.initialization import initialize_head
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from sever.model.encoder_model import EncoderModel
from sever.model.label_head import DROPOUT, POOLING, Classes, Dropout, Pooling


class Classifier(EncoderModel):
    """Which defects an image has: logits (N, C), one per class and image, on any encoder.

    Its parameter group `decoder` is the head: pooling of the encoder's last feature, dropout and one
    linear layer.

    Args:
        encoder_name: an encoder of SMP, or `tu-` and the name of one of timm's.
        encoder_weights: a name, None, or the path of a file, as for `SegmentationModel`.
        in_channels: `r`, `g`, `b`, `rgb`, …, as for `SegmentationModel`.
        classes: number of defect classes, C.
        encoder_depth: stages of the encoder, 1 to 5; each halves height and width.
        pooling: `avg` or `max` over the image.
        dropout: probability in [0, 1) with which a feature is dropped in training.

    Raises:
        ConfigError: an argument is wrong, or the weights cannot be had or do not fit.
    """

    output_kinds = ("labels",)

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_weights: str | None = "imagenet",
        in_channels: str | int = "rgb",
        classes: Classes = 4,
        encoder_depth: int = 5,
        pooling: Pooling = POOLING,
        dropout: Dropout = DROPOUT,
    ) -> None:
        head = {"classes": classes, "pooling": pooling, "dropout": dropout}
        network_args = {"encoder_depth": encoder_depth, "head_args": head}
        super().__init__(_EncoderAndHead, encoder_name, encoder_weights, in_channels, **network_args)
        self.classes = classes
        self._choose_stride(int(self.encoder.output_stride))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 1, H, W) float, normalised -> logits (N, C), for any H and W."""
        padded, _, _ = self._padded(images)
        return self.network(padded)


class _EncoderAndHead(nn.Module):
    """SMP's encoder and its classification head."""

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | bool | None,
        in_channels: int,
        encoder_depth: int,
        head_args: dict[str, Any],
        **encoder_args: Any,
    ) -> None:
        super().__init__()
        encoder_args |= {"in_channels": in_channels, "depth": encoder_depth, "weights": encoder_weights}
        self.encoder = get_encoder(encoder_name, **encoder_args)
        self.classification_head = ClassificationHead(self.encoder.out_channels[-1], **head_args)
        initialize_head(self.classification_head)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classification_head(self.encoder(images)[-1])
