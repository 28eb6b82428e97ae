"""A Gaussian mixture fitted to the aggregated posterior after training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from .normal import Prior, standard_normal_log_prob

__all__ = ["GaussianMixture"]

CANDIDATES = (1, 2, 5, 10, 20, 50, 100, 200)
TRIED_ROUNDS = 30
LEAST_GAIN = 0.003  # nats; less is chance


class GaussianMixture(Prior):
    """A mixture of Gaussians with full covariances; before `fit` it is the standard normal, at that one's cost.

    Fitted with scikit-learn in float64, since in float32 covariances of latents lose their positive-definiteness.

    Args:
        dim: number of latent dimensions d.
        components: number of Gaussians; 0 to choose it in `fit` by the likelihood of held-out latents.

    >>> mixture = GaussianMixture(2, components=0)
    >>> draws = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    >>> mixture.fit(torch.cat([draws[:500] - 9, draws[500:] + 9]))
    >>> mixture.components
    2
    """

    fits = True

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.dim, self.wanted = dim, components
        self.register_buffer("fitted", torch.tensor(False))
        # Where the number is to be chosen the buffers grow in `fit`, and take the size of the weights that are loaded.
        start = components or 1
        self.register_buffer("log_weights", torch.full((start,), -math.log(start)))
        self.register_buffer("means", torch.zeros(start, dim))
        self.register_buffer("cholesky", torch.eye(dim).repeat(start, 1, 1))
        self.fitted: Tensor
        self.log_weights: Tensor
        self.means: Tensor
        self.cholesky: Tensor
        # A plain flag beside the buffer: a compiled training step must not branch on a tensor.
        self.standard = True
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())

    @property
    def components(self) -> int:
        """Number of Gaussians."""
        return len(self.log_weights)

    def refresh(self) -> None:
        """Take the flag from the buffer."""
        self.standard = not bool(self.fitted)

    def take_sizes(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the number of components of saved tensors, if it was to be chosen."""
        held = tensors.get("log_weights")
        if self.wanted == 0 and held is not None and held.dim() == 1:
            self._resize(len(held))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        self.take_sizes({key.removeprefix(prefix): held for key, held in state_dict.items() if key.startswith(prefix)})
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _resize(self, components: int) -> None:
        device = self.means.device
        self.log_weights = torch.zeros(components, device=device)
        self.means = torch.zeros(components, self.dim, device=device)
        self.cholesky = torch.zeros(components, self.dim, self.dim, device=device)

    def log_prob(self, latents: Tensor, *, steps: int | None = None, grid: Tensor | None = None) -> Tensor:
        """Return the log-density in nats, shape (...), of latents (..., d)."""
        if self.standard:
            return standard_normal_log_prob(latents)
        flat = latents.reshape(-1, self.dim)
        offset = (flat.unsqueeze(0) - self.means.unsqueeze(1)).transpose(1, 2)
        white = torch.linalg.solve_triangular(self.cholesky, offset, upper=False)
        half_log_det = self.cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.log_weights - half_log_det - 0.5 * self.dim * math.log(2 * math.pi)
        each = constant.unsqueeze(1) - 0.5 * (white * white).sum(1)
        return torch.logsumexp(each, 0).view(latents.shape[:-1])

    def sample(self, n: int, generator: torch.Generator | None = None, *, steps: int | None = None) -> Tensor:
        """Draw latents (n, d)."""
        if self.standard:
            return torch.randn(n, self.dim, generator=generator).to(self.means.device)
        chosen = torch.multinomial(self.log_weights.exp().cpu(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, 1, generator=generator).to(self.means.device)
        chosen = chosen.to(self.means.device)
        return self.means[chosen] + (self.cholesky[chosen] @ noise).squeeze(-1)

    def fit(self, latents: Tensor, seed: int = 0, progress: Callable[[float], None] | None = None) -> None:
        """Fit the mixture to latents (n, d) by expectation-maximisation.

        Raises:
            UserError: fewer latents than components, or a latent that is not finite.
        """
        values = latents.detach().cpu().numpy().astype(np.float64)
        if len(values) < max(2, self.wanted):
            raise UserError(
                f"{len(values)} latents cannot fit prior.components = {self.wanted}; use more images or fewer"
            )
        if not np.isfinite(values).all():
            raise UserError("a latent is not finite, so no mixture can be fitted; train with a lower training.rate")
        components = self.wanted or self._choose(values, seed, progress)
        fitted = _fitted(components, values, seed)
        self._resize(components)
        self.fitted.fill_(True)
        self.refresh()
        self.log_weights.copy_(torch.from_numpy(np.log(fitted.weights_ + 1e-300)))
        self.means.copy_(torch.from_numpy(fitted.means_))
        self.cholesky.copy_(torch.from_numpy(np.linalg.cholesky(fitted.covariances_)))

    @staticmethod
    def _choose(values: NDArray[np.float64], seed: int, progress: Callable[[float], None] | None) -> int:
        """Return the number of components after which a tenth of the latents, held out, is no longer more likely."""
        order = np.random.default_rng(seed).permutation(len(values))
        held, rest = values[order[: max(1, len(values) // 10)]], values[order[max(1, len(values) // 10) :]]
        best, highest = 1, -math.inf
        for tried, components in enumerate(CANDIDATES):
            if components > len(rest):
                break
            score = float(_fitted(components, rest, seed, rounds=TRIED_ROUNDS).score(held))
            if progress is not None:
                progress((tried + 1) / len(CANDIDATES))
            if score < highest + LEAST_GAIN:
                break
            best, highest = components, score
        return best


def _fitted(components: int, values: NDArray[np.float64], seed: int, rounds: int = 200) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as Fitted

    fitted = Fitted(components, covariance_type="full", reg_covar=1e-5, random_state=seed, max_iter=rounds)
    with warnings.catch_warnings():
        # Where the rounds run out the mixture is a little less likely than it could be, and no worse for that.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fitted.fit(values)
