"""Pictures in files, of any size, mode and format."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import UserError

__all__ = ["list_pictures", "open_picture", "read_picture"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def list_pictures(folder: Path, least: int) -> list[Path]:
    """Return the pictures below a folder, in the order of their paths."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if len(paths) < least:
        raise UserError(
            f"{folder} holds {len(paths)} pictures, at least {least} are needed; known endings are "
            f"{', '.join(EXTENSIONS)}"
        )
    return paths


@contextlib.contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture, whose size and mode are known then; its pixels are read when they are asked for.

    Raises:
        UserError: the file is no picture, or its pixels cannot be read.
    """
    try:
        with Image.open(path) as opened:
            yield opened
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no readable picture ({error}); repair it or take it out of the folder") from None


def read_picture(path: Path, size: int, *, grey: bool = False) -> Tensor:
    """Read a picture of any size and mode, resized and cropped to a square.

    Transparency is laid on white, the orientation tag is obeyed, deep pixels are scaled to 8 bits.

    Args:
        path: file.
        size: side in pixels.
        grey: one channel instead of three.

    Returns:
        (C, size, size), uint8.

    Raises:
        UserError: the file is no picture, is truncated, or holds a NaN.
    """
    with open_picture(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image, path)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = ImageOps.fit(image.convert("L" if grey else "RGB"), (size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if grey else pixels.permute(2, 0, 1).contiguous()


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Scale a picture of 16-bit, 32-bit or floating-point pixels to 8 bits."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{path} holds a pixel that is NaN or infinite; repair it or take it out of the folder")
    if image.mode == "F":
        values = values * 255 if values.max() <= 1 else values
    else:
        values = values / 257 if values.max() > 255 else values
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
