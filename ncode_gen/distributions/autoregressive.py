"""An inverse autoregressive posterior, to compare with: the transforms are those of the library zuko."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..runtime.imports import import_plainly
from .posterior import ControlledPosterior, Draws, SolverChoice, gaussian_log_prob

__all__ = ["AutoregressivePosterior"]


class AutoregressivePosterior(ControlledPosterior):
    """q(z | u): a Gaussian given by features, then inverse autoregressive transforms that see the features too.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow", NeurIPS 2016.

    Args:
        features: number of features.
        dim: number of latent dimensions d.
        hidden: widths of the hidden layers of each transform's masked network.
        transforms: number of transforms; the order of the dimensions is reversed from one to the next.

    Raises:
        UserError: the library zuko is not installed.
    """

    def __init__(self, features: int, dim: int, hidden: Sequence[int], transforms: int) -> None:
        super().__init__(features, dim, None)
        try:
            transform = import_plainly("zuko.flows").MaskedAutoregressiveTransform
        except ImportError:
            raise UserError(
                'flow.loop = "iaf" needs the library zuko: pip install "ncode_gen[zuko]", or choose another loop'
            ) from None
        # zuko finds its masks from numbers, which a model that is only described, on the meta device, does not have.
        with torch.device("cpu"):
            orders = (torch.arange(dim), torch.arange(dim).flip(0))
            self.transforms = nn.ModuleList(
                transform(dim, features, order=orders[i % 2], hidden_features=hidden) for i in range(transforms)
            )
        self.transforms.to(self.base.weight.device)

    def _transform(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Move points (n, K, d); return them and log |det| of the moves, (n, K)."""
        context = features.unsqueeze(1).expand(-1, x.shape[1], -1)
        log_det = x.new_zeros(x.shape[:-1])
        for lazy in self.transforms:
            x, gained = lazy(context).call_and_ladj(x)
            log_det = log_det + gained
        return x, log_det

    def forward(
        self, features: Tensor, noise: Tensor, solver: SolverChoice | None = None, *, energy: bool = False
    ) -> Draws:
        """Map noise to latents and their log-density; there is nothing to solve, and no energy."""
        mean, log_std = self.moments(features)
        x = mean.unsqueeze(1) + log_std.exp().unsqueeze(1) * noise
        latents, log_det = self._transform(x, features)
        log_q = gaussian_log_prob(noise, log_std.unsqueeze(1)) - log_det
        return Draws(latents, log_q, torch.zeros_like(log_q) if energy else None)

    def start(self, features: Tensor) -> Tensor:
        """Return the latent of the mean, (n, d); an autoregressive transform has no path."""
        return self._transform(super().start(features).unsqueeze(1), features)[0][:, 0]
