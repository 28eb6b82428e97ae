"""Decoders: from a latent to the parameters of a likelihood."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor, nn

from .blocks import NormalisedBlock, ResidualBlock, group_norm, is_tiny, perceptron_layers, pyramid


def doubled(inputs: int, outputs: int, low: tuple[int, int], high: tuple[int, int]) -> nn.ConvTranspose2d:
    """Return a transposed convolution from one size to the next."""
    # An odd side comes from a ceiling when halved; one pixel less of padding at the end gives it back.
    extra = (high[0] - 2 * low[0] + 1, high[1] - 2 * low[1] + 1)
    return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=extra)


def _ups(channels: Sequence[int], sizes: Sequence[tuple[int, int]]) -> Iterator[nn.Module]:
    """Yield what doubles the sides, from one of the channels to the next; for a single size, what keeps it."""
    if len(sizes) == 1:
        yield nn.Conv2d(channels[0], channels[1], 3, padding=1)
    for (inputs, outputs), (low, high) in zip(pairwise(channels), pairwise(sizes), strict=False):
        yield doubled(inputs, outputs, low, high)


class PyramidDecoder(nn.Module, ABC):
    """A linear map onto a small feature map, then transposed convolutions that double the sides up to the image's.

    Args:
        dim: number of latent dimensions.
        shape: (C, H, W) of the output.
        width: channels before full size; doubled, at most fourfold, as the side is halved.
        blocks: residual blocks, at the places that the subclass has for them.
    """

    def __init__(self, dim: int, shape: tuple[int, int, int], width: int, blocks: int) -> None:
        super().__init__()
        sizes = pyramid(shape[1], shape[2])[::-1]
        levels = max(len(sizes) - 1, 1)
        channels = [*(width * min(2**level, 4) for level in reversed(range(levels))), shape[0]]
        self.start = nn.Sequential(
            nn.Linear(dim, channels[0] * math.prod(sizes[0])), nn.Unflatten(1, (channels[0], *sizes[0]))
        )
        self.body = nn.Sequential(*self.layers(channels[:-1], _ups(channels, sizes), blocks))

    @abstractmethod
    def layers(self, channels: Sequence[int], ups: Iterator[nn.Module], blocks: int) -> Iterator[nn.Module]:
        """Yield the layers in their order: `ups`, one for each of the channels, and the subclass's own between."""

    def forward(self, latents: Tensor) -> Tensor:
        """Return a map of shape (n, C, H, W) for latents (n, dim)."""
        out: Tensor = self.body(self.start(latents))
        return out


class ConvDecoder(PyramidDecoder):
    """Transposed convolutions, and `blocks` residual blocks at the smallest size."""

    def layers(self, channels: Sequence[int], ups: Iterator[nn.Module], blocks: int) -> Iterator[nn.Module]:
        """Yield the layers."""
        for _ in range(blocks):
            yield ResidualBlock(channels[0])
        for _ in channels:
            yield nn.SiLU()
            yield next(ups)


class ResidualDecoder(PyramidDecoder):
    """Residual blocks with GroupNorm at every size up to half the image's, `blocks` at each."""

    def layers(self, channels: Sequence[int], ups: Iterator[nn.Module], blocks: int) -> Iterator[nn.Module]:
        """Yield the layers."""
        for maps in channels:
            for _ in range(blocks):
                yield NormalisedBlock(maps)
            yield group_norm(maps)
            yield nn.SiLU()
            yield next(ups)


class MLPDecoder(nn.Module):
    """A multilayer perceptron onto the pixels, for tiny images.

    Args:
        dim: number of latent dimensions.
        shape: (C, H, W) of the output.
        width: a quarter of the hidden width.
        blocks: hidden layers beyond the first.
    """

    def __init__(self, dim: int, shape: tuple[int, int, int], width: int, blocks: int) -> None:
        super().__init__()
        widths = [dim, *[4 * width] * (1 + blocks)]
        hidden = perceptron_layers(widths)
        self.body = nn.Sequential(*hidden, nn.Linear(widths[-1], math.prod(shape)), nn.Unflatten(1, shape))

    def forward(self, latents: Tensor) -> Tensor:
        """Return a map of shape (n, C, H, W) for latents (n, dim)."""
        out: Tensor = self.body(latents)
        return out


def auto_decoder(dim: int, shape: tuple[int, int, int], width: int, blocks: int) -> nn.Module:
    """Return a multilayer perceptron for tiny images, else transposed convolutions."""
    return (MLPDecoder if is_tiny(shape) else ConvDecoder)(dim, shape, width, blocks)
