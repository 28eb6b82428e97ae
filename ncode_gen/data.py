"""Image sets by name, split into training, validation and test images."""

from __future__ import annotations

import contextlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .errors import UserError
from .picture_files import list_pictures, read_picture
from .recipe import DataRecipe

__all__ = [
    "FolderImages",
    "Images",
    "Splits",
    "TensorImages",
    "load_data",
]

IN_MEMORY = 2**30
FOLDER_SIZE = 32
CELEBA_SIZE = 64


class Images(ABC):
    """A fixed sequence of images of one shape.

    Attributes:
        shape: (C, H, W).
    """

    shape: tuple[int, int, int]

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
    """

    def __init__(self, pixels: Tensor, labels: Tensor | None = None) -> None:
        self.pixels, self.labels = pixels, labels
        self.shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, size: int, order: Tensor | None = None, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Yield batches in [0, 1]; the pixels move to the device once and stay there."""
        self.pixels = self.pixels.to(device)
        order = torch.arange(len(self)) if order is None else order
        for part in order.to(device).split(size):
            yield self.pixels[part].float() / 255

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


@dataclass(frozen=True)
class Splits:
    """The images to learn from, to watch training with, and to score with."""

    train: Images
    validation: Images
    test: Images


def _digits(recipe: DataRecipe) -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    images = TensorImages(_resized(pixels, recipe), torch.from_numpy(digits.target))
    train, test = _shuffled(len(images), recipe.test, recipe.split_seed)
    return _validation(images.select(train), images.select(test), recipe)


TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "kmnist": ("KMNIST", "KMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "celeba": ("CelebA", "celeba"),
}


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torchvision(recipe: DataRecipe, workers: int) -> Splits:
    from torchvision import datasets

    name, folder = TORCHVISION[recipe.name]
    expected = Path(recipe.root) / folder
    kind = getattr(datasets, name)

    def part(train: bool) -> Any:
        which = {"split": "train" if train else "test"} if recipe.name == "celeba" else {"train": train}
        try:
            return kind(recipe.root, download=False, **which)
        except RuntimeError:
            pass  # Not there yet; torchvision says so with a RuntimeError.
        except Exception as error:
            raise UserError(f"the files of {recipe.name} in {expected} are damaged ({error}); delete them") from None
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return kind(recipe.root, download=True, **which)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{recipe.name} is not in {expected} and could not be downloaded ({reason}); put torchvision's files "
                "there, or name the folder that holds them with --data.root"
            ) from None

    train, test = part(True), part(False)
    if recipe.name == "celeba":
        side = recipe.size or CELEBA_SIZE
        return _celeba(train, test, side, recipe, workers)
    sets = []
    for half in (train, test):
        values = torch.as_tensor(np.asarray(half.data))
        pixels = values.unsqueeze(1) if values.dim() == 3 else values.permute(0, 3, 1, 2).contiguous()
        sets.append(TensorImages(_resized(pixels, recipe), torch.as_tensor(half.targets)))
    return _validation(sets[0], sets[1], recipe)


def _celeba(train: Any, test: Any, side: int, recipe: DataRecipe, workers: int) -> Splits:
    folder = Path(train.root) / train.base_folder / "img_align_celeba"
    paths = [folder / name for name in (*train.filename, *test.filename)]
    first = torch.arange(len(train.filename))
    return _streams(paths, first, torch.arange(len(first), len(paths)), side, recipe, workers)


