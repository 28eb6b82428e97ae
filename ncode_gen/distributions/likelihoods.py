"""Likelihoods of an image given the decoder's output; images in [0, 1], log-probabilities in nats.

Each likelihood first makes a *target* from the images (binarised, dequantised or as they are) and scores that. The
random numbers that a target needs are an argument, so that a training step makes none of its own.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Likelihood(nn.Module, ABC):
    """A distribution of images of a fixed shape, whose parameters a decoder gives.

    Attributes:
        outputs: decoder channels for each image channel.
        levels: number of values that a target pixel can take, to turn nats into bits per dimension.
        protocol: how images become targets, in words.
    """

    outputs: int
    levels: int
    protocol: str

    @abstractmethod
    def target(self, images: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Turn images (n, C, H, W) in [0, 1] into what is scored.

        Args:
            images: the images.
            uniform: uniform numbers of their shape; without them the result is the mean target of each image.
        """

    @abstractmethod
    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """Return log p(target | output) in nats, shape (n,), summed over pixels; bins have volume 1 / levels^D."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """Return the expected image (n, C, H, W) in [0, 1]."""


class Bernoulli(Likelihood):
    """Pixels on or off, with logits from the decoder; targets are dynamically binarised images."""

    outputs, levels = 1, 2
    protocol = "dynamically binarised"

    def target(self, images: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Switch each pixel on with its own grey value as the probability."""
        return images if uniform is None else (uniform < images).to(images.dtype)

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the log-probability of 0/1 targets; of a mean target, its expectation."""
        return (output * target - nn.functional.softplus(output)).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """Return the probabilities."""
        return torch.sigmoid(output)


class Gaussian(Likelihood):
    """Pixels with normal noise of one learned scale; targets are images of 256 levels, uniformly dequantised.

    The log-probability is that of the level, bounded from below by the density of the dequantised pixel times the
    width 1 / 256 of its bin (Theis et al., "A note on the evaluation of generative models", ICLR 2016).
    """

    outputs, levels = 1, 256
    protocol = "256 levels, uniformly dequantised"

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-1.5))

    def target(self, images: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Spread each level over its bin: (255 u + uniform) / 256."""
        return (255 * images + (0.5 if uniform is None else uniform)) / 256

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """Return a lower bound on the log-probability of the levels."""
        scaled = (target - self.mean(output)) * torch.exp(-self.log_scale)
        constant = self.log_scale + 0.5 * math.log(2 * math.pi) + math.log(self.levels)
        return (-0.5 * scaled * scaled - constant).flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """Return the means."""
        return torch.sigmoid(output)


class DiscretisedLogistic(Likelihood):
    """Pixels of 256 levels with a logistic distribution whose mean and scale the decoder gives.

    Source: Salimans et al., "PixelCNN++", ICLR 2017, equation 2, with one component.
    """

    outputs, levels = 2, 256
    protocol = "256 levels"

    def target(self, images: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return the images as they are."""
        return images

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the log-probability of the levels."""
        centre, log_scale = output.chunk(2, 1)
        sharpness = torch.exp(-log_scale.clamp(-7.0, 3.0) + 2.0)
        offset = target - torch.sigmoid(centre)
        upper = (offset + 0.5 / 255) * sharpness
        lower = (offset - 0.5 / 255) * sharpness
        # log(sigmoid(upper) - sigmoid(lower)), written so that no tail is lost to rounding.
        inside = (
            nn.functional.logsigmoid(upper) + nn.functional.logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))
        )
        level = torch.where(
            target < 0.5 / 255,
            nn.functional.logsigmoid(upper),
            torch.where(target > 1 - 0.5 / 255, nn.functional.logsigmoid(-lower), inside),
        )
        return level.flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """Return the centres."""
        return torch.sigmoid(output.chunk(2, 1)[0])
