"""The cells of a study that are to be run, told one by one with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TypeVar

__all__ = ["told"]

Item = TypeVar("Item")


def told(cells: Mapping[str, Item]) -> Iterator[Item]:
    """Yield cells by name; before each, print its number, its name and how long the rest takes if they are alike."""
    started = time.monotonic()
    for done, (name, item) in enumerate(cells.items()):
        left = ""
        if done:
            minutes = (time.monotonic() - started) / done * (len(cells) - done) / 60
            left = f", about {minutes:.0f} min left"
        print(f"{done + 1} of {len(cells)}: {name}{left}", flush=True)
        yield item
