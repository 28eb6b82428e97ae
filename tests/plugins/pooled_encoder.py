"""An encoder in one file outside the package: average pooling and one linear map."""

from __future__ import annotations

from torch import nn

from ncode_gen.config import EncoderSection, Width, register


@register("pooled")
class PooledEncoderSection(EncoderSection):
    """Average pooling, then a linear map."""

    pool: Width = 2
    """Side of the squares that are averaged, in pixels."""

    def build(self, shape: tuple[int, int, int]) -> nn.Module:
        channels, height, width = shape
        pooled = channels * (height // self.pool) * (width // self.pool)
        return nn.Sequential(nn.AvgPool2d(self.pool), nn.Flatten(), nn.Linear(pooled, self.features), nn.SiLU())
