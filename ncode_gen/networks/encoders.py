"""Encoders: from an image to features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ..control.normalised import norm_groups

__all__ = ["ConvEncoder", "MLPEncoder", "NormalisedBlock", "ResidualBlock", "ResidualEncoder", "pyramid"]

SMALLEST = 8


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


class PyramidEncoder(nn.Module, ABC):
    """Strided convolutions that halve the sides down to at most 8, then features; subclasses say what is between.

    Args:
        shape: (C, H, W) of the images.
        width: channels after the first convolution; doubled, at most fourfold, as the side is halved.
        blocks: residual blocks, at the places that the subclass has for them.
        features: number of features.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, blocks: int, features: int) -> None:
        super().__init__()
        sizes = pyramid(shape[1], shape[2])
        channels = [shape[0], *(width * min(2**level, 4) for level in range(len(sizes) - 1))]
        self.body = nn.Sequential(*self.layers(channels, blocks), nn.SiLU(), nn.Flatten())
        self.head = nn.Linear(channels[-1] * math.prod(sizes[-1]), features)

    @abstractmethod
    def layers(self, channels: Sequence[int], blocks: int) -> Iterator[nn.Module]:
        """Yield the layers from the first of the channels to the last, without the last activation."""

    def forward(self, images: Tensor) -> Tensor:
        """Return features (n, features) of images (n, C, H, W) in [0, 1]."""
        return nn.functional.silu(self.head(self.body(2 * images - 1)))


class ResidualEncoder(PyramidEncoder):
    """Residual blocks with GroupNorm at every size from half the image's down, `blocks` at each."""

    def layers(self, channels: Sequence[int], blocks: int) -> Iterator[nn.Module]:
        """Yield the layers."""
        for inputs, outputs in pairwise(channels):
            yield nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            for _ in range(blocks):
                yield NormalisedBlock(outputs)
        yield group_norm(channels[-1])


class ConvEncoder(PyramidEncoder):
    """Convolutions, and `blocks` residual blocks at the smallest size."""

    def layers(self, channels: Sequence[int], blocks: int) -> Iterator[nn.Module]:
        """Yield the layers."""
        for level, (inputs, outputs) in enumerate(pairwise(channels)):
            if level:
                yield nn.SiLU()
            yield nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        for _ in range(blocks):
            yield ResidualBlock(channels[-1])


class MLPEncoder(nn.Module):
    """A multilayer perceptron on the pixels, for tiny images.

    Args:
        shape: (C, H, W) of the images.
        width: a quarter of the hidden width.
        blocks: hidden layers beyond the first.
        features: number of features.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, blocks: int, features: int) -> None:
        super().__init__()
        widths = [math.prod(shape), *[4 * width] * (1 + blocks), features]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (n, features) of images (n, C, H, W) in [0, 1]."""
        features: Tensor = self.body(torch.as_tensor(2 * images - 1))
        return features
