"""The generative model: encoders, controlled posterior, decoders, likelihoods, and their assembly."""

from .build import build_model
from .likelihoods import LIKELIHOODS, Bernoulli, DiscretisedLogistic, Gaussian, Likelihood
from .model import LatentModel, LatentTrajectory, Terms
from .posterior import ControlledPosterior, LearnedStart, SolverChoice
from .refiner import Refiner

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "ControlledPosterior",
    "DiscretisedLogistic",
    "Gaussian",
    "LatentModel",
    "LatentTrajectory",
    "LearnedStart",
    "Likelihood",
    "Refiner",
    "SolverChoice",
    "Terms",
    "build_model",
]
