"""Goes through unlabelled sheets with several models, and gives those of whose masks all are sure."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from sever.base import BaseDataLoader
from sever.predictor.predictor import Prediction, Predictor
from sever.predictor.pseudo import Rules, doubt


class SureSheets:
    """The sheets, with their masks, that may become pseudo-labels; gone through once.

    Args:
        predictor: of the models, with `keep_each`: each model of masks is compared with all together. What
            is said of labels, by whatever models, gates the masks of all.
        data_loader: of the sheets.
        to_masks: (probs (C, H, W), label_probs (C,) or None) -> masks (C, H, W) uint8 in {0, 1}; called in
            several threads at the same time.
        rules: that a sheet must fulfil.
        classes: C, how many there are.

    Attributes:
        names: of the sheets that were given so far.
        left_out: how many were not, by the reason.
        masks_per_class: (C,) int64: how many of the masks that were given have a pixel.
    """

    def __init__(
        self,
        predictor: Predictor,
        data_loader: BaseDataLoader,
        to_masks: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
        rules: Rules,
        classes: int,
    ) -> None:
        self.predictor = predictor
        self.data_loader = data_loader
        self.to_masks = to_masks
        self.rules = rules
        self.names: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.masks_per_class: np.ndarray = np.zeros(classes, dtype=np.int64)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the name and the masks (C, H, W) uint8 in {0, 1} of each sure sheet."""
        names = self.data_loader.sample_names
        for number, masks, reason in self.predictor.map(self._judged, self.data_loader, "pseudo"):
            if reason is not None:
                self.left_out[reason] += 1
                continue
            self.names.append(names[number])
            self.masks_per_class += masks.any(axis=(1, 2))
            yield names[number], masks

    def _judged(self, prediction: Prediction) -> tuple[int, np.ndarray, str | None]:
        """The number of a sheet, its masks, and what speaks against them."""
        assert prediction.probs is not None
        labels = prediction.label_probs
        masks = self.to_masks(prediction.probs, labels)
        alone = [self.to_masks(one["masks"], labels) for one in prediction.of_models if "masks" in one]
        return prediction.number, masks, doubt(prediction.probs, masks, alone, self.rules)
