"""What training minimises, as it is and compiled."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .autoencoder import LatentModel, SolverChoice
from .recipe import Recipe

__all__ = ["CompiledLoss", "Loss", "make_loss"]

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def make_loss(model: LatentModel, recipe: Recipe) -> Loss:
    """Return the loss of a batch: (target, noise, weight of the KL term, grid) -> (loss, nats to report)."""
    if recipe.objective.kind == "autoencoder":
        penalty = recipe.objective.latent_penalty

        def autoencoding(target: Tensor, noise: Tensor, beta: Tensor, grid: Tensor | None) -> tuple[Tensor, Tensor]:
            log_likelihood, latents = model.autoencoding(target, SolverChoice(grid=grid))
            fit = -log_likelihood.mean()
            return fit + penalty * 0.5 * (latents * latents).sum(-1).mean(), fit.detach()

        return autoencoding

    def negative_elbo(target: Tensor, noise: Tensor, beta: Tensor, grid: Tensor | None) -> tuple[Tensor, Tensor]:
        terms = model.terms(target, noise, SolverChoice(grid=grid))
        divergence = terms.log_posterior - terms.log_prior
        return (beta * divergence - terms.log_likelihood).mean(), -terms.elbo.mean().detach()

    return negative_elbo


class CompiledLoss:
    """A loss that runs as it is for some calls, while a thread compiles it, and compiled from then on.

    The change comes at a set call, not when the thread is done, so that a run with the same seed gives the same weights.
    The thread works on a copy of the model, whose code the model itself shares; where the compiler fails, one clear
    line is told and the loss goes on as it is.

    Args:
        model: the model whose loss it is.
        recipe: its recipe.
        tell: where one line about the compilation goes.
        plain_calls: calls before the change; 0 to wait for the compiler at the first call.
    """

    def __init__(self, model: LatentModel, recipe: Recipe, tell: Callable[[str], None], plain_calls: int) -> None:
        self.model, self.recipe, self.tell, self.plain_calls = model, recipe, tell, plain_calls
        self.loss = make_loss(model, recipe)
        self.calls = 0
        self.thread: threading.Thread | None = None
        self.outcome = ""
        self.failed = False

    def __call__(self, target: Tensor, noise: Tensor, beta: Tensor, grid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the loss and the nats to report."""
        if self.calls == 0:
            # The copy is made here: the thread must not read weights that a step is changing.
            work = (copy.deepcopy(self.model), target, noise, beta, grid)
            self.thread = threading.Thread(target=self._compile, args=work, daemon=True)
            self.thread.start()
        if self.calls == self.plain_calls:
            assert self.thread is not None
            self.thread.join()
            self.tell(self.outcome)
            if not self.failed:
                self.loss = torch.compile(self.loss, fullgraph=True, dynamic=False)
        self.calls += 1
        return self.loss(target, noise, beta, grid)

    def _compile(self, twin: LatentModel, target: Tensor, noise: Tensor, beta: Tensor, grid: Tensor | None) -> None:
        start = time.perf_counter()
        try:
            compiled = torch.compile(make_loss(twin, self.recipe), fullgraph=True, dynamic=False)
            compiled(target, noise, beta, grid)[0].backward()
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self.failed = True
            self.outcome = (
                f"compilation failed ({type(error).__name__}: {reason[:120]}); training goes on uncompiled"
            )
        else:
            self.outcome = f"compiled the training step in {time.perf_counter() - start:.0f} s"
