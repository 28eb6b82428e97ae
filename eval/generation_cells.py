"""The finished cells of `eval/generation.py`, seeds together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from intervals import interval

__all__ = ["Cell", "Cells", "Key", "collected", "entry"]

Cell = dict[str, Any]
Key = tuple[str, int, int, str]  # model, latent dimensions, epochs, prior
Cells = dict[Key, list[Cell]]


def collected(folder: Path) -> Cells:
    """Return the finished cells by what they are of, seeds together."""
    found: Cells = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text())
        key = (cell["model"], cell.get("dim", 0), cell.get("epochs", 0), cell["prior"])
        found.setdefault(key, []).append(cell)
    return found


def entry(cells: list[Cell], key: str, digits: int) -> str:
    """Return a score: with the interval of its samples for one seed, with that of the mean for several."""
    scores = [cell["scores"][key] for cell in cells if key in cell["scores"]]
    if not scores:
        return "-"
    if len(scores) == 1:
        value, half = scores[0]["value"], (scores[0]["high"] - scores[0]["low"]) / 2
    else:
        value, half = interval(scores, "value")
    return f"{value:.{digits}f} ± {half:.{digits}f}"
