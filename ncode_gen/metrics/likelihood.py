"""Likelihoods that the solver's error cannot flatter: every value comes from a solver refined until it stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..autoencoder import LatentModel
from ..data import Images
from ..progress import track
from ..solvers import FIXED
from .score import Score, mean_score

__all__ = ["LikelihoodScores", "refine_steps", "score_likelihood"]

TOLERANCE = 0.05
PROBE = 500
PROBE_PARTICLES = 32
MOST_STEPS = 256


@dataclass(frozen=True)
class LikelihoodScores:
    """Bounds on a test set, and how the solver was refined.

    Attributes:
        elbo: mean evidence lower bound, nats an image, refined solver.
        nll: importance-weighted bound on -log p, nats an image, refined solver.
        bits_per_dim: `nll` in bits per pixel and channel.
        coarse_elbo: `elbo` with the solver that the recipe trains with.
        coarse_nll: `nll` with the solver that the recipe trains with.
        solver: refined solver and its steps, "rk4 x 8"; "none" without a flow.
        coarse_solver: the recipe's solver and its steps.
        moved: how far the value moved at the last doubling of the steps, in nats, on a part of the images.
    """

    elbo: Score
    nll: Score
    bits_per_dim: Score
    coarse_elbo: Score
    coarse_nll: Score
    solver: str
    coarse_solver: str
    moved: float


def refine_steps(model: LatentModel, images: Tensor, seed: int, tolerance: float = TOLERANCE) -> tuple[int, float]:
    """Double the steps of Runge-Kutta 4 until ELBO and importance-weighted bound both move by less than `tolerance`.

    Args:
        model: a model with a flow in its posterior or its prior; all its flows are refined.
        images: (n, C, H, W) in [0, 1]; the same noise is used with all steps.
        seed: seed of the noise.
        tolerance: nats an image.

    Returns:
        The finer number of steps, and how far the value moved (nats) at the last doubling.

    Raises:
        ValueError: the value still moves at 256 steps.
    """

    def means(steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        bounds = list(model.bounds(images, PROBE_PARTICLES, generator, steps=steps, method="rk4"))
        return torch.stack([torch.cat([bound[i] for bound in bounds]).mean() for i in (0, 1)])

    steps = max(flow.solver.steps for flow in model.flows)
    before = means(steps)
    while steps < MOST_STEPS:
        steps *= 2
        after = means(steps)
        moved = float((after - before).abs().max())
        if moved < tolerance:
            return steps, moved
        before = after
    raise ValueError(f"the likelihood still moves by {moved:.3g} nats at {steps} steps; the flow is too stiff to score")


def score_likelihood(
    model: LatentModel, images: Images, particles: int, *, seed: int = 0, quiet: bool = False
) -> LikelihoodScores:
    """Return ELBO and importance-weighted NLL of images, with the recipe's solver and with a refined one.

    Args:
        model: a model with a posterior density.
        images: the test images, all of which are scored.
        particles: number K of particles.
        seed: seed of targets and noise, the same for both solvers.
        quiet: whether to show no progress.

    Raises:
        DensityError: the model is a deterministic autoencoder.
        ValueError: no number of steps makes the value stand.
    """
    model.random_posterior()
    size = math.prod(images.shape)
    if not model.flows:
        elbo, nll = _bounds(model, images, particles, None, seed, quiet)
        return _scores(elbo, nll, elbo, nll, size, "none", "none", 0.0)
    steps, moved = refine_steps(model, images.first(PROBE, model.device), seed)
    coarse = _bounds(model, images, particles, None, seed, quiet)
    fine = _bounds(model, images, particles, steps, seed, quiet)
    names = [
        f"{solver.method} x {solver.steps}" if solver.method in FIXED else solver.method
        for solver in (flow.solver for flow in model.flows)
    ]
    coarse_name = ", ".join(dict.fromkeys(names))
    return _scores(*fine, *coarse, size, f"rk4 x {steps}", coarse_name, moved)


def _bounds(
    model: LatentModel, images: Images, particles: int, steps: int | None, seed: int, quiet: bool
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = "likelihood" if steps is None else f"likelihood, rk4 x {steps}"
    method = None if steps is None else "rk4"
    elbo, bound = [], []
    with track(label, len(images), quiet=quiet) as progress:
        for batch in images.batches(PROBE, device=model.device):
            for lower, weighted in model.bounds(batch, particles, generator, steps=steps, method=method):
                elbo.append(lower.cpu())
                bound.append(weighted.cpu())
                progress.advance(len(lower))
    return torch.cat(elbo), torch.cat(bound)


def _scores(
    elbo: Tensor,
    nll: Tensor,
    coarse_elbo: Tensor,
    coarse_nll: Tensor,
    size: int,
    solver: str,
    coarse: str,
    moved: float,
) -> LikelihoodScores:
    return LikelihoodScores(
        elbo=mean_score(elbo),
        nll=mean_score(-nll),
        bits_per_dim=mean_score(-nll.double() / (size * math.log(2))),
        coarse_elbo=mean_score(coarse_elbo),
        coarse_nll=mean_score(-coarse_nll),
        solver=solver,
        coarse_solver=coarse,
        moved=moved,
    )
