"""The observation as a flow from noise to the image, whose control the code decides."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..control import (
    AlgebraicController,
    ControlledODE,
    Controller,
    DenseUNetField,
    ImageControl,
    ImageField,
    ImageGamma,
    OpenController,
    StaticController,
    guided,
)
from ..solvers import SolveOptions
from ..solvers import evaluations as evaluations_of
from .observation import Observation, Times

LEVELS = 256
LEAST_STD = 1 / 255
CLEAN = 1 / 3  # noise at the clean end, in steps of the levels
LEAST_LOG_SNR = -5.0
Loop = Literal["static", "open", "closed"]


class Scaling(nn.Module):
    """What images are made states with; a module of its own, since training saves the modules of an observation.

    Attributes:
        centre: mean of all pixels in [0, 1], ().
        scale: their standard deviation, ().
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.tensor(0.5))
        self.register_buffer("scale", torch.tensor(0.25))
        self.centre: Tensor
        self.scale: Tensor


class PixelFlow(Observation):
    """p(u | z) as a flow from noise x(0) to the image x(1), under the control theta = gamma(z): N-CODE as a decoder.

    Encoder, gamma and field are trained together by flow matching along straight lines, so the control is the only path
    from the code to the image. States are images minus their mean, divided by their standard deviation.

    Sources: Lipman et al., "Flow matching for generative modeling", ICLR 2023; Preechakul et al., "Diffusion
    autoencoders", CVPR 2022; Kingma et al., "Variational diffusion models", NeurIPS 2021 (the bound).

    Args:
        shape: (C, H, W) of the images.
        field: the field.
        controller: what decides its control from codes and labels (n, d + classes).
        dim: size d of the code.
        classes: number of classes; 0 without labels.
        method: solver from noise to images, see `ncode_gen.solvers.SolveOptions`.
        steps: its steps.
        shift: how times of steps lie: above 1 more of them are near the image, below 1 near the noise.

    Attributes:
        precision: dtype of the layers under automatic casting; None for that of the weights.
        scaling: mean and standard deviation of all pixels.
        exact: dimensions up to which divergences are exact.
    """

    levels, protocol, exact = LEVELS, "uniformly dequantised", 36

    def __init__(
        self,
        shape: tuple[int, int, int],
        field: ImageField,
        controller: Controller,
        dim: int,
        classes: int = 0,
        method: str = "midpoint",
        steps: int = 4,
        shift: float = 1.0,
    ) -> None:
        super().__init__()
        self.shape, self.dim, self.classes, self.shift = shape, dim, classes, shift
        self.flow = ControlledODE(field, controller, options=SolveOptions(method, steps))
        self.precision: torch.dtype | None = None
        self.scaling = Scaling()

    def compute_in(self, precision: torch.dtype | None) -> None:
        """Let the layers compute in a dtype; None for that of the weights."""
        self.precision = precision

    @property
    def stochastic(self) -> bool:
        """True: samples differ by their noise."""
        return True

    @torch.no_grad()
    def take_scale(self, images: Tensor) -> None:
        """Take over the mean and the standard deviation of the pixels of images (n, C, H, W) in [0, 1]."""
        self.scaling.centre.copy_(images.mean())
        self.scaling.scale.copy_(images.std().clamp_min(LEAST_STD))
        field = self.flow.field
        if isinstance(field, DenseUNetField):
            field.level_step.copy_(self.level_step)

    def states(self, images: Tensor) -> Tensor:
        """Return images (n, C, H, W) in [0, 1] as states of about unit variance."""
        return (images - self.scaling.centre) / self.scaling.scale

    def images(self, states: Tensor) -> Tensor:
        """Return states (..., C, H, W) as images in [0, 1]."""
        return (self.scaling.centre + self.scaling.scale * states).clamp(0.0, 1.0)

    @property
    def level_step(self) -> Tensor:
        """Distance of two of the 256 levels of a pixel, in units of the state, ()."""
        return 1 / ((LEVELS - 1) * self.scaling.scale)

    def target(self, images: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return what is scored: images, uniformly dequantised if numbers are given."""
        return images if uniform is None else (images * (LEVELS - 1) + uniform) / LEVELS

    def velocity(self, t: Tensor, states: Tensor, conditions: Tensor) -> Tensor:
        """Return dx/dt at times (n,) and states (n, C, H, W) under the control of conditions (n, d + classes)."""
        with torch.autocast(states.device.type, self.precision, enabled=self.precision is not None):
            bound = self.flow.controller.bind(self.flow.field, conditions)
            velocity = bound.velocity(t, states.unsqueeze(1)).squeeze(1)
        return velocity.to(states.dtype)

    def matching_error(self, images: Tensor, conditions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the mean square per pixel of the velocity's error on straight lines from noise to images, (n,).

        Args:
            images: (n, C, H, W) in [0, 1].
            conditions: codes and labels, (n, d + classes).
            noise: standard normal numbers, (n, C, H, W).
            t: times, (n,), in [0, 1].
        """
        ends = self.states(images)
        points = torch.lerp(noise, ends, t.view(-1, 1, 1, 1))
        return (self.velocity(t, points, conditions) - (ends - noise)).square().flatten(1).mean(1)

    def mean(self, latents: Tensor) -> Tensor:
        """Return the expected images (n, C, H, W) of conditions, which the velocity of noise at t = 0 is."""
        start = latents.new_zeros(len(latents), *self.shape)
        t = latents.new_zeros(len(latents))
        return self.images(self.velocity(t, start, latents))

    def options_of(self, evaluations: int | None = None) -> SolveOptions:
        """Return how images are solved for, in a number of evaluations at most; by Euler's method where they are few.

        Raises:
            ValueError: less than one evaluation.
        """
        own = self.flow.options
        if evaluations is not None and evaluations < 1:
            raise ValueError(f"the number of evaluations must be at least 1, got {evaluations}")
        stages = evaluations_of(own.method, 1)
        if evaluations is not None and evaluations < stages:
            own, stages = own.but(method="euler"), 1
        steps = own.steps if evaluations is None else evaluations // stages
        even = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
        grid = (self.shift * even / (1 + (self.shift - 1) * even)).float()
        return own.but(steps=steps, grid=grid if self.shift != 1 else None, precision=self.precision)

    def solve(self, noise: Tensor, latents: Tensor) -> Tensor:
        """Return the states (n, C, H, W) that noise flows to under conditions (n, d + classes)."""
        options = self.options_of()
        if isinstance(options.grid, Tensor):
            options = options.but(grid=options.grid.to(noise))
        found: Tensor = self.flow(noise, latents, options=options).state
        return found

    def sample(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Return images (n, C, H, W) in [0, 1] of conditions (n, d + classes) and noise x(0), (n, C, H, W)."""
        return self.sampler()(latents, noise)

    def sampler(self, evaluations: int | None = None, guidance: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `sample`, as it is with another number of evaluations of the field, or guided towards labels.

        Raises:
            ValueError: guidance without labels, or less than one evaluation.
        """
        options = self.options_of(evaluations)
        if guidance != 1.0 and not self.classes:
            super().sampler(None, guidance)
        flow = self.flow if guidance == 1.0 else guided(self.flow, guidance, self.classes)

        def sample(latents: Tensor, noise: Tensor) -> Tensor:
            here = options.but(grid=options.grid.to(noise)) if isinstance(options.grid, Tensor) else options
            return self.images(flow(noise, latents, options=here).state)

        return sample

    def invert(self, images: Tensor, latents: Tensor, evaluations: int | None = None) -> Tensor:
        """Return the noise x(0), (n, C, H, W), that flows to images (n, C, H, W) under conditions (n, d + classes)."""
        options = self.options_of(evaluations)
        if isinstance(options.grid, Tensor):
            options = options.but(grid=options.grid.flip(0).to(latents))
        found: Tensor = self.flow.inverse(self.states(images), latents, options=options).state
        return found

    def trajectories(self, latents: Tensor, noise: Tensor, times: Times) -> dict[str, Tensor]:
        """Return the images (T, n, C, H, W) on the way from noise, at rising times in [0, 1]."""
        at = torch.as_tensor(times).to(noise)
        values = at.tolist()
        if not values or not all(a < b for a, b in pairwise(values)) or values[0] < 0 or values[-1] > 1:
            raise ValueError(f"times must rise within [0, 1], got {values}")
        wanted = torch.cat([at.new_zeros(1), at]) if values[0] > 0 else at
        if len(wanted) == 1:
            return {"pixels": self.images(noise).unsqueeze(0)}
        options = self.flow.options.but(steps=max(self.flow.options.steps, 16), precision=self.precision)
        states = self.flow(noise, latents, times=wanted, options=options).states
        return {"pixels": self.images(states[len(wanted) - len(at) :])}

    def log_prob(self, target: Tensor, latents: Tensor) -> Tensor:
        """Return log p(target | condition) in nats, (n,), of dequantised targets; bins have volume 1 / 256^D.

        The divergence is exact up to 36 dimensions, else Hutchinson's estimate along one direction of fixed seed.
        """
        return self.log_prob_in(target, latents, 32)

    def log_prob_in(self, target: Tensor, latents: Tensor, steps: int, direction: Tensor | None = None) -> Tensor:
        """Return log p(target | condition) in nats, (n,), by Runge-Kutta 4 back to the noise in some steps.

        The path starts where its noise is a third of a step of the levels (`clean_time`), so that the density of images
        with whole levels is finite and even within their bins.

        Args:
            target: dequantised images, (n, C, H, W) in [0, 1].
            latents: codes and labels, (n, d + classes).
            steps: number of steps; half of them are where signal is above noise.
            direction: Hutchinson's direction, (n, C, H, W); of fixed seed if None and there are many dimensions.
        """
        size, last = math.prod(self.shape), self.clean_time()
        points = last * (target * LEVELS / (LEVELS - 1) - 0.5 / (LEVELS - 1) - self.scaling.centre) / self.scaling.scale
        if direction is None and size > self.exact:
            generator = torch.Generator().manual_seed(0)
            signs = torch.randint(0, 2, (1, *self.shape), generator=generator) * 2 - 1
            direction = signs.expand(len(target), -1, -1, -1).to(points)
        grid = torch.linspace(math.log(last / (1 - last)), LEAST_LOG_SNR / 2, steps + 1, dtype=torch.float64).sigmoid()
        grid[-1] = 0.0
        options = SolveOptions("rk4", steps, grid=grid.to(points), precision=self.precision)
        measured = self.flow(points, latents, times=[last, 0.0], log_det=True, noise=direction, options=options)
        start = measured.state.flatten(1)
        base = -0.5 * start.square().sum(1) - 0.5 * size * math.log(2 * math.pi)
        found: Tensor = base + measured.log_det[-1] + size * (math.log(last) + torch.log(self.level_step))
        return found

    def clean_time(self) -> float:
        """Return the time at which noise has become a third of a step of the levels of a pixel."""
        ratio = CLEAN * float(self.level_step)
        return 1 / (1 + ratio)

    def log_snr_range(self) -> tuple[float, float]:
        """Return the log-SNRs, 2 log(t / (1 - t)), between which the bound of the discrete image integrates."""
        return LEAST_LOG_SNR, -2 * math.log(CLEAN * float(self.level_step))

    def bound(self, images: Tensor, conditions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return an estimate of a bound on -log P(u | condition) of discrete images, in nats, (n,).

            1/2 integral |e - e_hat|^2 d log-SNR + KL(x(t0) | u) + E[-log P(u | x(t1))]

        Source: Kingma et al., "Variational diffusion models", NeurIPS 2021, equations 11 and 17, along straight lines.

        Args:
            images: (n, C, H, W) in [0, 1] of 256 levels.
            conditions: codes and labels, (n, d + classes).
            noise: standard normal numbers, (n, C, H, W).
            t: times whose log-SNRs are uniform in `log_snr_range`, (n,).
        """
        low, high = self.log_snr_range()
        size = math.prod(self.shape)
        error = size * self.matching_error(images, conditions, noise, t) * t.square()
        return 0.5 * (high - low) * error + self.bound_ends(images, noise)

    def bound_ends(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the terms of the bound at both ends of the path, in nats, (n,); they do not depend on the weights."""
        ends, (low, high) = self.states(images).flatten(1), self.log_snr_range()
        first, last = (1 / (1 + math.exp(-0.5 * value)) for value in (low, high))
        own, model = (1 - first) ** 2, (1 - first) ** 2 + first**2
        start = 0.5 * ((own + (first * ends).square()) / model - 1 + math.log(model / own)).sum(1)
        # In units of a step of the levels, where 6 on either side hold all that is likely.
        offset = noise.flatten(1) * (1 - last) / (last * self.level_step)
        near = torch.arange(-6, 7, device=offset.device)
        deviation = (1 - last) / (last * self.level_step)
        scores = -0.5 * ((offset.unsqueeze(-1) - near) / deviation).square()
        level = (images.flatten(1) * (LEVELS - 1)).round().unsqueeze(-1) + near
        scores = scores.masked_fill((level < 0) | (level > LEVELS - 1), -torch.inf)
        return start + (torch.logsumexp(scores, -1) - scores[..., 6]).sum(1)


def controller_of(loop: Loop, field: ImageField, gamma: ImageGamma | None) -> Controller:
    """Return what decides the control: nothing, the code, or the code and the current state."""
    if gamma is None:
        return StaticController(field)
    return AlgebraicController(gamma) if loop == "closed" else OpenController(gamma)


def pixel_flow(
    dim: int,
    shape: tuple[int, int, int],
    *,
    side: int = 0,
    classes: int = 0,
    loop: Loop = "open",
    control: Sequence[ImageControl] = ("film-map",),
    width: int = 64,
    blocks: int = 1,
    middle: int = 4,
    rank: int = 8,
    kernels: int = 4,
    hidden: int = 128,
    block: Literal["dense", "depthwise"] = "dense",
    fourier: bool = False,
    **solver: Any,
) -> PixelFlow:
    """Return the flow observation of a recipe's section; see `DenseUNetField` and `PixelFlow` for the keys."""
    maps = side or max(1, min(8, min(shape[1:]) // 2))
    static = loop == "static"
    field = DenseUNetField(
        shape, ("film",) if static else control, maps, width, blocks, middle, rank, kernels, block=block, fine=fourier
    )
    gamma = None if static else ImageGamma(dim, side, classes, field, hidden, closed_loop=loop == "closed")
    return PixelFlow(shape, field, controller_of(loop, field, gamma), dim, classes, **solver)
