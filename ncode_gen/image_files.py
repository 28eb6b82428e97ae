"""Images that any program wrote to files, such as samples of other generators."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import TensorImages
from .errors import UserError
from .picture_files import list_pictures, open_picture, read_picture
from .pictures import to_bytes

__all__ = ["fit_channels", "images_digest", "read_images"]

GREY_MODES = ("1", "L", "F")  # and all whose names begin with I


def read_images(path: Path) -> TensorImages:
    """Read images of one size: a file of arrays, or all pictures below a folder.

    Args:
        path: FILE.npz with an array `images`, or with one array of any name: (n, H, W, C) with 1 or 3 channels, or
            (n, H, W), uint8 in [0, 255] or floating point in [0, 1]. Or a folder of square pictures; they are taken in
            the order of their paths, grey if all are.

    Raises:
        UserError: there is no such file, it cannot be read, or it holds something else.
    """
    if path.is_dir():
        return TensorImages(_read_folder(path))
    return TensorImages(_as_bytes(_read_array(path), path))


def fit_channels(images: TensorImages, channels: int) -> TensorImages:
    """Return images with the channels of others: grey ones that were written in colour have one, if that is asked for.

    >>> grey = TensorImages(torch.full((2, 3, 4, 4), 7, dtype=torch.uint8))
    >>> fit_channels(grey, 1).shape
    (1, 4, 4)
    """
    pixels = images.pixels
    if channels == 1 and pixels.shape[1] == 3 and bool((pixels == pixels[:, :1]).all()):
        return TensorImages(pixels[:, :1].contiguous())
    return images


def images_digest(images: TensorImages) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of all pixels."""
    return hashlib.sha256(images.pixels.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _read_array(path: Path) -> Any:
    """Return the array of a file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; name an .npz file or a folder of pictures")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):  # numpy.save's, whatever it is called
            return loaded
        with loaded as held:
            names = held.files
            name = "images" if "images" in names else names[0] if len(names) == 1 else ""
            values = held[name] if name else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} holds no arrays that can be read; write it with numpy.savez") from None
    if values is None:
        raise UserError(f"{path} holds {len(names)} arrays, none of them called images; give one that name")
    return values


def _as_bytes(values: Any, path: Path) -> Tensor:
    """Return an array as pixels (n, C, H, W), uint8."""
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4 or values.shape[-1] not in (1, 3) or not len(values):
        raise UserError(f"{path} must hold images (n, H, W, C) with 1 or 3 channels, got an array {values.shape}")
    if values.dtype != np.uint8:
        if not np.issubdtype(values.dtype, np.floating):
            raise UserError(f"{path} must hold uint8 or floating-point numbers, got {values.dtype}")
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise UserError(f"{path} must hold numbers in [0, 1] without NaN, got values from {low:g} to {high:g}")
    pixels = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))
    return pixels if pixels.dtype == torch.uint8 else to_bytes(pixels)


def _read_folder(folder: Path) -> Tensor:
    """Return all pictures below a folder, (n, C, side, side), uint8."""
    paths = list_pictures(folder, 1)
    side, grey = 0, True
    for path in paths:
        with open_picture(path) as opened:
            size, mode = opened.size, opened.mode
        side = side or size[0]
        if size != (side, side):
            raise UserError(f"{path} is {size[0]} x {size[1]} pixels; all pictures must be {side} x {side}")
        grey &= mode in GREY_MODES or mode.startswith("I")
    return torch.stack([read_picture(path, side, grey=grey) for path in paths])
