"""Neurally-controlled ODEs: fields, what controls them, and the coupled system. Knows nothing of images."""

from .controllers import (
    AlgebraicController,
    Controller,
    DynamicController,
    FactoredDynamics,
    OpenController,
    StaticController,
)
from .fields import ConstantField, Field, GainFeedbackField, LinearField, MLPField, VectorField
from .ncode import NCODE
from .system import ControlledODE, DensityError, FlowSolution

__all__ = [
    "NCODE",
    "AlgebraicController",
    "ConstantField",
    "ControlledODE",
    "Controller",
    "DensityError",
    "DynamicController",
    "FactoredDynamics",
    "Field",
    "FlowSolution",
    "GainFeedbackField",
    "LinearField",
    "MLPField",
    "OpenController",
    "StaticController",
    "VectorField",
]
