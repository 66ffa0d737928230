"""Images of any size, padded for networks that take multiples of a stride."""

import torch
from torch.nn import functional as F


def pad_to_multiple(images: torch.Tensor, multiple: int, least: int = 1) -> tuple[torch.Tensor, int, int]:
    """Pad images on all sides, by reflection, to a size that an encoder can take.

    Args:
        images: (N, C, H, W).
        multiple: height and width become multiples of it, in pixels.
        least: the least height and width, a multiple of `multiple`, in pixels.

    Returns:
        (N, C, H', W') images, and the row and column where the original begins.
    """
    height, width = images.shape[-2:]
    extra_rows = max(-height % multiple, least - height)
    extra_columns = max(-width % multiple, least - width)
    top, left = extra_rows // 2, extra_columns // 2
    if not extra_rows and not extra_columns:
        return images, 0, 0
    sides = (left, extra_columns - left, top, extra_rows - top)
    can_reflect = sides[1] < width and sides[3] < height
    return F.pad(images, sides, mode="reflect" if can_reflect else "replicate"), top, left
