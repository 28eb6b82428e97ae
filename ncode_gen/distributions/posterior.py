"""The controlled posterior: the encoder's features decide where a latent starts and how it flows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..control import ControlledODE, FlowSolution
from ..control.controllers import ControlHead
from ..solvers import Times

__all__ = ["ControlledPosterior", "Draws", "LearnedStart", "Posterior", "SolverChoice", "gaussian_log_prob"]


@dataclass(frozen=True)
class SolverChoice:
    """How a flow is solved in one call, where it differs from the recipe: method, steps, or the nodes of the grid."""

    method: str | None = None
    steps: int | None = None
    grid: Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """Draws from a posterior.

    Attributes:
        latents: z, shape (n, K, d).
        log_prob: log q(z | u) in nats, shape (n, K).
        energy: integral of |dx/dt|^2 along each path, shape (n, K), if asked for.
    """

    latents: Tensor
    log_prob: Tensor
    energy: Tensor | None = None


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """Return log N(mean + std * noise; mean, std^2) in nats, summed over the last axis."""
    return -(0.5 * noise * noise + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


class Posterior(nn.Module, ABC):
    """What features say of a latent: where it starts, and the flow that moves it.

    Attributes:
        flow: the controlled flow, conditioned on the features; None if the start is the latent.
        deterministic: whether the features leave one latent only.
    """

    deterministic: bool
    flow: ControlledODE | None

    @abstractmethod
    def start(self, features: Tensor) -> Tensor:
        """Return x(0), (n, d), from which a latent's path is drawn; its mean, if it is random."""

    def path(self, features: Tensor, times: Times, steps: int | None = None) -> FlowSolution | None:
        """Return the path from the start under each sample's own control; None without a flow."""
        if self.flow is None:
            return None
        solution: FlowSolution = self.flow(self.start(features), features, times=times, steps=steps)
        return solution


class ControlledPosterior(Posterior):
    """q(z | u): a Gaussian given by features, moved by a flow whose control the same features give.

        x(0) = mu + sigma * noise,   z = x(1),   log q(z | u) = log N(x(0); mu, sigma^2) - log |det dx(1)/dx(0)|

    Args:
        features: number of features.
        dim: number of latent dimensions d.
        flow: the controlled flow, conditioned on the features; None for a Gaussian posterior.
    """

    deterministic = False

    def __init__(self, features: int, dim: int, flow: ControlledODE | None) -> None:
        super().__init__()
        if flow is not None:
            flow.check_density(conditioned=True)
        self.base = nn.Linear(features, 2 * dim)
        self.flow = flow

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log standard deviation of x(0), each (n, d)."""
        mean, log_std = self.base(features).chunk(2, -1)
        return mean, log_std.clamp(-7.0, 4.0)

    def forward(
        self, features: Tensor, noise: Tensor, solver: SolverChoice | None = None, *, energy: bool = False
    ) -> Draws:
        """Map noise to latents and their log-density.

        Args:
            features: (n, features).
            noise: standard normal numbers, (n, K, d).
            solver: how to solve the flow, where it differs from the recipe.
            energy: whether to integrate the kinetic energy of the paths.
        """
        mean, log_std = self.moments(features)
        x = mean.unsqueeze(1) + log_std.exp().unsqueeze(1) * noise
        log_q = gaussian_log_prob(noise, log_std.unsqueeze(1))
        if self.flow is None:
            return Draws(x, log_q, torch.zeros_like(log_q) if energy else None)
        solver = solver or SolverChoice()
        solution = self.flow(
            x, features, log_det=True, energy=energy, method=solver.method, steps=solver.steps, grid=solver.grid
        )
        return Draws(solution.state, log_q - solution.log_det[-1], solution.energy[-1] if energy else None)

    def start(self, features: Tensor) -> Tensor:
        """Return the mean of x(0), (n, d)."""
        return self.moments(features)[0]


class LearnedStart(Posterior):
    """The deterministic code: every latent starts at one learned point, and its control carries the image.

    Where no control carries it, because there is no flow or one for all (NODE, ANODE), the start is a linear map of the
    features instead.

    Args:
        features: number of features.
        dim: number of latent dimensions d.
        flow: the flow that moves the start; None if the start is the latent.
    """

    deterministic = True

    def __init__(self, features: int, dim: int, flow: ControlledODE | None) -> None:
        super().__init__()
        self.flow = flow
        controlled = flow is not None and flow.controller.conditional
        self.point = nn.Parameter(torch.randn(dim)) if controlled else None
        self.linear = None if controlled else nn.Linear(features, dim)
        # From one point the identity would give all images one code, and the decoder nothing to learn from.
        for head in flow.controller.modules() if flow is not None and controlled else ():
            if isinstance(head, ControlHead):
                head.tell_apart()

    def start(self, features: Tensor) -> Tensor:
        """Return the start of each sample, (n, d): the learned point, or a linear map of its features."""
        if self.linear is not None:
            latent: Tensor = self.linear(features)
            return latent
        assert self.point is not None
        return self.point.expand(features.shape[0], -1)

    def forward(self, features: Tensor, solver: SolverChoice | None = None) -> Tensor:
        """Return latents z = x(1), (n, d)."""
        start = self.start(features)
        if self.flow is None:
            return start
        solver = solver or SolverChoice()
        latent: Tensor = self.flow(start, features, method=solver.method, steps=solver.steps, grid=solver.grid).state
        return latent
