"""What encoders and decoders are built of."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from ..control import norm_groups

SMALLEST, TINY = 8, 12


def is_tiny(shape: tuple[int, int, int]) -> bool:
    """Return whether images (C, H, W) are so small that a multilayer perceptron suits them."""
    return max(shape[1:]) <= TINY


def perceptron_layers(widths: Sequence[int]) -> list[nn.Module]:
    """Return linear layers of the given widths, with SiLU after each."""
    return [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.SiLU())]


def pyramid(height: int, width: int) -> list[tuple[int, int]]:
    """Return the image sizes from full size down, each half of the one before, until a side is at most 8.

    >>> pyramid(28, 28)
    [(28, 28), (14, 14), (7, 7)]
    """
    sizes = [(height, width)]
    while max(sizes[-1]) > SMALLEST:
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    return sizes


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a skip; the second starts at zero, so the block starts as the identity.

    Args:
        channels: number of channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x`, (n, channels, H, W)."""
        h: Tensor = self.second(nn.functional.silu(self.first(nn.functional.silu(x))))
        return x + h


class NormalisedBlock(nn.Module):
    """Two 3 x 3 convolutions around a skip, each behind a GroupNorm; it starts as the identity.

    Source: He et al., "Identity mappings in deep residual networks", ECCV 2016; Wu and He, "Group normalization", 2018.

    Args:
        channels: number of channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(group_norm(channels) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(cast(Tensor, self.convolutions[1].weight))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of `x`, (n, channels, H, W)."""
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(nn.functional.silu(norm(h)))
        return x + h


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm of about eight channels a group."""
    return nn.GroupNorm(norm_groups(channels), channels)
