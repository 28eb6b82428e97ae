"""Decoders: from a latent to the parameters of a likelihood."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from .encoders import NormalisedBlock, ResidualBlock, group_norm, pyramid

__all__ = ["ConvDecoder", "MLPDecoder", "ResidualDecoder"]


def _doubled(inputs: int, outputs: int, low: tuple[int, int], high: tuple[int, int]) -> nn.ConvTranspose2d:
    """Return a transposed convolution from one size to the next."""
    # An odd side comes from a ceiling when halved; one pixel less of padding at the end gives it back.
    extra = (high[0] - 2 * low[0] + 1, high[1] - 2 * low[1] + 1)
    return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=extra)


class ConvDecoder(nn.Module):
    """A linear map onto a small feature map, residual blocks there, then transposed convolutions up to the image.

    Args:
        dim: number of latent dimensions.
        shape: (C, H, W) of the output.
        width: channels before full size; doubled, at most fourfold, as the side is halved.
        blocks: residual blocks at the smallest size.
    """

    def __init__(self, dim: int, shape: tuple[int, int, int], width: int, blocks: int) -> None:
        super().__init__()
        sizes = pyramid(shape[1], shape[2])
        levels = len(sizes) - 1
        channels = [width * min(2**level, 4) for level in range(levels)][::-1] or [width]
        self.start = nn.Sequential(
            nn.Linear(dim, channels[0] * math.prod(sizes[-1])), nn.Unflatten(1, (channels[0], *sizes[-1]))
        )
        layers: list[nn.Module] = [ResidualBlock(channels[0]) for _ in range(blocks)]
        layers.append(nn.SiLU())
        for level in range(levels):
            out = channels[level + 1] if level + 1 < levels else shape[0]
            layers.append(_doubled(channels[level], out, sizes[levels - level], sizes[levels - level - 1]))
            if level + 1 < levels:
                layers.append(nn.SiLU())
        if levels == 0:
            layers.append(nn.Conv2d(channels[0], shape[0], 3, padding=1))
        self.body = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Return a map of shape (n, C, H, W) for latents (n, dim)."""
        out: Tensor = self.body(self.start(latents))
        return out


class ResidualDecoder(nn.Module):
    """A linear map onto a small feature map, then residual blocks with GroupNorm at every size up to half the image's.

    Args:
        dim: number of latent dimensions.
        shape: (C, H, W) of the output.
        width: channels before full size; doubled, at most fourfold, as the side is halved.
        blocks: residual blocks at each size.
    """

    def __init__(self, dim: int, shape: tuple[int, int, int], width: int, blocks: int) -> None:
        super().__init__()
        sizes = pyramid(shape[1], shape[2])[::-1]
        levels = len(sizes) - 1
        channels = [width * min(2**level, 4) for level in range(max(levels, 1))][::-1]
        self.start = nn.Sequential(
            nn.Linear(dim, channels[0] * math.prod(sizes[0])), nn.Unflatten(1, (channels[0], *sizes[0]))
        )
        layers: list[nn.Module] = []
        for level, maps in enumerate(channels):
            layers += [NormalisedBlock(maps) for _ in range(blocks)]
            layers += [group_norm(maps), nn.SiLU()]
            if levels:
                out = channels[level + 1] if level + 1 < levels else shape[0]
                layers.append(_doubled(maps, out, sizes[level], sizes[level + 1]))
        if levels == 0:
            layers.append(nn.Conv2d(channels[0], shape[0], 3, padding=1))
        self.body = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Return a map of shape (n, C, H, W) for latents (n, dim)."""
        out: Tensor = self.body(self.start(latents))
        return out


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
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(shape)), nn.Unflatten(1, shape))

    def forward(self, latents: Tensor) -> Tensor:
        """Return a map of shape (n, C, H, W) for latents (n, dim)."""
        out: Tensor = self.body(latents)
        return out
