"""The interface of a prior, and the standard normal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ...control import ControlledODE

__all__ = ["Prior", "StandardNormal", "standard_normal_log_prob"]


class Prior(nn.Module, ABC):
    """A distribution of latents of dimension `dim`.

    Attributes:
        dim: number of latent dimensions d.
        fits: whether `fit` is to be called with the training latents after training.
    """

    dim: int
    fits = False

    @property
    def active_flow(self) -> ControlledODE | None:
        """The flow whose solve gives samples and densities; None where there is nothing to solve."""
        return None

    @abstractmethod
    def log_prob(self, latents: Tensor, *, steps: int | None = None, grid: Tensor | None = None) -> Tensor:
        """Return the log-density in nats, shape (...), of latents (..., d).

        Args:
            latents: (..., d).
            steps: steps of the solver, where the density takes a solve; the prior's own if None.
            grid: nodes of the solver's steps on [0, 1], rising, instead of `steps`.
        """

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None, *, steps: int | None = None) -> Tensor:
        """Draw latents (n, d).

        Args:
            n: number of latents.
            generator: random numbers, on the CPU, so that a seed means the same on every device.
            steps: steps of the solver, where drawing takes a solve; the prior's own if None.
        """

    def take_sizes(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the sizes of saved tensors, by name, where it is `fit` that chooses them."""

    def refresh(self) -> None:
        """Take over what is kept beside the weights, after these were loaded."""

    def fit(self, latents: Tensor, seed: int = 0, progress: Callable[[float], None] | None = None) -> None:
        """Fit the prior to latents (n, d); nothing to do for a fixed one, or one that was trained with the model.

        Args:
            latents: (n, d).
            seed: seed of all that is random in it.
            progress: called now and then with the share of the work that is done.
        """


def refresh_after_loading(prior: nn.Module, _: object) -> None:
    """Refresh a prior; a hook of `load_state_dict` with a name, since a nameless one cannot be pickled."""
    cast(Prior, prior).refresh()


def standard_normal_log_prob(latents: Tensor) -> Tensor:
    """Return log N(latents; 0, I) in nats, shape (...), of latents (..., d)."""
    return -0.5 * (latents * latents).sum(-1) - 0.5 * latents.shape[-1] * math.log(2 * math.pi)


class StandardNormal(Prior):
    """N(0, I).

    Args:
        dim: number of latent dimensions.

    >>> round(StandardNormal(1).log_prob(torch.zeros(1)).item(), 4)
    -0.9189
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("origin", torch.zeros(dim), persistent=False)
        self.origin: Tensor

    def log_prob(self, latents: Tensor, *, steps: int | None = None, grid: Tensor | None = None) -> Tensor:
        """Return the log-density in nats."""
        return standard_normal_log_prob(latents)

    def sample(self, n: int, generator: torch.Generator | None = None, *, steps: int | None = None) -> Tensor:
        """Draw latents (n, d)."""
        return torch.randn(n, self.dim, generator=generator).to(self.origin)
