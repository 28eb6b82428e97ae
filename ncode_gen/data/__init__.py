"""Image sets: read, split and cached."""

from .sets import FolderImages, Images, Splits, TensorImages, load_data

__all__ = ["FolderImages", "Images", "Splits", "TensorImages", "load_data"]
