"""What training minimises, as it is and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config.recipe import Recipe
from ..distributions import LatentModel, SolverChoice

__all__ = ["CompiledLoss", "Loss", "discrepancy", "make_loss"]

Loss = Callable[..., tuple[Tensor, Tensor]]


def discrepancy(latents: Tensor, draws: Tensor) -> Tensor:
    """Return the unbiased squared maximum mean discrepancy of two sets of n points, each (n, d).

    The kernel is a sum of inverse multiquadrics C / (C + |x - y|^2), C = 2 d s, over seven scales s (Tolstikhin et al.,
    "Wasserstein auto-encoders", ICLR 2018, section 4, with the scales of the authors' program).
    """
    n, dim = latents.shape
    squares = [torch.cdist(a, b).square() for a, b in ((latents, latents), (draws, draws), (latents, draws))]
    total = latents.new_zeros(())
    for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
        width = 2 * dim * scale
        own, drawn, cross = (width / (width + square) for square in squares)
        # A point's kernel with itself is 1; the unbiased estimate leaves these out.
        total = total + (own.sum() + drawn.sum() - 2 * n) / (n * (n - 1)) - 2 * cross.mean()
    return total


def make_loss(model: LatentModel, recipe: Recipe) -> Loss:
    """Return the loss of a batch: (target, noise, weight of the KL term, grid) -> (loss, nats to report)."""
    objective = recipe.objective
    if objective.kind == "elbo":
        return _negative_bound(model, recipe)

    def autoencoding(target: Tensor, noise: Tensor, beta: Tensor, grid: Tensor | None) -> tuple[Tensor, Tensor]:
        jitter = objective.latent_noise * noise[:, 0] if objective.latent_noise else None
        log_likelihood, latents = model.autoencoding(target, SolverChoice(grid=grid), jitter)
        fit = -log_likelihood.mean()
        if objective.kind == "wae":
            loss = fit + objective.discrepancy * discrepancy(latents, noise[:, 0])
        else:
            loss = fit + objective.latent_penalty * 0.5 * (latents * latents).sum(-1).mean()
        if objective.decoder_penalty:
            weights = [weight.square().sum() for weight in model.decoder.parameters()]
            loss = loss + objective.decoder_penalty * torch.stack(weights).sum()
        return loss, fit.detach()

    return autoencoding


def _negative_bound(model: LatentModel, recipe: Recipe) -> Loss:
    objective = recipe.objective

    def loss(target: Tensor, noise: Tensor, beta: Tensor, grid: Tensor | None) -> tuple[Tensor, Tensor]:
        terms = model.terms(target, noise, SolverChoice(grid=grid), energy=objective.kinetic > 0)
        divergence = terms.log_posterior - terms.log_prior
        if noise.shape[1] > 1:
            weighted = replace(terms, log_prior=beta * terms.log_prior, log_posterior=beta * terms.log_posterior)
            found = -weighted.importance_bound.mean()
        else:
            cost = divergence.mean()
            if objective.free_nats:  # below them it costs nothing, so that no dimension is given up early
                cost = cost.clamp(min=objective.free_nats)
            found = beta * cost - terms.log_likelihood.mean()
        if terms.energy is not None:
            found = found + objective.kinetic * terms.energy.mean()
        return found, -terms.elbo.mean().detach()

    return loss


class CompiledLoss:
    """A loss that runs as it is for some calls, and compiled from then on.

    So the first steps, and their errors, are there at once, and the compiler is paid a little later. No thread compiles
    meanwhile: torch's autocast cache can wait for the interpreter's lock while the compiler holds that and waits for
    the cache. Where the compiler fails, one clear line is told and the loss goes on as it is.

    Args:
        loss: the loss.
        tell: where one line about the compilation goes.
        plain_calls: calls before it is compiled.
        parameters: what the loss is differentiated by.
        graphs: whether the compiled code is recorded as CUDA graphs: where networks are small, starting their kernels
            one by one takes most of the time. A graph's gradients lie where its next run writes its own, so they must
            have been used by then.
    """

    def __init__(
        self,
        loss: Loss,
        tell: Callable[[str], None],
        plain_calls: int,
        parameters: Sequence[Tensor],
        *,
        graphs: bool = False,
    ) -> None:
        self.loss, self.tell, self.plain_calls = loss, tell, plain_calls
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.mode = "reduce-overhead" if graphs else "default"
        self.calls = 0

    def skip(self, calls: int) -> None:
        """Count calls that an earlier process made."""
        self.calls = min(self.calls + calls, self.plain_calls)

    def __call__(self, *arguments: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the loss and what is reported beside it."""
        if self.calls == self.plain_calls:
            start = time.perf_counter()
            try:
                compiled = torch.compile(self.loss, fullgraph=True, dynamic=False, mode=self.mode)
                # Not by backward(): what waits for gradients to gather them must not see these.
                trial = compiled(*arguments)[0]
                torch.autograd.grad(trial, self.parameters, allow_unused=True)
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                self.tell(f"compilation failed ({type(error).__name__}: {reason[:120]}); training goes on uncompiled")
            else:
                self.loss = compiled
                self.tell(f"compiled the training step in {time.perf_counter() - start:.0f} s")
        self.calls += 1
        return self.loss(*arguments)
