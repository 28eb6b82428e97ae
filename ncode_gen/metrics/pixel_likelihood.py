"""Likelihoods of a flow of pixels: by a solve that is refined until it stands, and by the bound that needs none."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.images import Images
from ..distributions import LatentModel, PixelFlow
from ..runtime.progress import track
from ..runtime.workers import ALONE, Workers
from ..solvers import SolveOptions
from .samples import batch_generator, shared_batches
from .score import Score, mean_score

TOLERANCE, PROBE, BATCH, LEAST_STEPS, MOST_STEPS, TIMES = 1e-3, 16, 50, 8, 512, 8


@dataclass(frozen=True)
class PixelLikelihood:
    """Bits per dimension of images, and how the solver was refined.

    Attributes:
        solved: log p(u | z) by solving back to the noise, with the importance-weighted mean over codes; uniform
            dequantisation. In bits per pixel and channel, like the bound. None where no number of steps makes it stand.
        bound: the evidence lower bound of the discrete images, whose part of the pixels needs no solve.
        rate: what the codes cost, log q(z | u) - log p(z), in nats an image.
        steps: steps of Runge-Kutta 4.
        moved: how far the value moved at the last doubling of the steps, in bits per dimension.
    """

    solved: Score | None
    bound: Score
    rate: Score
    steps: int
    moved: float


def score_pixel_likelihood(
    model: LatentModel,
    images: Images,
    particles: int = 1,
    *,
    seed: int = 0,
    quiet: bool = False,
    workers: Workers = ALONE,
) -> PixelLikelihood:
    """Return the likelihoods of images under a flow of pixels.

    The divergence is exact up to 36 dimensions; else it is Hutchinson's estimate along a direction of its own for each
    image and particle, of fixed seed, so that the mean over images has no bias.

    Args:
        model: a model whose observation is a flow of pixels.
        images: the images, all of which are scored; solves take a second or more for an image.
        particles: codes of an image.
        seed: seed of codes, dequantisation and directions.
        quiet: whether to show no progress.
        workers: the processes that share the work; all of them get the scores.

    Raises:
        DensityError: the code is deterministic, so that it has no density.
    """
    model.check_density()
    observation = model.observation
    assert isinstance(observation, PixelFlow)
    dims = math.prod(model.shape) * math.log(2)
    probe = images.first(PROBE, model.device)
    steps, moved = LEAST_STEPS, math.inf
    before = _solved(model, probe, particles, steps, seed, 0)[0].mean()
    while moved > TOLERANCE and steps < MOST_STEPS:
        steps *= 2
        after = _solved(model, probe, particles, steps, seed, 0)[0].mean()
        moved, before = abs(float(after - before)) / dims, after
    stands, found = moved <= TOLERANCE, {}
    with track(f"likelihood, rk4 x {steps}", len(images), quiet=quiet) as progress:
        for number, batch in shared_batches(images, BATCH, model.device, workers):
            # Without a solve that stands, the coarsest one gives the cost of the code.
            solved, rate = _solved(model, batch, particles, steps if stands else LEAST_STEPS, seed, number)
            bound = _bound(model, batch, rate, seed, number)
            found[number] = torch.stack([solved, bound, rate], 1).cpu()
            progress.advance(len(batch) * workers.count)
    solved, bound, rate = workers.gather(found).unbind(1)
    score = mean_score(-solved / dims) if stands else None
    return PixelLikelihood(score, mean_score(bound / dims), mean_score(rate), steps, moved)


@torch.no_grad()
def _solved(
    model: LatentModel, images: Tensor, particles: int, steps: int, seed: int, number: int
) -> tuple[Tensor, Tensor]:
    """Return the importance-weighted log-likelihood and the mean rate of images, each (m,), in nats."""
    observation, generator = model.observation, batch_generator(seed, number)
    assert isinstance(observation, PixelFlow)
    shape = (len(images), particles)
    noise = torch.randn(*shape, model.dim, generator=generator).to(model.device)
    uniform = torch.rand(*shape, *model.shape, generator=generator).to(model.device)
    signs = (torch.randint(0, 2, (*shape, *model.shape), generator=generator) * 2 - 1).to(uniform)
    sampled = model.posterior.sample(model.features(images), noise)
    assert sampled.log_prob is not None
    codes = sampled.latents.flatten(0, 1)
    target = observation.target(images.repeat_interleave(particles, 0), uniform.flatten(0, 1))
    exact = math.prod(model.shape) <= observation.exact
    direction = None if exact else signs.flatten(0, 1)
    log_prob = observation.log_prob_in(target, model.conditions(codes), steps, direction).view(shape)
    prior = model.prior.with_options(
        None if model.prior.active_flow is None else _with_steps(model.prior.active_flow.options, steps)
    )
    rate = sampled.log_prob - prior.log_prob(sampled.latents)
    weights = log_prob - rate
    return torch.logsumexp(weights, 1).double() - math.log(particles), rate.mean(1).double()


def _with_steps(options: SolveOptions, steps: int) -> SolveOptions:
    return dataclasses.replace(options, method="rk4", steps=steps, grid=None)


@torch.no_grad()
def _bound(model: LatentModel, images: Tensor, rate: Tensor, seed: int, number: int) -> Tensor:
    """Return the bound on -log P of discrete images, (m,), in nats, as a mean over times that lie even for each."""
    observation, generator = model.observation, batch_generator(seed + 1, number)
    assert isinstance(observation, PixelFlow)
    low, high = observation.log_snr_range()
    noise = torch.randn(len(images), 1, model.dim, generator=generator).to(model.device)
    sampled = model.posterior.sample(model.features(images), noise)
    conditions = model.conditions(sampled.latents[:, 0])
    offset = torch.rand(len(images), generator=generator)
    total = torch.zeros(len(images), dtype=torch.float64, device=model.device)
    for place in range(TIMES):
        uniform = ((place + offset) / TIMES).to(model.device)
        pixels = torch.randn(images.shape, generator=generator).to(model.device)
        total += observation.bound(images, conditions, pixels, (0.5 * (low + (high - low) * uniform)).sigmoid())
    return total / TIMES + rate
