"""Scores of a generative model; every score has an interval and a protocol."""

from .features import FeatureNetwork, load_features
from .frechet import GaussianStatistics, frechet_distance, frechet_score
from .kernel import kernel_distance
from .label_scores import score_labels_of_samples
from .latents import interpolation_score, linear_probe
from .likelihood import LikelihoodScores, score_likelihood
from .manifold import density_coverage, precision_recall
from .pixel_likelihood import PixelLikelihood, score_pixel_likelihood
from .reconstruction import score_flow_reconstruction, score_reconstruction, structural_similarity
from .samples import Sampling, compare_features, distance_device, few_images_warning, image_features, sample_features
from .score import Score, mean_score

__all__ = [
    "FeatureNetwork",
    "GaussianStatistics",
    "LikelihoodScores",
    "PixelLikelihood",
    "Sampling",
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
    "score_flow_reconstruction",
    "score_labels_of_samples",
    "score_likelihood",
    "score_pixel_likelihood",
    "score_reconstruction",
    "structural_similarity",
]
