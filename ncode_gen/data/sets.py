"""Image sets by name, split into training, validation and test images."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import DataSection
from ..errors import UserError
from ..runtime.paths import user_path
from ..runtime.seeding import seeded
from .decoded import MappedImages, decoded, pictures_digest
from .images import FolderImages, Images, TensorImages
from .picture_files import read_picture, set_range
from .picture_folders import find_pictures, split_folders
from .pixel_range import PixelRange
from .splits import FileSplit, place_of, split_by_hash

IN_MEMORY = 2**30
FOLDER_SIZE = 32
CELEBA_SIZE = 64


@dataclass(frozen=True)
class Splits:
    """The training, validation and test images.

    Attributes:
        notes: what was left out or decided for the user, a line each.
        warnings: what may make scores or training other than the user thinks, a line each.
        files: which pictures of a folder they are; None for sets that have their own splits.
        classes: names of the classes, in the order of their numbers; none where there are no labels.
    """

    train: Images
    validation: Images
    test: Images
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    files: FileSplit | None = None
    classes: tuple[str, ...] = ()


def load_digits(section: DataSection) -> Splits:
    """Load scikit-learn's digits."""
    from sklearn.datasets import load_digits as load

    digits, keys = load(), section.values()
    pixels = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    images = TensorImages(resized(pixels, section.size), torch.from_numpy(digits.target))
    train, test = shuffled(len(images), keys["test"], section.split_seed)
    splits = held_out_validation(images.select(train), images.select(test), section)
    return dataclasses.replace(splits, classes=tuple(map(str, digits.target_names)))


TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "kmnist": ("KMNIST", "KMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "celeba": ("CelebA", "celeba"),
}


def _halves(section: DataSection) -> tuple[Any, Any]:
    """Return torchvision's training and test halves of a set, downloaded if need be."""
    from torchvision import datasets

    name, folder = TORCHVISION[section.name]
    expected, kind = Path(section.place) / folder, getattr(datasets, name)

    def part(train: bool) -> Any:
        which = {"split": "train" if train else "test"} if section.name == "celeba" else {"train": train}
        try:
            return kind(section.place, download=False, **which)
        except RuntimeError:
            pass  # Not there yet; torchvision says so with a RuntimeError.
        except Exception as error:
            raise UserError(f"the files of {section.name} in {expected} are damaged ({error}); delete them") from None
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return kind(section.place, download=True, **which)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{section.name} is not in {expected} and could not be downloaded ({reason}); put torchvision's files "
                "there, or name the folder that holds them with --data.root"
            ) from None

    return part(True), part(False)


def load_torchvision(section: DataSection) -> Splits:
    """Load a set of torchvision that fits in memory."""
    sets = []
    for half in _halves(section):
        values = torch.as_tensor(np.asarray(half.data))
        pixels = values.unsqueeze(1) if values.dim() == 3 else values.permute(0, 3, 1, 2).contiguous()
        pixels = resized(pixels, section.size, grey=section.values().get("grey", False))
        sets.append(TensorImages(pixels, torch.as_tensor(half.targets)))
    splits = held_out_validation(sets[0], sets[1], section)
    return dataclasses.replace(splits, classes=tuple(map(str, getattr(half, "classes", ()))))


def load_celeba(section: DataSection) -> Splits:
    """Load CelebA."""
    train, test = _halves(section)
    folder = Path(train.root) / train.base_folder / "img_align_celeba"
    paths = [folder / name for name in (*train.filename, *test.filename)]
    first = torch.arange(len(train.filename))
    learnt, validation = _held_out(first, section)
    order = (learnt, validation, torch.arange(len(first), len(paths)))
    return _streams(paths, order, section.size or CELEBA_SIZE, section)


