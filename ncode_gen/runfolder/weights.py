"""The file of a model's weights: safetensors, whose header says which recipe they belong to, with a checksum.

The header holds the shape of the images, the recipe, and a SHA-256 of these, names, types, sizes and numbers. So
weights that a disk, a copy or a mix-up has changed, or a recipe that was changed beside them, are detected.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config.recipe import Recipe, changed_keys
from ..errors import UserError
from ..runtime.files import write_atomically

FORMAT, EARLIER = "ncode_gen 2", "ncode_gen 1"
# Where weights are that earlier versions held elsewhere, by the start of their names.
MOVED = {
    "decoder.": "observation.decoder.",
    "likelihood.": "observation.likelihood.",
    "refiner.spread": "observation.refiner.residual_std",
    "refiner.": "observation.refiner.",
}
HASHED = ("format", "shape", "epochs", "recipe")
LARGEST_SIDE = 8192
TYPES = {"F32": torch.float32, "F16": torch.float16, "I64": torch.int64, "BOOL": torch.bool}


Held = TypeVar("Held")


def renamed(tensors: Mapping[str, Held]) -> dict[str, Held]:
    """Return what an earlier version held by name, by the names of today.

    >>> renamed({"decoder.body": 1, "encoder.body": 2})
    {'observation.decoder.body': 1, 'encoder.body': 2}
    """
    found = {}
    for name, value in tensors.items():
        start = next((start for start in MOVED if name.startswith(start)), "")
        found[MOVED.get(start, "") + name.removeprefix(start)] = value
    return found


def _bound(recipe: str) -> dict[str, Any]:
    """Return the part of a recipe that decides what weights mean: all but how they were found and where images lie."""
    values = tomllib.loads(recipe)
    values.pop("training", None)
    for key in ("root", "workers"):
        values.get("data", {}).pop(key, None)
    return values


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    found = hashlib.sha256(json.dumps([header[key] for key in HASHED]).encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], shape: tuple[int, int, int], recipe: str, epochs: int
) -> None:
    """Write weights, so that they can be known again.

    Args:
        path: the file.
        tensors: the weights by name; float32, float16, int64 or bool.
        shape: (C, H, W) of the images.
        recipe: TOML text of the recipe.
        epochs: how many epochs they were trained.

    Raises:
        UserError: the place cannot be written, or the disk is full; what stood there before is intact.
    """
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {
        "format": FORMAT,
        "shape": ",".join(map(str, shape)),
        "epochs": str(epochs),
        "recipe": tomli_w.dumps(_bound(recipe)),
    }
    header["sha256"] = _digest(held, header)
    write_atomically(path, lambda partial: save_file(held, partial, metadata=header))


@dataclass(frozen=True)
class StoredWeights:
    """An opened file of weights, of which only the header was read.

    Attributes:
        path: the file.
        shape: (C, H, W) of the images.
        sizes: shape of each tensor by name, in the names of today.
        epochs: how many epochs they were trained.
        digest: SHA-256 that the weights must have.
    """

    path: Path
    shape: tuple[int, int, int]
    sizes: dict[str, tuple[int, ...]]
    epochs: int
    digest: str
    _header: dict[str, str]
    _file: Any

    @property
    def earlier(self) -> bool:
        """Whether a version with other keys and names of weights wrote it."""
        return self._header["format"] == EARLIER

    def check_recipe(self, recipe: str, source: Path) -> None:
        """Raise a `UserError`, if the recipe beside the weights is not theirs.

        Args:
            recipe: its TOML text.
            source: its file, for the message.
        """
        # Keys that newer versions know have their defaults, here as there.
        written = Recipe.parse(self._header["recipe"], f"the header of {self.path}", stored=True).to_toml()
        for key, (own, other) in changed_keys(_bound(written), _bound(recipe)).items():
            raise UserError(
                f"{self.path} belongs to another model than {source}: its {key} is {own!r}, the recipe says {other!r}; "
                f"put it back, or finish the training with --resume {source.parent}"
            )

    def read(self) -> dict[str, Tensor]:
        """Read the tensors.

        Raises:
            UserError: they are not those that were written, or a weight is not finite.
        """
        tensors: dict[str, Tensor] = {name: self._file.get_tensor(name) for name in list(self._file.keys())}
        if _digest(tensors, self._header) != self.digest:
            raise UserError(f"{self.path} is damaged: its checksum is wrong; copy or train it again")
        for name, value in tensors.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise UserError(f"{self.path} holds a weight in {name} that is not finite; train the model again")
        return renamed(tensors) if self.earlier else tensors


@contextmanager
def open_weights(path: Path) -> Iterator[StoredWeights]:
    """Open a file of weights and read its header, not yet the numbers.

    Raises:
        UserError: it is damaged, not a safetensors file, or was not written by ncode_gen.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") not in (FORMAT, EARLIER) or not {*HASHED, "sha256"} <= header.keys():
                raise UserError(f"{path} was not written by ncode_gen, or is damaged: its header lacks {FORMAT!r}")
            sizes = {}
            for name in sorted(file.keys()):
                part = file.get_slice(name)
                if part.get_dtype() not in TYPES:
                    raise UserError(f"{path} holds {name} in an unknown type, {part.get_dtype()}")
                sizes[name] = tuple(part.get_shape())
            sizes = renamed(sizes) if header["format"] == EARLIER else sizes
            shape = _shape(header["shape"], path)
            epochs = int(header["epochs"]) if header["epochs"].isdecimal() else 0
            yield StoredWeights(path, shape, sizes, epochs, header["sha256"], header, file)
    except (SafetensorError, OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}); copy or train it again") from None


def _shape(text: str, path: Path) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(side) for side in text.split(","))
    except ValueError:
        raise UserError(f"{path} is damaged: {text!r} in its header is no shape of images") from None
    if not all(0 < side <= LARGEST_SIDE for side in (channels, height, width)):
        raise UserError(f"{path} is damaged: images cannot have the shape {text} that its header says")
    return channels, height, width
