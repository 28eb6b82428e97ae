"""Neurally-controlled ODEs: fields, what controls them, and the coupled system. Knows nothing of images."""

from .controllers import (
    AlgebraicController,
    ControlHead,
    Controller,
    DynamicController,
    FactoredDynamics,
    OpenController,
    StaticController,
    multilayer_perceptron,
)
from .convolutional import ConvField
from .field import ConstantField, Field, VectorField
from .layered import LayeredField, LinearField, MLPField
from .ncode import NCODE
from .normalised import NormalisedField, norm_groups
from .system import ControlledODE, DensityError, FlowSolution
from .unet import UNetField

__all__ = [
    "NCODE",
    "AlgebraicController",
    "ConstantField",
    "ControlHead",
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
    "MLPField",
    "NormalisedField",
    "OpenController",
    "StaticController",
    "UNetField",
    "VectorField",
    "multilayer_perceptron",
    "norm_groups",
]
