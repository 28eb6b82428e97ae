"""Matplotlib, imported whatever backend the surroundings name: figures here are drawn to files and need none."""

import os
import sys
import warnings

__all__: list[str] = []

# An unknown name makes the import fail, with matplotlib half imported; so it is imported first, and fails afterwards.
_first = "matplotlib" not in sys.modules
_named = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib as mpl
finally:
    if _named is not None:
        os.environ["MPLBACKEND"] = _named
if _named and _first:
    try:
        mpl.rcParams["backend"] = _named
    except ValueError:
        warnings.warn(f"MPLBACKEND={_named} is not a backend of matplotlib, and is ignored", stacklevel=2)
