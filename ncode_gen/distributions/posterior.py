"""The posterior q(z | u): the encoder's features decide where a latent starts and how it flows."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..control import ControlHead, ControlledODE, FlowSolution
from ..solvers import SolveOptions, Times


@dataclass(frozen=True)
class PosteriorSample:
    """Samples from a posterior.

    Attributes:
        latents: z, shape (n, K, d).
        log_prob: log q(z | u) in nats, shape (n, K); None for a posterior without a density.
        energy: integral of |dx/dt|^2 along each path, shape (n, K), if requested.
        unfinished: samples whose adaptive solve did not reach its last time.
    """

    latents: Tensor
    log_prob: Tensor | None
    energy: Tensor | None = None
    unfinished: int = 0


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """Return log N(mean + std * noise; mean, std^2) in nats, summed over the last axis."""
    return -(0.5 * noise * noise + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


class Posterior(nn.Module, ABC):
    """q(z | u) given the encoder's features of u: a start x(0), moved by a flow whose control the same features give.

        z = x(1),   log q(z | u) = log q(x(0) | u) - log |det dx(1)/dx(0)|

    Args:
        flow: the controlled flow, conditioned on the features; None if the start is the latent.

    Attributes:
        deterministic: whether the features leave one latent only, so that there is no density.
    """

    deterministic = False

    def __init__(self, flow: ControlledODE | None) -> None:
        super().__init__()
        if flow is not None and not self.deterministic:
            flow.check_density(conditioned=True)
        self.flow = flow

    @abstractmethod
    def start(self, features: Tensor) -> Tensor:
        """Return x(0), (n, d), of features (n, f); its mean, if it is random."""

    @abstractmethod
    def sample_start(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return x(0), (n, K, d), and its log-density in nats, (n, K), None without one.

        Args:
            features: (n, f).
            noise: standard normal numbers, (n, K, d).
        """

    def sample(
        self, features: Tensor, noise: Tensor, options: SolveOptions | None = None, *, energy: bool = False
    ) -> PosteriorSample:
        """Map noise to latents and their log-density.

        Args:
            features: (n, f).
            noise: standard normal numbers, (n, K, d).
            options: how to solve the flow; its own options if None.
            energy: whether to integrate the kinetic energy of the paths, which are 0 without a flow.
        """
        x, log_prob = self.sample_start(features, noise)
        if self.flow is None:
            return PosteriorSample(x, log_prob, x.new_zeros(x.shape[:2]) if energy else None)
        solution = self.flow(x, features, log_det=log_prob is not None, energy=energy, options=options)
        if log_prob is not None:
            log_prob = log_prob - solution.log_det[-1]
        unfinished = 0 if solution.outcomes is None else int((~solution.reached).sum())
        return PosteriorSample(solution.state, log_prob, solution.energy[-1] if energy else None, unfinished)

    def encode(self, features: Tensor) -> Tensor:
        """Return the latents (n, d) that the starts (n, d) of features (n, f) flow to."""
        start = self.start(features)
        return start if self.flow is None else self.flow(start, features).state

    def trajectory(
        self, features: Tensor, times: Times, noise: Tensor | None = None, options: SolveOptions | None = None
    ) -> FlowSolution | None:
        """Return the path under each sample's own control; None without a flow.

        Args:
            features: (n, f).
            times: requested times, shape (T,).
            noise: standard normal numbers (n, K, d) that decide the starts; the mean start (n, d) if None.
            options: how to solve the flow; its own options if None.
        """
        if self.flow is None:
            return None
        start = self.start(features) if noise is None else self.sample_start(features, noise)[0]
        solution: FlowSolution = self.flow(start, features, times=times, options=options)
        return solution


class MapHead(nn.Conv2d):
    """A linear map of each place of maps: from features (n, f) to numbers (n, c side^2), both maps.

    Args:
        features: number f of features of all places together.
        numbers: how many numbers there are of all places together.
        side: side of the maps.
    """

    def __init__(self, features: int, numbers: int, side: int) -> None:
        super().__init__(features // side**2, numbers // side**2, 1)
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        """Return the numbers, (n, c side^2)."""
        return super().forward(features.unflatten(1, (-1, self.side, self.side))).flatten(1)


def _head(features: int, numbers: int, side: int) -> nn.Linear | MapHead:
    return MapHead(features, numbers, side) if side else nn.Linear(features, numbers)


class GaussianPosterior(Posterior):
    """A Gaussian start, x(0) = mu + sigma * noise, whose moments are a linear map of the features.

    Args:
        features: number of features.
        dim: number of latent dimensions d.
        flow: the controlled flow, conditioned on the features; None for a Gaussian posterior.
        side: side of features and latents that are maps; 0 for vectors.
    """

    def __init__(self, features: int, dim: int, flow: ControlledODE | None, side: int = 0) -> None:
        super().__init__(flow)
        self.base = _head(features, 2 * dim, side)

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log standard deviation of x(0), each (n, d)."""
        mean, log_std = self.base(features).chunk(2, -1)
        return mean, log_std.clamp(-7.0, 4.0)

    def start(self, features: Tensor) -> Tensor:
        """Return the mean of x(0), (n, d)."""
        return self.moments(features)[0]

    def sample_start(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return x(0), (n, K, d), and its log-density in nats, (n, K)."""
        mean, log_std = self.moments(features)
        return mean.unsqueeze(1) + log_std.exp().unsqueeze(1) * noise, gaussian_log_prob(noise, log_std.unsqueeze(1))


class PointPosterior(Posterior):
    """The deterministic encoder head: every latent starts at one learned point, and its control carries the image.

    Where no control carries it, because there is no flow or one for all (NODE, ANODE), the start is a linear map of the
    features instead.

    Args:
        features: number of features.
        dim: number of latent dimensions d.
        flow: the flow that moves the start; None if the start is the latent.
        side: side of features and latents that are maps; 0 for vectors.
    """

    deterministic = True

    def __init__(self, features: int, dim: int, flow: ControlledODE | None, side: int = 0) -> None:
        super().__init__(flow)
        controlled = flow is not None and flow.controller.conditional
        self.point = nn.Parameter(torch.randn(dim)) if controlled else None
        self.linear = None if controlled else _head(features, dim, side)
        # From one point the identity would give all images one code, and the decoder nothing to learn from.
        for head in flow.controller.modules() if flow is not None and controlled else ():
            if isinstance(head, ControlHead):
                head.break_symmetry()

    def start(self, features: Tensor) -> Tensor:
        """Return the start of each sample, (n, d): the learned point, or a linear map of its features."""
        if self.point is not None:
            return self.point.expand(features.shape[0], -1)
        assert self.linear is not None
        latent: Tensor = self.linear(features)
        return latent

    def sample_start(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the starts as often as there are particles, (n, K, d), and no density."""
        return self.start(features).unsqueeze(1).expand_as(noise), None
