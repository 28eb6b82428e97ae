"""One update: loss, gradient, optimiser; what is not finite is left out."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..runtime.workers import ALONE, Workers, full_tensor
from .compiled import CompiledLoss, Loss


def learning_rate(peak: float, warmup: float, step: float, total: float) -> float:
    """Return the rate at a step: a linear rise over the share `warmup` of the steps, then half a cosine down to zero.

    A step is a share of one too, where a run went on with another batch.

    >>> round(learning_rate(1e-3, 0.1, 5, 100), 6), round(learning_rate(1e-3, 0.1, 100, 100), 6)
    (0.0006, 0.0)
    """
    rise = max(1, round(warmup * total))
    if step < rise:
        return peak * min(1.0, (step + 1) / rise)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


class Average:
    """The moving average of trained weights.

    Args:
        averaged: where it is held.
        trained: what it is taken of, a copy of the former; weights that are not trained are left alone.
        decay: its decay, a step; 0 for none.
    """

    def __init__(self, averaged: nn.Module, trained: nn.Module, decay: float) -> None:
        pairs = list(zip(averaged.parameters(), trained.parameters(), strict=True))
        self.averaged: list[Tensor] = [average for average, weight in pairs if weight.requires_grad]
        self.trained, self.decay = [weight for _, weight in pairs if weight.requires_grad], decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights; the decay grows from 0.1, so early weights are forgotten."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averaged, full_tensor([value.detach() for value in self.trained]), weight)


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that leaves weights and moments as they are where `found_inf` is 1, without asking the device for it."""

    found_inf: Tensor | None = None


def make_optimiser(model: nn.Module, lr: float, weight_decay: float) -> GuardedAdamW:
    """Return the optimiser of what is trained of a model."""
    # What has a phase of its own is none of the optimiser's, so that a run may be resumed with another prior.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Numbers are never shares of a tensor, and one update cannot take both.
    groups = [[value for value in trained if value.dim() > 0], [value for value in trained if value.dim() == 0]]
    return GuardedAdamW(
        [{"params": group} for group in groups if group],
        lr=lr,
        weight_decay=weight_decay,
        betas=(0.9, 0.99),
        fused=True,
    )


@dataclass(frozen=True)
class StepSettings:
    """How an update is made.

    Attributes:
        weight_decay: of AdamW.
        grad_clip: largest norm of the gradient; 0 for no limit.
        accumulate: parts of a batch whose gradients are added up.
        scaled: whether the loss is scaled, as gradients in fp16 need.
    """

    weight_decay: float = 0.0
    grad_clip: float = 0.0
    accumulate: int = 1
    scaled: bool = False


class Step:
    """One update of a model; called with (arguments of the loss for each part of the batch, learning rate).

    A batch whose loss or gradient is not finite changes nothing. The call returns (loss, figure to report, norm of the
    gradient, 1 if skipped), shape (4,), with zeros for a batch that was skipped; loss and figure are means over the
    processes.

    Args:
        model: the model that is trained.
        loss: its loss.
        settings: how an update is made.
        compiled: the loss as it is compiled, instead of `loss`.
        workers: the processes that share each batch.

    Attributes:
        skipped_in_a_row: how many of the last batches were skipped, shape (), on the model's device.
        optimiser: the optimiser of the model.
        scaler: the factor of the loss in half precision.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        settings: StepSettings,
        *,
        compiled: CompiledLoss | None = None,
        workers: Workers = ALONE,
    ) -> None:
        device = next(model.parameters()).device
        self.model, self.settings, self.compiled, self.workers = model, settings, compiled, workers
        self.module = workers.wrap(_LossModule(model, compiled or loss))
        self.optimiser = make_optimiser(model, 0.0, settings.weight_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.scaled)
        self.skipped_in_a_row = torch.zeros((), device=device)

    def done_before(self, steps: int) -> None:
        """Count steps that were taken before this process, so that the same step is the first to be compiled."""
        if self.compiled is not None:
            self.compiled.skip(steps * self.settings.accumulate)

    def __call__(self, parts: Sequence[tuple[Tensor | None, ...]], lr: float) -> Tensor:
        """Take the step."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        found = torch.zeros(2, device=self.skipped_in_a_row.device)
        for number, arguments in enumerate(parts):
            with self.workers.local(self.module) if number + 1 < len(parts) else contextlib.nullcontext():
                loss, figure = self.module(*arguments)
                self.scaler.scale(loss / len(parts)).backward()
            found += torch.stack([loss.detach(), figure]) / len(parts)
        trained = list(self.model.parameters())
        self.workers.mean_of_whole(trained)
        self.scaler.unscale_(self.optimiser)
        norm = self.workers.clip(trained, self.settings.grad_clip or math.inf)
        lost = ~torch.stack([*found, norm]).isfinite().all()
        sums = self.workers.sum(torch.cat([found, lost.float().unsqueeze(0)]))
        skipped = sums[2].clamp(max=1)
        values = torch.cat([sums[:2] / self.workers.count, norm.unsqueeze(0)])
        self.optimiser.found_inf = skipped  # the fused update reads it on the device, so nothing waits here
        self.optimiser.step()
        self.scaler.update()
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * skipped
        return torch.cat([torch.where(skipped > 0, 0.0, values), skipped.unsqueeze(0)])


class _LossModule(nn.Module):
    """A loss as a module, which is what gradients are gathered over."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *arguments: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.loss(*arguments)
