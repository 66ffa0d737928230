"""Images -> probabilities, one batch in memory at a time."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from sever.base import BaseDataLoader, BaseModel, MasksAndLabels
from sever.utils.progress import progress


class Predictor:
    """Predicts the sheets of a loader.

    Args:
        model: with its weights.
        normalize: grey levels uint8 -> what the model takes, float.
        device: to compute on.
    """

    def __init__(
        self,
        model: BaseModel,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.normalize = normalize
        self.device = device

    def predict(
        self, data_loader: BaseDataLoader, label: str = ""
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Predict sheet after sheet.

        Args:
            data_loader: of images (N, 1, H, W) uint8 and their indices (N,).
            label: of the progress bar; an empty one shows none.

        Yields:
            the index of a sheet, the sheet (H, W) uint8 and its probabilities (C, H, W) float32.
        """
        for images, indices in progress(data_loader, label):
            probs = self.probabilities(images).cpu().numpy()
            yield from zip(indices.tolist(), images[:, 0].numpy(), probs, strict=True)

    @torch.inference_mode()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 1, H, W) uint8 -> probabilities (N, C, H, W) float32, on the device."""
        inputs = self.normalize(images.to(self.device, non_blocking=True))
        probs = self.model.probabilities(self.model(inputs))
        return (probs.masks if isinstance(probs, MasksAndLabels) else probs).float()
