"""Pictures of a model: samples, reconstructions, interpolations and trajectories."""

from . import backend  # isort: skip  # noqa: F401  before all that imports matplotlib
from .gallery import FIGURES, draw_gallery

__all__ = ["FIGURES", "draw_gallery"]
