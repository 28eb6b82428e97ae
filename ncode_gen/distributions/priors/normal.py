"""The interface of a prior, and the standard normal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ...control import ControlledODE
from ...runtime.seeding import seeded
from ...solvers import SolveOptions


class Prior(nn.Module, ABC):
    """A distribution p(z) of latents of dimension `dim`.

    A prior with `fitted_after` is fitted to the training latents after the model's training: `fit` does what has a
    closed form or few rounds, and where `iterations` is above 0 a training phase then minimises `loss` over the
    batches of `pairs`: by default the maximum likelihood of random latents.

    Attributes:
        dim: number of latent dimensions d.
        fitted_after: whether it is fitted after the model's training.
        iterations: updates of the training phase that follows `fit`.
        batch: latents of an update.
    """

    dim: int
    fitted_after = False
    iterations = 0
    batch = 1024

    @property
    def active_flow(self) -> ControlledODE | None:
        """The flow whose solve gives samples and densities; None where there is nothing to solve."""
        return None

    @abstractmethod
    def log_prob(self, latents: Tensor) -> Tensor:
        """Return the log-density in nats, shape (...), of latents (..., d)."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample latents (n, d); random numbers are on the CPU, so that a seed means the same on every device."""

    def with_options(self, options: SolveOptions | None) -> Prior | SolvedPrior:
        """Return the distribution as it is solved with other options, where there is something to solve."""
        return self

    def take_sizes(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the sizes of saved tensors, by name, where it is `fit` that chooses them."""

    def compute_in(self, precision: torch.dtype | None) -> None:
        """Let the layers of a network compute in a dtype; None for that of the weights."""

    def refresh(self) -> None:
        """Take over what is kept beside the weights, after these were loaded."""

    def fit(self, latents: Tensor, seed: int = 0, progress: Callable[[float], None] | None = None) -> None:
        """Fit the prior to latents (n, d), as far as that needs no updates.

        Args:
            latents: (n, d).
            seed: seed of all that is random in it.
            progress: called now and then with the share of the work that is done.
        """

    def pairs(self, latents: Tensor, seed: int) -> Callable[[int], tuple[Tensor, ...]]:
        """Return what maps the number of an update to its batch, for latents (n, d) that `fit` was given.

        A batch depends on seed and number alone, so that a fit can go on anywhere. By default it is of random latents.
        """

        def batch(number: int) -> tuple[Tensor, ...]:
            order = torch.randperm(len(latents), generator=seeded(1_000_003 * seed + number))
            return (latents[order[: self.batch]],)

        return batch

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the mean loss of a batch, (), whose last tensor is times in [0, 1], (m,); by default -log p(z)."""
        return -self.log_prob(batch[0]).mean()

    def finish(self) -> None:
        """Take over that all updates are done."""


@dataclass(frozen=True)
class Guidance:
    """What samples of a prior are guided by.

    Attributes:
        labels: one-hot rows (n, classes), zeros for any class; None for any.
        scale: how far the velocity of a label is moved away from that of any; 1 for not at all.
        auto: how far it is moved away from that of the prior's guide; 1 for not at all, None for as the recipe says.
    """

    labels: Tensor | None = None
    scale: float = 1.0
    auto: float | None = None


class LabelledPrior(Prior):
    """A prior that the labels of images may condition.

    Attributes:
        classes: number of classes; 0 without labels.
    """

    classes: int

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None, guidance: Guidance | None = None) -> Tensor:
        """Sample latents (n, d), with guidance where it is given."""

    @abstractmethod
    def pairs(self, latents: Tensor, seed: int, labels: Tensor | None = None) -> Callable[[int], tuple[Tensor, ...]]:
        """Return what maps the number of an update to its batch, labels (n,) of the latents included."""


class SolvedPrior:
    """A prior as it is solved with other options than its own.

    Args:
        log_prob: its log-density, given latents and options.
        sample: its samples, given their number, random numbers and options.
        options: the options.
    """

    def __init__(self, log_prob: Callable[..., Tensor], sample: Callable[..., Tensor], options: SolveOptions) -> None:
        self._log_prob, self._sample, self.options = log_prob, sample, options

    def log_prob(self, latents: Tensor) -> Tensor:
        """Return the log-density in nats, shape (...), of latents (..., d)."""
        return self._log_prob(latents, self.options)

    def sample(self, n: int, generator: torch.Generator | None = None, *guidance: Guidance) -> Tensor:
        """Sample latents (n, d), with guidance where the prior takes it."""
        return self._sample(n, generator, self.options, *guidance)


class FlowedPrior(Prior):
    """A prior whose samples and densities are solves of a flow; the standard normal until the flow is trained.

    Attributes:
        flow: the flow.
        fitted: whether it is trained.
        standard: the opposite, beside the buffer: a compiled training step must not branch on a tensor.
    """

    flow: ControlledODE
    fitted: Tensor
    standard: bool

    @abstractmethod
    def _log_prob(self, latents: Tensor, options: SolveOptions) -> Tensor: ...

    @abstractmethod
    def _sample(self, n: int, generator: torch.Generator | None, options: SolveOptions) -> Tensor: ...

    def refresh(self) -> None:
        """Take the flag from the buffer."""
        self.standard = not bool(self.fitted)

    @property
    def active_flow(self) -> ControlledODE | None:
        """The flow, once it is more than the identity."""
        return None if self.standard else self.flow

    def with_options(self, options: SolveOptions | None) -> Prior | SolvedPrior:
        """Return the prior as it is solved with other options."""
        return self if options is None else SolvedPrior(self._log_prob, self._sample, options)

    def log_prob(self, latents: Tensor) -> Tensor:
        """Return the log-density in nats, shape (...), of latents (..., d)."""
        return self._log_prob(latents, self.flow.options)


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

    def log_prob(self, latents: Tensor) -> Tensor:
        """Return the log-density in nats."""
        return standard_normal_log_prob(latents)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample latents (n, d)."""
        return torch.randn(n, self.dim, generator=generator).to(self.origin)
