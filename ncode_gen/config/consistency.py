"""What the values of a recipe may be, which go together, and which have an effect."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..errors import UserError

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
        ("data.range", recipe.data.name != "folder", 'data.name = "folder"'),
        ("flow.feedback", flow.loop != "closed", 'flow.loop = "closed"'),
        (
            "flow.feedback_control",
            flow.loop != "closed" or flow.feedback != "gain",
            'flow.loop = "closed" and flow.feedback = "gain"',
        ),
        (
            "flow.rank",
            "low-rank" not in (flow.control, flow.feedback_control),
            'flow.control or flow.feedback_control = "low-rank"',
        ),
        ("flow.tolerance", _fixed(flow.method), "an adaptive flow.method"),
        ("flow.augment", not moved, "a flow"),
        ("flow.log_det_by", not (bound and (moved or recipe.prior.joint)), 'objective.kind = "elbo" and a flow'),
        ("decoder.canvas", recipe.decoder.kind != "ncode", 'decoder.kind = "ncode"'),
        ("decoder.steps", recipe.decoder.kind != "ncode", 'decoder.kind = "ncode"'),
        ("objective.beta", not bound, 'objective.kind = "elbo"'),
        ("objective.particles", not bound, 'objective.kind = "elbo"'),
        ("objective.free_nats", not bound, 'objective.kind = "elbo"'),
        ("objective.kinetic", not (bound and moved), 'objective.kind = "elbo" and a flow'),
        ("objective.latent_penalty", objective != "autoencoder", 'objective.kind = "autoencoder"'),
        ("objective.latent_noise", objective != "autoencoder", 'objective.kind = "autoencoder"'),
        ("objective.decoder_penalty", bound, 'objective.kind = "autoencoder" or "wae"'),
        ("objective.noisy_targets", bound, 'objective.kind = "autoencoder" or "wae"'),
        ("objective.discrepancy", objective != "wae", 'objective.kind = "wae"'),
        (
            "prior.components",
            prior == "normal" or recipe.prior.joint,
            'prior.kind = "mixture" or a "flow" fitted after',
        ),
        *((f"prior.{key}", prior != "flow", 'prior.kind = "flow"') for key in ("hidden", "layers", "steps")),
        ("prior.joint", prior != "flow", 'prior.kind = "flow"'),
        *(
            (f"refiner.{key}", recipe.refiner.kind == "none", 'refiner.kind = "flow"')
            for key in ("loop", "width", "blocks", "noise", "steps", "stage", "centred", "epochs", "rate")
        ),
        ("prior.updates", prior != "flow" or recipe.prior.joint, 'prior.kind = "flow" and without prior.joint'),
    )


# Least and largest value of each whole number. The largest ones are far beyond use; they keep a mistaken or hostile
# recipe from taking all memory or time before anything can be checked.
MANY, DEEP, SEEDS = 2**20, 1000, 2**63 - 1
RANGES = {
    "seed": (0, SEEDS),
    "data.size": (0, 8192),
    "data.split_seed": (0, SEEDS),
    "data.limit": (0, 2**40),
    "encoder.width": (1, MANY),
    "encoder.blocks": (0, DEEP),
    "encoder.features": (1, MANY),
    "latent.dim": (1, MANY),
    "flow.hidden": (1, MANY),
    "flow.layers": (0, DEEP),
    "flow.rank": (1, MANY),
    "flow.gamma": (0, MANY),
    "flow.augment": (0, MANY),
    "flow.steps": (1, MANY),
    "decoder.width": (1, MANY),
    "decoder.blocks": (0, DEEP),
    "decoder.steps": (1, DEEP),
    "objective.particles": (1, MANY),
    "prior.components": (0, MANY),
    "prior.hidden": (1, MANY),
    "prior.layers": (1, DEEP),
    "prior.steps": (1, MANY),
    "prior.updates": (1, 2**40),
    "refiner.width": (1, MANY),
    "refiner.blocks": (1, DEEP),
    "refiner.steps": (1, MANY),
    "refiner.epochs": (1, 2**40),
    "training.epochs": (1, 2**40),
    "training.batch": (1, 2**30),
    "training.accumulate": (1, 2**30),
    "training.max_skipped": (0, 2**40),
    "training.validate_every": (1, 2**40),
    "training.picture_every": (1, 2**40),
    "training.workers": (0, 1024),
}
NOT_NEGATIVE = (
    *("objective.beta", "objective.free_nats", "objective.kinetic", "objective.latent_penalty"),
    *("objective.latent_noise", "objective.decoder_penalty", "objective.discrepancy"),
    *("training.decay", "training.clip"),
)
LONGEST_NAME = 200
MOST_MASKED = 2**27


def _fixed(method: str) -> bool:
    # What `solvers.has_fixed_steps` says, which would import torch.
    return method in FIXED_METHODS or method.startswith("rk2:")


def _value(recipe: Recipe, key: str) -> Any:
    for name in key.split("."):
        recipe = getattr(recipe, name)
    return recipe


def _check_ranges(recipe: Recipe, source: str) -> None:
    for key, (least, most) in RANGES.items():
        number = _value(recipe, key)
        if number < least:
            raise UserError(f"{source}: {key} must be at least {least}, got {number}")
        if number > most:
            raise UserError(f"{source}: {key} must be at most {most}, got {number}")
    for key in NOT_NEGATIVE:
        weight = _value(recipe, key)
        if not 0 <= weight < float("inf"):
            raise UserError(f"{source}: {key} must be at least 0 and finite, got {weight}")
    for key, share in (
        ("data.validation", recipe.data.validation),
        ("data.test", recipe.data.test),
        ("objective.warmup", recipe.objective.warmup),
        ("training.warmup", recipe.training.warmup),
        ("training.ema", recipe.training.ema),
    ):
        if not 0 <= share < 1:
            raise UserError(f"{source}: {key} must be at least 0 and below 1, got {share}")
    if not 0 < recipe.refiner.stage <= 1:
        raise UserError(f"{source}: refiner.stage must be above 0 and at most 1, got {recipe.refiner.stage}")
    for key in ("training.rate", "refiner.rate", "refiner.noise"):
        if not 0 < _value(recipe, key) < float("inf"):
            raise UserError(f"{source}: {key} must be above 0 and finite, got {_value(recipe, key)}")
    if not 0 < recipe.flow.tolerance < 1:
        raise UserError(f"{source}: flow.tolerance must be above 0 and below 1, got {recipe.flow.tolerance}")
    name = recipe.name
    if not name.strip() or name.startswith(".") or "/" in name or "\\" in name or not name.isprintable():
        raise UserError(f"{source}: name must be a plain folder name, got {name!r}")
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f"{source}: name must have at most {LONGEST_NAME} bytes, it has {len(name.encode())}")
    given = recipe.data.range
    if given and not (len(given) == 2 and all(map(math.isfinite, given)) and given[0] < given[1]):
        raise UserError(f"{source}: data.range must be two numbers, black and then white, got {list(given)}")
    if "\0" in recipe.data.root or recipe.data.root.encode(errors="ignore").decode() != recipe.data.root:
        raise UserError(f"{source}: data.root must be the name of a folder, got {recipe.data.root!r}")


def _masked_weights(recipe: Recipe) -> int:
    """Return the number of weights of an inverse autoregressive posterior, which are allocated to be counted."""
    width, layers, dim = recipe.flow.hidden, recipe.flow.layers, recipe.latent.dim
    between = max(layers - 1, 0) * width**2
    ends = (dim + recipe.encoder.features) * (width if layers else 2 * dim) + 2 * dim * width * (layers > 0)
    return recipe.flow.steps * (between + ends)


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
            recipe.flow.loop == "iaf" and _masked_weights(recipe) > MOST_MASKED,
            f'flow.loop = "iaf" would have {_masked_weights(recipe):,} weights, more than {MOST_MASKED:,}; lower '
            "flow.hidden, flow.layers or flow.steps",
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
            recipe.flow.grid == "random" and not _fixed(recipe.flow.method),
            'flow.grid = "random" needs flow.method euler, midpoint, heun, rk2:SHARE or rk4',
        ),
        (
            recipe.flow.log_det_by == "steps" and (not _fixed(recipe.flow.method) or recipe.flow.dynamics),
            'flow.log_det_by = "steps" needs flow.method euler, midpoint, heun, rk2:SHARE or rk4, and no flow.dynamics',
        ),
        (
            recipe.flow.dynamics and recipe.flow.loop != "open",
            f'flow.dynamics belongs to flow.loop = "open", got "{recipe.flow.loop}"',
        ),
        (
            recipe.training.accumulate > 1 and (recipe.objective.kind == "wae" or recipe.objective.free_nats > 0),
            'objective.kind = "wae" and objective.free_nats are losses of the whole batch, which training.accumulate '
            "would part; set it to 1",
        ),
        (
            recipe.objective.particles > 1 and recipe.objective.free_nats > 0,
            "objective.free_nats belongs to the bound of one particle; leave it out with objective.particles > 1",
        ),
    ):
        if wrong:
            raise UserError(f"{source}: {reason}")
