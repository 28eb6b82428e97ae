"""The observation p(u | z): an image given its latent."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.flow_decoder import FlowDecoder
from .likelihoods import Likelihood
from .refiner import Refiner

Times = Sequence[float] | Tensor


class Observation(nn.Module, ABC):
    """p(u | z): the distribution of an image (C, H, W) in [0, 1] given its latent (d,).

    A subclass scores *targets*, which it makes of images, and samples images; its weights are those of its submodules.

    Attributes:
        classes: number of classes whose labels condition it; 0 for none.
        shape: (C, H, W) of the images.
        levels: number of values that a target pixel can take, to turn nats into bits per dimension.
        protocol: how images become targets, in words.
        own_phase: name of the submodule that a training phase of its own trains; None if all is trained at once.
    """

    own_phase: str | None = None
    classes = 0
    shape: tuple[int, int, int]
    levels: int
    protocol: str

    @abstractmethod
    def target(self, images: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return what is scored of images (n, C, H, W): stochastic, by uniform numbers of their shape, or the mean."""

    @abstractmethod
    def log_prob(self, target: Tensor, latents: Tensor) -> Tensor:
        """Return log p(target | latents) in nats, shape (n,)."""

    @abstractmethod
    def mean(self, latents: Tensor) -> Tensor:
        """Return the expected images (n, C, H, W) of latents (n, d)."""

    @property
    def stochastic(self) -> bool:
        """Whether `sample` gives images that differ from their means."""
        return False

    def sample(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Return images (n, C, H, W) of latents (n, d) and standard normal noise (n, C, H, W).

        Where nothing but independent noise of each pixel could be added, they are the expected images.
        """
        return self.mean(latents)

    def sampler(self, evaluations: int | None = None, guidance: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `sample`, as it is with other settings.

        Args:
            evaluations: how often a flow of pixels may be evaluated for an image; as the recipe says if None.
            guidance: how far the velocity of a label is moved away from that of any; 1 for not at all.

        Raises:
            ValueError: there is no such setting here.
        """
        if evaluations is not None:
            raise ValueError("this model has no flow of pixels, whose evaluations could be chosen")
        if guidance != 1.0:
            raise ValueError("this model has no labels, so no guidance")
        return self.sample

    def trajectories(self, latents: Tensor, noise: Tensor, times: Times) -> dict[str, Tensor]:
        """Return how images arise along the flows of this distribution, by the name of the flow; none without one.

        Args:
            latents: (n, d).
            noise: standard normal numbers, (n, C, H, W).
            times: rising times in [0, 1], shape (T,).

        Returns:
            Images (T, n, C, H, W) in [0, 1] for each flow.
        """
        return {}

    def invert(self, images: Tensor, latents: Tensor, evaluations: int | None = None) -> Tensor:
        """Return the noise (n, C, H, W) that flows to images (n, C, H, W) under latents (n, d).

        Raises:
            ValueError: no flow leads from noise to the image.
        """
        raise ValueError("this model has no flow from noise to the image, so no noise to be found")

    def compute_in(self, precision: torch.dtype | None) -> None:
        """Let the layers compute in a dtype; None for that of the weights."""

    def take_scale(self, images: Tensor) -> None:
        """Take over what is fixed before training from some training images (n, C, H, W) in [0, 1]."""

    def penalised(self) -> Iterator[nn.Parameter]:
        """Yield the weights that an L2 penalty of the decoder is for."""
        return self.parameters()


class Pixelwise(Observation):
    """Independent pixels, whose distribution a decoder gives; samples are decoder means, which are blurry.

    Args:
        dim: number of latent dimensions d.
        shape: (C, H, W) of the images.
        decoder: from latents to the parameters of the likelihood.
        likelihood: distribution of an image given these.

    Attributes:
        precision: dtype of the decoder's layers under automatic casting; None for that of the weights.
    """

    def __init__(self, dim: int, shape: tuple[int, int, int], decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        self.dim, self.shape, self.decoder, self.likelihood = dim, shape, decoder, likelihood
        self.levels, self.protocol = likelihood.levels, likelihood.protocol
        self.precision: torch.dtype | None = None

    def compute_in(self, precision: torch.dtype | None) -> None:
        """Let the layers compute in a dtype; None for that of the weights."""
        self.precision = precision

    def penalised(self) -> Iterator[nn.Parameter]:
        """Yield the weights of the decoder."""
        return self.decoder.parameters()

    def decoder_params(self, latents: Tensor) -> Tensor:
        """Return the parameters of the likelihood (n, ...), in the dtype of the latents."""
        with torch.autocast(latents.device.type, self.precision, enabled=self.precision is not None):
            params: Tensor = self.decoder(latents)
        return params.to(latents.dtype)

    def target(self, images: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return what is scored of images, see `Likelihood.target`."""
        return self.likelihood.target(images, uniform)

    def log_prob(self, target: Tensor, latents: Tensor) -> Tensor:
        """Return log p(target | latents) in nats, shape (n,)."""
        return self.likelihood.log_prob(self.decoder_params(latents), target)

    def mean(self, latents: Tensor) -> Tensor:
        """Return the decoder means."""
        return self.likelihood.mean(self.decoder_params(latents))

    def trajectories(self, latents: Tensor, noise: Tensor, times: Times) -> dict[str, Tensor]:
        """Return how images arise along the decoder's flow, if it is one."""
        if not isinstance(self.decoder, FlowDecoder):
            return {}
        with torch.autocast(latents.device.type, self.precision, enabled=self.precision is not None):
            path = self.decoder.trajectory(latents, times).to(latents.dtype)
        return {"decoder": torch.stack([self.likelihood.mean(params) for params in path])}


class Refined(Pixelwise):
    """Decoder means, to which a flow of pixels adds a sample of the residual.

    Likelihoods are those of the pixelwise distribution.

    Args:
        dim: number of latent dimensions d.
        shape: (C, H, W) of the images.
        decoder: from latents to the parameters of the likelihood.
        likelihood: distribution of an image given these.
        refiner: the flow.
    """

    def __init__(
        self, dim: int, shape: tuple[int, int, int], decoder: nn.Module, likelihood: Likelihood, refiner: Refiner
    ) -> None:
        super().__init__(dim, shape, decoder, likelihood)
        self.own_phase = "refiner"
        self.refiner = refiner.requires_grad_(False)  # a training phase of its own trains it

    def compute_in(self, precision: torch.dtype | None) -> None:
        """Let the layers of decoder and refiner compute in a dtype; None for that of the weights."""
        super().compute_in(precision)
        self.refiner.precision = precision

    @property
    def stochastic(self) -> bool:
        """Whether the refiner is trained."""
        return bool(self.refiner.fitted)

    def sample(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Return images of latents (n, d) and noise (n, C, H, W); until the refiner is trained, decoder means."""
        means = self.mean(latents)
        return self.refiner.sample(means, latents, noise) if self.stochastic else means

    def sampler(self, evaluations: int | None = None, guidance: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `sample`, as it is with another number of evaluations of the refiner.

        Raises:
            ValueError: guidance, which needs labels, or less than one evaluation.
        """
        if evaluations is None or not self.stochastic:
            return super().sampler(evaluations, guidance)
        super().sampler(None, guidance)
        options = self.refiner.options_of(evaluations)

        def sample(latents: Tensor, noise: Tensor) -> Tensor:
            return self.refiner.sample(self.mean(latents), latents, noise, options)

        return sample

    def trajectories(self, latents: Tensor, noise: Tensor, times: Times) -> dict[str, Tensor]:
        """Return how images arise along the decoder's flow, if it has one, and along the refiner's."""
        found = super().trajectories(latents, noise, times)
        if self.stochastic:
            at = torch.as_tensor(times).to(noise)
            found["refiner"] = self.refiner.trajectory(self.mean(latents), latents, noise, at)
        return found


def refined(dim: int, shape: tuple[int, int, int], decoder: nn.Module, likelihood: Likelihood, **keys: Any) -> Refined:
    """Return the refined observation of a recipe's section; see `Refiner` for the keys."""
    return Refined(dim, shape, decoder, likelihood, Refiner(dim, shape, **keys))