def _folder(recipe: DataRecipe, workers: int) -> Splits:
    root = Path(recipe.root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; name the folder of pictures with --data.root")
    parts = [root / "train", root / "test"]
    if all(part.is_dir() for part in parts):
        found = [list_pictures(part, least) for part, least in zip(parts, (2, 1), strict=True)]
        paths = found[0] + found[1]
        train, test = torch.arange(len(paths)).split([len(some) for some in found])
        labels = _classes(parts, found)
    else:
        paths, labels = list_pictures(root, 4), None
        train, test = _shuffled(len(paths), recipe.test, recipe.split_seed)
    # Not in the order of their paths: the first pictures of a part stand for all, also where folders are classes.
    generator = torch.Generator().manual_seed(recipe.split_seed)
    train, test = (part[torch.randperm(len(part), generator=generator)] for part in (train, test))
    return _streams(paths, train, test, recipe.size or FOLDER_SIZE, recipe, workers, labels)


def _classes(parts: list[Path], found: list[list[Path]]) -> Tensor | None:
    """Return the class of each picture, (n,), if all are in class folders, the same ones in both parts."""
    names = [[path.relative_to(part).parts for path in some] for part, some in zip(parts, found, strict=True)]
    known = [sorted({name[0] for name in some if len(name) > 1}) for some in names]
    if known[0] != known[1] or len(known[0]) < 2 or any(len(name) < 2 for some in names for name in some):
        return None
    number = {name: i for i, name in enumerate(known[0])}
    return torch.tensor([number[name[0]] for some in names for name in some])


@dataclass(frozen=True)
class _Files:
    """Reads the picture at an index; a class, so that worker processes can be handed one."""

    paths: list[Path]
    side: int
    grey: bool

    def __call__(self, index: int) -> Tensor:
        return read_picture(self.paths[index], self.side, grey=self.grey)


def _streams(
    paths: list[Path],
    train: Tensor,
    test: Tensor,
    side: int,
    recipe: DataRecipe,
    workers: int,
    labels: Tensor | None = None,
) -> Splits:
    """Split pictures in files; sets that fit in memory are read once, larger ones are streamed, without labels."""
    read = _Files(paths, side, recipe.grey)
    shape = (1 if recipe.grey else 3, side, side)
    train, validation = _held_out(train, recipe)
    parts = [FolderImages(read, order, shape, workers) for order in (train, validation, test)]
    if len(paths) * shape[0] * side * side > IN_MEMORY:
        return Splits(*parts)
    held = [
        TensorImages(
            torch.cat([(255 * batch).round().byte() for batch in part.batches(256)]),
            None if labels is None else labels[part.order],
        )
        for part in parts
    ]
    return Splits(*held)


def _resized(pixels: Tensor, recipe: DataRecipe) -> Tensor:
    if recipe.grey and pixels.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        pixels = (pixels * weights).sum(1, keepdim=True).round().byte()
    if recipe.size and recipe.size != pixels.shape[-1]:
        side = (recipe.size, recipe.size)
        resized = torch.nn.functional.interpolate(pixels.float(), side, mode="bilinear", antialias=True)
        pixels = resized.round().clamp(0, 255).byte()
    return pixels


def _shuffled(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split n indices at random: (rest, share), at least one in each."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    held = min(max(1, round(share * n)), n - 1)
    return order[held:].sort().values, order[:held].sort().values


def _held_out(train: Tensor, recipe: DataRecipe) -> tuple[Tensor, Tensor]:
    """Split training indices into those to learn from and those to watch with."""
    kept, held = _shuffled(len(train), recipe.validation, recipe.split_seed + 1)
    kept = kept[: recipe.limit] if recipe.limit else kept
    return train[kept], train[held]


def _validation(train: TensorImages, test: TensorImages, recipe: DataRecipe) -> Splits:
    kept, held = _held_out(torch.arange(len(train)), recipe)
    return Splits(train.select(kept), train.select(held), test)


def load_data(recipe: DataRecipe, workers: int = 2) -> Splits:
    """Load an image set by name.

    Args:
        recipe: which set, where, and how it is split.
        workers: reading processes for sets that do not fit in memory.

    Raises:
        UserError: the set is missing, damaged or too small; the message names the expected place.

    >>> splits = load_data(DataRecipe(name="digits"))
    >>> splits.train.shape, len(splits.train), len(splits.validation), len(splits.test)
    ((1, 8, 8), 1451, 76, 270)
    """
    if recipe.name == "digits":
        return _digits(recipe)
    if recipe.name == "folder":
        return _folder(recipe, workers)
    return _torchvision(recipe, workers)
