"""A deep flow prior: from noise to codes, vectors or maps, by a network under the control of the label."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...control import (
    ControlledODE,
    Controller,
    DenseUNetField,
    OpenController,
    ResidualField,
    StaticController,
    guided,
)
from ...control.field import Field
from ...errors import UserError
from ...runtime.parts import in_parts
from ...runtime.seeding import seeded
from ...solvers import SolveOptions
from .normal import FlowedPrior, Guidance, LabelledPrior, refresh_after_loading, standard_normal_log_prob

EXACT, AT_A_TIME, LEAST_STD, EDGE = 64, 1000, 1e-4, 1e-4


class LabelGamma(nn.Linear):
    """From labels (n, classes), all zeros for none, to the control: theta = gamma(label)."""

    def __init__(self, classes: int, field: Field) -> None:
        super().__init__(classes, field.control_size)
        with torch.no_grad():
            self.weight.normal_(0.0, 0.1)
            self.bias.zero_()


class DeepFlow(FlowedPrior, LabelledPrior):
    """A flow from N(0, I) to the codes, trained by flow matching after the model.

    Codes that are vectors take residual layers with LayerNorm, maps take convolutions with attention. Where there are
    labels, each is a control of the flow, and `sample` may be guided. The log-density is exact up to 64 dimensions,
    else Hutchinson's estimate along one direction of fixed seed; it is that of the flow without guidance.

    Autoguidance moves the velocity of samples away from that of a guide, a smaller network that learns the same: away
    from codes that only a weak network takes for likely. It gains most where the flow was trained for a short time.

    Sources: Lipman et al., "Flow matching for generative modeling", ICLR 2023; Esser et al., "Scaling rectified flow
    transformers", ICML 2024 (times); Ho and Salimans, "Classifier-free diffusion guidance", 2022; Karras et al.,
    "Guiding a diffusion model with a bad version of itself", NeurIPS 2024.

    Args:
        dim: size d of a code.
        side: side of codes that are maps; 0 for vectors.
        classes: number of classes; 0 without labels.
        width: channels or units of a layer.
        layers: residual blocks.
        steps: steps of the midpoint method from noise to codes.
        iterations: updates of flow matching.
        batch: codes of an update.
        label_dropout: share of the codes whose label is hidden in training.
        guide: channels or units of the guide, which has half the layers; 0 for none.
        autoguidance: how far velocities of samples are moved away from the guide's; 1 for not at all.

    >>> prior = DeepFlow(32, side=4, width=8, layers=1)
    >>> prior.sample(3).shape
    torch.Size([3, 32])
    """

    fitted_after = True

    def __init__(
        self,
        dim: int,
        side: int = 0,
        classes: int = 0,
        width: int = 96,
        layers: int = 5,
        steps: int = 8,
        iterations: int = 8000,
        batch: int = 256,
        label_dropout: float = 0.1,
        guide: int = 0,
        autoguidance: float = 2.0,
    ) -> None:
        super().__init__()
        self.dim, self.side, self.classes = dim, side, classes
        self.iterations, self.batch, self.label_dropout = iterations, batch, label_dropout
        self.shape = (dim // side**2, side, side) if side else (dim,)
        self.autoguidance = autoguidance if guide else 1.0
        options = SolveOptions("midpoint", steps)
        self.flow = self._flow_of(width, layers, options)
        self.guide = self._flow_of(guide, max(1, layers // 2), options) if guide else None
        self.precision: torch.dtype | None = None
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.fitted: Tensor
        self.centre: Tensor
        self.scale: Tensor
        self.standard = True
        self.register_load_state_dict_post_hook(refresh_after_loading)

    def _flow_of(self, width: int, layers: int, options: SolveOptions) -> ControlledODE:
        field: Field
        if self.side:
            field = DenseUNetField((self.dim // self.side**2, self.side, self.side), ("film",), 1, width, middle=layers)
        else:
            field = ResidualField(self.dim, width, layers)
        controller: Controller = StaticController(field)
        if self.classes:
            controller = OpenController(LabelGamma(self.classes, field))
        return ControlledODE(field, controller, options=options)

    def compute_in(self, precision: torch.dtype | None) -> None:
        """Let the layers compute in a dtype; None for that of the weights."""
        self.precision = precision

    def sample(self, n: int, generator: torch.Generator | None = None, guidance: Guidance | None = None) -> Tensor:
        """Sample codes (n, d), with guidance where it is given; random numbers are on the CPU.

        Raises:
            ValueError: autoguidance of a prior without a guide.
        """
        return self._sample(n, generator, self.flow.options, guidance)

    def _conditions(self, n: int, labels: Tensor | None) -> Tensor:
        return self.centre.new_zeros(n, max(1, self.classes)) if labels is None else labels.to(self.centre)

    def _log_prob(self, latents: Tensor, options: SolveOptions) -> Tensor:
        if self.standard:
            return standard_normal_log_prob(latents)
        white = ((latents - self.centre) / self.scale).reshape(-1, self.dim)
        grid = options.grid
        options = options.but(precision=self.precision, grid=grid.flip(0) if isinstance(grid, Tensor) else None)
        direction = None
        if self.dim > EXACT:
            signs = torch.randint(0, 2, (1, *self.shape), generator=seeded(0)) * 2 - 1
            direction = signs.to(white).expand(len(white), *self.shape)
        start, conditions = white.view(-1, *self.shape), self._conditions(len(white), None)
        back = self.flow.inverse(start, conditions, log_det=True, noise=direction, options=options)
        assert back.log_det is not None
        found = standard_normal_log_prob(back.state.flatten(1)) + back.log_det[-1] - self.scale.log().sum()
        return found.view(latents.shape[:-1])

    @torch.no_grad()
    def _sample(
        self,
        n: int,
        generator: torch.Generator | None,
        options: SolveOptions,
        guidance: Guidance | None = None,
    ) -> Tensor:
        guidance = guidance or Guidance()
        start = torch.randn(n, self.dim, generator=generator).to(self.centre)
        if self.standard:
            return start
        conditions, options = self._conditions(n, guidance.labels), options.but(precision=self.precision)
        flow = self.flow
        if guidance.scale != 1.0:
            flow = guided(flow, guidance.scale, self.classes)
        auto = self.autoguidance if guidance.auto is None else guidance.auto
        if auto != 1.0:
            if self.guide is None:
                raise ValueError("this prior has no guide for autoguidance; train with prior.guide above 0")
            flow = guided(flow, auto, weaker=self.guide)

        def solved(noise: Tensor, condition: Tensor) -> Tensor:
            found: Tensor = flow(noise.view(-1, *self.shape), condition, options=options).state.flatten(1)
            return found

        return self.centre + self.scale * in_parts(solved, start, conditions, batch=AT_A_TIME)

    def fit(self, latents: Tensor, seed: int = 0, progress: Callable[[float], None] | None = None) -> None:
        """Take over mean and standard deviation of codes (n, d); of maps, those of each channel.

        Raises:
            UserError: a code is not finite.
        """
        if not bool(latents.isfinite().all()):
            raise UserError("a latent is not finite, so no prior can be fitted; train with a lower training.lr")
        values = latents.view(len(latents), -1, self.side**2 if self.side else 1)
        axes = (0, 2) if self.side else (0,)
        centre, scale = values.mean(axes).view(-1, 1), values.std(axes, correction=0).view(-1, 1).clamp_min(LEAST_STD)
        self.centre.copy_(centre.expand(-1, values.shape[2]).flatten())
        self.scale.copy_(scale.expand(-1, values.shape[2]).flatten())

    def pairs(self, latents: Tensor, seed: int, labels: Tensor | None = None) -> Callable[[int], tuple[Tensor, ...]]:
        """Return what maps the number of an update to noise, codes, and labels where there are, of its batch.

        Args:
            latents: (n, d), on the CPU.
            seed: seed of order and noise.
            labels: their classes, (n,), on the CPU.
        """
        size = min(self.batch, len(latents))
        whole = max(1, len(latents) // size)

        def batch(number: int) -> tuple[Tensor, ...]:
            numbers, (passes, place) = seeded(1_000_003 * seed + number), divmod(number, whole)
            order = torch.randperm(len(latents), generator=seeded(1_000_003 * seed + 500_009 + passes))
            rows = order[place * size : (place + 1) * size]
            drawn = (torch.randn(size, self.dim, generator=numbers), latents[rows])
            if not self.classes:
                return drawn
            assert labels is not None
            kept = torch.rand(size, 1, generator=numbers) >= self.label_dropout
            return (*drawn, kept * nn.functional.one_hot(labels[rows].long(), self.classes))

        return batch

    def loss(self, *batch: Tensor) -> Tensor:
        """Return the flow-matching loss of flow and guide, (), a mean over codes and sizes, at logit-normal times."""
        noise, latents, *labels, uniform = batch
        ends = (latents - self.centre) / self.scale
        t = torch.special.ndtri(uniform.clamp(EDGE, 1 - EDGE)).sigmoid()
        points = torch.lerp(noise, ends, t.unsqueeze(1)).view(-1, *self.shape)
        conditions = self._conditions(len(noise), labels[0] if labels else None)
        found = noise.new_zeros(())
        for flow in (self.flow, self.guide):
            if flow is not None:
                with torch.autocast(noise.device.type, self.precision, enabled=self.precision is not None):
                    bound = flow.controller.bind(flow.field, conditions)
                    velocity = bound.velocity(t, points.unsqueeze(1)).flatten(1)
                found = found + (velocity.to(ends.dtype) - (ends - noise)).square().mean()
        return found

    def finish(self) -> None:
        """Take over that all updates are done."""
        self.fitted.fill_(True)
        self.refresh()
