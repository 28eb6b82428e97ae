"""Prior, posterior and observation, joined: what all that a model does has in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..control import ControlledODE, DensityError
from ..solvers import in_own_precision
from .observation import Observation
from .posterior import Posterior
from .priors import Prior

Method = TypeVar("Method", bound=Callable[..., Any])


def uncast_method(method: Method) -> Method:
    """Let a method compute as it does without automatic casting around it; `compute_in` says what is cast."""

    @functools.wraps(method)
    def uncast(self: JointModel, *arguments: Any, **options: Any) -> Any:
        with in_own_precision(next(self.parameters())):
            return method(self, *arguments, **options)

    return cast(Method, uncast)


class JointModel(nn.Module):
    """The parts of a generative model of images with a latent space; images are (n, C, H, W) in [0, 1].

    Args:
        encoder: from images to features.
        posterior: from features to latents.
        observation: from latents to images.
        prior: distribution of latents.
    """

    def __init__(self, encoder: nn.Module, posterior: Posterior, observation: Observation, prior: Prior) -> None:
        super().__init__()
        self.encoder, self.posterior, self.observation, self.prior = encoder, posterior, observation, prior
        self.precision: torch.dtype | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images."""
        return self.observation.shape

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights: float32, unless `.double()`, `.half()` or `.bfloat16()` was called."""
        return next(self.parameters()).dtype

    @property
    def dim(self) -> int:
        """Number of latent dimensions d."""
        return self.prior.dim

    @property
    def flows(self) -> tuple[ControlledODE, ...]:
        """The flows that a likelihood takes a solve of: the posterior's and the prior's, where there are."""
        return tuple(flow for flow in (self.posterior.flow, self.prior.active_flow) if flow is not None)

    def compute_in(self, precision: torch.dtype | None) -> None:
        """Let the layers of encoder and observation compute in a dtype; None for that of the weights.

        Their results are float32 again, as are the flows of the latents and the solver's states. Likelihoods would be
        rounded with the decoder's output: take None for scores.
        """
        self.precision = precision
        self.observation.compute_in(precision)
        self.prior.compute_in(precision)

    def features(self, images: Tensor) -> Tensor:
        """Return the encoder's features (n, f) of images or targets (n, C, H, W)."""
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            features: Tensor = self.encoder(images)
        return features.to(self.dtype)

    def conditions(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return what conditions the observation: latents (n, d), and where there are classes one-hot labels.

        Args:
            latents: (n, d).
            labels: one-hot rows (n, classes); zeros, for any class, if None.
        """
        classes = self.observation.classes
        if not classes:
            return latents
        given = latents.new_zeros(len(latents), classes) if labels is None else labels.to(latents)
        return torch.cat([latents, given], 1)

    def check_density(self) -> None:
        """Raise a `DensityError`, if there is no posterior density, so no ELBO and no likelihood."""
        if self.posterior.deterministic:
            raise DensityError("a deterministic autoencoder has no posterior density, so no ELBO and no likelihood")

    def checked(self, images: Tensor) -> Tensor:
        """Return images where the weights are and in their dtype, or raise a ValueError, see `checked_images`."""
        return checked_images(images, self.shape).to(self.device, self.dtype)

    def checked_latents(self, latents: Tensor) -> Tensor:
        """Return latents where the weights are, or raise a ValueError, if their shape is not (n, d)."""
        if latents.dim() != 2 or latents.shape[1] != self.dim:
            raise ValueError(f"latents must have shape (n, {self.dim}), got {tuple(latents.shape)}")
        return latents.to(self.device, self.dtype)

    def one_hot(self, labels: Tensor | None, n: int) -> Tensor | None:
        """Return numbers of classes (n,), -1 for any, as one-hot rows (n, classes); None for None."""
        if labels is None:
            return None
        classes = self.observation.classes
        if not classes:
            raise ValueError("this model has no labels; leave them out")
        if labels.shape != (n,) or int(labels.min()) < -1 or int(labels.max()) >= classes:
            raise ValueError(f"labels must be {n} numbers from -1 to {classes - 1}, got {labels.tolist()[:9]}")
        rows = nn.functional.one_hot(labels.long() + 1, classes + 1)[:, 1:]
        return rows.to(self.device, self.dtype)

    def pixel_noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Return standard normal numbers (n, C, H, W), those of each image in turn."""
        each = [torch.randn(1, *self.shape, generator=generator) for _ in range(n)]
        return torch.cat([torch.zeros(0, *self.shape), *each]).to(self.device, self.dtype)


def checked_images(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return images (n, C, H, W), or raise a ValueError that says what is wrong with them."""
    if images.dim() != 4 or tuple(images.shape[1:]) != shape:
        raise ValueError(f"images must have shape (n, {', '.join(map(str, shape))}), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}")
    low, high = torch.aminmax(images) if images.numel() else (images.new_zeros(()), images.new_ones(()))
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must lie in [0, 1] without NaN, got values from {low:g} to {high:g}")
    return images
