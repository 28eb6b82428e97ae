"""Image sets: read, split and cached."""

from .decoded import MappedImages
from .images import FolderImages, Images, TensorImages
from .sets import Splits, load_data

__all__ = ["FolderImages", "Images", "MappedImages", "Splits", "TensorImages", "load_data"]
