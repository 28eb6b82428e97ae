"""A set of images in one file of arrays, as Keras has them: x_train, y_train, x_test, y_test."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import DataSection
from ..errors import UserError
from .image_files import pixels_of
from .images import TensorImages
from .sets import TORCHVISION, Splits, held_out_validation, resized, shuffled

Array = np.ndarray[Any, Any]
LAYOUT = "x_train and, where there are, y_train, x_test, y_test"


def load_arrays(section: DataSection) -> Splits:
    """Load an .npz file with `x_train`, and where there are `y_train`, `x_test`, `y_test`, `classes`.

    Images are (n, H, W), (n, H, W, C) or (n, C, H, W), see `ncode_gen.data.image_files.read_images`; labels are whole
    numbers or names, (n,) or (n, 1), or one-hot rows; `classes` are their names. Without `x_test` a share of the images
    is held out.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    path, keys = Path(section.place), section.values()
    held, notes = _read(path), list[str]()
    if "x_train" not in held:
        found = ", ".join(held) or "none"
        raise UserError(f"{path} has no array x_train, only {found}; write {LAYOUT} with numpy.savez")
    names, numbers = _labels(held, path)
    sets = []
    for part in ("train", "test"):
        if f"x_{part}" in held:
            pixels = pixels_of(held[f"x_{part}"], path, notes)
            labels = numbers.get(part)
            if labels is not None and len(labels) != len(pixels):
                raise UserError(f"{path} has {len(pixels)} images x_{part} but {len(labels)} labels y_{part}")
            if not section.size and pixels.shape[2] != pixels.shape[3]:
                raise UserError(f"{path} has images of {pixels.shape[3]} x {pixels.shape[2]} pixels; set data.size")
            pixels = resized(pixels, section.size, grey=keys.get("grey", False))
            sets.append(TensorImages(pixels, labels))
    if len(sets) == 1 and "test" not in keys:
        raise UserError(f"{path} has no array x_test, which a copy of {section.name} must hold")
    if len(sets) == 1:
        if len(sets[0]) < 3:
            raise UserError(f"{path} holds {len(sets[0])} images; at least 3 are needed")
        train, test = shuffled(len(sets[0]), keys["test"], section.split_seed)
        sets = [sets[0].select(train), sets[0].select(test)]
    if sets[0].shape != sets[1].shape:
        raise UserError(f"{path} has training images of shape {sets[0].shape} and test images of {sets[1].shape}")
    splits = held_out_validation(sets[0], sets[1], section)
    return dataclasses.replace(splits, notes=tuple(dict.fromkeys(notes)), classes=names)


# Torchvision has these in a file of the set only.
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_copy(section: DataSection) -> Splits:
    """Load a set that torchvision knows from a copy of it in one file, with torchvision's names of the classes.

    Raises:
        UserError: as for `load_arrays`, or the file has no test images.
    """
    from torchvision import datasets

    splits = load_arrays(section)
    names = CIFAR10 if section.name == "cifar10" else getattr(datasets, TORCHVISION[section.name][0]).classes
    return dataclasses.replace(splits, classes=tuple(names) if len(names) == len(splits.classes) else splits.classes)


def _read(path: Path) -> dict[str, Array]:
    """Return the arrays of a file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; name an .npz file with {LAYOUT} with --data.root")
    try:
        with np.load(path, allow_pickle=False) as loaded:
            return {name: np.asarray(loaded[name]) for name in loaded.files}
    except Exception as error:  # a damaged archive raises what its unpacker raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read as arrays ({reason}); write {LAYOUT} with numpy.savez") from None


def _labels(held: Mapping[str, Array], path: Path) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Return the names of the classes, and the numbers of each part's labels."""
    given = {part: _column(held[f"y_{part}"], path) for part in ("train", "test") if f"y_{part}" in held}
    if "train" not in given:
        return (), {}
    values = np.concatenate(list(given.values()))
    known = np.unique(values)
    if "classes" in held:
        names = tuple(str(name) for name in held["classes"].reshape(-1))
        if values.dtype.kind in "US":
            known = held["classes"].reshape(-1)
        elif int(known[0]) < 0 or int(known[-1]) >= len(names):
            raise UserError(f"{path} names {len(names)} classes, but its labels are {known[0]} to {known[-1]}")
        else:
            known = np.arange(len(names))
    else:
        names = tuple(str(value) for value in known)
    place = {value: number for number, value in enumerate(known.tolist())}
    try:
        numbers = {
            part: torch.tensor([place[value] for value in some.tolist()], dtype=torch.long)
            for part, some in given.items()
        }
    except KeyError as error:
        raise UserError(f"{path} has a label {error} that its array classes does not name") from None
    return names, numbers


def _column(values: Array, path: Path) -> Array:
    """Return labels as one column (n,)."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    elif values.ndim == 2 and values.dtype.kind in "bfiu" and bool((values.sum(1) == 1).all()):
        values = values.argmax(1)
    if values.ndim != 1 or values.dtype.kind not in "biuUS":
        if values.ndim == 1 and values.dtype.kind == "f" and bool((values == np.round(values)).all()):
            return values.astype(np.int64)
        raise UserError(f"{path} must hold whole numbers or names as labels, got {values.dtype} {values.shape}")
    return values
