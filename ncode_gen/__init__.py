"""Generative modelling with neurally-controlled ODEs.

>>> import ncode_gen, torch
>>> flow = ncode_gen.NCODE(dim=2, hidden=(32,), loop="closed")
>>> flow(torch.zeros(5, 2)).state.shape
torch.Size([5, 2])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config.recipe import Recipe
    from .control import NCODE
    from .errors import UserError
    from .runfolder.run import load_run as load
    from .runfolder.run import push

__version__ = "0.1.0"

__all__ = ["NCODE", "Recipe", "UserError", "__version__", "load", "push"]

# Names come with their modules when they are first used, so that --help and a wrong flag need not wait for torch.
_HOMES = {
    "NCODE": ("control", "NCODE"),
    "Recipe": ("config.recipe", "Recipe"),
    "UserError": ("errors", "UserError"),
    "load": ("runfolder.run", "load_run"),
    "push": ("runfolder.run", "push"),
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ncode_gen' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    return getattr(import_module(f".{module}", __name__), attribute)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
