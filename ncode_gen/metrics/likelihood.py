"""Likelihoods that the solver's error cannot improve: every value comes from a solver refined until it stands."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.images import Images
from ..distributions import Adjust, LatentModel, likelihood_bounds
from ..runtime.progress import track
from ..runtime.seeding import seeded
from ..runtime.workers import ALONE, Workers
from ..solvers import has_fixed_steps
from .samples import batch_generator, shared_batches
from .score import Score, mean_score

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
        elbo_gap: how much higher the lower bound is with the solver that the recipe trains with, nats an image, mean
            of the first 500 images.
        nll_gap: how much lower `nll` is with that solver, likewise.
        solver: refined solver and its steps, "rk4 x 8"; "none" without a flow.
        coarse_solver: the recipe's solver and its steps.
        moved: how far the value moved at the last doubling of the steps, in nats, on a part of the images.
    """

    elbo: Score
    nll: Score
    bits_per_dim: Score
    elbo_gap: float
    nll_gap: float
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
        generator = seeded(seed)
        bounds = list(likelihood_bounds(model, images, PROBE_PARTICLES, generator, adjust=_with_steps(steps)))
        return torch.stack([torch.cat([bound[i] for bound in bounds]).mean() for i in (0, 1)])

    steps = max(flow.options.steps for flow in model.flows)
    before = means(steps)
    while steps < MOST_STEPS:
        steps *= 2
        after = means(steps)
        moved = float((after - before).abs().max())
        if moved < tolerance:
            return steps, moved
        before = after
    raise ValueError(f"the likelihood still moves by {moved:.3g} nats at {steps} steps; the flow is too stiff to score")


def _with_steps(steps: int) -> Adjust:
    """Return what solves a flow by Runge-Kutta 4 with so many steps."""
    return lambda options: options.but(method="rk4", steps=steps)


def score_likelihood(
    model: LatentModel,
    images: Images,
    particles: int,
    *,
    seed: int = 0,
    quiet: bool = False,
    workers: Workers = ALONE,
) -> LikelihoodScores:
    """Return ELBO and importance-weighted NLL of images with a refined solver, and what the recipe's own would add.

    Args:
        model: a model with a posterior density.
        images: the test images, all of which are scored.
        particles: number K of particles.
        seed: seed of targets and noise, the same for both solvers.
        quiet: whether to show no progress.
        workers: the processes that share the work; all of them get the scores.

    Raises:
        DensityError: the model is a deterministic autoencoder.
        ValueError: no number of steps makes the value stand.
    """
    model.check_density()
    steps, moved, coarse = None, 0.0, "none"
    if model.flows:
        steps, moved = refine_steps(model, images.first(PROBE, model.device), seed)
        names = [
            f"{own.method} x {own.steps}" if has_fixed_steps(own.method) else own.method
            for own in (flow.options for flow in model.flows)
        ]
        coarse = ", ".join(dict.fromkeys(names))
    elbo, bound = _bounds(model, images, particles, steps, seed, quiet, workers)
    gaps = (0.0, 0.0)
    if steps is not None:
        some = images.head(PROBE)
        own = _bounds(model, some, particles, None, seed, quiet, ALONE)
        gaps = (float((own[0] - elbo[:PROBE]).mean()), float((own[1] - bound[:PROBE]).mean()))
    return LikelihoodScores(
        elbo=mean_score(elbo),
        nll=mean_score(-bound),
        bits_per_dim=mean_score(-bound.double() / (math.prod(images.shape) * math.log(2))),
        elbo_gap=gaps[0],
        nll_gap=gaps[1],
        solver="none" if steps is None else f"rk4 x {steps}",
        coarse_solver=coarse,
        moved=moved,
    )


def _bounds(
    model: LatentModel, images: Images, particles: int, steps: int | None, seed: int, quiet: bool, workers: Workers
) -> tuple[Tensor, Tensor]:
    label = "likelihood" if steps is None else f"likelihood, rk4 x {steps}"
    adjust = None if steps is None else _with_steps(steps)
    found = {}
    with track(label, len(images), quiet=quiet) as progress:
        for number, batch in shared_batches(images, PROBE, model.device, workers):
            generator, parts = batch_generator(seed, number), []
            for pair in likelihood_bounds(model, batch, particles, generator, adjust=adjust):
                parts.append(torch.stack(pair, 1).cpu())
                progress.advance(len(parts[-1]) * workers.count)
            found[number] = torch.cat(parts)
    elbo, bound = workers.gather(found).unbind(1)
    return elbo, bound
