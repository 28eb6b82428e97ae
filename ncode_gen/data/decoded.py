"""Pictures decoded once: an array of bytes in a cache, mapped into memory, for sets that are too large for it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..runtime.paths import cache_folder
from ..runtime.progress import track
from .images import Images

LARGEST_SHARE = 0.9  # of what is free on the disk


class MappedImages(Images):
    """Images in a file of bytes, which is mapped into memory, so that the system keeps what fits there.

    Args:
        pixels: (N, C, H, W), uint8, of which the file is mapped.
        order: indices of those that belong to this set, (n,).
        labels: their classes, (n,), where they are known.
    """

    def __init__(self, pixels: Tensor, order: Tensor, labels: Tensor | None = None) -> None:
        self.pixels, self.order, self.labels = pixels, order, labels
        self.shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, size: int, order: Tensor | None = None, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Yield batches in [0, 1]."""
        chosen = self.order if order is None else self.order[order]
        for part in chosen.split(size):
            yield self.pixels[part].to(device).float() / 255

    def head(self, n: int) -> MappedImages:
        """Return the first `n` images."""
        return MappedImages(self.pixels, self.order[:n], None if self.labels is None else self.labels[:n])


def pictures_digest(paths: list[Path], settings: object) -> str:
    """Return 32 hexadecimal digits that change with names, sizes and times of files, and with how they are read."""
    found = hashlib.sha256(json.dumps([repr(settings), os.path.commonpath(paths)]).encode(errors="surrogateescape"))
    for path in paths:
        about = path.stat()
        found.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return found.hexdigest()[:32]


def decoded(batches: Iterator[Tensor], count: int, shape: tuple[int, int, int], digest: str) -> Tensor | None:
    """Return all pictures as bytes (N, C, H, W), from the cache, or decoded into it.

    Args:
        batches: yields the pictures in their order, in [0, 1], if they have to be decoded.
        count: number N of pictures.
        shape: (C, H, W).
        digest: name of the file, see `pictures_digest`.

    Returns:
        The pixels, mapped into memory; None where the cache cannot be written or the disk has too little room.
    """
    whole = (count, *shape)
    size = int(np.prod(whole, dtype=np.int64))
    try:
        folder = cache_folder() / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{digest}.bytes"
        if path.is_file() and path.stat().st_size == size:
            return _mapped(path, whole)
        room = os.statvfs(folder)
        if size > LARGEST_SHARE * room.f_bavail * room.f_frsize:
            return None
        partial = path.with_name(f"{path.name}.{os.getpid()}")
    except OSError:
        return None
    try:
        with partial.open("wb") as file, track("pictures", count, quiet=not sys.stderr.isatty()) as bar:
            for batch in batches:
                file.write((255 * batch).round().byte().numpy().tobytes())
                bar.advance(len(batch))
        partial.replace(path)
        return _mapped(path, whole)
    except OSError:
        return None
    finally:
        partial.unlink(missing_ok=True)


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    # Copy on write, since torch has no tensors that cannot be written to.
    return torch.from_numpy(np.memmap(path, np.uint8, "c", shape=shape))
