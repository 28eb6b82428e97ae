"""One entrance to every solver: ours on a fixed grid, torchdiffeq's by name."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .fixed import TABLEAUS, Derivative, State, fixed_steps
from .solution import Solution

__all__ = ["METHODS", "check_method", "random_grid", "solve"]

LIBRARY = "torchdiffeq:"
METHODS = tuple(TABLEAUS)


def check_method(method: str) -> str:
    """Return `method` if a solver has that name.

    Raises:
        ValueError: no solver has that name; the message lists those that exist.

    >>> check_method("rk4")
    'rk4'
    """
    if method in METHODS:
        return method
    names = list(METHODS)
    if method.startswith(LIBRARY):
        from .library import library_methods

        names = [LIBRARY + name for name in library_methods()]
        if method in names:
            return method
    else:
        names.append(f"{LIBRARY}NAME")
    raise ValueError(f"no solver is called {method!r}; choose one of {', '.join(names)}")


def random_grid(steps: int, *, generator: torch.Generator | None = None, jitter: float = 1.0) -> Tensor:
    """Draw a grid of `steps` steps on [0, 1] whose inner nodes are moved at random.

    Each inner node is uniform within `jitter` times half a step of its even place, so the order is kept.
    Training on such grids keeps a flow from fitting the error of one fixed grid.

    Returns:
        Times, shape (steps + 1,), from 0 to 1.

    >>> random_grid(4, jitter=0.0).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    grid = torch.linspace(0.0, 1.0, steps + 1)
    noise = torch.rand(max(steps - 1, 0), generator=generator) - 0.5
    grid[1:-1] += jitter * noise / steps
    return grid


def _refine(times: Tensor, steps: int) -> tuple[Tensor, list[int]]:
    """Spread about `steps` steps over the requested times, at least one in each gap."""
    span = (times[-1] - times[0]).abs()
    nodes, kept = [times[:1]], [0]
    for start, end in pairwise(times):
        share = 1 if span == 0 else max(1, round(float(steps * (end - start).abs() / span)))
        nodes.append(torch.linspace(float(start), float(end), share + 1, dtype=times.dtype, device=times.device)[1:])
        kept.append(kept[-1] + share)
    return torch.cat(nodes), kept


def solve(
    derivative: Derivative,
    state: State,
    times: Tensor,
    *,
    method: str = "rk4",
    steps: int = 8,
    grid: Tensor | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-6,
) -> Solution:
    """Solve an initial value problem.

    Args:
        derivative: maps a time (scalar tensor) and a state (tuple of tensors) to the rates of change.
        state: the state at `times[0]`, a tuple of tensors of shape (n, ...).
        times: requested times, shape (T,), strictly increasing or decreasing, T >= 2.
        method: "euler", "midpoint", "rk4", or "torchdiffeq:NAME" for any method of torchdiffeq.
        steps: steps between the first and the last time (fixed-step methods).
        grid: the nodes themselves, shape (S + 1,), instead of `steps`; only the ends are then returned.
        rtol: relative tolerance (adaptive methods of torchdiffeq).
        atol: absolute tolerance (adaptive methods of torchdiffeq).

    Returns:
        A `Solution` whose parts have shape (T, n, ...).

    Raises:
        ValueError: an unknown method, fewer than two times, or a number of steps below one.

    Exponential decay, exp(-1) = 0.36788:

    >>> decay = lambda t, state: (-state[0],)
    >>> solve(decay, (torch.ones(1),), torch.tensor([0.0, 1.0])).state
    tensor([0.3679])
    """
    check_method(method)
    if grid is not None:
        times = torch.stack([grid[0], grid[-1]])
    if times.dim() != 1 or times.shape[0] < 2:
        raise ValueError(f"times must be one row of at least two numbers, got shape {tuple(times.shape)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")

    if method.startswith(LIBRARY):
        from .library import library_solve

        return library_solve(derivative, state, times, method.removeprefix(LIBRARY), steps, rtol, atol)
    tableau = TABLEAUS[method]
    if grid is None:
        grid, kept = _refine(times, steps)
    else:
        kept = [0, grid.shape[0] - 1]
    path = list(fixed_steps(derivative, state, grid, tableau))
    parts = tuple(torch.stack([path[k][i] for k in kept]) for i in range(len(state)))
    taken = grid.shape[0] - 1
    return Solution(times, parts, nfe=taken * tableau.stages, accepted=taken, rejected=0)
