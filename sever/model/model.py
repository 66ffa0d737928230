"""Models by name: SMP's architectures, a classifier, and the template's LeNet."""

import torch
from torch import nn
from torch.nn import functional as F

from sever.base import BaseModel
from sever.config.registry import MODELS
from sever.model.architectures import ARCHITECTURES, DPT, FPN, PAN, Unet
from sever.model.classifier import Classifier
from sever.model.padding import pad_to_multiple
from sever.model.segmentation_model import SegmentationModel
from sever.utils.logger import set_verbosity

__all__ = ["DPT", "FPN", "PAN", "Classifier", "MnistModel", "SegmentationModel", "Unet", "pad_to_multiple"]

for _architecture in ARCHITECTURES.values():
    MODELS.register(_architecture)
MODELS.register(Classifier)


class MnistModel(BaseModel):
    """The template's LeNet for 28 x 28 digits, after https://github.com/pytorch/examples.

    Args:
        num_classes: number of classes of digits.
        verbose: 2 logs the layers.
    """

    def __init__(self, num_classes: int = 10, verbose: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, num_classes)
        set_verbosity(__name__, min(max(verbose, 0), 2)).debug("%s", self)

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
