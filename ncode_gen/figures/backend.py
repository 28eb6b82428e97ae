"""Matplotlib, imported whatever backend the surroundings name: figures here are drawn to files and need none."""

from __future__ import annotations

import os
import warnings

__all__: list[str] = []

try:
    import matplotlib as mpl
except Exception as error:
    named = os.environ.pop("MPLBACKEND", None)
    if named is None:
        raise
    try:
        import matplotlib as mpl
    finally:
        os.environ["MPLBACKEND"] = named
    warnings.warn(f"MPLBACKEND={named} is unknown to matplotlib and left aside ({error})", stacklevel=2)

del mpl
