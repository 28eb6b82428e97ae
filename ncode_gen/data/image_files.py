"""Images that any program wrote to files, such as samples of other generators."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .images import TensorImages
from .picture_files import open_picture, read_picture, set_range
from .picture_folders import find_pictures
from .pictures import to_bytes

GREY_MODES = ("1", "L", "F")  # and all whose names begin with I
CHANNELS = (1, 3, 4)
OVERSHOOT = 1e-3  # of [0, 1], such as rounding leaves; it is clipped
Array = np.ndarray[Any, Any]


def read_images(path: Path) -> TensorImages:
    """Read images of one size: a file of arrays, or all pictures below a folder.

    Args:
        path: FILE.npz or FILE.npy with an array `images`, or one array of images beside others (labels): (n, H, W, C)
            or (n, C, H, W) with 1, 3 or 4 channels, or (n, H, W); whole numbers in [0, 255], or floating point in
            [0, 1], [-1, 1] or [0, 255]. Or a folder of square pictures; they are taken in the order of their paths,
            grey if all are.

    Returns:
        The images; their `notes` have a line for each thing that the file does not say but that is taken to be meant.

    Raises:
        UserError: there is no such file, it cannot be read, or it holds something else.
    """
    notes: list[str] = []
    pixels = _read_folder(path, notes) if path.is_dir() else pixels_of(_read_array(path, notes), path, notes)
    return TensorImages(pixels, notes=tuple(notes))


def fit_channels(images: TensorImages, channels: int) -> TensorImages:
    """Return images with the channels of others: grey ones that were written in colour have one, if that is needed.

    >>> grey = TensorImages(torch.full((2, 3, 4, 4), 7, dtype=torch.uint8))
    >>> fit_channels(grey, 1).shape
    (1, 4, 4)
    """
    pixels = images.pixels
    if channels == 1 and pixels.shape[1] == 3 and bool((pixels == pixels[:, :1]).all()):
        return TensorImages(pixels[:, :1].contiguous(), notes=images.notes)
    return images


def images_digest(images: TensorImages) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of all pixels."""
    return hashlib.sha256(images.pixels.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _read_array(path: Path, notes: list[str]) -> Array:
    """Return the array of images of a file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; name an .npz file or a folder of pictures")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):  # numpy.save's, whatever it is called
            return loaded
        with loaded as held:
            if "images" in held.files:
                return np.asarray(held["images"])
            arrays = {name: np.asarray(held[name]) for name in held.files}
    except Exception as error:  # a damaged archive raises what its unpacker raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} holds no arrays that can be read ({reason}); write it with numpy.savez") from None
    images = [name for name, values in arrays.items() if values.ndim in (3, 4)]
    if len(images) == 1 or len(arrays) == 1:
        name = images[0] if images else next(iter(arrays))
        if len(arrays) > 1:
            others = ", ".join(other for other in arrays if other != name)
            notes.append(f"{path}: the array {name} is taken for the images, {others} is not used")
        return arrays[name]
    raise UserError(
        f"{path} holds {len(arrays)} arrays ({', '.join(arrays)}), none of them called images; give one that name"
    )


def pixels_of(values: Array, path: Path, notes: list[str]) -> Tensor:
    """Return an array as pixels (n, C, H, W), uint8."""
    if values.ndim == 3:
        values = values[..., None]
    if (
        values.ndim == 4
        and values.shape[1] in CHANNELS
        and (values.shape[-1] not in CHANNELS or values.shape[1] != values.shape[2] == values.shape[3])
    ):
        notes.append(f"{path}: an array {values.shape} is taken as (n, C, H, W)")
        values = values.transpose(0, 2, 3, 1)
    if values.ndim != 4 or values.shape[-1] not in CHANNELS or not values.size:
        raise UserError(f"{path} must hold images (n, H, W, C) with 1 or 3 channels, got an array {values.shape}")
    if values.dtype != np.uint8:
        values = _unit(values, path, notes)
    if values.shape[-1] == 4:
        notes.append(f"{path}: the fourth channel is taken for opacity, and the images are laid on white")
        scale = 255 if values.dtype == np.uint8 else 1
        share = values.astype(np.float64) / scale
        values = share[..., :3] * share[..., 3:] + 1 - share[..., 3:]
    pixels = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))
    return pixels if pixels.dtype == torch.uint8 else to_bytes(pixels)


def _unit(values: Array, path: Path, notes: list[str]) -> Array:
    """Return numbers of other types than bytes in [0, 1], as they are meant."""
    if values.dtype.kind not in "bfiu":
        raise UserError(f"{path} must hold whole or floating-point numbers, got {values.dtype}")
    low, high = float(values.min()), float(values.max())
    floating = values.dtype.kind == "f"
    if floating and low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        if low < 0 or high > 1:
            notes.append(f"{path}: values from {low!r} to {high!r} are clipped to [0, 1]")
        return np.clip(values, 0, 1)
    if floating and -1 - OVERSHOOT <= low < 0 and high <= 1 + OVERSHOOT:
        notes.append(f"{path}: values from {low!r} to {high!r} are taken to be in [-1, 1]")
        return np.clip((values.astype(np.float64) + 1) / 2, 0, 1)
    if values.dtype.kind == "b":
        notes.append(f"{path}: truth values are taken as black and white")
        return values.astype(np.float64)
    if low >= 0 and high <= 255 and (high > 2 or not floating):
        if floating or high <= 1:
            notes.append(f"{path}: values from {low!r} to {high!r} are taken to be in [0, 255]")
        return values.astype(np.float64) / 255
    raise UserError(
        f"{path} must hold whole numbers in [0, 255], or numbers in [0, 1] or [-1, 1] without NaN, got values from "
        f"{low!r} to {high!r}"
    )


def _read_folder(folder: Path, notes: list[str]) -> Tensor:
    """Return all pictures below a folder, (n, C, side, side), uint8."""
    found = find_pictures(folder, 1, samples=True)
    side, grey = 0, True
    for path in found.paths:
        with open_picture(path) as opened:
            size, mode = opened.size, opened.mode
        side = side or size[0]
        if size != (side, side):
            raise UserError(f"{path} is {size[0]} x {size[1]} pixels; all pictures must be {side} x {side}")
        grey &= mode in GREY_MODES or mode.startswith("I")
    pixels, ranges = set_range(found.paths)
    notes += [*found.notes(folder), *ranges]
    return torch.stack([read_picture(path, side, grey=grey, pixels=pixels) for path in found.paths])
