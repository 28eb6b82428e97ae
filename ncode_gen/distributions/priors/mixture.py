"""A Gaussian mixture fitted to the aggregated posterior after training."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...runtime.seeding import seeded
from .expectation import Gaussians, fit_gaussians
from .normal import Prior, refresh_after_loading, standard_normal_log_prob

CANDIDATES = (1, 2, 5, 10, 20, 50, 100, 200)
TRIED_ROUNDS, ROUNDS = 20, 100
LEAST_GAIN = 0.003  # nats; less is chance


class GaussianMixture(Prior):
    """A mixture of Gaussians with full covariances; before `fit` it is the standard normal, at that one's cost.

    Of the Cholesky factors of the covariances only the lower triangles are held and saved.

    Args:
        dim: number of latent dimensions d.
        components: number of Gaussians; 0 to choose it in `fit` by the likelihood of held-out latents.

    >>> mixture = GaussianMixture(2, components=0)
    >>> noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    >>> mixture.fit(torch.cat([noise[:500] - 9, noise[500:] + 9]))
    >>> mixture.components
    2
    """

    fitted_after = True

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.dim, self.wanted = dim, components
        self.register_buffer("fitted", torch.tensor(False))
        # Where `fit` chooses the number, the buffers grow, and take the size of weights that are loaded.
        start = components or 1
        self.register_buffer("log_weights", torch.full((start,), -math.log(start)))
        self.register_buffer("means", torch.zeros(start, dim))
        self.register_buffer("factors", torch.zeros(start, dim * (dim + 1) // 2))
        self.fitted: Tensor
        self.log_weights: Tensor
        self.means: Tensor
        self.factors: Tensor
        # A plain flag beside the buffer: a compiled training step must not branch on a tensor.
        self.standard = True
        self.register_load_state_dict_post_hook(refresh_after_loading)

    @property
    def components(self) -> int:
        """Number of Gaussians."""
        return len(self.log_weights)

    @property
    def gaussians(self) -> Gaussians:
        """Weights, means and Cholesky factors."""
        cholesky = self.means.new_zeros(self.components, self.dim, self.dim)
        row, column = torch.tril_indices(self.dim, self.dim, device=cholesky.device)
        cholesky[:, row, column] = self.factors
        return Gaussians(self.log_weights, self.means, cholesky)

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
        like = self.means
        self.log_weights = like.new_zeros(components)
        self.means = like.new_zeros(components, self.dim)
        self.factors = like.new_zeros(components, self.dim * (self.dim + 1) // 2)

    def log_prob(self, latents: Tensor) -> Tensor:
        """Return the log-density in nats, shape (...), of latents (..., d)."""
        if self.standard:
            return standard_normal_log_prob(latents)
        joint = self.gaussians.joint_log_prob(latents.reshape(-1, self.dim))
        return torch.logsumexp(joint, 1).view(latents.shape[:-1])

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample latents (n, d)."""
        if self.standard:
            return torch.randn(n, self.dim, generator=generator).to(self.means)
        return self.sample_components(
            torch.multinomial(self.log_weights.float().exp().cpu(), n, replacement=True, generator=generator), generator
        )

    def sample_components(self, chosen: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Sample a latent, shape (n, d), from each of the Gaussians of numbers `chosen`, shape (n,), on the CPU."""
        noise = torch.randn(len(chosen), self.dim, generator=generator).to(self.means)
        # A product for each Gaussian, not for each sample: no factor is copied.
        order = chosen.argsort()
        groups = noise[order.to(noise.device)].split(chosen.bincount(minlength=self.components).tolist())
        moved = torch.cat([rows @ factor.T for rows, factor in zip(groups, self.gaussians.cholesky, strict=True)])
        ordered = torch.empty_like(moved)
        ordered[order.to(noise.device)] = moved
        return self.means[chosen.to(noise.device)] + ordered

    def fit(self, latents: Tensor, seed: int = 0, progress: Callable[[float], None] | None = None) -> None:
        """Fit the mixture to latents (n, d) by expectation-maximisation, on the mixture's own device if that is CUDA.

        Args:
            latents: (n, d).
            seed: seed of the first clusters, and of what is held out to choose the number of components.
            progress: called with the share of the work that is done.

        Raises:
            UserError: fewer latents than components, or a latent that is not finite.
        """
        # Covariances need float64, which not every other device has.
        values = latents.detach().float().to(self.means.device if self.means.is_cuda else "cpu")
        if len(values) < max(2, self.wanted):
            raise UserError(
                f"{len(values)} latents cannot fit prior.components = {self.wanted}; use more images or fewer"
            )
        if not bool(values.isfinite().all()):
            raise UserError("a latent is not finite, so no mixture can be fitted; train with a lower training.lr")
        report = progress or (lambda share: None)
        choosing = 0.0 if self.wanted else 0.5
        components = self.wanted or _choose(values, seed, lambda share: report(choosing * share))
        fitted = fit_gaussians(
            values, components, seed, ROUNDS, lambda share: report(choosing + (1 - choosing) * share)
        )
        self._resize(components)
        self.fitted.fill_(True)
        self.refresh()
        self.log_weights.copy_(fitted.log_weights)
        self.means.copy_(fitted.means)
        self.factors.copy_(_packed(fitted.cholesky))


def _packed(cholesky: Tensor) -> Tensor:
    """Return the lower triangles (K, d (d + 1) / 2) of matrices (K, d, d), row by row."""
    row, column = torch.tril_indices(cholesky.shape[1], cholesky.shape[1])
    return cholesky[:, row, column]


def _choose(values: Tensor, seed: int, progress: Callable[[float], None]) -> int:
    """Return the number of components after which a tenth of the latents, held out, is no longer more likely."""
    order = torch.randperm(len(values), generator=seeded(seed))
    count = max(1, len(values) // 10)
    held, rest = values[order[:count]], values[order[count:]]
    best, highest = 1, -math.inf
    for tried, components in enumerate(CANDIDATES):
        if components > len(rest):
            break

        def report(share: float, tried: int = tried) -> None:
            progress((tried + share) / len(CANDIDATES))

        fitted = fit_gaussians(rest, components, seed, TRIED_ROUNDS, report)
        score = float(torch.logsumexp(fitted.joint_log_prob(held.double()), 1).mean())
        if score < highest + LEAST_GAIN:
            break
        best, highest = components, score
    return best
