"""The divergence of any velocity: exact, or estimated, by forward-mode automatic differentiation."""

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor], Tensor]


def velocity_and_exact_divergence(velocity: Velocity, x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a velocity and the trace of its Jacobian, in as many forward-mode derivatives as an event has numbers.

    Args:
        velocity: maps states of shape (n, K, *event) to velocities of that shape, each state by itself.
        x: states, shape (n, K, *event).

    Returns:
        The velocity, of the shape of `x`, and its divergence, shape (n, K).

    The divergence of v(x) = x is the dimension:

    >>> velocity_and_exact_divergence(lambda x: x, torch.zeros(1, 1, 3))[1]
    tensor([[3.]])
    """
    event = x.shape[2:]
    size = event.numel()
    basis = torch.eye(size, dtype=x.dtype, device=x.device).unflatten(1, event)

    def one(direction: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = directional(velocity, x, direction.expand_as(x))
        return value, (slope * direction).flatten(2).sum(-1)

    values, diagonal = torch.func.vmap(one)(basis)
    return values[0], diagonal.sum(0)


def directional(velocity: Velocity, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return v(x) and J e, the derivative of v along the direction e, both of the shape of `x`.

    With noise e of mean zero and unit covariance, e' J e is Hutchinson's estimate of the divergence (Grathwohl et al.,
    "FFJORD", ICLR 2019, equation 8) and |J e|^2 that of the squared Frobenius norm of J.
    """
    value, slope, *_ = torch.func.jvp(velocity, (x.contiguous(),), (direction,))
    return value, slope
