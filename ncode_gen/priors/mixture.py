"""A Gaussian mixture fitted to the aggregated posterior after training."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .normal import Prior, standard_normal_log_prob

__all__ = ["GaussianMixture"]


class GaussianMixture(Prior):
    """A mixture of Gaussians with full covariances; before `fit` it is the standard normal, at that one's cost.

    Fitted with scikit-learn in float64, since in float32 covariances of latents lose their positive-definiteness.

    Args:
        dim: number of latent dimensions d.
        components: number of Gaussians.
    """

    fits = True

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.dim, self.components = dim, components
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("log_weights", torch.full((components,), -math.log(components)))
        self.register_buffer("means", torch.zeros(components, dim))
        self.register_buffer("cholesky", torch.eye(dim).repeat(components, 1, 1))
        self.fitted: Tensor
        self.log_weights: Tensor
        self.means: Tensor
        self.cholesky: Tensor
        # A plain flag beside the buffer: a compiled training step must not branch on a tensor.
        self.standard = True
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())

    def refresh(self) -> None:
        """Take the flag from the buffer."""
        self.standard = not bool(self.fitted)

    def log_prob(self, latents: Tensor) -> Tensor:
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

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents (n, d)."""
        if self.standard:
            return torch.randn(n, self.dim, generator=generator).to(self.means.device)
        chosen = torch.multinomial(self.log_weights.exp().cpu(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, 1, generator=generator).to(self.means.device)
        chosen = chosen.to(self.means.device)
        return self.means[chosen] + (self.cholesky[chosen] @ noise).squeeze(-1)

    def fit(self, latents: Tensor, seed: int = 0) -> None:
        """Fit the mixture to latents (n, d) by expectation-maximisation.

        Raises:
            UserError: fewer latents than components, or a latent that is not finite.
        """
        from sklearn.mixture import GaussianMixture as Fitted

        values = latents.detach().cpu().numpy().astype(np.float64)
        if len(values) < max(2, self.components):
            raise UserError(
                f"{len(values)} latents cannot fit prior.components = {self.components}; use more images or fewer"
            )
        if not np.isfinite(values).all():
            raise UserError("a latent is not finite, so no mixture can be fitted; train with a lower training.rate")
        fitted = Fitted(self.components, covariance_type="full", reg_covar=1e-5, random_state=seed, max_iter=200)
        fitted.fit(values)
        self.fitted.fill_(True)
        self.refresh()
        self.log_weights.copy_(torch.from_numpy(np.log(fitted.weights_ + 1e-300)))
        self.means.copy_(torch.from_numpy(fitted.means_))
        self.cholesky.copy_(torch.from_numpy(np.linalg.cholesky(fitted.covariances_)))
