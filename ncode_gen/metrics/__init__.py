"""Scores of a generative model; every score has an interval and a protocol."""

from .features import FeatureNetwork, load_features
from .frechet import GaussianStatistics, frechet_distance, frechet_score
from .kernel import kernel_distance
from .latents import interpolation_score, linear_probe
from .likelihood import LikelihoodScores, score_likelihood
from .manifold import density_coverage, precision_recall
from .reconstruction import score_reconstruction, structural_similarity
from .samples import compare_features, distance_device, few_images_warning, image_features, sample_features
from .score import Score, mean_score

__all__ = [
    "FeatureNetwork",
    "GaussianStatistics",
    "LikelihoodScores",
    "Score",
    "compare_features",
    "density_coverage",
    "distance_device",
    "few_images_warning",
    "frechet_distance",
    "frechet_score",
    "image_features",
    "interpolation_score",
    "kernel_distance",
    "linear_probe",
    "load_features",
    "mean_score",
    "precision_recall",
    "sample_features",
    "score_likelihood",
    "score_reconstruction",
    "structural_similarity",
]
