"""The assembled generative model: encoder, posterior, observation and prior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..control import FlowSolution
from ..solvers import Times, as_times
from .images import Adjust, ImageModel, adjusted
from .joint import checked_images, uncast_method


@dataclass(frozen=True)
class LatentTrajectory(FlowSolution):
    """The path of latents under their own controls.

    Attributes:
        images: the decoded states (T, n, C, H, W) in [0, 1], if requested.
    """

    images: Tensor | None = None


@dataclass(frozen=True)
class ElboTerms:
    """The terms of the evidence lower bound for each image, in nats; the last axis has K particles.

    Attributes:
        reconstruction_log_prob: log p(u | z), shape (n, K).
        log_prior: log p(z), shape (n, K).
        log_posterior: log q(z | u), shape (n, K).
        energy: kinetic energy of the flow, shape (n, K), if requested.
        unfinished: samples whose adaptive solve did not reach its last time.
    """

    reconstruction_log_prob: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    energy: Tensor | None = None
    unfinished: int = 0

    @property
    def log_weights(self) -> Tensor:
        """Log-weights log p(u, z) - log q(z | u), shape (n, K)."""
        return self.reconstruction_log_prob + self.log_prior - self.log_posterior

    @property
    def elbo(self) -> Tensor:
        """Evidence lower bound, shape (n,), the mean over the particles."""
        return self.log_weights.mean(-1)

    @property
    def importance_bound(self) -> Tensor:
        """Importance-weighted bound, shape (n,) (Burda et al., "Importance weighted autoencoders", equation 8)."""
        return torch.logsumexp(self.log_weights, -1) - math.log(self.log_weights.shape[-1])


class LatentModel(ImageModel):
    """A generative model of images with a latent space; images are (n, C, H, W) in [0, 1].

    Args:
        encoder: from images to features.
        posterior: from features to latents.
        observation: from latents to images.
        prior: distribution of latents.
    """

    @uncast_method
    def elbo_terms(
        self, target: Tensor, noise: Tensor, adjust: Adjust | None = None, *, energy: bool = False
    ) -> ElboTerms:
        """Return the terms of the evidence lower bound.

        Args:
            target: what is scored, (n, C, H, W), see `Observation.target`.
            noise: standard normal numbers (n, K, d).
            adjust: changes the options that flows are solved with.
            energy: whether to integrate the kinetic energy of the posterior's flow.

        Raises:
            DensityError: the model is a deterministic autoencoder.
        """
        self.check_density()
        sampled = self.posterior.sample(
            self.features(target), noise, adjusted(self.posterior.flow, adjust), energy=energy
        )
        latents, log_posterior = sampled.latents, sampled.log_prob
        assert log_posterior is not None
        n, particles, dim = latents.shape
        repeated = target if particles == 1 else target.repeat_interleave(particles, 0)
        log_prob = self.observation.log_prob(repeated, latents.reshape(n * particles, dim)).view(n, particles)
        log_prior = self.prior.with_options(adjusted(self.prior.active_flow, adjust)).log_prob(latents)
        return ElboTerms(log_prob, log_prior, log_posterior, sampled.energy, sampled.unfinished)

    @torch.no_grad()
    @uncast_method
    def sample_posterior(
        self, images: Tensor, generator: torch.Generator | None = None, *, noise: Tensor | None = None
    ) -> Tensor:
        """Return one sample (n, d) from the posterior of each image; its latent, if that is deterministic.

        Args:
            images: (n, C, H, W) in [0, 1].
            generator: random numbers, on the CPU.
            noise: standard normal numbers (n, d) instead.
        """
        if self.posterior.deterministic:
            return self.encode(images)
        noise = torch.randn(len(images), self.dim, generator=generator) if noise is None else noise
        features = self.features(self.checked(images))
        return self.posterior.sample(features, noise.unsqueeze(1).to(self.device, self.dtype)).latents[:, 0]

    @uncast_method
    def log_likelihood(
        self,
        images: Tensor,
        particles: int = 128,
        generator: torch.Generator | None = None,
        *,
        adjust: Adjust | None = None,
    ) -> Tensor:
        """Return an importance-weighted lower bound on log p(u) in nats, shape (n,).

        Args:
            images: (n, C, H, W) in [0, 1]; a Bernoulli likelihood binarises them with random numbers.
            particles: number of particles; the bound rises to log p(u) with it.
            generator: random numbers, on the CPU.
            adjust: changes the options that flows are solved with; compare two to see whether the value stands.

        Raises:
            DensityError: the model is a deterministic autoencoder.
            ValueError: a wrong shape or range, or a NaN.
        """
        return torch.cat([bound for _, bound in likelihood_bounds(self, images, particles, generator, adjust=adjust)])

    @torch.no_grad()
    @uncast_method
    def trajectory(
        self, images: Tensor, times: Times | None = None, *, decode: bool = False, adjust: Adjust | None = None
    ) -> LatentTrajectory:
        """Follow the latents of images from x(0) to z = x(1), each under its own control.

        Args:
            images: (n, C, H, W) in [0, 1].
            times: requested times, T numbers, see `solvers.solve`; 33 even ones on [0, 1] if None.
            decode: whether to decode the states into images too.
            adjust: changes the options that the flow is solved with.

        Returns:
            A `LatentTrajectory`: states (T, n, d), and images (T, n, C, H, W) on request. Without a flow the latents
            stand still.
        """
        features = self.features(self.checked(images))
        times = as_times(torch.linspace(0.0, 1.0, 33) if times is None else times, features)
        path = self.posterior.trajectory(features, times, options=adjusted(self.posterior.flow, adjust))
        if path is None:
            still = self.posterior.start(features).expand(times.shape[0], -1, -1)
            path = FlowSolution(times=times, parts=(still,), nfe=0, accepted=0, rejected=0, augmented=still)
        decoded = None
        if decode:
            decoded = self.decode(path.states.flatten(0, 1)).unflatten(0, path.states.shape[:2])
        return LatentTrajectory(**vars(path), images=decoded)


@torch.no_grad()
def likelihood_bounds(
    model: LatentModel,
    images: Tensor,
    particles: int,
    generator: torch.Generator | None = None,
    *,
    adjust: Adjust | None = None,
    budget: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the ELBO and the importance-weighted bound, each (m,) in nats, of successive parts of images.

    Args:
        model: the model.
        images: (n, C, H, W) in [0, 1].
        particles: number K of particles.
        generator: random numbers, on the CPU; they depend neither on `adjust`, so that solvers can be compared, nor on
            `budget`, so that devices can be.
        adjust: changes the options that flows are solved with.
        budget: images times particles handled at a time; 0 for as many as suit the device.

    Raises:
        DensityError: the model is a deterministic autoencoder.
        ValueError: no particles, half precision, a wrong shape or range, or a NaN.
    """
    device, dtype = model.device, model.dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"a likelihood in {dtype} would be off by nats; take model.float() for it")
    if particles < 1:
        raise ValueError(f"the number of particles must be at least 1, got {particles}")
    images = checked_images(images, model.shape).to(device, dtype)
    if len(images) == 0:
        yield images.new_zeros(0), images.new_zeros(0)
        return
    # On a CPU the feature maps of more particles leave the cache, which is far slower.
    budget = budget or (1024 if device.type == "cpu" else 4096)
    for part in images.split(max(1, budget // particles)):
        uniforms, noises = [], []
        for image in part:
            uniforms.append(torch.rand(image.shape, generator=generator))
            noises.append(torch.randn(particles, model.dim, generator=generator))
        target = model.observation.target(part, torch.stack(uniforms).to(device, dtype))
        terms = model.elbo_terms(target, torch.stack(noises).to(device, dtype), adjust)
        yield terms.elbo, terms.importance_bound
