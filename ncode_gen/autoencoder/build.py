"""From a recipe to a model."""

from __future__ import annotations

import torch
from torch import nn

from ..control import NCODE
from ..errors import UserError
from ..priors import GaussianMixture, Prior, StandardNormal
from ..recipe import Recipe
from .decoders import ConvDecoder, MLPDecoder
from .encoders import ConvEncoder, MLPEncoder
from .likelihoods import LIKELIHOODS
from .model import LatentModel
from .posterior import ControlledPosterior, LearnedStart

__all__ = ["build_model"]

ENCODERS = {"conv": ConvEncoder, "mlp": MLPEncoder}
DECODERS = {"conv": ConvDecoder, "mlp": MLPDecoder}
TINY = 12


def _kind(kind: str, shape: tuple[int, int, int]) -> str:
    if kind != "auto":
        return kind
    return "mlp" if max(shape[1:]) <= TINY else "conv"


def _flow(recipe: Recipe) -> NCODE | None:
    flow = recipe.flow
    if flow.loop == "none":
        return None
    try:
        return NCODE(
            recipe.latent.dim,
            (flow.hidden,) * flow.layers,
            flow.loop,
            feedback=flow.feedback,
            control=flow.control,
            rank=flow.rank,
            dynamics=flow.dynamics,
            condition=recipe.encoder.features,
            gamma=(flow.gamma,) if flow.gamma else (),
            time=flow.time,
            activation=flow.activation,
            method=flow.method,
            steps=flow.steps,
            rtol=flow.tolerance,
            atol=flow.tolerance,
        )
    except ValueError as error:
        raise UserError(f"section [flow] of the recipe: {error}") from None


def _prior(recipe: Recipe) -> Prior:
    if recipe.prior.kind == "mixture":
        return GaussianMixture(recipe.latent.dim, recipe.prior.components)
    return StandardNormal(recipe.latent.dim)


def build_model(recipe: Recipe, shape: tuple[int, int, int]) -> LatentModel:
    """Build the model of a recipe for images of shape (C, H, W), with fresh weights from torch's global seed.

    Raises:
        UserError: the recipe names a solver that does not exist.
    """
    dim, features = recipe.latent.dim, recipe.encoder.features
    likelihood = LIKELIHOODS[recipe.decoder.likelihood]()
    out = (shape[0] * likelihood.outputs, *shape[1:])
    encoder: nn.Module = ENCODERS[_kind(recipe.encoder.kind, shape)](
        shape, recipe.encoder.width, recipe.encoder.blocks, features
    )
    decoder: nn.Module = DECODERS[_kind(recipe.decoder.kind, shape)](
        dim, out, recipe.decoder.width, recipe.decoder.blocks
    )
    posterior = LearnedStart if recipe.objective.kind == "autoencoder" else ControlledPosterior
    return LatentModel(
        shape,
        encoder,
        posterior(features, dim, _flow(recipe)),
        decoder,
        likelihood,
        _prior(recipe),
        torch.bfloat16 if recipe.training.precision == "bf16" else None,
    )
