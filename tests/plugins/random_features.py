"""A feature network in one file outside the package: random convolutions, known by their seed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ncode_gen.config import FeaturesSection, Seed, register
from ncode_gen.metrics import FeatureNetwork


class RandomFeatures(FeatureNetwork):
    """The largest responses of random filters."""

    name, size = "random", 16

    def __init__(self, device: torch.device, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.filters = torch.randn(self.size, 1, 3, 3, generator=generator).to(device)
        self.digest = f"{seed:016x}"

    def batch(self, images: Tensor) -> Tensor:
        grey = images.to(self.filters).mean(1, keepdim=True) / 255
        return torch.nn.functional.conv2d(grey, self.filters).amax((2, 3))


@register("random")
class RandomFeaturesSection(FeaturesSection):
    """Random convolutions."""

    filter_seed: Seed = 0
    """Seed of the filters."""

    def build(self, device: torch.device, path: Path | None) -> RandomFeatures:
        return RandomFeatures(device, self.filter_seed)
