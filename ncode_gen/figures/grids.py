"""Pictures in rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from .style import new_figure, show_picture

__all__ = ["labelled_rows", "picture_grid", "to_bytes", "upscaled"]

READABLE_SIDE = 56


def to_bytes(images: Tensor) -> Tensor:
    """Round images in [0, 1] to uint8 in [0, 255], halves up; never truncated."""
    return (images.detach().clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8).cpu()


def upscaled(images: Tensor) -> Tensor:
    """Repeat the pixels of tiny images (n, C, H, W) a whole number of times, until they can be seen."""
    times = max(1, math.ceil(READABLE_SIDE / images.shape[-1]))
    return images.repeat_interleave(times, -1).repeat_interleave(times, -2)


def picture_grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """Lay images (n, C, H, W) in [0, 1] out in a grid, as square as possible unless `columns` are given."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    grid = make_grid(to_bytes(upscaled(images)), columns, padding=4, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def labelled_rows(rows: Sequence[Tensor], labels: Sequence[str], title: str, cell: float = 0.6) -> Figure:
    """Draw rows of pictures, each (n, C, H, W) in [0, 1], with a label before each row."""
    figure, axes = new_figure(len(rows), len(rows[0]), cell)
    for line, pictures, label in zip(axes, rows, labels, strict=True):
        for spot, picture in zip(line, pictures, strict=True):
            show_picture(spot, picture)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=9)
    return figure
