"""Priors: distributions of latents."""

from .mixture import GaussianMixture
from .normal import Prior, StandardNormal

__all__ = ["GaussianMixture", "Prior", "StandardNormal"]
