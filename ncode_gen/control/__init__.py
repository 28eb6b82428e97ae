"""Neurally-controlled ODEs: fields, what controls them, and the coupled system. Knows nothing of images."""

from .controllers import (
    AlgebraicController,
    Controller,
    DynamicController,
    FactoredDynamics,
    OpenController,
    StaticController,
)
from .convolutional import ConvField
from .field import ConstantField, Field, VectorField
from .layered import LayeredField, LinearField, MLPField
from .ncode import NCODE
from .normalised import NormalisedField
from .solver import LogDet, Solver, SolverOptions
from .system import ControlledODE, DensityError, FlowSolution
from .unet import UNetField

__all__ = [
    "NCODE",
    "AlgebraicController",
    "ConstantField",
    "ControlledODE",
    "Controller",
    "ConvField",
    "DensityError",
    "DynamicController",
    "FactoredDynamics",
    "Field",
    "FlowSolution",
    "LayeredField",
    "LinearField",
    "LogDet",
    "MLPField",
    "NormalisedField",
    "OpenController",
    "Solver",
    "SolverOptions",
    "StaticController",
    "UNetField",
    "VectorField",
]
