"""The exact divergence of any velocity, by forward-mode automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["velocity_and_exact_divergence"]


def velocity_and_exact_divergence(velocity: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a velocity and the trace of its Jacobian, in d forward-mode derivatives.

    Args:
        velocity: maps points of shape (..., d) to velocities of that shape, each point by itself.
        x: points, shape (..., d).

    Returns:
        The velocity, shape (..., d), and its divergence, shape (...).

    The divergence of v(x) = x is the dimension:

    >>> velocity_and_exact_divergence(lambda x: x, torch.zeros(1, 3))[1]
    tensor([3.])
    """
    basis = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)

    def directional(direction: Tensor) -> tuple[Tensor, Tensor]:
        value, slope, *_ = torch.func.jvp(velocity, (x,), (direction.expand_as(x),))
        return value, (slope * direction).sum(-1)

    values, diagonal = torch.func.vmap(directional)(basis)
    return values[0], diagonal.sum(0)
