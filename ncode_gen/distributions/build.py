"""From a recipe to a model."""

from __future__ import annotations

import torch
from torch import nn

from ..config.recipe import Recipe
from ..control import NCODE
from ..errors import UserError
from ..networks.decoders import ConvDecoder, MLPDecoder, ResidualDecoder
from ..networks.encoders import ConvEncoder, MLPEncoder, ResidualEncoder
from ..networks.flow_decoder import FlowDecoder
from .autoregressive import AutoregressivePosterior
from .likelihoods import LIKELIHOODS
from .model import LatentModel
from .posterior import ControlledPosterior, LearnedStart, Posterior
from .priors import FlowPrior, GaussianMixture, Prior, StandardNormal
from .refiner import Refiner

__all__ = ["build_model"]

ENCODERS = {"conv": ConvEncoder, "mlp": MLPEncoder, "residual": ResidualEncoder}
DECODERS = {"conv": ConvDecoder, "mlp": MLPDecoder, "residual": ResidualDecoder}
TINY = 12


def _kind(kind: str, shape: tuple[int, int, int]) -> str:
    if kind != "auto":
        return kind
    return "mlp" if max(shape[1:]) <= TINY else "conv"


def _flow(recipe: Recipe) -> NCODE | None:
    flow = recipe.flow
    if flow.loop == "none":
        return None
    if flow.loop == "iaf":  # a posterior of its own, without a flow to solve
        return None
    try:
        return NCODE(
            recipe.latent.dim,
            (flow.hidden,) * flow.layers,
            flow.loop,
            feedback=flow.feedback,
            feedback_control=None if flow.feedback_control == "same" else flow.feedback_control,
            control=flow.control,
            rank=flow.rank,
            dynamics=flow.dynamics,
            condition=recipe.encoder.features,
            gamma=(flow.gamma,) if flow.gamma else (),
            augment=flow.augment,
            time=flow.time,
            activation=flow.activation,
            method=flow.method,
            steps=flow.steps,
            rtol=flow.tolerance,
            atol=flow.tolerance,
            log_det_by=flow.log_det_by,
        )
    except ValueError as error:
        raise UserError(f"section [flow] of the recipe: {error}") from None


PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def _posterior(recipe: Recipe) -> Posterior:
    features, dim = recipe.encoder.features, recipe.latent.dim
    if recipe.objective.kind != "elbo":
        return LearnedStart(features, dim, _flow(recipe))
    if recipe.flow.loop == "iaf":
        widths = (recipe.flow.hidden,) * recipe.flow.layers
        return AutoregressivePosterior(features, dim, widths, transforms=recipe.flow.steps)
    return ControlledPosterior(features, dim, _flow(recipe))


def _decoder(recipe: Recipe, shape: tuple[int, int, int], out: tuple[int, int, int]) -> nn.Module:
    decoder = recipe.decoder
    if decoder.kind == "ncode":
        return FlowDecoder(
            recipe.latent.dim, out, decoder.width, decoder.blocks, canvas=decoder.canvas, steps=decoder.steps
        )
    built: nn.Module = DECODERS[_kind(decoder.kind, shape)](recipe.latent.dim, out, decoder.width, decoder.blocks)
    return built


def _prior(recipe: Recipe) -> Prior:
    dim, prior = recipe.latent.dim, recipe.prior
    if prior.kind == "mixture":
        return GaussianMixture(dim, prior.components)
    if prior.kind == "flow":
        return FlowPrior(
            dim,
            prior.hidden,
            prior.layers,
            prior.steps,
            prior.updates,
            prior.components,
            joint=prior.joint,
            log_det_by=recipe.flow.log_det_by if prior.joint else "divergence",
        )
    return StandardNormal(dim)


def _refiner(recipe: Recipe, shape: tuple[int, int, int]) -> Refiner | None:
    chosen = recipe.refiner
    if chosen.kind == "none":
        return None
    return Refiner(
        recipe.latent.dim,
        shape,
        chosen.width,
        chosen.blocks,
        chosen.noise,
        chosen.steps,
        chosen.stage,
        chosen.centred,
        chosen.loop,
    )


def build_model(recipe: Recipe, shape: tuple[int, int, int]) -> LatentModel:
    """Build the model of a recipe for images of shape (C, H, W), with fresh weights from torch's global seed.

    Raises:
        UserError: the recipe names a solver that does not exist, or a library that is not installed.
    """
    likelihood = LIKELIHOODS[recipe.decoder.likelihood]()
    out = (shape[0] * likelihood.outputs, *shape[1:])
    encoder: nn.Module = ENCODERS[_kind(recipe.encoder.kind, shape)](
        shape, recipe.encoder.width, recipe.encoder.blocks, recipe.encoder.features
    )
    decoder = _decoder(recipe, shape, out)
    posterior = _posterior(recipe)
    precision = PRECISIONS[recipe.training.precision]
    return LatentModel(
        shape, encoder, posterior, decoder, likelihood, _prior(recipe), _refiner(recipe, shape), precision
    )
