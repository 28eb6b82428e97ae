"""Training: one loop that runs phases."""

from .fit import fit_prior
from .loop import train

__all__ = ["fit_prior", "train"]
