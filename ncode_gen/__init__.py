"""Generative modelling with neurally-controlled ODEs."""

from .control import NCODE

__version__ = "0.1.0"

__all__ = ["NCODE", "__version__"]
