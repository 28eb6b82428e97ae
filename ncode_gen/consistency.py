"""What the values of a recipe may be, which go together, and which have an effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from .recipe import Recipe

__all__ = ["check_recipe", "idle_keys"]

FIXED_METHODS = ("euler", "midpoint", "heun", "rk4")


def check_recipe(recipe: Recipe, usual: Recipe, source: str) -> None:
    """Raise a `UserError` that names the key, if a value is out of range, idle, or two do not go together.

    Args:
        recipe: the recipe.
        usual: the recipe of all defaults.
        source: where the recipe comes from, for the message.
    """
    _check_ranges(recipe, source)
    _check_pairs(recipe, source)
    for key, without_effect, needed in idle_keys(recipe):
        section, name = key.split(".")
        value = getattr(getattr(recipe, section), name)
        if without_effect and value != getattr(getattr(usual, section), name):
            raise UserError(f"{source}: {key} = {value!r} has an effect only with {needed}; leave it out")


def idle_keys(recipe: Recipe) -> tuple[tuple[str, bool, str], ...]:
    """Return keys that need others: the key, whether it has no effect in this recipe, and what it needs."""
    objective, prior, flow = recipe.objective.kind, recipe.prior.kind, recipe.flow
    bound, moved = objective == "elbo", flow.loop not in ("none", "iaf")
    return (
        ("flow.feedback", flow.loop != "closed", 'flow.loop = "closed"'),
        ("flow.rank", flow.control != "low-rank", 'flow.control = "low-rank"'),
        ("flow.tolerance", flow.method in FIXED_METHODS, "an adaptive flow.method"),
        ("flow.augment", not moved, "a flow"),
        ("flow.log_det_by", not (bound and (moved or recipe.prior.joint)), 'objective.kind = "elbo" and a flow'),
        ("decoder.canvas", recipe.decoder.kind != "ncode", 'decoder.kind = "ncode"'),
        ("decoder.steps", recipe.decoder.kind != "ncode", 'decoder.kind = "ncode"'),
        ("objective.beta", not bound, 'objective.kind = "elbo"'),
        ("objective.particles", not bound, 'objective.kind = "elbo"'),
        ("objective.free_nats", not bound, 'objective.kind = "elbo"'),
        ("objective.kinetic", not (bound and moved), 'objective.kind = "elbo" and a flow'),
        ("objective.latent_penalty", objective != "autoencoder", 'objective.kind = "autoencoder"'),
        ("objective.decoder_penalty", bound, 'objective.kind = "autoencoder" or "wae"'),
        ("objective.discrepancy", objective != "wae", 'objective.kind = "wae"'),
        (
            "prior.components",
            prior == "normal" or recipe.prior.joint,
            'prior.kind = "mixture" or a "flow" fitted after',
        ),
        *((f"prior.{key}", prior != "flow", 'prior.kind = "flow"') for key in ("hidden", "layers", "steps")),
        ("prior.joint", prior != "flow", 'prior.kind = "flow"'),
        ("prior.updates", prior != "flow" or recipe.prior.joint, 'prior.kind = "flow" and without prior.joint'),
    )


def _check_ranges(recipe: Recipe, source: str) -> None:
    for key, value, least in (
        ("data.size", recipe.data.size, 0),
        ("data.limit", recipe.data.limit, 0),
        ("encoder.width", recipe.encoder.width, 1),
        ("encoder.blocks", recipe.encoder.blocks, 0),
        ("encoder.features", recipe.encoder.features, 1),
        ("decoder.width", recipe.decoder.width, 1),
        ("decoder.blocks", recipe.decoder.blocks, 0),
        ("latent.dim", recipe.latent.dim, 1),
        ("flow.hidden", recipe.flow.hidden, 1),
        ("flow.layers", recipe.flow.layers, 0),
        ("flow.rank", recipe.flow.rank, 1),
        ("flow.gamma", recipe.flow.gamma, 0),
        ("flow.steps", recipe.flow.steps, 1),
        ("flow.augment", recipe.flow.augment, 0),
        ("decoder.steps", recipe.decoder.steps, 1),
        ("prior.components", recipe.prior.components, 0),
        ("prior.hidden", recipe.prior.hidden, 1),
        ("prior.layers", recipe.prior.layers, 1),
        ("prior.steps", recipe.prior.steps, 1),
        ("prior.updates", recipe.prior.updates, 1),
        ("training.epochs", recipe.training.epochs, 1),
        ("training.batch", recipe.training.batch, 1),
        ("training.accumulate", recipe.training.accumulate, 1),
        ("training.max_skipped", recipe.training.max_skipped, 0),
        ("training.validate_every", recipe.training.validate_every, 1),
        ("training.picture_every", recipe.training.picture_every, 1),
        ("training.workers", recipe.training.workers, 0),
        ("objective.beta", recipe.objective.beta, 0),
        ("objective.particles", recipe.objective.particles, 1),
        ("objective.free_nats", recipe.objective.free_nats, 0),
        ("objective.kinetic", recipe.objective.kinetic, 0),
        ("objective.latent_penalty", recipe.objective.latent_penalty, 0),
        ("objective.decoder_penalty", recipe.objective.decoder_penalty, 0),
        ("objective.discrepancy", recipe.objective.discrepancy, 0),
        ("training.decay", recipe.training.decay, 0),
        ("training.clip", recipe.training.clip, 0),
    ):
        if not value >= least:
            raise UserError(f"{source}: {key} must be at least {least}, got {value}")
    for key, share in (
        ("data.validation", recipe.data.validation),
        ("data.test", recipe.data.test),
        ("objective.warmup", recipe.objective.warmup),
        ("training.warmup", recipe.training.warmup),
        ("training.ema", recipe.training.ema),
    ):
        if not 0 <= share < 1:
            raise UserError(f"{source}: {key} must be at least 0 and below 1, got {share}")
    if not 0 < recipe.training.rate < float("inf"):
        raise UserError(f"{source}: training.rate must be above 0, got {recipe.training.rate}")
    if not 0 < recipe.flow.tolerance < 1:
        raise UserError(f"{source}: flow.tolerance must be above 0 and below 1, got {recipe.flow.tolerance}")
    if not recipe.name or recipe.name.startswith(".") or "/" in recipe.name or "\\" in recipe.name:
        raise UserError(f"{source}: name must be a plain folder name, got {recipe.name!r}")


def _check_pairs(recipe: Recipe, source: str) -> None:
    bound = recipe.objective.kind == "elbo"
    for wrong, reason in (
        (
            bound and recipe.flow.loop == "closed" and recipe.flow.feedback == "dynamic",
            'flow.feedback = "dynamic" has no density, which objective.kind = "elbo" needs; use feedback "gain" or '
            '"weights", or the objective "autoencoder"',
        ),
        (
            bound and recipe.flow.augment > 0,
            'flow.augment leaves no density, which objective.kind = "elbo" needs; use the objective "autoencoder"',
        ),
        (
            not bound and recipe.flow.loop == "iaf",
            f'flow.loop = "iaf" is a random posterior, which objective.kind = "{recipe.objective.kind}" has no use '
            'for; use "none", "static", "open" or "closed"',
        ),
        (
            recipe.objective.kind == "autoencoder" and recipe.prior.kind == "normal",
            'objective.kind = "autoencoder" leaves the latents without a fixed distribution; set prior.kind = '
            '"mixture" or "flow"',
        ),
        (
            not bound and recipe.prior.joint,
            'prior.joint trains the prior by the evidence lower bound; leave it out, or set objective.kind = "elbo"',
        ),
        (
            recipe.flow.grid == "random" and recipe.flow.method not in FIXED_METHODS,
            'flow.grid = "random" needs flow.method euler, midpoint, heun or rk4',
        ),
        (
            recipe.flow.log_det_by == "steps" and (recipe.flow.method not in FIXED_METHODS or recipe.flow.dynamics),
            'flow.log_det_by = "steps" needs flow.method euler, midpoint, heun or rk4, and no flow.dynamics',
        ),
        (
            recipe.flow.dynamics and recipe.flow.loop != "open",
            f'flow.dynamics belongs to flow.loop = "open", got "{recipe.flow.loop}"',
        ),
        (
            recipe.objective.particles > 1 and recipe.objective.free_nats > 0,
            "objective.free_nats belongs to the bound of one particle; leave it out with objective.particles > 1",
        ),
    ):
        if wrong:
            raise UserError(f"{source}: {reason}")
