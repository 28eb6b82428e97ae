"""Frechet distance between feature distributions, in float64 and without a matrix square root."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .score import Score, bootstrap_score


@dataclass(frozen=True)
class GaussianStatistics:
    """Mean (d,) and unbiased covariance (d, d) of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> GaussianStatistics:
        """Compute the statistics of features (n, d), n >= 2.

        Raises:
            ValueError: fewer than two features, or one that is not finite.
        """
        if features.dim() != 2 or len(features) < 2:
            raise ValueError(f"features must have shape (n, d) with n >= 2, got {tuple(features.shape)}")
        values = features.double()
        if not bool(torch.isfinite(values).all()):
            raise ValueError("a feature is not finite")
        mean = values.mean(0)
        centred = values - mean
        return cls(mean, centred.T @ centred / (len(values) - 1))


def _root(matrix: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Return the squared Frechet distance between two Gaussians.

    |m_a - m_b|^2 + tr(A + B) - 2 tr((A^1/2 B A^1/2)^1/2), the last trace from the eigenvalues of a symmetric matrix.
    Source: Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017, equation 6.

    >>> a = GaussianStatistics(torch.zeros(1).double(), torch.eye(1).double())
    >>> b = GaussianStatistics(torch.ones(1).double(), 4 * torch.eye(1).double())
    >>> round(frechet_distance(a, b), 9)  # (0 - 1)^2 + (1 - 2)^2
    2.0
    """
    root = _root(a.covariance)
    product = root @ b.covariance @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    gap = ((a.mean - b.mean) ** 2).sum()
    distance = gap + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float(distance))


def frechet_score(real: Tensor, fake: Tensor, *, replicates: int = 20, seed: int = 0) -> Score:
    """Return the Frechet distance between features (n, d) and (m, d), with a bootstrap interval."""

    def resampled(generator: torch.Generator) -> float:
        resamples = [
            part[torch.randint(len(part), (len(part),), generator=generator).to(part.device)] for part in (real, fake)
        ]
        return frechet_distance(GaussianStatistics.of(resamples[0]), GaussianStatistics.of(resamples[1]))

    value = frechet_distance(GaussianStatistics.of(real), GaussianStatistics.of(fake))
    return bootstrap_score(value, resampled, replicates, seed)
