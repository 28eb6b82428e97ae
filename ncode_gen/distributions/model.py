"""The assembled generative model: encoder, controlled posterior, decoder, likelihood and prior."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..control import ControlledODE, DensityError, FlowSolution
from ..networks.flow_decoder import FlowDecoder
from ..runtime.parts import in_parts
from ..solvers import Times, as_times, in_own_precision
from .likelihoods import Likelihood
from .posterior import ControlledPosterior, LearnedStart, Posterior, SolverChoice
from .priors import Prior
from .refiner import Refiner

__all__ = ["LatentModel", "LatentTrajectory", "Terms"]


@dataclass(frozen=True)
class LatentTrajectory(FlowSolution):
    """The path of latents under their own controls.

    Attributes:
        pictures: the decoded states (T, n, C, H, W) in [0, 1], if asked for.
    """

    pictures: Tensor | None = None


@dataclass(frozen=True)
class Terms:
    """The parts of a bound for each image, in nats; the last axis has K particles.

    Attributes:
        log_likelihood: log p(u | z), shape (n, K).
        log_prior: log p(z), shape (n, K).
        log_posterior: log q(z | u), shape (n, K).
        energy: kinetic energy of the flow, shape (n, K), if asked for.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_posterior: Tensor
    energy: Tensor | None = None

    @property
    def log_weights(self) -> Tensor:
        """Log-weights log p(u, z) - log q(z | u), shape (n, K)."""
        return self.log_likelihood + self.log_prior - self.log_posterior

    @property
    def elbo(self) -> Tensor:
        """Evidence lower bound, shape (n,), the mean over the particles."""
        return self.log_weights.mean(-1)

    @property
    def importance_bound(self) -> Tensor:
        """Importance-weighted bound, shape (n,) (Burda et al., "Importance weighted autoencoders", equation 8)."""
        return torch.logsumexp(self.log_weights, -1) - math.log(self.log_weights.shape[-1])


Method = TypeVar("Method", bound=Callable[..., Any])


def _uncast(method: Method) -> Method:
    """Let a method compute as it does without automatic casting around it; `compute_in` says what is to be cast."""

    @functools.wraps(method)
    def uncast(self: LatentModel, *arguments: Any, **options: Any) -> Any:
        with in_own_precision(next(self.parameters())):
            return method(self, *arguments, **options)

    return cast(Method, uncast)


