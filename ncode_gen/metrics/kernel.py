"""Kernel distance between feature distributions: the unbiased squared maximum mean discrepancy."""

import math

import torch
from torch import Tensor

from ..runtime.seeding import seeded
from .score import Score

BLOCK = 2048
PARTS = 10


def _kernel_sum(a: Tensor, b: Tensor, *, without_diagonal: bool) -> float:
    """Return the sum of (x . y / d + 1)^3 over all pairs, in blocks of float64."""
    total, dim = 0.0, a.shape[1]
    for part in a.split(BLOCK):
        total += float(((part @ b.T / dim + 1) ** 3).sum())
    if without_diagonal:
        total -= float((((a * a).sum(1) / dim + 1) ** 3).sum())
    return total


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Return the unbiased estimate of the squared MMD with the cubic polynomial kernel, over all pairs.

    Source: Binkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4.

    Args:
        real: features (n, d), n >= 2.
        fake: features (m, d), m >= 2.
    """
    real, fake = real.double(), fake.double()
    n, m = len(real), len(fake)
    return (
        _kernel_sum(real, real, without_diagonal=True) / (n * (n - 1))
        + _kernel_sum(fake, fake, without_diagonal=True) / (m * (m - 1))
        - 2 * _kernel_sum(real, fake, without_diagonal=False) / (n * m)
    )


def kernel_score(real: Tensor, fake: Tensor, *, seed: int = 0) -> Score:
    """Return the kernel distance over all pairs; its standard error comes from ten disjoint parts of the data."""
    value = kernel_distance(real, fake)
    generator = seeded(seed)
    real = real[torch.randperm(len(real), generator=generator).to(real.device)]
    fake = fake[torch.randperm(len(fake), generator=generator).to(fake.device)]
    parts = min(PARTS, len(real) // 2, len(fake) // 2)
    if parts < 2:
        return Score.from_error(value, 0.0)
    pairs = zip(real.tensor_split(parts), fake.tensor_split(parts), strict=True)
    each = torch.tensor([kernel_distance(a, b) for a, b in pairs], dtype=torch.float64)
    return Score.from_error(value, float(each.std()) / math.sqrt(parts))
