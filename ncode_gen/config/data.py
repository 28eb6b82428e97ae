"""The sections of image sets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from ..errors import UserError
from .registry import register
from .section import Section, Seed, Share

Side = Annotated[int, Meta(ge=0, le=8192)]


@dataclass(frozen=True)
class DataSection(Section):
    """Which images, and how they are split.

    Attributes:
        features: the feature network that scores are computed with.
    """

    section: ClassVar[str] = "data"
    tag: ClassVar[str] = "name"
    name: ClassVar[str]
    features: ClassVar[str] = "inception"

    size: Side = 0
    """Side to which pictures are resized and cropped, in pixels; 0 keeps the set's own (32 for a folder)."""
    validation: Share = 0.05
    """Share of the training images that is held out to watch training."""
    split_seed: Seed = 0
    """Seed of the splits."""
    limit: Annotated[int, Meta(ge=0, le=2**40)] = 0
    """Use only so many training images; 0 for all."""
    flip: bool = False
    """Whether half of the training images, chosen at random each time, are mirrored left to right."""
    classes: tuple[str, ...] = ()
    """Names of the classes whose labels condition the model, in the order of their numbers; the one word "auto" for
    those of the images."""

    @property
    def place(self) -> str:
        """Folder of the images; empty for a set that lies in none."""
        return str(getattr(self, "root", ""))

    def at(self, root: str) -> DataSection:
        """Return the section with another folder of the images; "" keeps its own.

        Raises:
            UserError: the set lies in none.
        """
        if not root:
            return self
        if "root" not in self.names():
            raise UserError(f"data.name = {self.name!r} lies in no folder; leave --data.root out")
        changes: Any = {"root": root}
        return dataclasses.replace(self, **changes)

    def load(self, recorded: Any = None, *, earlier: bool = False) -> Any:
        """Return the images as `ncode_gen.data.Splits`; see `ncode_gen.data.load_data` for the arguments."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(f"ncode_gen.{module}"), name)(self)

    @property
    def split_keys(self) -> tuple[str, ...]:
        """The keys that decide which images are held out."""
        return tuple(key for key in ("test", "validation", "split_seed") if key in self.names())


@register("digits")
class DigitsSection(DataSection):
    """scikit-learn's digits, 8 x 8 pixels, embedded."""

    target: ClassVar[str] = "data.sets:load_digits"
    features: ClassVar[str] = "digits-classifier"

    test: Share = 0.15
    """Share of all images held out for scores."""


@dataclass(frozen=True)
class RootedSection(DataSection):
    """A set that lies in a folder."""

    root: str = "data"
    """Folder that holds (or will hold) the downloaded set; for some sets also FILE.npz, a copy in Keras' layout."""

    def check_pairs(self) -> None:
        """Refuse what can be no folder."""
        if "\0" in self.root or self.root.encode(errors="ignore").decode() != self.root:
            raise ValueError(f"data.root must be the name of a folder, got {self.root!r}")


@dataclass(frozen=True)
class KnownSection(RootedSection):
    """A set that torchvision knows; `root` may also name a copy of it in one .npz file of arrays, as Keras has it."""

    target: ClassVar[str] = "data.sets:load_torchvision"

    def load(self, recorded: Any = None, *, earlier: bool = False) -> Any:
        """Return the images, from torchvision's files or from a copy in one file."""
        if self.root.endswith(".npz"):
            return import_module("ncode_gen.data.arrays").load_copy(self)
        return super().load(recorded, earlier=earlier)


@register("mnist")
class MnistSection(KnownSection):
    """MNIST, in torchvision's layout."""

    features: ClassVar[str] = "mnist-classifier"


@register("fashion-mnist")
class FashionMnistSection(MnistSection):
    """Fashion-MNIST."""

    features: ClassVar[str] = "fashion-classifier"


@register("kmnist")
class KmnistSection(MnistSection):
    """Kuzushiji-MNIST."""

    features: ClassVar[str] = "inception"


@dataclass(frozen=True)
class ColourSection(RootedSection):
    """Pictures in colour."""

    grey: bool = False
    """Whether colour pictures are turned grey."""


@register("cifar10")
class Cifar10Section(ColourSection, KnownSection):
    """CIFAR-10."""


@dataclass(frozen=True)
class FilesSection(ColourSection):
    """Pictures in files."""

    workers: Annotated[int, Meta(ge=0, le=1024)] = 2
    """Processes that read pictures, where these are too large for memory."""


@register("arrays")
class ArraysSection(ColourSection):
    """One .npz file of arrays, as Keras has them: x_train, y_train, x_test, y_test."""

    target: ClassVar[str] = "data.arrays:load_arrays"

    root: str = "data.npz"
    """The file: images x_train, and where there are labels y_train, x_test, y_test and names `classes`."""
    test: Share = 0.15
    """Share of all images held out for scores, in a file without x_test."""


@register("celeba")
class CelebaSection(FilesSection):
    """CelebA, cropped to 64 x 64 pixels unless `size` says otherwise."""

    target: ClassVar[str] = "data.sets:load_celeba"


@register("folder")
class FolderSection(FilesSection):
    """Any folder of pictures."""

    def load(self, recorded: Any = None, *, earlier: bool = False) -> Any:
        """Return the images, split as a run recorded."""
        return import_module("ncode_gen.data.sets").load_folder(self, recorded, earlier=earlier)

    root: str = "data"
    """The folder of pictures; where that has folders train and test (or training, val, ...), these are the split."""
    test: Share = 0.15
    """Share of all images held out for scores, in a folder that has no split of its own."""
    range: tuple[float, ...] = ()
    """Which values of pixels of more than 8 bits become black and white, such as 0 4095; by default the common depth
    that holds the largest value of all pictures."""

    def check_pairs(self) -> None:
        """Refuse a range that is none."""
        super().check_pairs()
        if self.range and not (len(self.range) == 2 and -1e300 < self.range[0] < self.range[1] < 1e300):
            raise ValueError(f"data.range must be two numbers, black and then white, got {list(self.range)}")
