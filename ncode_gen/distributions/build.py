"""From a recipe to a model."""

import torch

from ..config import Recipe
from .model import LatentModel

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_model(recipe: Recipe, shape: tuple[int, int, int]) -> LatentModel:
    """Build the model of a recipe for images of shape (C, H, W), with fresh weights from torch's global seed.

    Raises:
        UserError: the recipe names a solver that does not exist, or a library that is not installed.
    """
    dim, features, side = recipe.latent.dim, recipe.encoder.features, recipe.latent.side
    maps, classes = ({"side": side} if side else {}), len(recipe.data.classes)
    pixelwise = recipe.observation.pixelwise
    # In this order, since each draws its weights from torch's global seed.
    encoder = recipe.encoder.build(shape, **maps)
    likelihood = recipe.likelihood.build() if pixelwise else None
    parts: tuple[object, ...] = ()
    if likelihood is not None:
        parts = (recipe.decoder.build(dim, (shape[0] * likelihood.outputs, *shape[1:])), likelihood)
    posterior = recipe.chosen_posterior.build(features, dim, recipe.flow.build(dim, features), **maps)
    prior = recipe.prior.build(dim, **({**maps, "classes": classes} if recipe.prior.network else {}))
    if prior.fitted_after:  # by a phase of its own
        prior.requires_grad_(False)
    own = {} if pixelwise else {"side": side, "classes": classes}
    observation = recipe.observation.build(dim, shape, *parts, **own)
    model = LatentModel(encoder, posterior, observation, prior)
    model.compute_in(PRECISIONS[recipe.training.precision])
    return model
