"""The refiner: a flow from noise to what the decoder leaves out of an image; the latent is its control."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ..control import ControlledODE, OpenController, Solver, UNetField
from ..control.controllers import multilayer_perceptron

__all__ = ["Refiner"]

LEAST_SPREAD = 1 / 255


class _Guidance(nn.Module):
    """From a latent and its picture, (n, d + C H W), to the field's control: gains and biases, and the picture.

    With no hidden units gains and biases are the same for all latents.
    """

    def __init__(self, dim: int, field: UNetField, hidden: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.centre: Tensor
        self.scale: Tensor
        self.shared = None if hidden else nn.Parameter(torch.zeros(field.modulations))
        if hidden:
            self.body = multilayer_perceptron((dim, hidden, hidden))
            self.head = nn.Linear(hidden, field.modulations)
            with torch.no_grad():
                self.head.weight.normal_(0.0, 0.1 / hidden**0.5)
                self.head.bias.zero_()

    def forward(self, condition: Tensor) -> Tensor:
        latents, pictures = condition.split([self.dim, condition.shape[1] - self.dim], 1)
        if self.shared is not None:
            modulations = self.shared.expand(len(latents), -1)
        else:
            modulations = self.head(self.body((latents - self.centre) / self.scale))
        return torch.cat([modulations, pictures], 1)


class Refiner(nn.Module):
    """A controlled flow of pixels that adds what a decoder leaves out, drawn at random.

    A decoder's picture is a mean, and so blurred. What it leaves out, divided by its standard deviation, is the end of
    a flow from Gaussian noise: that of a U-net whose gains and biases the latent decides, and which is shown the
    picture. It is trained by flow matching along straight lines, with encoder and decoder as they are, so that it draws
    p(image | latent).

    Sources: Lipman et al., "Flow matching for generative modeling", ICLR 2023; Albergo et al., "Stochastic interpolants
    with data-dependent couplings", ICML 2024.

    Args:
        dim: number of latent dimensions d.
        shape: (C, H, W) of the images.
        width: channels of the U-net at its first resolution.
        blocks: its blocks at each resolution, down and up.
        noise: standard deviation of the noise, in units of that of what the decoder leaves out.
        steps: steps of the solver, of two stages each.
        stage: the share of a step ahead at which the second stage lies, see `ncode_gen.solvers.two_stages`.
        centred: whether the decoder's pictures are taken to be the mean of the images of a latent. The velocity of
            noise is then known, and the U-net is asked once less.
        loop: "open", or "static" for gains and biases that are the same for all latents: a neural ODE, which knows of
            a latent what its picture shows.

    Attributes:
        precision: dtype of the U-net's layers under automatic casting; None for float32.
        fitted: whether it was trained; until then images are the decoder's pictures, without noise.
        spread: standard deviation of what the decoder leaves out, in units of [0, 1], (C, 1, 1).

    >>> refiner = Refiner(3, (1, 8, 8), width=8, blocks=1)
    >>> latents, pictures = torch.randn(5, 3), torch.rand(5, 1, 8, 8)
    >>> refiner(pictures, latents, torch.randn(5, 1, 8, 8)).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        dim: int,
        shape: tuple[int, int, int],
        width: int = 64,
        blocks: int = 1,
        noise: float = 1.0,
        steps: int = 4,
        stage: float = 0.5,
        centred: bool = False,
        loop: Literal["static", "open"] = "open",
    ) -> None:
        super().__init__()
        self.noise = noise
        self.precision: torch.dtype | None = None
        field = UNetField(shape, width, blocks, noise, centred)
        gamma = _Guidance(dim, field, 2 * width if loop == "open" else 0)
        self.flow = ControlledODE(field, OpenController(gamma), solver=Solver(f"rk2:{stage}", steps))
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("spread", torch.ones(shape[0], 1, 1))
        self.fitted: Tensor
        self.spread: Tensor

    def evaluations(self, steps: int) -> int:
        """Return how often the U-net is asked for an image in some steps, at least 1, of the solver."""
        return 2 * steps - int(cast(UNetField, self.flow.field).centred)

    @torch.no_grad()
    def take_scale(self, images: Tensor, pictures: Tensor, latents: Tensor) -> None:
        """Take over the scale of latents and of what the decoder leaves out, by which both are divided.

        Args:
            images: (n, C, H, W) in [0, 1].
            pictures: the decoder's pictures of their latents, (n, C, H, W) in [0, 1].
            latents: (n, d).
        """
        gamma = cast(_Guidance, cast(OpenController, self.flow.controller).gamma)
        gamma.centre.copy_(latents.mean(0))
        gamma.scale.copy_(latents.std(0, correction=0).clamp_min(1e-4))
        left_out = (images - pictures).square().mean((0, 2, 3)).sqrt()
        self.spread.copy_(left_out.clamp_min(LEAST_SPREAD).view(-1, 1, 1))

    def matching(self, images: Tensor, pictures: Tensor, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the mean square per pixel, (n,), of the field's error about the velocity of straight lines.

        Its unit is the variance that would be left if the ends were noise, so that a new refiner has about 1.

        Args:
            images: where the lines lead, (n, C, H, W) in [0, 1].
            pictures: the decoder's pictures of the images' latents, (n, C, H, W) in [0, 1].
            latents: (n, d).
            noise: standard normal numbers, (n, C, H, W).
            t: times at which the field is asked, (n,), in [0, 1].
        """
        start, end = self.noise * noise, (images - pictures) / self.spread
        point = torch.lerp(start, end, t.view(-1, 1, 1, 1))
        field = cast(UNetField, self.flow.field)
        bound = self.flow.controller.steer(field, self._condition(pictures, latents))
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            velocity = bound.velocity(t, point.unsqueeze(1)).squeeze(1)
        uncertain = field.known(t)[1]
        return (velocity.to(end.dtype) - (end - start)).square().flatten(1).mean(1) / uncertain.square()

    def forward(self, pictures: Tensor, latents: Tensor, noise: Tensor, steps: int | None = None) -> Tensor:
        """Return images (n, C, H, W) in [0, 1].

        Args:
            pictures: the decoder's pictures, (n, C, H, W) in [0, 1].
            latents: the latents that they were decoded from, (n, d).
            noise: standard normal numbers, (n, C, H, W).
            steps: steps of the solver instead of its own.
        """
        condition = self._condition(pictures, latents)
        end: Tensor = self.flow(self.noise * noise, condition, steps=steps, precision=self.precision).state
        return self._added(pictures, end)

    def film(self, pictures: Tensor, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the images (T, n, C, H, W) in [0, 1] at rising times (T,) in [0, 1]; else as above.

        Raises:
            ValueError: times that do not rise, or lie outside [0, 1].
        """
        start = self.noise * noise
        values = times.tolist()
        rise = all(a < b for a, b in pairwise(values))
        if not values or not rise or values[0] < 0 or values[-1] > 1:
            raise ValueError(f"times must rise within [0, 1], got {values}")
        wanted = torch.cat([times.new_zeros(1), times]) if values[0] > 0 else times
        if len(wanted) == 1:  # t = 0 alone
            return self._added(pictures, start).unsqueeze(0)
        condition = self._condition(pictures, latents)
        states: Tensor = self.flow(start, condition, times=wanted, precision=self.precision).states
        return self._added(pictures, states[len(wanted) - len(times) :])

    def _added(self, pictures: Tensor, states: Tensor) -> Tensor:
        return (pictures + self.spread * states).clamp(0.0, 1.0)

    def _condition(self, pictures: Tensor, latents: Tensor) -> Tensor:
        return torch.cat([latents, pictures.flatten(1)], 1)