class LatentModel(nn.Module):
    """A generative model of images with a latent space; images are (n, C, H, W) in [0, 1].

    Args:
        shape: (C, H, W) of the images.
        encoder: from images to features.
        posterior: from features to latents, random (`ControlledPosterior`) or not (`LearnedStart`).
        decoder: from latents to the parameters of the likelihood.
        likelihood: distribution of an image given these.
        prior: distribution of latents.
        refiner: from the decoder's pictures to samples, once it is trained; None for samples that are such pictures.
            No likelihood knows of it: an image's is that of the decoder's picture.
        precision: dtype of encoder and decoder under automatic casting; None for float32.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        encoder: nn.Module,
        posterior: Posterior,
        decoder: nn.Module,
        likelihood: Likelihood,
        prior: Prior,
        refiner: Refiner | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.precision = shape, precision
        self.encoder, self.posterior, self.decoder = encoder, posterior, decoder
        self.likelihood, self.prior, self.refiner = likelihood, prior, refiner
        if refiner is not None:  # it is trained when the rest is
            refiner.requires_grad_(False)

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
        """Let the layers of encoder, decoder and refiner compute in a dtype; None for float32.

        What comes of them is float32 again, as are the flows of the latents and the solver's states. Likelihoods would
        be rounded with the decoder's output: take None for scores.
        """
        self.precision = precision
        if self.refiner is not None:
            self.refiner.precision = precision

    def features(self, images: Tensor) -> Tensor:
        """Return the encoder's features (n, f) of images or targets (n, C, H, W)."""
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            features: Tensor = self.encoder(images)
        return features.to(self.dtype)

    def output(self, latents: Tensor) -> Tensor:
        """Return the decoder's output (n, ...) for latents (n, d), in the dtype of the weights."""
        with torch.autocast(latents.device.type, self.precision, enabled=self.precision is not None):
            output: Tensor = self.decoder(latents)
        return output.to(self.dtype)

    def random_posterior(self) -> ControlledPosterior:
        """Return the posterior if it is a distribution.

        Raises:
            DensityError: the model is a deterministic autoencoder.
        """
        if not isinstance(self.posterior, ControlledPosterior):
            raise DensityError("a deterministic autoencoder has no posterior density, so no ELBO and no likelihood")
        return self.posterior

    @_uncast
    def terms(
        self, target: Tensor, noise: Tensor, solver: SolverChoice | None = None, *, energy: bool = False
    ) -> Terms:
        """Return the parts of the bound.

        Args:
            target: what is scored, (n, C, H, W), see `Likelihood.target`.
            noise: standard normal numbers (n, K, d).
            solver: how to solve the flows, where it differs from the recipe.
            energy: whether to integrate the kinetic energy of the posterior's flow.

        Raises:
            DensityError: the model is a deterministic autoencoder.
        """
        draws = self.random_posterior()(self.features(target), noise, solver, energy=energy)
        n, particles, dim = draws.latents.shape
        output = self.output(draws.latents.reshape(n * particles, dim))
        repeated = target if particles == 1 else target.repeat_interleave(particles, 0)
        fit = self.likelihood.log_prob(output, repeated).view(n, particles)
        solver = solver or SolverChoice()
        log_prior = self.prior.log_prob(draws.latents, steps=solver.steps, grid=solver.grid)
        return Terms(fit, log_prior, draws.log_prob, draws.energy)

    @_uncast
    def autoencoding(
        self, target: Tensor, solver: SolverChoice | None = None, jitter: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return log p(u | z + jitter) in nats (n,) and the latents z (n, d) of the deterministic autoencoder.

        Args:
            target: what is encoded and scored, (n, C, H, W).
            solver: how to solve the flow, where it differs from the recipe.
            jitter: what is added to the latents before they are decoded, (n, d); nothing if None.
        """
        assert isinstance(self.posterior, LearnedStart)
        latents = self.posterior(self.features(target), solver)
        output = self.output(latents if jitter is None else latents + jitter)
        return self.likelihood.log_prob(output, target), latents

    def _checked(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"images must have shape (n, {', '.join(map(str, self.shape))}), got {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}")
        low, high = torch.aminmax(images) if images.numel() else (images.new_zeros(()), images.new_ones(()))
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images must lie in [0, 1] without NaN, got values from {low:g} to {high:g}")
        return images.to(self.device, self.dtype)

    @torch.no_grad()
    @_uncast
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        batch: int = 500,
        steps: int | None = None,
        refine: bool = True,
    ) -> Tensor:
        """Draw images from the prior.

        Args:
            n: number of images.
            generator: random numbers, on the CPU; the default generator if None.
            batch: images decoded at a time.
            steps: steps of the prior's solver, where it has one, instead of its own.
            refine: whether the refiner, where there is one, draws what the decoder leaves out.

        Returns:
            Images given the drawn latents, (n, C, H, W) in [0, 1]: drawn by the refiner, or expected ones.
        """
        if n < 1:
            raise ValueError(f"the number of samples must be at least 1, got {n}")
        latents = self.prior.sample(n, generator, steps=steps)
        return self.draw_images(latents, generator, batch=batch) if refine else self.decode(latents, batch=batch)

    @torch.no_grad()
    @_uncast
    def draw_images(
        self, latents: Tensor, generator: torch.Generator | None = None, *, batch: int = 500, steps: int | None = None
    ) -> Tensor:
        """Return images (n, C, H, W) in [0, 1] of latents (n, d), drawn by the refiner; without one, `decode`'s.

        Args:
            latents: (n, d).
            generator: random numbers, on the CPU; those of an image do not depend on `batch`.
            batch: images at a time.
            steps: steps of the refiner's solver instead of its own.
        """
        if self.refiner is None or not bool(self.refiner.fitted) or len(latents) == 0:
            return self.decode(latents, batch=batch)
        refiner, noise = self.refiner, self._pixel_noise(len(latents), generator)

        def draw(part: Tensor, noise: Tensor) -> Tensor:
            images: Tensor = refiner(self.likelihood.mean(self.output(part)), part, noise, steps)
            return images

        return in_parts(draw, self._checked_latents(latents), noise, batch=batch)

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
        return torch.cat([self._encode(self.features(part)) for part in self._checked(images).split(batch)])

    def _encode(self, features: Tensor) -> Tensor:
        start = self.posterior.start(features)
        if self.posterior.flow is None:
            return start
        latents: Tensor = self.posterior.flow(start, features).state
        return latents

    @torch.no_grad()
    @_uncast
    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return one draw (n, d) from the posterior of each image; its latent, if there is nothing random."""
        if not isinstance(self.posterior, ControlledPosterior):
            return self.encode(images)
        return self.latents_under(images, torch.randn(images.shape[0], self.dim, generator=generator))

    @torch.no_grad()
    @_uncast
    def latents_under(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the latents (n, d) that standard normal noise (n, d) draws, if there is anything random."""
        if not isinstance(self.posterior, ControlledPosterior):
            return self.encode(images)
        features = self.features(self._checked(images))
        latents: Tensor = self.posterior(features, noise.unsqueeze(1).to(self.device, self.dtype)).latents[:, 0]
        return latents

    @torch.no_grad()
    @_uncast
    def decode(self, latents: Tensor, *, batch: int = 500) -> Tensor:
        """Return the expected images (n, C, H, W) in [0, 1] of latents (n, d)."""
        return in_parts(
            lambda part: self.likelihood.mean(self.output(part)), self._checked_latents(latents), batch=batch
        )

    def _checked_latents(self, latents: Tensor) -> Tensor:
        if latents.dim() != 2 or latents.shape[1] != self.dim:
            raise ValueError(f"latents must have shape (n, {self.dim}), got {tuple(latents.shape)}")
        return latents.to(self.device, self.dtype)

    @torch.no_grad()
    @_uncast
    def refinement(
        self, latents: Tensor, times: Sequence[float] | Tensor, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Return the pictures (T, n, C, H, W) in [0, 1] that the refiner's flow passes at each of `times`.

        Args:
            latents: (n, d).
            times: rising times in [0, 1], shape (T,).
            generator: random numbers, on the CPU.

        Returns:
            The pictures, or None without a trained refiner.
        """
        if self.refiner is None or not bool(self.refiner.fitted):
            return None
        latents = latents.to(self.device, self.dtype)
        noise = self._pixel_noise(len(latents), generator)
        return self.refiner.film(self.decode(latents), latents, noise, torch.as_tensor(times).to(noise))

    @torch.no_grad()
    @_uncast
    def emergence(self, latents: Tensor, times: Sequence[float] | Tensor) -> Tensor | None:
        """Return the pictures (T, n, C, H, W) in [0, 1] of an N-CODE decoder's flow stopped at each of `times`.

        Args:
            latents: (n, d).
            times: rising times in [0, 1], shape (T,); at 1 the pictures are those of `decode`.

        Returns:
            The pictures, or None for a decoder that is no flow.
        """
        if not isinstance(self.decoder, FlowDecoder):
            return None
        latents = latents.to(self.device, self.dtype)
        with torch.autocast(latents.device.type, self.precision, enabled=self.precision is not None):
            film = self.decoder.film(latents, times).to(self.dtype)
        return torch.stack([self.likelihood.mean(frame) for frame in film])

    @_uncast
    def reconstruct(self, images: Tensor) -> Tensor:
        """Return the decoded latents of images (n, C, H, W) in [0, 1]."""
        return self.decode(self.encode(images))

    @torch.no_grad()
    def bounds(
        self,
        images: Tensor,
        particles: int,
        generator: torch.Generator | None = None,
        *,
        steps: int | None = None,
        method: str | None = None,
        budget: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the ELBO and the importance-weighted bound, each (m,) in nats, of successive parts of `images`.

        Args:
            images: (n, C, H, W) in [0, 1].
            particles: number K of particles.
            generator: random numbers, on the CPU; they depend neither on `steps`, so that solvers can be compared, nor
                on `budget`, so that devices can be.
            steps: steps of the flow's solver instead of the recipe's.
            method: the flow's solver instead of the recipe's.
            budget: images times particles handled at a time; 0 for as many as suit the device.
        """
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"a likelihood in {self.dtype} would be off by nats; take model.float() for it")
        if particles < 1:
            raise ValueError(f"the number of particles must be at least 1, got {particles}")
        if len(images) == 0:
            none = self._checked(images).new_zeros(0)
            yield none, none
            return
        # On a CPU the feature maps of more particles leave the cache, which is far slower.
        budget = budget or (1024 if self.device.type == "cpu" else 4096)
        for part in self._checked(images).split(max(1, budget // particles)):
            uniforms, noises = [], []
            for image in part:
                uniforms.append(torch.rand(image.shape, generator=generator))
                noises.append(torch.randn(particles, self.dim, generator=generator))
            target = self.likelihood.target(part, torch.stack(uniforms).to(self.device, self.dtype))
            terms = self.terms(target, torch.stack(noises).to(self.device, self.dtype), SolverChoice(method, steps))
            yield terms.elbo, terms.importance_bound

    @_uncast
    def log_likelihood(
        self,
        images: Tensor,
        particles: int = 128,
        generator: torch.Generator | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Return an importance-weighted lower bound on log p(u) in nats, shape (n,).

        Args:
            images: (n, C, H, W) in [0, 1]; a Bernoulli likelihood binarises them with random numbers.
            particles: number of particles; the bound rises to log p(u) with it.
            generator: random numbers, on the CPU.
            steps: steps of the flow's solver; compare two to see whether the value stands.

        Raises:
            DensityError: the model is a deterministic autoencoder.
            ValueError: a wrong shape or range, or a NaN.
        """
        return torch.cat([bound for _, bound in self.bounds(images, particles, generator, steps=steps)])

    @torch.no_grad()
    @_uncast
    def trajectory(
        self, images: Tensor, times: Times | None = None, *, decode: bool = False, steps: int | None = None
    ) -> LatentTrajectory:
        """Follow the latents of images from x(0) to z = x(1), each under its own control.

        Args:
            images: (n, C, H, W) in [0, 1].
            times: requested times, T numbers, see `solvers.solve`; 33 even ones on [0, 1] if None.
            decode: whether to decode the states into pictures too.
            steps: steps of the flow's solver instead of the recipe's.

        Returns:
            A `LatentTrajectory`: states (T, n, d), and pictures (T, n, C, H, W) on request. Without a flow the latents
            stand still.
        """
        features = self.features(self._checked(images))
        times = as_times(torch.linspace(0.0, 1.0, 33) if times is None else times, features)
        path = self.posterior.path(features, times, steps)
        if path is None:
            still = self.posterior.start(features).expand(times.shape[0], -1, -1)
            path = FlowSolution(times, (still,), nfe=0, accepted=0, rejected=0, augmented=still)
        pictures = None
        if decode:
            pictures = self.decode(path.states.flatten(0, 1)).unflatten(0, path.states.shape[:2])
        return LatentTrajectory(**vars(path), pictures=pictures)
