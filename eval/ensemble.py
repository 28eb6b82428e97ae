"""Many seeds of one model trained at once: their parameters are stacked, and the loss is mapped over the stack.

A small model spends its time on calls, not on numbers, so ten seeds together cost little more than one. Each seed has
its own initial weights, batches, gradient clipping and optimiser state, so the result is that of ten single runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

__all__ = ["Ensemble"]

Batch = tuple[Tensor, ...]


class Ensemble:
    """Models of one architecture, one for each seed; a model called with a batch returns its loss.

    Args:
        make: makes a model; the random generator is seeded before each call.
        seeds: the seeds.
    """

    def __init__(self, make: Callable[[], nn.Module], seeds: Sequence[int]) -> None:
        models = []
        for seed in seeds:
            torch.manual_seed(seed)
            models.append(make())
        self.seeds, self._skeleton = list(seeds), models[0]
        self._shape = copy.deepcopy(models[0]).to("meta")
        weights, self.buffers = stack_module_state(models)
        self.weights: dict[str, Tensor] = {
            name: nn.Parameter(weight.detach().clone()) for name, weight in weights.items()
        }

        def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch) -> Tensor:
            value: Tensor = functional_call(self._shape, (weights, buffers), batch)
            return value

        self._losses = torch.compile(torch.func.vmap(loss))

    @property
    def parameters(self) -> int:
        """Parameters of one model."""
        return sum(parameter.numel() for parameter in self._skeleton.parameters())

    def losses(self, batch: Batch) -> Tensor:
        """Return the loss of every seed, shape (seeds,); the tensors of a batch have the seeds as first axis."""
        losses: Tensor = self._losses(self.weights, self.buffers, batch)
        return losses

    def train(self, draw: Callable[[], Batch], *, steps: int, rate: float, clip: float = 1.0) -> None:
        """Take steps of Adam on a one-cycle schedule, the gradient of each seed clipped by its own norm."""
        weights = list(self.weights.values())
        optimiser = torch.optim.Adam(weights, rate, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
        for _ in range(steps):
            optimiser.zero_grad()
            self.losses(draw()).sum().backward()
            norm = sum(_per_seed(weight).square().sum(1) for weight in weights)
            scale = (clip / (torch.as_tensor(norm).sqrt() + 1e-6)).clamp(max=1.0)
            for weight in weights:
                assert weight.grad is not None
                weight.grad.mul_(scale.view(-1, *[1] * (weight.dim() - 1)))
            optimiser.step()
            schedule.step()

    def model(self, index: int) -> nn.Module:
        """Return the model of one seed, by its place in `seeds`."""
        model = copy.deepcopy(self._skeleton)
        state = {name: weight.detach()[index].clone() for name, weight in {**self.weights, **self.buffers}.items()}
        model.load_state_dict(state, strict=False)
        return model


def _per_seed(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad.flatten(1)
