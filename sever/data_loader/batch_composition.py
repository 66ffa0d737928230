"""Batches that are balanced by class, and batches that mix in pseudo-labelled images."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import ConfigDict, with_config
from typing_extensions import NotRequired, TypedDict

from sever.engine.samplers import EpochBatches
from sever.utils.errors import DataError


@with_config(ConfigDict(extra="forbid"))
class Balance(TypedDict):
    """How batches are balanced by class; see `MixedBatches`."""

    alpha: float
    kind: NotRequired[Literal["fixed", "random"]]


@with_config(ConfigDict(extra="forbid"))
class Pseudo(TypedDict):
    """Pseudo-labelled images, and how many of them are in a batch; see `MixedBatches`."""

    csv: str
    images: NotRequired[str]
    share: NotRequired[float]
    rate: NotRequired[float]


class Draw(int):
    """An index that knows how often it came `before` in the epoch, and is augmented differently each time."""

    before: int = 0


def numbered(batches: Iterable[Sequence[int]]) -> Iterator[list[int]]:
    """Batches of indices as batches of `Draw`.

    Example:
        >>> [[draw.before for draw in batch] for batch in numbered([[3, 3], [2, 3]])]
        [[0, 1], [0, 2]]
    """
    seen: Counter[int] = Counter()
    for batch in batches:
        draws = [Draw(index) for index in batch]
        for draw in draws:
            draw.before = seen[draw]
            seen[draw] += 1
        yield list(draws)


class MixedBatches(EpochBatches):
    """Labelled images, balanced if wanted, with a fixed number of pseudo-labelled ones in each batch.

    The idea is that of https://github.com/khornlund/pytorch-balanced-sampler, which the seed used. There
    pseudo-labelled images are one more class; here they have a `share` of their own.

    An epoch has as many batches as one pass over the labelled images. Without `alpha` it is that pass: each
    labelled image once, the last batch smaller unless `drop_last`. With `alpha` every batch is full, and
    images come more or less often. No image comes again before all others of its kind have come.

    Args:
        present: (N, C) bool, whether a labelled image has a class; these images have the indices 0 to N - 1.
        batch_size: images in a batch, with the pseudo-labelled ones.
        seed: at least 0; with the epoch it decides the batches.
        drop_last: leaves out the batch for which there are too few labelled images.
        alpha: from the kinds of the labelled images as they are (0) to equal ones (1), or away from equal
            ones (below 0); see `kinds_of` and `balanced_shares`. None does not balance.
        kind: `fixed`: each batch has the same number of each kind, the shares rounded by largest remainder.
            `random`: the kind of each image is drawn.
        pseudo_images: number of pseudo-labelled images; they have the indices from N on.
        share: share of pseudo-labelled images in a batch; round(share * batch_size) are in each.
        rate: share of the pseudo-labelled images that an epoch draws from, others in each epoch.

    Raises:
        ValueError: an argument is out of range.
        DataError: `fixed` batches are too small for all kinds; raised once `indices` is set or batches are
            drawn, since a split may change the kinds.
    """

    def __init__(
        self,
        present: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        drop_last: bool = False,
        alpha: float | None = None,
        kind: Literal["fixed", "random"] = "fixed",
        pseudo_images: int = 0,
        share: float = 0.12,
        rate: float = 0.6,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, received {batch_size}")
        if alpha is not None and not -np.inf < alpha <= 1:
            raise ValueError(f"balance.alpha: expected a number up to 1, received {alpha}")
        if kind not in ("fixed", "random"):
            raise ValueError(f"balance.kind: expected fixed or random, received {kind}")
        if not 0 < share < 1:
            raise ValueError(f"pseudo.share: expected a number between 0 and 1, received {share}")
        if not 0 < rate <= 1:
            raise ValueError(f"pseudo.rate: expected a number above 0 and up to 1, received {rate}")
        self._pseudo = len(present) + np.arange(pseudo_images)
        self._of_pseudo = round(share * batch_size) if pseudo_images else 0
        self._of_labelled = batch_size - self._of_pseudo
        if pseudo_images and not (self._of_pseudo and self._of_labelled):
            raise ValueError(
                f"pseudo.share: expected a share that gives 1 to {batch_size - 1} of the {batch_size} images "
                f"of a batch, received {share}, which gives {self._of_pseudo}"
            )
        self.present = present
        self.seed = seed
        self.drop_last = drop_last
        self.alpha = alpha
        self.kind = kind
        self.rate = rate
        self._take(np.arange(len(present)))

    @property
    def indices(self) -> np.ndarray:
        """The labelled images to draw from, int64; kinds and shares are counted among them."""
        return self._indices

    @indices.setter
    def indices(self, indices: np.ndarray) -> None:
        self._take(np.asarray(indices, dtype=np.int64))
        self._check_room()

    def _take(self, indices: np.ndarray) -> None:
        self._indices = indices
        if self.alpha is None:
            return
        kinds = kinds_of(self.present[self._indices])
        self._members = [self._indices[kinds == kind] for kind in range(self.present.shape[1] + 1)]
        self._shares = balanced_shares(np.array([len(members) for members in self._members]), self.alpha)
        self._counts = whole_counts(self._shares, self._of_labelled)

    def _check_room(self) -> None:
        if self.alpha is None or self.kind == "random":
            return
        left_out = np.flatnonzero((self._shares > 0) & (self._counts == 0)).tolist()
        if left_out:
            class_count = self.present.shape[1]
            names = ["clean images" if k == class_count else f"class {k + 1}" for k in left_out]
            raise DataError(
                f"data_loader.args.balance: a batch of {self._of_labelled} labelled images has no place for "
                f"{', '.join(names)}, whose share in it is {self._shares[left_out].max():.3g} or less; raise "
                f"batch_size or alpha, or choose kind: random"
            )

    def __len__(self) -> int:
        full, rest = divmod(len(self._indices), self._of_labelled)
        return full if self.drop_last else full + bool(rest)

    def __iter__(self) -> Iterator[list[int]]:
        return numbered(self._batches())

    def _batches(self) -> Iterator[list[int]]:
        self._check_room()
        generator = np.random.default_rng([self.seed, self.epoch])
        batches = len(self)
        labelled = self._labelled_order(generator)
        pseudo = np.zeros(0, dtype=np.int64)
        if self._of_pseudo:
            count = max(1, round(self.rate * len(self._pseudo)))
            pool = generator.choice(self._pseudo, count, replace=False)
            pseudo = _in_rounds(pool, batches * self._of_pseudo, generator)
        for number in range(batches):
            own = labelled[number * self._of_labelled :][: self._of_labelled]
            others = pseudo[number * self._of_pseudo :][: self._of_pseudo]
            yield generator.permutation(np.concatenate([own, others])).tolist()

    def _labelled_order(self, generator: np.random.Generator) -> np.ndarray:
        """The labelled images of an epoch, batch after batch."""
        if self.alpha is None:
            return generator.permutation(self._indices)
        batches = len(self)
        if self.kind == "fixed":
            kinds = np.tile(np.repeat(np.arange(len(self._counts)), self._counts), batches)
        else:
            kinds = generator.choice(len(self._shares), batches * self._of_labelled, p=self._shares)
        order = np.zeros(len(kinds), dtype=np.int64)
        for kind, members in enumerate(self._members):
            of_kind = kinds == kind
            order[of_kind] = _in_rounds(members, of_kind.sum(), generator)
        return order


def kinds_of(present: np.ndarray) -> np.ndarray:
    """The kind of each image: its rarest class, or no defect.

    Example:
        >>> kinds_of(np.array([[1, 0], [1, 1], [1, 0], [0, 0]], dtype=bool)).tolist()
        [0, 1, 0, 2]

    Args:
        present: (N, C) bool, whether an image has a class; the rarest is the one of the fewest images.

    Returns:
        (N,) int64: 0 to C - 1 for a class, C for no defect.
    """
    by_rarity = np.argsort(present.sum(axis=0), kind="stable")
    rarest = by_rarity[present[:, by_rarity].argmax(axis=1)]
    return np.where(present.any(axis=1), rarest, present.shape[1])


def balanced_shares(counts: np.ndarray, alpha: float) -> np.ndarray:
    """The shares of kinds between those of the data, p, and equal ones, u: (1 - alpha) p + alpha u.

    A share that a negative `alpha` pushes below 0 is 0, and the others are scaled to sum to 1.

    Example:
        >>> balanced_shares(np.array([6, 2, 0]), 0.5).tolist()
        [0.625, 0.375, 0.0]

    Args:
        counts: (K,) int64, images of each kind; a kind without images gets no share.
        alpha: at most 1.

    Returns:
        (K,) float64 in [0, 1], sum 1.
    """
    present = counts > 0
    if not present.any():
        return np.zeros(len(counts))
    shares = (1 - alpha) * counts / counts.sum() + alpha * present / present.sum()
    shares = np.where(present, np.clip(shares, 0, None), 0)
    return shares / shares.sum()


def whole_counts(shares: np.ndarray, total: int) -> np.ndarray:
    """Divide `total` by shares: rounded down, and the rest goes to the largest remainders.

    Of equal remainders the one of the smaller share comes first.

    Example:
        >>> whole_counts(np.array([0.625, 0.375]), 4).tolist()
        [2, 2]

    Args:
        shares: (K,) float64 in [0, 1], sum 1.
        total: at least 0.

    Returns:
        (K,) int64, sum `total` (0 where all shares are 0).
    """
    exact = (shares * total).round(9)  # 0.29 * 100 is a little less than 29
    counts = np.floor(exact).astype(np.int64)
    first = np.lexsort((shares, (counts - exact).round(9)))
    counts[first[: round(exact.sum()) - counts.sum()]] += 1
    return counts


def batches_of_equal_shape(indices: Iterable[int], shapes: np.ndarray, batch_size: int) -> list[list[int]]:
    """Cut a sequence of indices into batches of images of one size each, (H, W) in `shapes` (N, 2).

    Example:
        >>> shapes = np.array([[8, 8], [8, 8], [8, 8], [4, 8]])
        >>> batches_of_equal_shape(range(4), shapes, batch_size=2)
        [[0, 1], [2], [3]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, received {batch_size}")
    batches: list[list[int]] = []
    for index in map(int, indices):
        last = batches[-1] if batches else []
        if last and len(last) < batch_size and (shapes[last[0]] == shapes[index]).all():
            last.append(index)
        else:
            batches.append([index])
    return batches


def _in_rounds(members: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` of the members in random order, none again before all have come."""
    if not count:
        return members[:0]
    rounds = -(-count // len(members))
    return np.concatenate([generator.permutation(members) for _ in range(rounds)])[:count]
