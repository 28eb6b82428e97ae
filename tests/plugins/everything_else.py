"""The other kinds of components, in one file outside the package: each as small as it can be."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ncode_gen.config import (
    DataSection,
    DecoderSection,
    FlowSection,
    LikelihoodSection,
    ObjectiveSection,
    ObservationSection,
    Positive,
    PosteriorSection,
    Width,
    register,
)
from ncode_gen.control import ConstantField, ControlledODE, OpenController
from ncode_gen.data import Splits, TensorImages
from ncode_gen.distributions import LatentModel, Likelihood, Pixelwise, Posterior
from ncode_gen.training.objective import Objective


@register("stripes")
class StripesSection(DataSection):
    """Stripes of random widths."""

    features: ClassVar[str] = "digits-classifier"

    count: Width = 600
    """Number of training images."""

    def load(self, recorded: Any = None, *, earlier: bool = False) -> Splits:
        generator = torch.Generator().manual_seed(self.split_seed)
        columns = torch.randint(0, 2, (self.count + 200, 1, 1, 8), generator=generator, dtype=torch.uint8)
        images = TensorImages((255 * columns).expand(-1, -1, 8, -1).contiguous())
        train, validation, test = torch.arange(len(images)).split([self.count, 100, 100])
        return Splits(images.select(train), images.select(validation), images.select(test))


@register("affine")
class AffineDecoderSection(DecoderSection):
    """One affine map."""

    def build(self, dim: int, shape: tuple[int, int, int]) -> nn.Module:
        channels, height, width = shape
        return nn.Sequential(nn.Linear(dim, channels * height * width), nn.Unflatten(1, shape))


class LaplacePixels(Likelihood):
    """Laplace distributions of one scale."""

    outputs, levels, protocol = 1, 256, "uniformly dequantised"

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def target(self, images: Tensor, uniform: Tensor | None = None) -> Tensor:
        return images if uniform is None else (images * 255 + uniform) / 256

    def log_prob(self, output: Tensor, target: Tensor) -> Tensor:
        found: Tensor = torch.distributions.Laplace(self.mean(output), self.scale).log_prob(target)
        return found.flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)


@register("laplace")
class LaplacePixelsSection(LikelihoodSection):
    """Laplace distributions of one scale."""

    scale: Positive = 0.2
    """Scale of a pixel."""

    def build(self) -> LaplacePixels:
        return LaplacePixels(self.scale)


class UniformPosterior(Posterior):
    """A start that is uniform around a linear map of the features."""

    def __init__(self, features: int, dim: int, flow: ControlledODE | None) -> None:
        super().__init__(flow)
        self.centre = nn.Linear(features, dim)

    def start(self, features: Tensor) -> Tensor:
        centre: Tensor = self.centre(features)
        return centre

    def sample_start(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        share = torch.special.ndtr(noise) - 0.5
        return self.start(features).unsqueeze(1) + share, noise.new_zeros(noise.shape[:2])


@register("uniform")
class UniformPosteriorSection(PosteriorSection):
    """Uniform of width one."""

    def build(self, features: int, dim: int, flow: ControlledODE | None) -> UniformPosterior:
        return UniformPosterior(features, dim, flow)


@register("shift")
class ShiftSection(FlowSection):
    """A controlled translation."""

    def build(self, dim: int, features: int) -> ControlledODE:
        return ControlledODE(ConstantField(dim), OpenController(nn.Linear(features, dim)))


class RoundedMeans(Pixelwise):
    """Decoder means that are rounded to black and white by the flip of a coin."""

    @property
    def stochastic(self) -> bool:
        return True

    def sample(self, latents: Tensor, noise: Tensor) -> Tensor:
        white: Tensor = torch.special.ndtr(noise) < self.mean(latents)
        return white.to(latents.dtype)


@register("rounded")
class RoundedSection(ObservationSection):
    """Black and white samples."""

    def build(self, dim: int, shape: tuple[int, int, int], decoder: nn.Module, likelihood: Likelihood) -> RoundedMeans:
        return RoundedMeans(dim, shape, decoder, likelihood)


class SlowElbo(Objective):
    """The negative evidence lower bound with a constant weight of its KL term."""

    def __init__(self, model: LatentModel, kl_weight: float) -> None:
        super().__init__(model)
        self.kl_weight = kl_weight

    def __call__(self, target: Tensor, noise: Tensor, weight: Tensor, grid: Tensor | None) -> tuple[Tensor, Tensor]:
        terms = self.model.elbo_terms(target, noise)
        loss = self.kl_weight * (terms.log_posterior - terms.log_prior).mean() - terms.reconstruction_log_prob.mean()
        return loss, -terms.elbo.mean().detach()


@register("slow-elbo")
class SlowElboSection(ObjectiveSection):
    """The evidence lower bound without a warm-up."""

    random_posterior: ClassVar[bool] = True

    kl_weight: Positive = 0.5
    """Weight of the KL term."""

    def build(self, model: LatentModel) -> Callable[..., tuple[Tensor, Tensor]]:
        return SlowElbo(model, self.kl_weight)
