"""The generative model: prior, posterior and observation, three conditional distributions, and what joins them."""

from .build import build_model
from .describe import check_fits, describe
from .images import Adjust, Start
from .likelihoods import Bernoulli, DiscretisedLogistic, Gaussian, Likelihood
from .model import ElboTerms, LatentModel, LatentTrajectory, likelihood_bounds
from .observation import Observation, Pixelwise, Refined
from .pixel_flow import PixelFlow
from .posterior import GaussianPosterior, PointPosterior, Posterior, PosteriorSample
from .refiner import Refiner

__all__ = [
    "Adjust",
    "Bernoulli",
    "DiscretisedLogistic",
    "ElboTerms",
    "Gaussian",
    "GaussianPosterior",
    "LatentModel",
    "LatentTrajectory",
    "Likelihood",
    "Observation",
    "PixelFlow",
    "Pixelwise",
    "PointPosterior",
    "Posterior",
    "PosteriorSample",
    "Refined",
    "Refiner",
    "Start",
    "build_model",
    "check_fits",
    "describe",
    "likelihood_bounds",
]
