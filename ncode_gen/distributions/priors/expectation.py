"""Expectation-maximisation of Gaussian mixtures with full covariances, for many points and many Gaussians."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...runtime.seeding import folded

RIDGE = 1e-5
STRENGTH = 0.1
LEAST_GAIN = 1e-4  # nats a point and dimension
FAINT = 1e-5  # responsibilities below it are left out
ROWS = 1 << 22  # numbers of the largest intermediate result


class Gaussians(NamedTuple):
    """A mixture of Gaussians.

    Attributes:
        log_weights: (K,), in nats.
        means: (K, d).
        cholesky: lower triangular factors of the covariances, (K, d, d).
    """

    log_weights: Tensor
    means: Tensor
    cholesky: Tensor

    def joint_log_prob(self, points: Tensor) -> Tensor:
        """Return log(weight_k) + log N(x; k) in nats, shape (n, K), for points (n, d) of the Gaussians' type."""
        count, dim = self.means.shape
        eye = torch.eye(dim, dtype=points.dtype, device=points.device).expand(count, -1, -1)
        whitening = torch.linalg.solve_triangular(self.cholesky, eye, upper=False).mT  # L^-T
        shifts = -(self.means.unsqueeze(1) @ whitening).flatten()
        constant = (
            self.log_weights + whitening.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * dim * math.log(2 * math.pi)
        )
        # One product for all Gaussians: the processor's matrix units are busy, whatever d is.
        stacked = whitening.permute(1, 0, 2).reshape(dim, -1)
        found = []
        for rows in points.split(max(1, ROWS // stacked.shape[1])):
            white = torch.addmm(shifts, rows, stacked).view(-1, count, dim)
            found.append(constant - 0.5 * white.square().sum(-1))
        return torch.cat(found)


def _maximise(points: Tensor, shares: Tensor) -> Gaussians:
    """Return the Gaussians of points (n, d) with responsibilities (n, K)."""
    count, dim = shares.shape[1], points.shape[1]
    means = points.new_empty(count, dim)
    scatter = points.new_empty(count, dim, dim)
    totals = points.new_empty(count)
    for k, column in enumerate(shares.mT.contiguous()):
        # Nearly all responsibilities are nothing; a Gaussian's own points are few.
        own = (column > FAINT).nonzero().squeeze(1)
        share, some = column[own].to(points.dtype).unsqueeze(1), points[own]
        totals[k] = total = share.sum() + 1e-10
        means[k] = (share * some).sum(0) / total
        offset = (some - means[k]) * share.sqrt()
        scatter[k] = offset.mT @ offset
    strength = STRENGTH * dim
    pooled = scatter.sum(0) / totals.sum()
    covariances = (scatter + strength * pooled) / (totals + strength)[:, None, None]
    covariances.diagonal(dim1=1, dim2=2).add_(RIDGE)
    return Gaussians((totals / totals.sum()).log(), means, torch.linalg.cholesky(covariances))


def _clusters(points: Tensor, components: int, seed: int) -> Tensor:
    """Return the cluster (n,) of each point by k-means."""
    from sklearn.cluster import KMeans

    fitted = KMeans(components, n_init=1, max_iter=30, random_state=folded(seed, 2**32)).fit(points.cpu().numpy())
    return torch.from_numpy(fitted.labels_).long()


def fit_gaussians(
    points: Tensor,
    components: int,
    seed: int,
    rounds: int,
    progress: Callable[[float], None] = lambda share: None,
) -> Gaussians:
    """Fit a mixture to points (n, d), float32, from the clusters of k-means.

    Densities are found in float32, covariances and their factors in float64, since in float32 covariances of latents
    lose their positive-definiteness. Each covariance is shrunk towards the mean of all, as if `STRENGTH` d more points
    had that one: Gaussians of few points stay wide, and held-out points more likely.

    Sources: Dempster et al., "Maximum likelihood from incomplete data via the EM algorithm", 1977; Fraley and Raftery,
    "Bayesian regularization for normal mixture estimation", 2007.

    Args:
        points: (n, d), at least as many as components.
        components: number of Gaussians K.
        seed: seed of the clusters.
        rounds: rounds at most; fewer, once a round gains less than 0.0001 nats a point and dimension.
        progress: called with the share of the rounds that is done.

    Returns:
        The mixture, in float64.
    """
    labels = _clusters(points, components, seed).to(points.device)
    shares = torch.nn.functional.one_hot(labels, components).to(points.dtype)
    double = points.double()
    found, before = _maximise(double, shares), -math.inf
    for done in range(rounds):
        joint = Gaussians(*(part.to(points.dtype) for part in found)).joint_log_prob(points)
        total = torch.logsumexp(joint, 1, keepdim=True)
        gain, before = float(total.double().mean()) - before, float(total.double().mean())
        progress((done + 1) / rounds)
        if gain < LEAST_GAIN * points.shape[1]:
            break
        found = _maximise(double, joint.sub_(total).exp_())
    return found
