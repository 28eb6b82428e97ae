"""Priors: distributions of latents."""

from .deep import DeepFlow
from .flow import FlowPrior
from .mixture import GaussianMixture
from .normal import Guidance, LabelledPrior, Prior, StandardNormal

__all__ = ["DeepFlow", "FlowPrior", "GaussianMixture", "Guidance", "LabelledPrior", "Prior", "StandardNormal"]
