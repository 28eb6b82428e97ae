"""Pictures in rows and columns, with labels."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data.pictures import tiled, to_bytes
from .style import STYLE

GAP = 0.12
SIDE_MARGIN, TOP_MARGIN = 1.0, 0.5


def labelled_rows(
    rows: Sequence[Tensor], labels: Sequence[str], title: str, *, heads: Sequence[str] = (), cell: float = 0.6
) -> Figure:
    """Draw rows of pictures as one image, every pixel the same whole number of dots.

    Args:
        rows: pictures of a row, (n, C, H, W) in [0, 1], all of one size.
        labels: what stands before each row; empty for none.
        title: heading.
        heads: what stands above the columns; empty for none.
        cell: side of a picture in inches, about.
    """
    dots = int(STYLE["figure.dpi"])
    side = max(rows[0].shape[-2:])
    times = max(1, round(cell * dots / side))
    gap = max(1, round(GAP * side))
    lines = [tiled(to_bytes(pictures), len(pictures), gap, 255).permute(1, 2, 0) for pictures in rows]
    # Each line brings a gap above and below; two lines share one.
    image = torch.cat([lines[0], *(line[gap:] for line in lines[1:])]).repeat_interleave(times, 0)
    image = image.repeat_interleave(times, 1)
    height, width = image.shape[0], image.shape[1]
    figure = Figure(figsize=(width / dots + SIDE_MARGIN, height / dots + TOP_MARGIN))
    size = figure.get_size_inches()
    axes = figure.add_axes((SIDE_MARGIN / size[0], 0, 1 - SIDE_MARGIN / size[0], 1 - TOP_MARGIN / size[1]))
    axes.imshow(image.numpy(), interpolation="nearest", aspect="auto")
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False, labelsize=7)
    down, across = (rows[0].shape[-2] + gap) * times, (rows[0].shape[-1] + gap) * times
    axes.set_yticks([(i + 0.5) * down for i in range(len(labels))], labels)
    axes.set_xticks([(i + 0.5) * across for i in range(len(heads))], heads)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, fontsize=9)
    return figure
