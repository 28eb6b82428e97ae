"""Flow matching of a flow observation, together with the posterior of its code."""

import math

import torch
from torch import Tensor

from ..distributions import LatentModel, PixelFlow
from ..runtime.workers import Workers
from .objective import Objective

MOST_SNR, WIDE = 5.0, 1e-4


class Matching(Objective):
    """The error of the velocity on straight lines from noise to images, and the KL divergence in nats a pixel.

    Times are stratified over a batch. A share of it has likelihood weighting, see `PixelFlow.bound`.

    Args:
        model: the model that is trained.
        times: how times are drawn: "uniform", "logit-normal" or "log-snr".
        weighting: "plain" or "min-snr".
        likelihood: share of a batch with likelihood weighting.
        beta: final weight of the KL divergence.
        warmup: share of training over which it rises.
        free_nats: KL divergence that costs nothing.
        latent_noise: standard deviation of what is added to a deterministic code.
        label_dropout: share of the images whose label is hidden.
    """

    def __init__(
        self,
        model: LatentModel,
        times: str = "uniform",
        weighting: str = "plain",
        likelihood: float = 0.0,
        beta: float = 0.03,
        warmup: float = 0.1,
        free_nats: float = 0.0,
        latent_noise: float = 0.0,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__(model)
        assert isinstance(model.observation, PixelFlow)
        self.observation = model.observation
        self.times, self.weighting, self.likelihood = times, weighting, likelihood
        self.beta, self.warmup, self.free_nats = beta, warmup, free_nats
        self.latent_noise, self.label_dropout = latent_noise, label_dropout

    def weight(self, step: float, steps: int) -> float:
        """Return the weight of the KL term at a step."""
        rise = self.warmup * steps
        return self.beta * min(1.0, (step + 1) / rise if rise > 0 else 1.0)

    def draw(self, images: Tensor, labels: Tensor | None, generator: torch.Generator, workers: Workers) -> list[Tensor]:
        """Return noise (n, C, H, W), times (n,), weights of the error (n,), and labels (n, classes) with some hidden.

        Args:
            images: this process's part of the batch, (n, C, H, W).
            labels: their classes, (n,); None without labels.
            generator: random numbers, on the CPU, of the whole batch.
            workers: the processes that share it.
        """
        count = len(images) * workers.count
        noise = torch.randn(count, *images.shape[1:], generator=generator)
        uniform = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        order = torch.randperm(count, generator=generator)
        times, weights = self._weighted_times(uniform, round(self.likelihood * count))
        drawn = [noise, times[order], weights[order]]
        if self.observation.classes:
            kept = torch.rand(count, generator=generator) >= self.label_dropout
            drawn.append(kept.float().unsqueeze(1))
        drawn = [workers.part(part).to(images.device) for part in drawn]
        if self.observation.classes:
            assert labels is not None
            one_hot = torch.nn.functional.one_hot(labels.long(), self.observation.classes).to(images.device)
            drawn[3] = drawn[3] * one_hot
        return drawn

    def _weighted_times(self, uniform: Tensor, likelihood: int) -> tuple[Tensor, Tensor]:
        """Return times and weights of the squared error of the velocity for stratified numbers in [0, 1], (n,)."""
        count = len(uniform)
        # Every k-th number, so that both parts are stratified.
        chosen = torch.zeros(count, dtype=torch.bool)
        if likelihood:
            chosen[torch.linspace(0, count - 1, likelihood).round().long()] = True
        low, high = self.observation.log_snr_range()
        of_snr = (0.5 * (low + (high - low) * uniform)).sigmoid()
        bound = 0.5 * (high - low) * of_snr.square()
        if self.times == "uniform":
            times = uniform
        elif self.times == "logit-normal":
            times = torch.special.ndtri(uniform.double().clamp(WIDE, 1 - WIDE)).sigmoid().float()
        else:
            times = of_snr
        weights = torch.ones(count)
        if self.weighting == "min-snr":
            snr = (times / (1 - times).clamp_min(WIDE)).square()
            weights = times.square() * snr.clamp_max(MOST_SNR) / snr.clamp_min(WIDE**2)
        return torch.where(chosen, of_snr, times), torch.where(chosen, bound, weights)

    def encoded(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the features (n, f) that the code is made from: of images alone, whatever the noise of their paths."""
        return self.model.features(images)

    def __call__(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the KL divergence in nats an image.

        Args:
            *batch: images (n, C, H, W), noise of the codes (n, 1, d), weight of the KL term (), noise of the pixels
                (n, C, H, W), times (n,), weights of the error (n,), and labels (n, classes) where there are.
        """
        images, code_noise, beta, noise, times, weights, *labels = batch
        model = self.model
        sampled = model.posterior.sample(self.encoded(images, noise), code_noise)
        codes = sampled.latents[:, 0]
        if sampled.log_prob is None:
            codes, divergence = codes + self.latent_noise * code_noise[:, 0], codes.new_zeros(())
        else:
            divergence = (sampled.log_prob - model.prior.log_prob(sampled.latents)).mean()
        error = self.observation.matching_error(images, torch.cat([codes, *labels], 1), noise, times)
        cost = divergence.clamp(min=self.free_nats) if self.free_nats else divergence
        loss = (weights * error).mean() + beta * cost / math.prod(images.shape[1:])
        return loss, divergence.detach()
