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
from .dense_unet import DenseUNetField
from .field import ConstantField, Field, VectorField
from .guidance import GuidedController, guided
from .image_field import ImageControl, ImageField
from .image_gamma import ImageGamma
from .layered import LayeredField, LinearField, MLPField
from .ncode import NCODE
from .normalised import NormalisedField, norm_groups
from .residual import ResidualField
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
    "DenseUNetField",
    "DensityError",
    "DynamicController",
    "FactoredDynamics",
    "Field",
    "FlowSolution",
    "GuidedController",
    "ImageControl",
    "ImageField",
    "ImageGamma",
    "LayeredField",
    "LinearField",
    "MLPField",
    "NormalisedField",
    "OpenController",
    "ResidualField",
    "StaticController",
    "UNetField",
    "VectorField",
    "guided",
    "multilayer_perceptron",
    "norm_groups",
]
