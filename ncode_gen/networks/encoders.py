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
