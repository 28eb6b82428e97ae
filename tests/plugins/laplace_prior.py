"""A prior in one file outside the package: independent Laplace distributions, fitted in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ncode_gen.config import Positive, PriorSection, register
from ncode_gen.distributions.priors import Prior


class LaplacePrior(Prior):
    """Independent Laplace distributions; the median and the mean distance to it are their maximum likelihood."""

    fitted_after = True

    def __init__(self, dim: int, least_scale: float) -> None:
        super().__init__()
        self.dim, self.least_scale = dim, least_scale
        self.register_buffer("median", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.median: Tensor
        self.scale: Tensor

    def log_prob(self, latents: Tensor) -> Tensor:
        return (-(latents - self.median).abs() / self.scale - torch.log(2 * self.scale)).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        centred = torch.rand(n, self.dim, generator=generator).to(self.scale) - 0.5
        return self.median - self.scale * centred.sign() * torch.log1p(-2 * centred.abs())

    def fit(self, latents: Tensor, seed: int = 0, progress: Callable[[float], None] | None = None) -> None:
        self.median.copy_(latents.median(0).values)
        self.scale.copy_((latents - latents.median(0).values).abs().mean(0).clamp_min(self.least_scale))


@register("laplace")
class LaplaceSection(PriorSection):
    """Independent Laplace distributions, fitted to the training latents."""

    least_scale: Positive = 1e-4
    """Smallest scale of a dimension."""

    def build(self, dim: int) -> LaplacePrior:
        return LaplacePrior(dim, self.least_scale)
