"""Encoders: from an image to features."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .blocks import NormalisedBlock, ResidualBlock, group_norm, is_tiny, perceptron_layers, pyramid


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


class MapEncoder(nn.Module):
    """Residual blocks down to maps of a given side, without a dense layer: each feature sees its own part of an image.

    Args:
        shape: (C, H, W) of the images.
        width: channels at half the image's size; doubled, at most fourfold, as the side is halved.
        blocks: residual blocks at each size.
        features: number of features, a multiple of side^2.
        side: side of the maps.

    Raises:
        ValueError: features that are no maps of that side, or a side larger than the image's.

    >>> MapEncoder((3, 16, 16), 8, 1, 64, side=4)(torch.rand(5, 3, 16, 16)).shape
    torch.Size([5, 64])
    """

    def __init__(self, shape: tuple[int, int, int], width: int, blocks: int, features: int, side: int) -> None:
        super().__init__()
        if features % side**2 or side > min(shape[1:]):
            raise ValueError(f"{features} features are no maps of side {side} of images {shape}")
        self.side, size, channels = side, min(shape[1:]), shape[0]
        layers: list[nn.Module] = []
        while not layers or (size + 1) // 2 >= side:
            stride = 2 if (size + 1) // 2 >= side else 1
            wider = width if not layers else min(2 * channels, 4 * width)
            layers.append(nn.Conv2d(channels, wider, 3, stride=stride, padding=1))
            layers += [NormalisedBlock(wider) for _ in range(blocks)]
            size, channels = -(-size // stride), wider
        layers += [group_norm(channels), nn.SiLU(), nn.Conv2d(channels, features // side**2, 1)]
        self.body = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (n, features), maps (features / side^2, side, side), of images (n, C, H, W) in [0, 1]."""
        maps = self.body(2 * images - 1)
        if tuple(maps.shape[-2:]) != (self.side, self.side):
            maps = nn.functional.adaptive_avg_pool2d(maps, self.side)
        return nn.functional.silu(maps).flatten(1)


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
        self.body = nn.Sequential(nn.Flatten(), *perceptron_layers(widths))

    def forward(self, images: Tensor) -> Tensor:
        """Return features (n, features) of images (n, C, H, W) in [0, 1]."""
        features: Tensor = self.body(torch.as_tensor(2 * images - 1))
        return features


def auto_encoder(shape: tuple[int, int, int], width: int, blocks: int, features: int) -> nn.Module:
    """Return a multilayer perceptron for tiny images, else convolutions."""
    return (MLPEncoder if is_tiny(shape) else ConvEncoder)(shape, width, blocks, features)
