"""How training is watched: scores of held-out images with the averaged weights."""

import math

import torch

from ..config import Recipe
from ..data import Images
from ..distributions import LatentModel, PixelFlow, Refiner, likelihood_bounds
from ..solvers import has_fixed_steps

VALIDATION_IMAGES = 2000
PART = 250


@torch.no_grad()
def validate(model: LatentModel, images: Images, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Return validation scores: nats with the recipe's solver, and how far they move when it is refined."""
    some = images.first(VALIDATION_IMAGES, device)
    generator = torch.Generator()
    if model.posterior.deterministic:
        stochastic = recipe.objective.uses_stochastic_targets
        uniform = torch.rand(some.shape, generator=generator.manual_seed(0)).to(device) if stochastic else None
        target = model.observation.target(some, uniform)
        latents = model.posterior.encode(model.features(target))
        return {"validation_nats": -float(model.observation.log_prob(target, latents).mean())}

    def elbo(steps: int | None) -> float:
        adjust = None if steps is None else lambda options: options.but(steps=steps)
        bounds = likelihood_bounds(
            model, some, 1, generator.manual_seed(0), adjust=adjust, budget=recipe.training.batch
        )
        return float(torch.cat([bound for bound, _ in bounds]).mean())

    coarse = elbo(None)
    scores = {"validation_nats": -coarse}
    if model.flows and all(has_fixed_steps(flow.options.method) for flow in model.flows):
        scores["solver_gap_nats"] = coarse - elbo(2 * max(flow.options.steps for flow in model.flows))
    return scores


@torch.no_grad()
def validate_refiner(model: LatentModel, refiner: Refiner, images: Images, device: torch.device) -> dict[str, float]:
    """Return the flow-matching loss of a model's refiner: the mean square error of its field, per pixel."""
    some, generator = images.first(VALIDATION_IMAGES, device), torch.Generator().manual_seed(0)
    total = 0.0
    for part in some.split(PART):
        latents = model.sample_posterior(part, generator)
        noise = torch.randn(part.shape, generator=generator).to(device)
        times = torch.rand(len(part), generator=generator).to(device)
        total += float(refiner.loss(part, model.decode(latents), latents, noise, times).sum())
    return {"validation_flow_matching": total / len(some)}


@torch.no_grad()
def validate_matching(model: LatentModel, images: Images, device: torch.device) -> dict[str, float]:
    """Return the flow-matching loss of held-out images, and the variational bound on their bits per dimension.

    The bound has the model's standard normal prior, until one is fitted, and one particle.
    """
    observation = model.observation
    assert isinstance(observation, PixelFlow)
    some, generator = images.first(VALIDATION_IMAGES, device), torch.Generator().manual_seed(0)
    low, high = observation.log_snr_range()
    totals = torch.zeros(3, dtype=torch.float64)
    for part in some.split(PART):
        noise = torch.randn(part.shape, generator=generator).to(device)
        uniform = (torch.arange(len(part)) + torch.rand(len(part), generator=generator)) / len(part)
        uniform = uniform[torch.randperm(len(part), generator=generator)].to(device)
        sampled = model.posterior.sample(
            model.features(part), torch.randn(len(part), 1, model.dim, generator=generator).to(device)
        )
        conditions = model.conditions(sampled.latents[:, 0])
        error = observation.matching_error(part, conditions, noise, uniform)
        bound = observation.bound(part, conditions, noise, (0.5 * (low + (high - low) * uniform)).sigmoid())
        nats = torch.zeros(())
        if sampled.log_prob is not None:
            nats = (sampled.log_prob - model.prior.log_prob(sampled.latents)).sum()
        totals += torch.stack([error.sum(), bound.sum(), nats.to(device)]).double().cpu()
    error_mean, bound_mean, nats_mean = (totals / len(some)).tolist()
    scores = {"validation_flow_matching": error_mean}
    if not model.posterior.deterministic:
        size = math.prod(model.shape) * math.log(2)
        scores |= {"validation_kl_nats": nats_mean, "validation_bits_per_dim": (bound_mean + nats_mean) / size}
    return scores


@torch.no_grad()
def validate_evaluations(model: LatentModel, teacher: PixelFlow, images: Images) -> dict[str, float]:
    """Return the mean squared error of images in one and two evaluations, against those of a teacher's flow."""
    some, generator = images.first(PART, model.device), torch.Generator().manual_seed(0)
    conditions = model.conditions(model.sample_posterior(some, generator))
    noise = torch.randn(some.shape, generator=generator).to(model.device)
    wanted = teacher.images(teacher.solve(noise, conditions))
    found = {}
    for number, name in ((1, "one"), (2, "two")):
        images_of = model.observation.sampler(number)
        found[f"validation_mse_of_{name}"] = float((images_of(conditions, noise) - wanted).square().mean())
    return found


def evaluations(model: LatentModel, images: Images, batch: int) -> int:
    """Return the evaluations of the field in one pass of a batch; 0 without a flow."""
    return model.trajectory(images.first(batch, model.device), torch.tensor([0.0, 1.0])).nfe
