"""How training is watched: scores of held-out images with the averaged weights."""

from __future__ import annotations

import torch

from ..config.recipe import Recipe
from ..data.sets import Images
from ..distributions import LatentModel, LearnedStart
from ..solvers import has_fixed_steps

__all__ = ["evaluations", "validate", "validate_refiner"]

VALIDATION_IMAGES = 2000
PART = 250


def validate(model: LatentModel, images: Images, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Return validation scores: nats with the recipe's solver, and how far they move when it is refined."""
    scores: dict[str, float] = {}
    some = images.first(VALIDATION_IMAGES, device)
    generator = torch.Generator()
    with torch.no_grad():
        if isinstance(model.posterior, LearnedStart):
            noisy = recipe.objective.draws_targets
            uniform = torch.rand(some.shape, generator=generator.manual_seed(0)).to(device) if noisy else None
            target = model.likelihood.target(some, uniform)
            return {"validation_nats": -float(model.autoencoding(target)[0].mean())}

        def elbo(steps: int | None) -> float:
            bounds = model.bounds(some, 1, generator.manual_seed(0), steps=steps, budget=recipe.training.batch)
            return float(torch.cat([bound for bound, _ in bounds]).mean())

        coarse = elbo(None)
        scores["validation_nats"] = -coarse
        if model.flows and all(has_fixed_steps(flow.solver.method) for flow in model.flows):
            finer = 2 * max(flow.solver.steps for flow in model.flows)
            scores["solver_gap_nats"] = coarse - elbo(finer)
    return scores


@torch.no_grad()
def validate_refiner(model: LatentModel, images: Images, device: torch.device) -> dict[str, float]:
    """Return the matching loss of a model's refiner: the mean square error of its field, per pixel."""
    assert model.refiner is not None
    some, generator = images.first(VALIDATION_IMAGES, device), torch.Generator().manual_seed(0)
    total = 0.0
    for part in some.split(PART):
        latents = model.draw(part, generator)
        noise = torch.randn(part.shape, generator=generator).to(device)
        times = torch.rand(len(part), generator=generator).to(device)
        total += float(model.refiner.matching(part, model.decode(latents), latents, noise, times).sum())
    return {"validation_matching": total / len(some)}


def evaluations(model: LatentModel, images: Images, batch: int) -> int:
    """Return the evaluations of the field in one pass of a batch; 0 without a flow."""
    return model.trajectory(images.first(batch, model.device), torch.tensor([0.0, 1.0])).nfe
