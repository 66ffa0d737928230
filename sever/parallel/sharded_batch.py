"""A batch that is sharded over processes, and its loss as a whole.

Let L be the loss of a batch of N images, of which process r has a shard of n_r and computes a loss L_r. The
gradients of all n_r / N L_r, added up over the processes, are the gradient of L in two cases:

- L is a mean over images, and L_r is the mean over those of the shard.
- L_r is L itself, computed from sums over all images that `all_sum` takes. Its backward pass adds up the
  gradients that reach the sums in all processes, since each L_r depends on every process's images.

A weighted sum of both cases is right too.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from sever.parallel.collectives import all_reduce_and, all_reduce_mean, world_size


@dataclass(frozen=True)
class Shard:
    """The images of a batch that a process has; at least one.

    Attributes:
        first: index in the batch of the shard's first image.
        images: number of images in the shard.
        whole: number of images in the batch.
    """

    first: int
    images: int
    whole: int

    @classmethod
    def of(cls, whole: int, rank: int, world_size: int) -> "Shard":
        """The shard of a process: sizes differ by 1 at most, and the first ones are the larger ones.

        Example:
            >>> [Shard.of(7, rank, 3).images for rank in range(3)]
            [3, 2, 2]
        """
        small, larger = divmod(whole, world_size)
        return cls(rank * small + min(rank, larger), small + (rank < larger), whole)

    @property
    def weight(self) -> float:
        """The weight of the gradient of the shard's loss in a mean over the processes."""
        return self.images * world_size() / self.whole


_current: Shard | None = None


@contextmanager
def sharded_batch(shard: Shard | None) -> Iterator[None]:
    """A context for the losses of a batch of which this process has a shard; None if it has all of it."""
    global _current
    before, _current = _current, shard if world_size() > 1 else None
    try:
        yield
    finally:
        _current = before


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """Add up values of all shards of a batch; differentiable. A collective.

    With one process, or outside of `sharded_batch`, the values are returned as they are.
    """
    return values if _current is None else _AllSum.apply(values)


def all_gather_batch(outputs: Any) -> Any:
    """The shards of all processes as one batch, in its order; differentiable. A collective.

    Args:
        outputs: a tensor (n, …) of this process's shard, or a tuple of such tensors.
    """
    if _current is None:
        return outputs
    if isinstance(outputs, tuple):
        gathered = [all_gather_batch(output) for output in outputs]
        return type(outputs)(*gathered) if hasattr(outputs, "_fields") else tuple(gathered)
    if outputs.dtype == torch.bool:
        return all_gather_batch(outputs.byte()).bool()
    whole = outputs.new_zeros((_current.whole, *outputs.shape[1:]))
    whole[_current.first : _current.first + _current.images] = outputs
    return _AllSum.apply(whole)


def all_reduce_losses(losses: dict[str, torch.Tensor], shard: Shard) -> dict[str, torch.Tensor]:
    """The losses of a batch from those of its shards; a collective."""
    whole = {name: value.detach() * shard.weight for name, value in losses.items()}
    all_reduce_mean(list(whole.values()))
    return whole


def nan_unless_all_finite(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The losses of a shard, each NaN where that of any shard is not finite; a collective."""
    if world_size() == 1:
        return losses
    values = [value.detach() for value in losses.values()]
    finite = all_reduce_and(torch.stack([value.isfinite() for value in values]))
    counted = (value.where(is_finite, torch.nan) for value, is_finite in zip(values, finite, strict=True))
    return dict(zip(losses, counted, strict=True))


def named_losses(
    loss: Callable[..., torch.Tensor | Mapping[str, torch.Tensor]], outputs: Any, targets: Any
) -> dict[str, torch.Tensor]:
    """Call a loss that returns a tensor or a dict of them; the result always has the key "loss".

    A loss gets the whole batch, unless its own class says that it takes parts of one (`takes_parts`).
    """
    # Not by inheritance: a derived class may compute something else.
    if "takes_parts" in vars(type(loss)) and loss.takes_parts:  # type: ignore[attr-defined]
        value = loss(outputs, targets)
    else:
        outputs, targets = all_gather_batch(outputs), all_gather_batch(targets)
        with sharded_batch(None):  # for losses of sever that it may call
            value = loss(outputs, targets)
    return dict(value) if isinstance(value, Mapping) else {"loss": value}


class _AllSum(torch.autograd.Function):
    """A differentiable sum; that of torch.distributed.nn is deprecated since torch 2.13."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        summed = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(summed)
        return summed
