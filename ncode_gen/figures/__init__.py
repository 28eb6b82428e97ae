"""Pictures of a model: samples, reconstructions, interpolations and trajectories."""

from .gallery import FIGURES, draw_gallery
from .grids import picture_grid, to_bytes

__all__ = ["FIGURES", "draw_gallery", "picture_grid", "to_bytes"]
