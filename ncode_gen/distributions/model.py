"""The assembled generative model: encoder, posterior, observation and prior."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from ..control import ControlledODE, DensityError, FlowSolution
from ..runtime.parts import in_parts
from ..solvers import SolveOptions, Times, as_times, in_own_precision
from .observation import Observation
from .posterior import Posterior
from .priors import LabelledPrior, Prior

Method = TypeVar("Method", bound=Callable[..., Any])
Adjust = Callable[[SolveOptions], SolveOptions]
Start = Literal["mean", "fresh", "inverted"]


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


def _uncast(method: Method) -> Method:
    """Let a method compute as it does without automatic casting around it; `compute_in` says what is cast."""

    @functools.wraps(method)
    def uncast(self: LatentModel, *arguments: Any, **options: Any) -> Any:
        with in_own_precision(next(self.parameters())):
            return method(self, *arguments, **options)

    return cast(Method, uncast)


class LatentModel(nn.Module):
    """A generative model of images with a latent space; images are (n, C, H, W) in [0, 1].

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

    @_uncast
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
            self.features(target), noise, _adjusted(self.posterior.flow, adjust), energy=energy
        )
        latents, log_posterior = sampled.latents, sampled.log_prob
        assert log_posterior is not None
        n, particles, dim = latents.shape
        repeated = target if particles == 1 else target.repeat_interleave(particles, 0)
        log_prob = self.observation.log_prob(repeated, latents.reshape(n * particles, dim)).view(n, particles)
        log_prior = self.prior.with_options(_adjusted(self.prior.active_flow, adjust)).log_prob(latents)
        return ElboTerms(log_prob, log_prior, log_posterior, sampled.energy, sampled.unfinished)

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

    def _checked(self, images: Tensor) -> Tensor:
        return checked_images(images, self.shape).to(self.device, self.dtype)

    def _checked_latents(self, latents: Tensor) -> Tensor:
        if latents.dim() != 2 or latents.shape[1] != self.dim:
            raise ValueError(f"latents must have shape (n, {self.dim}), got {tuple(latents.shape)}")
        return latents.to(self.device, self.dtype)

    @torch.no_grad()
    @_uncast
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        batch: int = 500,
        adjust: Adjust | None = None,
        refine: bool = True,
        labels: Tensor | None = None,
        guidance: float = 1.0,
        evaluations: int | None = None,
    ) -> Tensor:
        """Sample images from the prior and the observation.

        Args:
            n: number of images.
            generator: random numbers, on the CPU; the default generator if None.
            batch: images decoded at a time.
            adjust: changes the options that the prior's flow is solved with.
            refine: whether images are sampled given their latents, where the observation can; else they are means.
            labels: numbers of the classes, (n,), -1 for any; all of any class if None.
            guidance: how far velocities of a label are moved away from those of any, in prior and observation.
            evaluations: how often a flow of pixels may be evaluated for an image; as the recipe says if None.

        Returns:
            Images (n, C, H, W) in [0, 1].

        Raises:
            ValueError: no images, or labels, guidance or evaluations of a model that has none.
        """
        if n < 1:
            raise ValueError(f"the number of samples must be at least 1, got {n}")
        one_hot = self._one_hot(labels, n)
        prior = self.prior.with_options(_adjusted(self.prior.active_flow, adjust))
        if one_hot is not None and isinstance(prior, LabelledPrior):
            latents = prior.sample(n, generator, one_hot, guidance)
        else:
            latents = prior.sample(n, generator)
        if not refine:
            return self.decode(latents, batch=batch, labels=labels)
        settings: Any = {"labels": labels, "guidance": guidance, "evaluations": evaluations}
        return self.sample_images(latents, generator, batch=batch, **settings)

    @torch.no_grad()
    @_uncast
    def sample_images(
        self,
        latents: Tensor,
        generator: torch.Generator | None = None,
        *,
        batch: int = 500,
        labels: Tensor | None = None,
        guidance: float = 1.0,
        evaluations: int | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return images (n, C, H, W) in [0, 1] sampled given latents (n, d), or means where nothing can be added.

        Args:
            latents: (n, d).
            generator: random numbers, on the CPU; those of an image do not depend on `batch`.
            batch: images at a time.
            labels: see `sample`.
            guidance: see `sample`.
            evaluations: see `sample`.
            noise: standard normal numbers (n, C, H, W), such as `invert` finds, instead of random ones.
        """
        draw = self.observation.sampler(evaluations, guidance)
        if not self.observation.stochastic or len(latents) == 0:
            return self.decode(latents, batch=batch)
        noise = self._pixel_noise(len(latents), generator) if noise is None else noise.to(self.device, self.dtype)
        conditions = self.conditions(self._checked_latents(latents), self._one_hot(labels, len(latents)))
        return in_parts(draw, conditions, noise, batch=batch)

    def _one_hot(self, labels: Tensor | None, n: int) -> Tensor | None:
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

    def _pixel_noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        each = [torch.randn(1, *self.shape, generator=generator) for _ in range(n)]
        return torch.cat([torch.zeros(0, *self.shape), *each]).to(self.device, self.dtype)

    @torch.no_grad()
    @_uncast
    def encode(self, images: Tensor, *, batch: int = 500) -> Tensor:
        """Return the latents (n, d) of images (n, C, H, W) in [0, 1]: the mean's, if the posterior is random.

        Raises:
            ValueError: a wrong shape or range, or a NaN.
        """
        parts = self._checked(images).split(batch)
        return torch.cat([self.posterior.encode(self.features(part)) for part in parts])

    @torch.no_grad()
    @_uncast
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
        features = self.features(self._checked(images))
        return self.posterior.sample(features, noise.unsqueeze(1).to(self.device, self.dtype)).latents[:, 0]

    @torch.no_grad()
    @_uncast
    def decode(self, latents: Tensor, *, batch: int = 500, labels: Tensor | None = None) -> Tensor:
        """Return the expected images (n, C, H, W) in [0, 1] of latents (n, d), and labels as in `sample`."""
        conditions = self.conditions(self._checked_latents(latents), self._one_hot(labels, len(latents)))
        return in_parts(self.observation.mean, conditions, batch=batch)

    @torch.no_grad()
    @_uncast
    def reconstruct(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        *,
        start: Start = "mean",
        evaluations: int | None = None,
        batch: int = 500,
    ) -> Tensor:
        """Return images (n, C, H, W) in [0, 1] decoded from the latents of others.

        Args:
            images: (n, C, H, W) in [0, 1].
            generator: random numbers, on the CPU.
            start: "mean" for expected images; of a flow of pixels also "fresh" for the images that random noise flows
                to, and "inverted" for those that each image's own noise, found by `invert`, flows back to.
            evaluations: see `sample`.
            batch: images at a time.

        Raises:
            ValueError: a start that is unknown, or that needs a flow of pixels.
        """
        latents = self.encode(images, batch=batch)
        if start == "mean":
            return self.decode(latents, batch=batch)
        if start not in get_args(Start):
            raise ValueError(f"start must be one of {', '.join(get_args(Start))}, got {start!r}")
        noise = self.invert(images, latents, evaluations=evaluations, batch=batch) if start == "inverted" else None
        return self.sample_images(latents, generator, evaluations=evaluations, noise=noise, batch=batch)

    @torch.no_grad()
    @_uncast
    def invert(self, images: Tensor, latents: Tensor, *, evaluations: int | None = None, batch: int = 500) -> Tensor:
        """Return the noise x(0), (n, C, H, W), from which a flow of pixels leads to images under their latents.

        Latent and noise together are the full code of an image.

        Args:
            images: (n, C, H, W) in [0, 1].
            latents: (n, d).
            evaluations: see `sample`.
            batch: images at a time.

        Raises:
            ValueError: the observation is no flow from noise to the image.
        """

        def back(part: Tensor, codes: Tensor) -> Tensor:
            return self.observation.invert(part, self.conditions(codes), evaluations)

        return in_parts(back, self._checked(images), self._checked_latents(latents), batch=batch)

    @torch.no_grad()
    @_uncast
    def image_trajectories(
        self, latents: Tensor, times: Times, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return how images arise along the flows of the observation, by name: (T, n, C, H, W) in [0, 1] each.

        Args:
            latents: (n, d).
            times: rising times in [0, 1], shape (T,).
            generator: random numbers, on the CPU.
        """
        latents = latents.to(self.device, self.dtype)
        noise = self._pixel_noise(len(latents), generator)
        return self.observation.trajectories(self.conditions(latents), noise, cast(Any, times))

    @_uncast
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
    @_uncast
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
        features = self.features(self._checked(images))
        times = as_times(torch.linspace(0.0, 1.0, 33) if times is None else times, features)
        path = self.posterior.trajectory(features, times, options=_adjusted(self.posterior.flow, adjust))
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


def _adjusted(flow: ControlledODE | None, adjust: Adjust | None) -> SolveOptions | None:
    """Return the options of a flow, adjusted; None where nothing is changed or there is no flow."""
    return None if flow is None or adjust is None else adjust(flow.options)
