"""Encoders and an objective that only the study of controls has; to import this is to register them."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ncode_gen.config import register
from ncode_gen.config.networks import SizedEncoderSection
from ncode_gen.config.training import MatchingSection
from ncode_gen.networks.encoders import MapEncoder
from ncode_gen.training.matching import Matching


class VectorEncoder(MapEncoder):
    """The encoder of code maps, with fewer channels at the end, for codes that are vectors."""

    def __init__(self, shape: tuple[int, int, int], width: int, blocks: int, features: int) -> None:
        super().__init__(shape, width, blocks, features, shape[1] // 4)


class PairEncoder(VectorEncoder):
    """An encoder of an image and the noise of its path; without noise it is given zeros."""

    def __init__(self, shape: tuple[int, int, int], width: int, blocks: int, features: int) -> None:
        super().__init__((2 * shape[0], *shape[1:]), width, blocks, features)
        self.channels = shape[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return features (n, features) of images, and noises after them, (n, C or 2 C, H, W)."""
        if images.shape[1] == self.channels:
            images = torch.cat([images, torch.full_like(images, 0.5)], 1)
        return super().forward(images)


@register("vector")
class VectorSection(SizedEncoderSection):
    """The encoder of code maps, for codes that are vectors."""

    encoder: ClassVar[type[VectorEncoder]] = VectorEncoder

    def build(self, *context: Any, **more: Any) -> VectorEncoder:
        """Return the encoder."""
        return self.encoder(*context, **self.values())


@register("pair")
class PairSection(VectorSection):
    """An encoder of an image and the noise of its path."""

    encoder: ClassVar[type[VectorEncoder]] = PairEncoder


class RectifiedMatching(Matching):
    """Flow matching with a code of the whole path: Guo and Schwing, "Variational rectified flow matching", 2025."""

    def encoded(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the features of images and the noise of their paths, both in [0, 1] or about it."""
        return self.model.features(torch.cat([images, 0.5 + 0.25 * noise], 1))


@register("rectified")
class RectifiedSection(MatchingSection):
    """Flow matching with a code of the whole path."""

    def build(self, *context: Any, **more: Any) -> RectifiedMatching:
        """Return the objective."""
        return RectifiedMatching(*context, **self.values())
