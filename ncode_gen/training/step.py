"""One training step: random numbers, loss, gradient, update; what is not finite is left out."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NotRequired, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..config.recipe import Recipe
from ..distributions import LatentModel
from ..runtime.workers import ALONE, Workers, whole
from ..solvers import has_fixed_steps, random_grid
from .objective import CompiledLoss, Loss, make_loss

__all__ = [
    "GuardedAdamW",
    "Step",
    "StepOptions",
    "TrainingStep",
    "learning_rate",
    "make_optimiser",
    "update_average",
]


def learning_rate(peak: float, warmup: float, step: float, total: int) -> float:
    """Return the rate at a step: a linear rise over the share `warmup` of the steps, then half a cosine down to zero.

    A step is a share of one too, where a run went on with another batch.

    >>> round(learning_rate(1e-3, 0.1, 5, 100), 6), round(learning_rate(1e-3, 0.1, 100, 100), 6)
    (0.0006, 0.0)
    """
    rise = max(1, round(warmup * total))
    if step < rise:
        return peak * min(1.0, (step + 1) / rise)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the current ones; the decay grows from 0.1, so early weights are forgotten."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), whole(list(model.parameters())), weight)


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that leaves weights and moments as they are where `found_inf` is 1, without asking the device for it."""

    found_inf: Tensor | None = None


def make_optimiser(model: nn.Module, rate: float, decay: float) -> GuardedAdamW:
    """Return the optimiser of what is trained of a model.

    Args:
        model: the model.
        rate: learning rate.
        decay: weight decay.
    """
    # What is fitted afterwards is none of the optimiser's, so that a run may be resumed with another prior or refiner.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Numbers are never shares of a tensor, and one update cannot take both.
    groups = [[value for value in trained if value.dim() > 0], [value for value in trained if value.dim() == 0]]
    return GuardedAdamW(
        [{"params": group} for group in groups if group],
        lr=rate,
        weight_decay=decay,
        betas=(0.9, 0.99),
        fused=True,
    )


class StepOptions(TypedDict):
    """How a step is taken, see `Step`."""

    compiled: bool
    tell: Callable[[str], None]
    plain_steps: NotRequired[int]
    workers: NotRequired[Workers]


