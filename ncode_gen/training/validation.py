"""How training is watched: scores of held-out images with the averaged weights."""

import torch

from ..config import Recipe
from ..data import Images
from ..distributions import LatentModel, Refiner, likelihood_bounds
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


def evaluations(model: LatentModel, images: Images, batch: int) -> int:
    """Return the evaluations of the field in one pass of a batch; 0 without a flow."""
    return model.trajectory(images.first(batch, model.device), torch.tensor([0.0, 1.0])).nfe