def load_folder(section: DataSection, recorded: FileSplit | None = None, *, earlier: bool = False) -> Splits:
    """Load a folder of pictures; see `load_data`."""
    root, given = Path(section.place), section.values()["range"]
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; name the folder of pictures with --data.root")
    parts, notes = split_folders(root)
    if parts:
        found = {part: find_pictures(folder, 2 if part == "train" else 1) for part, folder in parts.items()}
    else:
        found = {"all": find_pictures(root, 4)}
    notes += [line for some in found.values() for line in some.notes(root)]
    names = {part: [path.relative_to(root).as_posix() for path in some.paths] for part, some in found.items()}
    warnings: list[str] = []
    if recorded is None and earlier:
        split, warnings = _earlier_split(names, section), [EARLIER]
    elif recorded is None:
        split = _new_split(names, section)
    else:
        split, warnings = recorded.among([name for some in names.values() for name in some], root)
    train = split.train[: section.limit] if section.limit else split.train
    used = [*train, *split.validation, *split.test]
    paths = [root / name for name in used]
    pixels, lines = set_range(paths, PixelRange(*given) if given else split.pixels)
    order = torch.arange(len(used)).split([len(train), len(split.validation), len(split.test)])
    classes, labels = _classes(names, used)
    splits = _streams(paths, order, section.size or FOLDER_SIZE, section, labels, pixels)
    said: dict[str, Any] = {"notes": (*notes, *lines), "warnings": tuple(warnings), "classes": classes}
    said["notes"] = (*said["notes"], *splits.notes)
    return dataclasses.replace(splits, files=dataclasses.replace(split, pixels=pixels), **said)


STREAMED = (
    "the pictures are too many for memory, and there is no room for them in the cache (XDG_CACHE_HOME): they are "
    "decoded anew whenever they are needed, which is slow, and their classes are not used"
)
EARLIER = (
    "this run holds no record of its pictures (data.json), as runs of earlier versions do not: they are split as those "
    "did, so if pictures were added, renamed or taken away since, some test pictures were learnt from"
)
EARLIER_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def _new_split(names: dict[str, list[str]], section: DataSection) -> FileSplit:
    """Split relative paths, by part where folders say it, else each by its own hash."""
    seed, share = section.split_seed, section.values()["test"]
    train, test = names.get("train", []), names.get("test", [])
    if "all" in names:
        train, test = split_by_hash(names["all"], share, "test", seed)
    if "validation" in names:
        validation = names["validation"]
    else:
        train, validation = split_by_hash(train, section.validation, "validation", seed)
    # Not in the order of their paths: the first pictures of a part stand for all, also where folders are classes.
    learnt, watched, scored = (
        tuple(sorted(part, key=lambda name: place_of(name, "order", seed))) for part in (train, validation, test)
    )
    digest = FileSplit.digest_of([name for some in names.values() for name in some])
    return FileSplit(digest, learnt, watched, scored)


def _earlier_split(names: dict[str, list[str]], section: DataSection) -> FileSplit:
    """Split relative paths as earlier versions did: at random by their place in the sorted list."""
    known = {part: [name for name in some if name.lower().endswith(EARLIER_ENDINGS)] for part, some in names.items()}
    if "train" in known and "test" in known:
        paths = known["train"] + known["test"]
        train, test = torch.arange(len(paths)).split([len(known["train"]), len(known["test"])])
    else:
        paths = sorted((name for some in known.values() for name in some), key=Path)
        train, test = shuffled(len(paths), section.values()["test"], section.split_seed)
    generator = seeded(section.split_seed)
    train, test = (part[torch.randperm(len(part), generator=generator)] for part in (train, test))
    kept, held = shuffled(len(train), section.validation, section.split_seed + 1)
    learnt, watched, scored = (tuple(paths[int(i)] for i in part) for part in (train[kept], train[held], test))
    return FileSplit(FileSplit.digest_of(paths), learnt, watched, scored)


def _classes(names: dict[str, list[str]], used: list[str]) -> tuple[tuple[str, ...], Tensor | None]:
    """Return the names of the classes and the class of each picture that is used, (n,), if all are in class folders.

    Where there are folders of training and test pictures, each has the same class folders; else there are none.

    Args:
        names: the relative paths of each part, PART/CLASS/..., or CLASS/... of one part alone.
        used: those that are used.
    """
    place = 0 if "all" in names else 1
    split = {part: [name.split("/") for name in some] for part, some in names.items()}
    if any(len(steps) < place + 2 for some in split.values() for steps in some):
        return (), None
    known = {part: {steps[place] for steps in some} for part, some in split.items()}
    learnt = known["all" if "all" in names else "train"]
    same = known.get("test", learnt) == learnt and all(some <= learnt for some in known.values())
    if len(learnt) < 2 or not same:
        return (), None
    classes = tuple(sorted(learnt))
    number = {name: i for i, name in enumerate(classes)}
    return classes, torch.tensor([number[name.split("/")[place]] for name in used])


