"""What stands beside each other in the studies, at equal parameters: flows, and networks that do not flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ncode_gen import NCODE

__all__ = ["Flow", "GammaAlone", "ResidualNet", "fitted", "size"]


class Flow(nn.Module):
    """A flow of points; its condition is x(0), or nothing.

    Args:
        dim: dimension of the points.
        hidden: widths of the field's hidden layers.
        blind: whether the condition is zero, whatever x(0).
        arguments: further arguments of `NCODE`.
    """

    def __init__(self, dim: int, *hidden: int, blind: bool = False, **arguments: Any) -> None:
        super().__init__()
        self.ode, self.blind = NCODE(dim, hidden, **arguments), blind

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """Return x(1), of the shape of `x`, (n, d); options are those of a solve."""
        state: Tensor = self.ode(x, torch.zeros_like(x) if self.blind else x, **options).state
        return state

    def path(self, x: Tensor, times: Tensor) -> Tensor:
        """Return the states at times, shape (T, n, d)."""
        states: Tensor = self.ode(x, torch.zeros_like(x) if self.blind else x, times=times).parts[0]
        return states

    @torch.no_grad()
    def evaluations(self, x: Tensor, tolerance: float = 1e-3) -> float:
        """Return the mean number of evaluations of a point, by a per-sample dopri5."""
        condition = torch.zeros_like(x) if self.blind else x
        counts = self.ode(
            x, condition, options=self.ode.options.but(method="dopri5", rtol=tolerance, atol=tolerance)
        ).counts
        assert counts is not None
        return float(counts.nfe.float().mean())


class GammaAlone(nn.Module):
    """The network that maps x(0) to a control, mapping it to the result instead."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.head = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the result, of the shape of `x`."""
        result: Tensor = self.head(self.net(x))
        return result


class ResidualNet(nn.Module):
    """Residual blocks with weights of their own: what a flow is the limit of, without the limit."""

    def __init__(self, dim: int, width: int, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, dim)) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the last block's result, of the shape of `x`."""
        for block in self.blocks:
            x = x + block(x)
        return x


def size(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def fitted(make: Callable[[int], nn.Module], parameters: int) -> nn.Module:
    """Return the model of the width at which its parameters are nearest to a number of them.

    Raises:
        ValueError: no width comes within 5 % of it.
    """
    width = min(range(2, 800), key=lambda width: abs(size(make(width)) - parameters))
    model = make(width)
    if abs(size(model) / parameters - 1) > 0.05:
        raise ValueError(f"the nearest size to {parameters} parameters is {size(model)}")
    return model
