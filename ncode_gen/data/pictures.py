"""Images as bytes, and many of them as one picture. No plotting library is imported for it."""

import math
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

READABLE_SIDE = 56
# What every PNG of this program says of itself, so that it is not taken for data when it lies among pictures.
MARK = {"Software": "ncode_gen"}
MARKED_WITHIN = 512  # bytes from the start of a file


def save_marked(image: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whatever the name of the file, with the mark of this program."""
    text = PngInfo()
    for key, value in MARK.items():
        text.add_text(key, value)
    image.save(path, format="PNG", pnginfo=text)


def is_marked(path: Path) -> bool:
    """Return whether a file is a PNG with the mark of this program."""
    if path.suffix.lower() != ".png":
        return False
    try:
        with path.open("rb") as file:
            start = file.read(MARKED_WITHIN)
    except OSError:
        return False
    return start.startswith(b"\x89PNG") and all(f"{key}\0{value}".encode() in start for key, value in MARK.items())


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