@dataclass(frozen=True)
class _Files:
    """Reads the picture at an index; a class, so that worker processes can be handed one."""

    paths: list[Path]
    side: int
    grey: bool
    pixels: PixelRange | None = None

    def __call__(self, index: int) -> Tensor:
        return read_picture(self.paths[index], self.side, grey=self.grey, pixels=self.pixels)


def _streams(
    paths: list[Path],
    order: Sequence[Tensor],
    side: int,
    section: DataSection,
    labels: Tensor | None = None,
    pixels: PixelRange | None = None,
) -> Splits:
    """Read pictures by the indices of each part, once: into memory, or larger sets into a cache on the disk.

    Where the cache cannot be written, larger sets are read as a stream.
    """
    keys = section.values()
    read = _Files(paths, side, keys["grey"], pixels)
    shape = (1 if keys["grey"] else 3, side, side)
    train, validation, test = (FolderImages(read, some, shape, keys["workers"]) for some in order)
    if len(paths) * shape[0] * side * side > IN_MEMORY:
        everything = FolderImages(read, torch.arange(len(paths)), shape, keys["workers"])
        digest = pictures_digest(paths, (side, keys["grey"], pixels))
        mapped = decoded(everything.batches(256), len(paths), shape, digest)
        if mapped is None:
            return Splits(train, validation, test, notes=(STREAMED,))
        first, second, third = (MappedImages(mapped, some, None if labels is None else labels[some]) for some in order)
        return Splits(first, second, third)

    def held(part: FolderImages) -> TensorImages:
        pixels = torch.cat([(255 * batch).round().byte() for batch in part.batches(256)])
        return TensorImages(pixels, None if labels is None else labels[part.order])

    return Splits(held(train), held(validation), held(test))


def resized(pixels: Tensor, size: int, *, grey: bool = False) -> Tensor:
    """Return pixels (n, C, H, W), uint8, at another size, 0 for their own, and grey if wanted."""
    if grey and pixels.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        pixels = (pixels * weights).sum(1, keepdim=True).round().byte()
    if size and size != pixels.shape[-1]:
        resized = torch.nn.functional.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
        pixels = resized.round().clamp(0, 255).byte()
    return pixels


def shuffled(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split n indices at random: (rest, share), at least one in each."""
    order = torch.randperm(n, generator=seeded(seed))
    held = min(max(1, round(share * n)), n - 1)
    return order[held:].sort().values, order[:held].sort().values


def _held_out(train: Tensor, section: DataSection) -> tuple[Tensor, Tensor]:
    """Split training indices into those to learn from and those to watch with."""
    kept, held = shuffled(len(train), section.validation, section.split_seed + 1)
    kept = kept[: section.limit] if section.limit else kept
    return train[kept], train[held]


def held_out_validation(train: TensorImages, test: TensorImages, section: DataSection) -> Splits:
    """Return training and test images as splits, with a share of the former held out to watch training."""
    kept, held = _held_out(torch.arange(len(train)), section)
    return Splits(train.select(kept), train.select(held), test)


def load_data(section: DataSection, recorded: FileSplit | None = None, *, earlier: bool = False) -> Splits:
    """Load an image set.

    Pictures of a folder without folders of its own for training and test are split by a hash of their relative paths,
    so that one that is added or taken away moves no other.

    Args:
        section: which set, where, and how it is split.
        recorded: the pictures of a run, whose split is then kept (folders of pictures).
        earlier: whether a run of an earlier version is meant, which recorded none.

    Raises:
        UserError: the set is missing, damaged or too small; the message names the expected place.

    >>> from ncode_gen.config import Recipe
    >>> splits = load_data(Recipe().data)
    >>> splits.train.shape, len(splits.train), len(splits.validation), len(splits.test)
    ((1, 8, 8), 1451, 76, 270)
    """
    if "root" in section.names():
        section = section.at(str(user_path(section.place)))
    splits: Splits = section.load(recorded, earlier=earlier)
    return splits
