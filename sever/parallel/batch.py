"""A batch that is divided over processes, and what is computed of it as a whole.

Let L be the loss of a batch of N images of which process r has n_r. Each process computes a loss L_r, and the
gradient of its n_r / N L_r; added up over the processes they are the gradient of L, in either of two cases: L
is a mean over images, of which each process computes that of its own; or L_r is L itself, computed of sums
over all images that `all_sum` takes. The backward pass of `all_sum` adds up what all processes ask for,
so that a sum of both cases is right too.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from sever.parallel.collectives import all_reduce_and, all_reduce_mean, world_size


@dataclass(frozen=True)
class Part:
    """The part of a batch that a process has.

    Attributes:
        first: place in the batch of its first image.
        images: how many it has. Where the batch has fewer images than there are processes, some have none,
            and compute with an image that counts nothing.
        whole: images of the batch.
    """

    first: int
    images: int
    whole: int

    @classmethod
    def of(cls, whole: int, rank: int, of_processes: int) -> "Part":
        """The part of a process: sizes differ by 1 at most, and the first ones are the larger ones.

        Example:
            >>> [Part.of(7, rank, 3).images for rank in range(3)]
            [3, 2, 2]
        """
        small, larger = divmod(whole, of_processes)
        return cls(rank * small + min(rank, larger), small + (rank < larger), whole)

    @property
    def weight(self) -> float:
        """By which the gradient of its loss goes into a mean over the processes."""
        return self.images * world_size() / self.whole


_current: Part | None = None


@contextmanager
def shared(part: Part) -> Iterator[None]:
    """A context in which losses are those of a batch of which this process has a part."""
    global _current
    _current = part if world_size() > 1 else None
    try:
        yield
    finally:
        _current = None


@contextmanager
def undivided() -> Iterator[None]:
    """A context within `shared` for what `whole_batch` has put together: nothing of it is elsewhere."""
    global _current
    part, _current = _current, None
    try:
        yield
    finally:
        _current = part


def is_shared() -> bool:
    """Whether what is computed is of a batch that other processes have parts of."""
    return _current is not None


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """Add up what the processes computed of their parts of a batch; differentiable.

    Alone, or outside of `shared`, it gives the values as they are. Called together.
    """
    if _current is None:
        return values
    if not _current.images:
        values = torch.where(torch.zeros_like(values, dtype=torch.bool), values, 0)
    return _AllSum.apply(values)


def whole_batch(outputs: Any) -> Any:
    """What all processes have of a batch, one image after the other; differentiable. Called together.

    Args:
        outputs: a tensor (n, …) of this process's part, or a tuple of such tensors.
    """
    if _current is None:
        return outputs
    if isinstance(outputs, tuple):
        parts = [whole_batch(part) for part in outputs]
        return type(outputs)(*parts) if hasattr(outputs, "_fields") else tuple(parts)
    if outputs.dtype == torch.bool:
        return whole_batch(outputs.byte()).bool()
    part = _current
    whole = outputs.new_zeros((part.whole, *outputs.shape[1:]))
    whole[part.first : part.first + part.images] = outputs[: part.images]
    return _AllSum.apply(whole)


def of_whole_batch(losses: dict[str, torch.Tensor], part: Part) -> dict[str, torch.Tensor]:
    """The losses of a batch from those of the processes' parts; called together."""
    whole = {
        name: value.detach() * part.weight if part.weight else torch.zeros_like(value)
        for name, value in losses.items()
    }
    all_reduce_mean(list(whole.values()))
    return whole


def finite_in_all(losses: dict[str, torch.Tensor], part: Part) -> dict[str, torch.Tensor]:
    """The losses of a part of a batch, NaN where another part's is not finite; called together."""
    if world_size() == 1:
        return losses
    values = [value.detach() for value in losses.values()]
    finite = torch.stack([value.isfinite() for value in values])
    everywhere = all_reduce_and(finite if part.images else torch.ones_like(finite))
    counted = (value.where(is_finite, torch.nan) for value, is_finite in zip(values, everywhere, strict=True))
    return dict(zip(losses, counted, strict=True))


def named_losses(
    loss: Callable[..., torch.Tensor | Mapping[str, torch.Tensor]], outputs: Any, targets: Any
) -> dict[str, torch.Tensor]:
    """Call a loss that returns a tensor or a dict of them; the result always has the key "loss".

    A loss is given the whole batch, unless its own class says that it takes parts of one (`takes_parts`).
    """
    # Not by inheritance: who overrides what a loss computes may compute something else.
    if "takes_parts" in vars(type(loss)) and loss.takes_parts:  # type: ignore[attr-defined]
        value = loss(outputs, targets)
    else:
        outputs, targets = whole_batch(outputs), whole_batch(targets)
        with undivided():  # for losses of this program that it may call
            value = loss(outputs, targets)
    return dict(value) if isinstance(value, Mapping) else {"loss": value}


class _AllSum(torch.autograd.Function):
    """torch's own, of torch.distributed.nn, warns from torch 2.13 on that it will go."""

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
