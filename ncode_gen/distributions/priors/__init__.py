"""Priors: distributions of latents."""

from .flow import FlowPrior
from .mixture import GaussianMixture
from .normal import Prior, StandardNormal

__all__ = ["FlowPrior", "GaussianMixture", "Prior", "StandardNormal"]
