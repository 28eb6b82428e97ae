"""Priors: distributions of latents."""

from .deep import DeepFlow
from .flow import FlowPrior
from .mixture import GaussianMixture
from .normal import LabelledPrior, Prior, StandardNormal

__all__ = ["DeepFlow", "FlowPrior", "GaussianMixture", "LabelledPrior", "Prior", "StandardNormal"]
