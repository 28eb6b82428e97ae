"""The refiner: a flow from noise to the residual of a decoder mean; the latent is its control."""

from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ..control import ControlledODE, FlowSolution, OpenController, UNetField, multilayer_perceptron
from ..solvers import SolveOptions

LEAST_STD = 1 / 255


class _Gamma(nn.Module):
    """From a latent and its decoder mean, (n, d + C H W), to the field's control: FiLM and conditioning image.

    With no hidden units the FiLM is the same for all latents.
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
        latents, means = condition.split([self.dim, condition.shape[1] - self.dim], 1)
        if self.shared is not None:
            modulations = self.shared.expand(len(latents), -1)
        else:
            modulations = self.head(self.body((latents - self.centre) / self.scale))
        return torch.cat([modulations, means], 1)


class Refiner(nn.Module):
    """A controlled flow of pixels from noise to the residual, image minus decoder mean.

    Decoder means are blurry. The residual, divided by its standard deviation, is the end of a flow from Gaussian noise:
    that of a U-net whose FiLM the latent decides, and whose conditioning image is the decoder mean. It is trained by
    flow matching along straight lines, with encoder and decoder as they are, so that it samples p(image | latent).

    Sources: Lipman et al., "Flow matching for generative modeling", ICLR 2023; Albergo et al., "Stochastic interpolants
    with data-dependent couplings", ICML 2024.

    Args:
        dim: number of latent dimensions d.
        shape: (C, H, W) of the images.
        width: channels of the U-net at its first resolution.
        blocks: its blocks at each resolution, down and up.
        noise: standard deviation of the noise, in units of the residual's.
        steps: steps of the solver, of two stages each.
        alpha: where the second stage of a step lies, as a share of the step, see `ncode_gen.solvers.two_stages`.
        zero_mean_residual: whether the residual is taken to have mean zero under each latent. The velocity of noise is
            then known, and the U-net is evaluated once less.
        loop: "open", or "static" for a FiLM that is the same for all latents: a neural ODE, which knows of a latent
            what its decoder mean shows.

    Attributes:
        precision: dtype of the U-net's layers under automatic casting; None for that of the weights.
        fitted: whether it was trained.
        residual_std: standard deviation of the residual, in units of [0, 1], (C, 1, 1).

    >>> refiner = Refiner(3, (1, 8, 8), width=8, blocks=1)
    >>> latents, means = torch.randn(5, 3), torch.rand(5, 1, 8, 8)
    >>> refiner.sample(means, latents, torch.randn(5, 1, 8, 8)).shape
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
        alpha: float = 0.5,
        zero_mean_residual: bool = False,
        loop: Literal["static", "open"] = "open",
    ) -> None:
        super().__init__()
        self.noise, self.zero_mean_residual = noise, zero_mean_residual
        self.precision: torch.dtype | None = None
        field = UNetField(shape, width, blocks, noise)
        gamma = _Gamma(dim, field, 2 * width if loop == "open" else 0)
        self.flow = ControlledODE(field, OpenController(gamma), options=SolveOptions(f"rk2:{alpha}", steps))
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("residual_std", torch.ones(shape[0], 1, 1))
        self.fitted: Tensor
        self.residual_std: Tensor

    @property
    def field(self) -> UNetField:
        """The field of the flow."""
        return cast(UNetField, self.flow.field)

    def evaluations(self, steps: int) -> int:
        """Return how often the U-net is evaluated for an image in some steps, at least 1, of the solver."""
        return 2 * steps - int(self.zero_mean_residual)

    @torch.no_grad()
    def take_scale(self, images: Tensor, means: Tensor, latents: Tensor) -> None:
        """Take over the scale of latents and of the residual, by which both are divided.

        Args:
            images: (n, C, H, W) in [0, 1].
            means: the decoder means of their latents, (n, C, H, W) in [0, 1].
            latents: (n, d).
        """
        gamma = cast(_Gamma, cast(OpenController, self.flow.controller).gamma)
        gamma.centre.copy_(latents.mean(0))
        gamma.scale.copy_(latents.std(0, correction=0).clamp_min(1e-4))
        residual = (images - means).square().mean((0, 2, 3)).sqrt()
        self.residual_std.copy_(residual.clamp_min(LEAST_STD).view(-1, 1, 1))

    def loss(self, images: Tensor, means: Tensor, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the flow-matching loss, (n,): the mean square per pixel of the velocity's error on straight lines.

        Its unit is the variance that would be left if the ends were noise, so that a new refiner has about 1.

        Args:
            images: where the lines lead, (n, C, H, W) in [0, 1].
            means: the decoder means of the images' latents, (n, C, H, W) in [0, 1].
            latents: (n, d).
            noise: standard normal numbers, (n, C, H, W).
            t: times at which the velocity is compared, (n,), in [0, 1].
        """
        start, end = self.noise * noise, (images - means) / self.residual_std
        point = torch.lerp(start, end, t.view(-1, 1, 1, 1))
        bound = self.flow.controller.bind(self.field, self._condition(means, latents))
        with torch.autocast(images.device.type, self.precision, enabled=self.precision is not None):
            velocity = bound.velocity(t, point.unsqueeze(1)).squeeze(1)
        uncertain = self.field.preconditioning(t)[1]
        return (velocity.to(end.dtype) - (end - start)).square().flatten(1).mean(1) / uncertain.square()

    def options_of(self, evaluations: int) -> SolveOptions:
        """Return how to solve with at most so many evaluations of the U-net; with one, by Euler's method.

        Raises:
            ValueError: less than one evaluation.
        """
        if evaluations < 1:
            raise ValueError(f"the number of evaluations must be at least 1, got {evaluations}")
        steps = (evaluations + int(self.zero_mean_residual)) // 2
        return self.flow.options.but(steps=steps) if steps else self.flow.options.but(method="euler", steps=1)

    def sample(self, means: Tensor, latents: Tensor, noise: Tensor, options: SolveOptions | None = None) -> Tensor:
        """Return images (n, C, H, W) in [0, 1].

        Args:
            means: the decoder means, (n, C, H, W) in [0, 1].
            latents: the latents that they were decoded from, (n, d).
            noise: standard normal numbers, (n, C, H, W).
            options: how to solve; as the recipe says if None.
        """
        return self._added(means, self._solve(means, latents, noise, options=options).state)

    def trajectory(self, means: Tensor, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the images (T, n, C, H, W) in [0, 1] at rising times (T,) in [0, 1]; else as above.

        Raises:
            ValueError: times that do not rise, or lie outside [0, 1].
        """
        values = times.tolist()
        rise = all(a < b for a, b in pairwise(values))
        if not values or not rise or values[0] < 0 or values[-1] > 1:
            raise ValueError(f"times must rise within [0, 1], got {values}")
        wanted = torch.cat([times.new_zeros(1), times]) if values[0] > 0 else times
        if len(wanted) == 1:  # t = 0 alone
            return self._added(means, self.noise * noise).unsqueeze(0)
        states = self._solve(means, latents, noise, wanted).states
        return self._added(means, states[len(wanted) - len(times) :])

    def _solve(
        self,
        means: Tensor,
        latents: Tensor,
        noise: Tensor,
        times: Tensor | None = None,
        options: SolveOptions | None = None,
    ) -> FlowSolution:
        """Solve from noise at time 0, where a state says nothing of a residual of mean zero."""
        start = self.noise * noise
        known = self.field.preconditioning(start.new_zeros(()))[0] * start if self.zero_mean_residual else None
        options = (options or self.flow.options).but(precision=self.precision)
        solution: FlowSolution = self.flow(
            start, self._condition(means, latents), times=times, velocity=known, options=options
        )
        return solution

    def _added(self, means: Tensor, states: Tensor) -> Tensor:
        return (means + self.residual_std * states).clamp(0.0, 1.0)

    def _condition(self, means: Tensor, latents: Tensor) -> Tensor:
        return torch.cat([latents, means.flatten(1)], 1)