class Step(ABC):
    """One update of a model; called with (images, learning rate, weight of the KL term, random numbers, indices).

    A batch whose loss or gradient is not finite, or one of whose adaptive solves did not reach its last time, changes
    nothing. The random numbers are those of the whole batch, of which each process takes its own part, so that one
    process and several take the same step. The call returns (loss, figure to report, norm of the gradient, 1 if
    skipped), shape (4,), with zeros for a batch that was skipped; loss and figure are means over the processes.

    Args:
        model: the model that is trained.
        recipe: its recipe.
        loss: its loss, which is called with what `inputs` returns.
        compiled: whether the loss is compiled.
        tell: where one line about the compilation goes.
        plain_steps: steps that are taken before it is compiled.
        workers: the processes that share each batch.

    Attributes:
        skipped_in_a_row: how many of the last batches were skipped, shape (), on the model's device.
        optimiser: the optimiser of the model.
        scaler: the factor of the loss in half precision.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        loss: Loss,
        *,
        compiled: bool,
        tell: Callable[[str], None],
        plain_steps: int = 0,
        workers: Workers = ALONE,
    ) -> None:
        device = next(model.parameters()).device
        self.compiled = None
        if compiled:
            plain_calls = plain_steps * recipe.training.accumulate
            graphs = device.type == "cuda" and recipe.training.accumulate == 1 and workers.count == 1
            loss = self.compiled = CompiledLoss(loss, tell, plain_calls, list(model.parameters()), graphs=graphs)
        self.model, self.recipe, self.workers = model, recipe, workers
        self.module = workers.wrap(_LossModule(model, loss))
        self.optimiser = make_optimiser(model, recipe.training.rate, recipe.training.decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.training.precision == "fp16")
        self.skipped_in_a_row = torch.zeros((), device=device)

    @abstractmethod
    def inputs(
        self, images: Tensor, beta: float, generator: torch.Generator, numbers: Tensor | None
    ) -> list[tuple[Tensor | None, ...]]:
        """Return the arguments of the loss for each part of the batch; all random numbers are drawn here.

        Args:
            images: this process's part of the batch, (m, C, H, W) in [0, 1].
            beta: weight of the KL term.
            generator: random numbers, on the CPU.
            numbers: indices of the images in the training set, (m,), on the CPU.
        """

    def unfinished(self) -> int:
        """Return how many of the last loss's adaptive solves did not reach their last time."""
        return 0

    def done_before(self, steps: int) -> None:
        """Count steps that were taken before this process, so that the same step is the first to be compiled."""
        if self.compiled is not None:
            self.compiled.skip(steps * self.recipe.training.accumulate)

    def __call__(
        self, images: Tensor, rate: float, beta: float, generator: torch.Generator, numbers: Tensor | None = None
    ) -> Tensor:
        """Take the step; `images` are this process's part of the batch, (m, C, H, W) in [0, 1]."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        parts = self.inputs(images, beta, generator, numbers)
        self.optimiser.zero_grad(set_to_none=True)
        found, unfinished = images.new_zeros(2), 0
        for number, arguments in enumerate(parts):
            with self.workers.local(self.module) if number + 1 < len(parts) else contextlib.nullcontext():
                loss, figure = self.module(*arguments)
                self.scaler.scale(loss / len(parts)).backward()
            found += torch.stack([loss.detach(), figure]) / len(parts)
            unfinished += self.unfinished()
        trained = list(self.model.parameters())
        self.workers.mean_of_whole(trained)
        self.scaler.unscale_(self.optimiser)
        norm = self.workers.clip(trained, self.recipe.training.clip or math.inf)
        lost = ~torch.stack([*found, norm]).isfinite().all() | (unfinished > 0)
        told = self.workers.sum(torch.cat([found, lost.float().unsqueeze(0)]))
        skipped = told[2].clamp(max=1)
        values = torch.cat([told[:2] / self.workers.count, norm.unsqueeze(0)])
        self.optimiser.found_inf = skipped  # the fused update reads it on the device, so nothing waits here
        self.optimiser.step()
        self.scaler.update()
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * skipped
        return torch.cat([torch.where(skipped > 0, 0.0, values), skipped.unsqueeze(0)])


class TrainingStep(Step):
    """A step of encoder, posterior, decoder and what else is trained with them; the figure to report is in nats.

    Args:
        model: the model that is trained.
        recipe: its recipe.
        **options: see `Step`.
    """

    def __init__(self, model: LatentModel, recipe: Recipe, **options: Unpack[StepOptions]) -> None:
        super().__init__(model, recipe, make_loss(model, recipe), **options)
        self.latent_model = model

    def unfinished(self) -> int:
        """Return how many of the flows' last adaptive solves did not reach their last time."""
        return sum(flow.unfinished for flow in self.latent_model.flows)

    def inputs(
        self, images: Tensor, beta: float, generator: torch.Generator, numbers: Tensor | None
    ) -> list[tuple[Tensor | None, ...]]:
        """Return target, noise, weight of the KL term and time grid of each part."""
        target, noise, grid = self._random_inputs(images, generator)
        weight, parts = torch.tensor(beta, device=images.device), self.recipe.training.accumulate
        return [(*part, weight, grid) for part in zip(target.chunk(parts), noise.chunk(parts), strict=True)]

    def _random_inputs(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draw all random numbers of a step outside of the compiled part: target, noise and time grid."""
        model, count = self.latent_model, len(images) * self.workers.count
        uniform = None
        if self.recipe.objective.draws_targets:
            uniform = self.workers.part(torch.rand(count, *images.shape[1:], generator=generator)).to(images.device)
        target = model.likelihood.target(images, uniform).contiguous(memory_format=torch.channels_last)
        particles = self.recipe.objective.particles
        noise = self.workers.part(torch.randn(count, particles, model.dim, generator=generator)).to(images.device)
        if not model.flows or any(not has_fixed_steps(flow.solver.method) for flow in model.flows):
            return target, noise, None
        flow = self.recipe.flow
        grid = random_grid(flow.steps, generator=generator, jitter=1.0 if flow.grid == "random" else 0.0)
        return target, noise, grid.to(images.device)


class _LossModule(nn.Module):
    """A loss as a module, which is what gradients are gathered over."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *arguments: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.loss(*arguments)
