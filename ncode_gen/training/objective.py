"""What training minimises."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..distributions import Adjust, LatentModel
from ..runtime.workers import Workers


def mmd(latents: Tensor, samples: Tensor) -> Tensor:
    """Return the unbiased squared maximum mean discrepancy of two sets of n points, each (n, d).

    The kernel is a sum of inverse multiquadrics C / (C + |x - y|^2), C = 2 d s, over seven scales s (Tolstikhin et al.,
    "Wasserstein auto-encoders", ICLR 2018, section 4, with the scales of the authors' program).
    """
    n, dim = latents.shape
    squares = [torch.cdist(a, b).square() for a, b in ((latents, latents), (samples, samples), (latents, samples))]
    total = latents.new_zeros(())
    for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
        width = 2 * dim * scale
        own, sampled, cross = (width / (width + square) for square in squares)
        # A point's kernel with itself is 1; the unbiased estimate leaves these out.
        total = total + (own.sum() + sampled.sum() - 2 * n) / (n * (n - 1)) - 2 * cross.mean()
    return total


class Objective(ABC):
    """The loss of a batch: (target, noise, weight of the KL term, ...) -> (loss, nats to report).

    Args:
        model: the model that is trained.
    """

    particles = 1

    def __init__(self, model: LatentModel) -> None:
        self.model = model

    @abstractmethod
    def __call__(self, *batch: Any) -> tuple[Tensor, Tensor]:
        """Return the loss, (), and the nats an image to report, ().

        Args:
            *batch: targets (n, C, H, W), see `Observation.target`; standard normal numbers (n, K, d); the weight of the
                KL term, (); then what `draw` gives, or the time grid of the flows, (S + 1,).
        """

    def weight(self, step: float, steps: int) -> float:
        """Return the weight of the KL term at a step."""
        return 1.0

    def draw(self, images: Tensor, labels: Tensor | None, generator: torch.Generator, workers: Workers) -> list[Tensor]:
        """Return further arguments of the loss, which replace the time grid: random numbers of this objective's own.

        Args:
            images: this process's part of the batch, (n, C, H, W).
            labels: their classes, (n,); None where they are unknown.
            generator: random numbers, on the CPU, of the whole batch.
            workers: the processes that share it.
        """
        return []


def _on(grid: Tensor | None) -> Adjust | None:
    return None if grid is None else lambda options: options.but(grid=grid)


def _lost(loss: Tensor, unfinished: int) -> Tensor:
    """Return a loss, which is not finite, and so leaves the batch out, if a solve did not reach its last time."""
    return loss * torch.nan if unfinished else loss


class Elbo(Objective):
    """The negative evidence lower bound, or the importance-weighted one of many particles.

    Args:
        model: the model that is trained.
        warmup: share of training over which the weight of the KL term rises.
        beta: final weight of the KL term.
        particles: samples of an image's latent.
        free_nats: KL divergence that costs nothing.
        kinetic: weight of the kinetic energy of the posterior's flow.
    """

    def __init__(
        self, model: LatentModel, warmup: float, beta: float, particles: int, free_nats: float, kinetic: float
    ) -> None:
        super().__init__(model)
        self.warmup, self.beta, self.particles = warmup, beta, particles
        self.free_nats, self.kinetic = free_nats, kinetic

    def weight(self, step: float, steps: int) -> float:
        """Return the weight of the KL term at a step."""
        rise = self.warmup * steps
        return self.beta * min(1.0, (step + 1) / rise if rise > 0 else 1.0)

    def __call__(self, *batch: Any) -> tuple[Tensor, Tensor]:
        """Return the loss and the negative ELBO."""
        target, noise, weight, grid = batch
        terms = self.model.elbo_terms(target, noise, _on(grid), energy=self.kinetic > 0)
        if noise.shape[1] > 1:
            weighted = replace(terms, log_prior=weight * terms.log_prior, log_posterior=weight * terms.log_posterior)
            loss = -weighted.importance_bound.mean()
        else:
            cost = (terms.log_posterior - terms.log_prior).mean()
            if self.free_nats:  # below them it costs nothing, so that no dimension is given up early
                cost = cost.clamp(min=self.free_nats)
            loss = weight * cost - terms.reconstruction_log_prob.mean()
        if terms.energy is not None:
            loss = loss + self.kinetic * terms.energy.mean()
        return _lost(loss, terms.unfinished), -terms.elbo.mean().detach()


class Autoencoder(Objective):
    """Reconstruction from deterministic codes, with a penalty of these.

    Args:
        model: the model that is trained.
        decoder_penalty: weight of the squared norm of the decoder's weights.
        stochastic_targets: whether targets are stochastic; the phase makes them.
        latent_penalty: weight of half the squared norm of the latent.
        latent_noise: standard deviation of what is added to the latent.
    """

    def __init__(
        self,
        model: LatentModel,
        decoder_penalty: float,
        stochastic_targets: bool,
        latent_penalty: float = 0.0,
        latent_noise: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.decoder_penalty, self.latent_penalty, self.latent_noise = decoder_penalty, latent_penalty, latent_noise

    def __call__(self, *batch: Any) -> tuple[Tensor, Tensor]:
        """Return the loss and the nats of the reconstruction."""
        target, noise, _, grid = batch
        model, flow, adjust = self.model, self.model.posterior.flow, _on(grid)
        options = None if flow is None or adjust is None else adjust(flow.options)
        sampled = model.posterior.sample(model.features(target), noise, options)
        latents = sampled.latents[:, 0]
        noisy = latents + self.latent_noise * noise[:, 0] if self.latent_noise else latents
        nats = -model.observation.log_prob(target, noisy).mean()
        loss = nats + self.penalty(latents, noise[:, 0])
        if self.decoder_penalty:
            weights = [value.square().sum() for value in model.observation.penalised()]
            loss = loss + self.decoder_penalty * torch.stack(weights).sum()
        return _lost(loss, sampled.unfinished), nats.detach()

    def penalty(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Return the penalty of latents (n, d), (); `noise` are samples of N(0, I), (n, d)."""
        return self.latent_penalty * 0.5 * (latents * latents).sum(-1).mean()


class Wasserstein(Autoencoder):
    """Reconstruction from deterministic codes, with the MMD of their distribution to N(0, I).

    Args:
        model: the model that is trained.
        decoder_penalty: weight of the squared norm of the decoder's weights.
        stochastic_targets: whether targets are stochastic; the phase makes them.
        mmd_weight: weight of the maximum mean discrepancy.
    """

    def __init__(self, model: LatentModel, decoder_penalty: float, stochastic_targets: bool, mmd_weight: float) -> None:
        super().__init__(model, decoder_penalty, stochastic_targets)
        self.mmd_weight = mmd_weight

    def penalty(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Return the weighted MMD of latents (n, d) and samples of N(0, I), (n, d)."""
        return self.mmd_weight * mmd(latents, noise)
