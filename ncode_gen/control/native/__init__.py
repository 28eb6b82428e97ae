"""Compiled code for the flows that most time is spent on; everything works without it, slower."""

from .shallow import shallow_field, shallow_solve

__all__ = ["shallow_field", "shallow_solve"]
