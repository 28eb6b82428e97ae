"""Which pictures of a folder are learnt from and which are held out: stable, and recorded in the run."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .pixel_range import PixelRange


def _composed(name: str) -> str:
    """Return a name in the form that does not depend on the system that it was written on (macOS parts é)."""
    return unicodedata.normalize("NFC", name)


def place_of(name: str, purpose: str, seed: int) -> float:
    """Return a number in [0, 1) for a relative path: its own, whatever other files there are.

    Args:
        name: relative path with "/"; its Unicode form does not matter, which differs between systems.
        purpose: what the number is for, so that the numbers for two purposes have nothing to do with each other.
        seed: seed of the split.

    >>> place_of("a.png", "test", 0) == place_of("a.png", "test", 0) != place_of("a.png", "test", 1)
    True
    """
    text = f"{seed}\n{purpose}\n{_composed(name)}"
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:7]) / 2**56


def split_by_hash(names: Sequence[str], share: float, purpose: str, seed: int) -> tuple[list[str], list[str]]:
    """Split relative paths into (rest, about a share), at least one in each, so that none depends on the others.

    A picture that is added or taken away moves no other one (but for the one that keeps a part from being empty).
    """
    places = {name: place_of(name, purpose, seed) for name in names}
    order = sorted(names, key=places.__getitem__)
    count = sum(places[name] < share for name in names)
    count = min(max(count, 1), len(names) - 1)
    return order[count:], order[:count]


@dataclass(frozen=True)
class FileSplit:
    """The pictures of a run, by relative path.

    Attributes:
        digest: the first 16 hexadecimal digits of the SHA-256 of all relative paths of the folder.
        train: what is learnt from, in the order in which they are numbered.
        validation: what training is watched with.
        test: what scores are made with.
        pixels: which values of deep pixels are black and white; None where no picture is deep.
    """

    digest: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    pixels: PixelRange | None = None

    @staticmethod
    def digest_of(names: Sequence[str]) -> str:
        """Return the digest of a list of files."""
        text = "\n".join(sorted(names))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]

    def to_record(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], path: Path) -> FileSplit:
        """Return what `to_record` gave.

        Raises:
            UserError: the object is none of these.
        """
        try:
            pixels = record["pixels"]
            train, validation, test = (tuple(map(str, record[part])) for part in ("train", "validation", "test"))
            used = None if pixels is None else PixelRange(float(pixels["black"]), float(pixels["white"]))
            return cls(str(record["digest"]), train, validation, test, used)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path} does not hold the pictures of a run; remove it, or train from scratch") from None

    def among(self, names: Sequence[str], root: Path) -> tuple[FileSplit, list[str]]:
        """Return the split of the pictures that are there, with notes on the others.

        Args:
            names: relative paths of the pictures in the folder now.
            root: the folder, for messages.

        Raises:
            UserError: none of a part is left.
        """
        there = {_composed(name): name for name in names}
        own = {_composed(name) for name in (*self.train, *self.validation, *self.test)}
        removed, new = sorted(own - there.keys()), sorted(there.keys() - own)
        parts = {
            part: tuple(there[_composed(name)] for name in getattr(self, part) if _composed(name) in there)
            for part in ("train", "validation", "test")
        }
        if not removed and not new:
            return FileSplit(self.digest, parts["train"], parts["validation"], parts["test"], self.pixels), []
        for part, kept in parts.items():
            if not kept:
                raise UserError(
                    f"none of the {len(getattr(self, part))} {part} pictures of this run is in {root}, such as "
                    f"{getattr(self, part)[0]}; name their folder with --data.root"
                )
        changes = [f"{len(some)} {word} ({some[0]}{', ...' if len(some) > 1 else ''})"
                   for some, word in ((new, "are new"), (removed, "are gone")) if some]  # fmt: skip
        note = (
            f"the pictures in {root} are not those of this run: {' and '.join(changes)}; the run's own split is kept, "
            "and new pictures are not used; train from scratch to use them"
        )
        return FileSplit(self.digest, parts["train"], parts["validation"], parts["test"], self.pixels), [note]
