"""Precision, recall, density and coverage: how much of each set lies within the other's neighbourhoods."""

import math

import torch
from torch import Tensor

from .score import Score, mean_score

BLOCK = 1024


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Return the distance of each point (n, d) to its k-th nearest other point, (n,)."""
    rows = [
        torch.cdist(part, points).kthvalue(min(neighbours + 1, len(points)), dim=1).values
        for part in points.split(BLOCK)
    ]
    return torch.cat(rows)


def _covered(points: Tensor, support: Tensor, radii: Tensor) -> float:
    """Return the share of points within the radius of at least one support point."""
    inside = [(torch.cdist(part, support) <= radii).any(1) for part in points.split(BLOCK)]
    return float(torch.cat(inside).double().mean())


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> tuple[Score, Score]:
    """Return precision and recall of features (m, d) against real features (n, d).

    Source: Kynkaanniemi et al., "Improved precision and recall metric", NeurIPS 2019, equations 1 and 2. The
    intervals are those of a share of independent points.
    """
    real, fake = real.float(), fake.float()
    precision = _covered(fake, real, _radii(real, neighbours))
    recall = _covered(real, fake, _radii(fake, neighbours))
    return Score.of_share(precision, len(fake)), Score.of_share(recall, len(real))


def density_coverage(real: Tensor, fake: Tensor, neighbours: int = 5) -> tuple[Score, Score]:
    """Return density and coverage of features (m, d) against real features (n, d).

    Density is the mean number of real neighbourhoods that a fake point lies in, over `neighbours`, and may exceed 1;
    coverage the share of real points whose neighbourhood holds a fake one. Source: Naeem et al., "Reliable fidelity and
    diversity metrics for generative models", ICML 2020, equations 3 and 4, with their default of 5 neighbours.
    """
    real, fake = real.float(), fake.float()
    radii = _radii(real, neighbours)
    hits, nearest = [], torch.full((len(real),), math.inf, device=real.device)
    for part in fake.split(BLOCK):
        distances = torch.cdist(part, real)
        hits.append((distances <= radii).sum(1))
        nearest = torch.minimum(nearest, distances.min(0).values)
    covered = float((nearest <= radii).double().mean())
    return mean_score(torch.cat(hits).double() / neighbours), Score.of_share(covered, len(real))
