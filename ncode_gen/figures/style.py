"""One look for all figures: labelled, colour-blind safe, readable in print."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..data.pictures import MARK
from ..runtime.files import write_atomically

FileFormat = Literal["png", "pdf", "svg"]

# Okabe and Ito's palette, which stays distinct under the common colour deficiencies.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 200,
    "savefig.bbox": "tight",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.usetex": False,  # a user's own settings may ask for a LaTeX that is not there
}


def new_figure(rows: int, columns: int, cell: float) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure and its axes; `cell` is the side of one of them in inches."""
    figure = Figure(figsize=(cell * columns, cell * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [list(row) for row in axes]


def show_picture(axes: Axes, picture: Tensor) -> None:
    """Show one picture (C, H, W) in [0, 1] without ticks or frame."""
    pixels = picture.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    shown = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    axes.imshow(shown, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def save(figure: Figure, path: Path, kind: FileFormat) -> Path:
    """Write a figure to `path` with the ending of its format, and return the file."""
    target = path.with_suffix(f".{kind}")
    metadata = dict(MARK) if kind == "png" else None
    write_atomically(target, lambda partial: figure.savefig(partial, format=kind, metadata=metadata))
    return target
