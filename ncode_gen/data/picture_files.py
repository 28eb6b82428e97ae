"""Pictures in files, of any size, mode, depth and format."""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from .pixel_range import PixelRange, RangeFinder

# Formats that Pillow names but reads only with another program, on another system, or not at all.
UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
SHALLOW = {".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp", ".ico"}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@functools.cache
def picture_endings() -> frozenset[str]:
    """Return the endings, in small letters, of the files that Pillow reads by itself.

    >>> ".png" in picture_endings(), ".pdf" in picture_endings()
    (True, False)
    """
    known = Image.registered_extensions().items()
    return frozenset(
        [ending for ending, kind in known if kind in Image.OPEN and kind not in UNREADABLE and len(ending) > 1]
        + [".mpo"]  # which the reader of JPEG takes
    )


@contextlib.contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture, whose size and mode are known then; its pixels are read on access.

    Raises:
        UserError: the file is no picture, or its pixels cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged tags; the picture is read or refused
            with Image.open(path) as opened:
                yield opened
    except UserError:
        raise
    except Exception as error:  # damaged files make decoders raise whatever they like
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} is not a readable picture ({reason}); repair it or take it out of the folder"
        ) from None


def read_picture(path: Path, size: int, *, grey: bool = False, pixels: PixelRange | None = None) -> Tensor:
    """Read a picture of any size and mode, resized and cropped to a square.

    Transparency is laid on white, the orientation tag is obeyed where it can be read, deep pixels are scaled to 8 bits.
    Of an animation the first frame is taken.

    Args:
        path: file.
        size: side in pixels.
        grey: one channel instead of three.
        pixels: which values of deep pixels become black and white, see `set_range`; that of this picture alone if None.

    Returns:
        (C, size, size), uint8.

    Raises:
        UserError: the file is no picture, is truncated, or holds a NaN.
    """
    with open_picture(path) as opened:
        image: Image.Image = opened
        image.load()
        turn = _turn(opened)
        deep = _deep_values(opened, path)
        if deep is not None:
            image = _shallow(deep, pixels or _range_of([deep]))
        elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = _on_white(image.convert("RGBA"))
        if turn is not None:
            image = image.transpose(turn)
        image = ImageOps.fit(image.convert("L" if grey else "RGB"), (size, size), Image.Resampling.LANCZOS)
    held = torch.from_numpy(np.array(image))
    return held.unsqueeze(0) if grey else held.permute(2, 0, 1).contiguous()


def set_range(paths: Sequence[Path], given: PixelRange | None = None) -> tuple[PixelRange | None, list[str]]:
    """Return the range of the deep pixels of a set of pictures, with notes for the user.

    All deep pictures are read once for it, so that two of them are as bright in relation as their values are.

    Args:
        paths: the pictures.
        given: the range, where the user says it; clipped values are counted all the same.

    Returns:
        The range, None where no picture is deep; and at most one line.

    Raises:
        UserError: a picture cannot be read, or holds a NaN.
    """
    finder, deep = RangeFinder(), []
    for path in paths:
        if not _may_be_deep(path):
            continue
        with open_picture(path) as opened:
            values = _deep_values(opened, path)
        if values is not None:
            finder.see(_colours(values))
            deep.append(path)
    if not deep:
        return None, []
    used = given or finder.found()
    clipped = 0
    if finder.low < used.black or finder.high > used.white:
        clipped = sum(used.outside(_read_deep(path)) for path in deep)
    return used, [finder.note(used, len(paths), clipped)]


def _read_deep(path: Path) -> np.ndarray[Any, Any]:
    with open_picture(path) as opened:
        values = _deep_values(opened, path)
    assert values is not None
    return _colours(values)


def _colours(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return pixels without their opacity, the last of 2 or 4 channels."""
    return values[..., : 3 if values.shape[-1] > 2 else 1] if values.ndim == 3 else values


def _range_of(pictures: Sequence[np.ndarray[Any, Any]]) -> PixelRange:
    finder = RangeFinder()
    for values in pictures:
        finder.see(_colours(values))
    return finder.found()


def _may_be_deep(path: Path) -> bool:
    """Return whether a picture may have more than 8 bits a channel, from its name and its first bytes."""
    if path.suffix.lower() in SHALLOW:
        return False
    try:
        with path.open("rb") as file:
            start = file.read(25)
    except OSError:
        return True
    return not start.startswith(PNG_SIGNATURE) or len(start) < 25 or start[24] > 8


def _turn(opened: Image.Image) -> Image.Transpose | None:
    """Return how a picture is turned upright; a damaged tag is ignored."""
    with contextlib.suppress(Exception):
        return TURNS.get(opened.getexif().get(ORIENTATION, 1))
    return None


def _deep_values(opened: Image.Image, path: Path) -> np.ndarray[Any, Any] | None:
    """Return pixels of more than 8 bits as (H, W) or (H, W, C) numbers; None for a picture of 8 bits.

    Raises:
        UserError: a pixel is NaN or infinite.
    """
    if opened.mode == "F" or opened.mode.startswith("I"):
        values = np.asarray(opened)
        values = values if values.dtype.kind in "iuf" else values.astype(np.float64)
    elif opened.format == "PNG" and ";16" in _raw_mode(path):
        # Pillow keeps the upper 8 bits of such colours, which are black where only 12 of the 16 bits are used.
        from torchvision.io import ImageReadMode, decode_image

        content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        values = decode_image(content, ImageReadMode.UNCHANGED).permute(1, 2, 0).to(torch.int32).numpy()
        values = values[..., 0] if values.shape[-1] == 1 else values
    else:
        return None
    if not values.size:
        raise UserError(f"{path} holds no pixel; take it out of the folder")
    if not np.isfinite(values).all():
        raise UserError(f"{path} holds a pixel that is NaN or infinite; repair it or take it out of the folder")
    return values


def _raw_mode(path: Path) -> str:
    """Return how a picture's pixels are stored, as Pillow calls it."""
    with Image.open(path) as again:  # what is loaded has forgotten it
        return ";".join(str(tile[3]) for tile in again.tile)


def _shallow(values: np.ndarray[Any, Any], used: PixelRange) -> Image.Image:
    """Return deep pixels as a picture of 8 bits; of 2 or 4 channels the last one is opacity, of 16 bits."""
    if values.ndim == 2:
        return Image.fromarray(used.to_bytes(values))
    channels = values.shape[-1]
    seen = used.to_bytes(_colours(values))
    seen = np.repeat(seen, 3, -1) if seen.shape[-1] == 1 else seen
    image = Image.fromarray(seen)
    if channels in (2, 4):
        image.putalpha(Image.fromarray(PixelRange(0, 65535).to_bytes(values[..., -1])))
        image = _on_white(image)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
