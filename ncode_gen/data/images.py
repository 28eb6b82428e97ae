"""A fixed sequence of images: in memory, or read when they are needed."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError


class Images(ABC):
    """A fixed sequence of images of one shape.

    Attributes:
        shape: (C, H, W).
        labels: classes, (n,), where they are known.
    """

    shape: tuple[int, int, int]
    labels: Tensor | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def batches(self, size: int, order: Tensor | None = None, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Yield batches (size, C, H, W) in [0, 1], float32, on a device.

        Args:
            size: images in a batch; the last one may be smaller.
            order: indices of the images, shape (m,); all in their own order if None.
            device: where the batches are needed.
        """

    @abstractmethod
    def head(self, n: int) -> Images:
        """Return the set of the first `n` images, or of all, if there are fewer."""

    def first(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the first `n` images (or all, if fewer), (m, C, H, W) in [0, 1]."""
        return next(self.batches(n, torch.arange(min(n, len(self))), device))


class TensorImages(Images):
    """Images that live in one tensor.

    Args:
        pixels: (n, C, H, W), uint8.
        labels: classes, (n,), where they are known.
        notes: what to say of how they were read, a line each.
    """

    def __init__(self, pixels: Tensor, labels: Tensor | None = None, notes: tuple[str, ...] = ()) -> None:
        self.pixels, self.labels, self.notes = pixels, labels, notes
        self._copy: Tensor | None = None
        self.shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, size: int, order: Tensor | None = None, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Yield batches in [0, 1]."""
        pixels = self._on(torch.device(device))
        order = torch.arange(len(self)) if order is None else order
        for part in order.to(device).split(size):
            yield pixels[part].float() / 255

    def _on(self, device: torch.device) -> Tensor:
        """Return the pixels on a device; a copy on another one than theirs is made once."""
        if device == self.pixels.device:
            return self.pixels
        if self._copy is None or self._copy.device != device:
            self._copy = self.pixels.to(device)
        return self._copy

    def head(self, n: int) -> TensorImages:
        """Return the first `n` images."""
        return self.select(torch.arange(min(n, len(self))))

    def select(self, order: Tensor) -> TensorImages:
        """Return the images at the given indices."""
        return TensorImages(self.pixels[order], None if self.labels is None else self.labels[order])


class FolderImages(Images):
    """Pictures read from files when they are needed, by worker processes.

    Args:
        read: returns the picture (C, H, W), uint8, at an index.
        order: the indices that belong to this set.
        shape: (C, H, W).
        workers: number of reading processes.
    """

    def __init__(self, read: Callable[[int], Tensor], order: Tensor, shape: tuple[int, int, int], workers: int) -> None:
        self.read, self.order, self.shape, self.workers = read, order, shape, workers

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, size: int, order: Tensor | None = None, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Yield batches in [0, 1].

        Raises:
            UserError: a picture cannot be read; the message names the file.
        """
        chosen = self.order if order is None else self.order[order]
        dataset = _Reading(self.read, chosen.tolist())
        for pictures in DataLoader(dataset, batch_size=size, num_workers=min(self.workers, _cores()), collate_fn=list):
            for picture in pictures:
                if isinstance(picture, str):
                    raise UserError(picture)
            yield torch.stack(pictures).to(device).float() / 255

    def head(self, n: int) -> FolderImages:
        """Return the first `n` images."""
        return FolderImages(self.read, self.order[:n], self.shape, self.workers)


class _Reading(Dataset[Tensor | str]):
    """Pictures at given indices; an unreadable one becomes its message, since errors lose their class in workers."""

    def __init__(self, read: Callable[[int], Tensor], indices: list[int]) -> None:
        self.read, self.indices = read, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.read(self.indices[index])
        except UserError as error:
            return str(error)


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
