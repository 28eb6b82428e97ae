"""Generative modelling with neurally-controlled ODEs.

>>> import ncode_gen, torch
>>> flow = ncode_gen.NCODE(dim=2, hidden=(32,), loop="closed")
>>> flow(torch.zeros(5, 2)).state.shape
torch.Size([5, 2])
"""

from .control import NCODE
from .errors import UserError
from .recipe import Recipe
from .run import load_run as load

__version__ = "0.1.0"

__all__ = ["NCODE", "Recipe", "UserError", "__version__", "load"]
