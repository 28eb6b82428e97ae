"""Scores of a generative model; every score has an interval and a protocol."""

from .features import FEATURES, FeatureNetwork, default_features, load_features
from .frechet import GaussianStatistics, frechet_distance
from .kernel import kernel_distance
from .likelihood import LikelihoodScores, score_likelihood
from .manifold import precision_recall
from .reconstruction import score_reconstruction, structural_similarity
from .score import Score, mean_score

__all__ = [
    "FEATURES",
    "FeatureNetwork",
    "GaussianStatistics",
    "LikelihoodScores",
    "Score",
    "default_features",
    "frechet_distance",
    "kernel_distance",
    "load_features",
    "mean_score",
    "precision_recall",
    "score_likelihood",
    "score_reconstruction",
    "structural_similarity",
]
