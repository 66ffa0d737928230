"""Goes through unlabelled sheets with several models, and gives those of whose masks all are sure."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sever.base import BaseDataLoader
from sever.predictor.ensemble import average
from sever.predictor.predictor import Prediction, Predictor
from sever.predictor.pseudo import Rules, doubt


class SureSheets:
    """The sheets, with their masks, that may become pseudo-labels; gone through once.

    Each model predicts for itself, since it is compared with the average of all.

    Args:
        predictors: of one model of masks each.
        data_loaders: of the same sheets, one for each predictor.
        to_masks: (probs (C, H, W), label_probs (C,) or None) -> masks (C, H, W) uint8 in {0, 1}.
        rules: that a sheet must fulfil.
        classes: C, how many there are.
        how: the rule by which the predictions are averaged; see `RunningAverage`.
        weights: of the models; None weighs them alike.

    Attributes:
        names: of the sheets that were given so far.
        left_out: how many were not, by the reason.
        masks_per_class: (C,) int64: how many of the masks that were given have a pixel.
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        data_loaders: Sequence[BaseDataLoader],
        to_masks: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
        rules: Rules,
        classes: int,
        how: str = "mean",
        weights: Sequence[float] | None = None,
    ) -> None:
        self.predictors = predictors
        self.data_loaders = data_loaders
        self.to_masks = to_masks
        self.rules = rules
        self.how = how
        self.weights = weights
        self.names: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.masks_per_class: np.ndarray = np.zeros(classes, dtype=np.int64)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the name and the masks (C, H, W) uint8 in {0, 1} of each sure sheet."""
        labels = ["pseudo", *[""] * (len(self.predictors) - 1)]  # one progress bar is enough
        streams = [
            predictor.predict(loader, label)
            for predictor, loader, label in zip(self.predictors, self.data_loaders, labels, strict=True)
        ]
        for of_models in zip(*streams, strict=True):
            masks, reason = self._judged(of_models)
            if reason is not None:
                self.left_out[reason] += 1
                continue
            name = self.data_loaders[0].sample_names[of_models[0].number]
            self.names.append(name)
            self.masks_per_class += masks.any(axis=(1, 2))
            yield name, masks

    def _judged(self, of_models: Sequence[Prediction]) -> tuple[np.ndarray, str | None]:
        """The masks of a sheet, and what speaks against them."""
        each = [prediction.probs for prediction in of_models if prediction.probs is not None]
        labels_of = [prediction.label_probs for prediction in of_models if prediction.label_probs is not None]
        probs = average(each, self.how, self.weights)
        labels = average(labels_of) if labels_of else None
        masks = self.to_masks(probs, labels)
        alone = [
            self.to_masks(own, labels if prediction.label_probs is None else prediction.label_probs)
            for own, prediction in zip(each, of_models, strict=True)
        ]
        return masks, doubt(probs, masks, alone, self.rules)
