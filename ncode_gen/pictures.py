"""Images as bytes, and many of them as one picture. No plotting library is imported for it."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

__all__ = ["picture_grid", "tiled", "to_bytes", "upscaled"]

READABLE_SIDE = 56


def to_bytes(images: Tensor) -> Tensor:
    """Round images in [0, 1] to uint8 in [0, 255], halves up; never truncated."""
    return (images.detach().clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8).cpu()


def upscaled(images: Tensor) -> Tensor:
    """Repeat the pixels of tiny images (n, C, H, W) a whole number of times, until they can be seen."""
    times = max(1, math.ceil(READABLE_SIDE / images.shape[-1]))
    return images.repeat_interleave(times, -1).repeat_interleave(times, -2)


def tiled(images: Tensor, columns: int, gap: int, background: float) -> Tensor:
    """Lay images out in rows, with gaps between them and around, as one image (3, H', W').

    Args:
        images: (n, C, H, W) with one or three channels.
        columns: images in a row; no more than there are.
        gap: pixels between two images.
        background: value of gaps, and of what the last row leaves free.

    >>> tiled(torch.zeros(3, 1, 4, 5), columns=2, gap=1, background=1.0).shape
    torch.Size([3, 11, 13])
    """
    columns = min(columns, len(images))
    height, width = images.shape[2] + gap, images.shape[3] + gap
    whole = images.new_full((3, math.ceil(len(images) / columns) * height + gap, columns * width + gap), background)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        top, left = row * height + gap, column * width + gap
        whole[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return whole


def picture_grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """Lay images (n, C, H, W) in [0, 1] out in a grid, as square as possible unless `columns` are given."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    grid = tiled(to_bytes(upscaled(images)), columns, 4, 255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())
