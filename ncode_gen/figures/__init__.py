"""Pictures of a model: samples, reconstructions, interpolations and trajectories."""

from .gallery import FIGURES, draw_gallery

__all__ = ["FIGURES", "draw_gallery"]
