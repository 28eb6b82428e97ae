"""One entrance to every solver: ours on a fixed grid and per sample, torchdiffeq's by name."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from .adaptive import adaptive_solve
from .fixed import Derivative, State, fixed_steps
from .solution import Solution
from .tableaus import ADAPTIVE, FIXED, TWO_STAGES, fixed_tableau, has_fixed_steps

__all__ = ["METHODS", "Gradient", "check_gradient", "check_method", "evaluations", "nodes_of", "random_grid", "solve"]

LIBRARY = "torchdiffeq:"
METHODS = (*FIXED, *ADAPTIVE)
Gradient = Literal["backprop", "checkpoint", "adjoint"]


def check_method(method: str) -> str:
    """Return `method` if a solver has that name.

    Raises:
        ValueError: no solver has that name, and the message lists those that exist; or "rk2:SHARE" with a share that is
            not above 0 and at most 1.

    >>> check_method("rk4")
    'rk4'
    """
    if has_fixed_steps(method):
        fixed_tableau(method)
        return method
    if method in ADAPTIVE:
        return method
    names = [*METHODS, f"{TWO_STAGES}SHARE"]
    if method.startswith(LIBRARY):
        from .library import library_methods

        names = [LIBRARY + name for name in library_methods()]
        if method in names:
            return method
    else:
        names.append(f"{LIBRARY}NAME")
    raise ValueError(f"no solver is called {method!r}; choose one of {', '.join(names)}")


def check_gradient(gradient: str, method: str) -> None:
    """Raise a ValueError unless gradients of `method` can be found by way of `gradient`.

    >>> check_gradient("adjoint", "rk4")
    Traceback (most recent call last):
    ValueError: gradient "adjoint" needs a method of torchdiffeq, such as "torchdiffeq:rk4", not 'rk4'
    """
    if gradient not in get_args(Gradient):
        raise ValueError(f"gradient must be one of {', '.join(get_args(Gradient))}, got {gradient!r}")
    if gradient == "adjoint" and not method.startswith(LIBRARY):
        raise ValueError(f'gradient "adjoint" needs a method of torchdiffeq, such as "torchdiffeq:rk4", not {method!r}')
    if gradient == "checkpoint" and method.startswith(LIBRARY):
        raise ValueError(f'gradient "checkpoint" needs one of our methods ({", ".join(METHODS)}), not {method!r}')


def evaluations(method: str, steps: int) -> int:
    """Return how often a fixed-step method of ours evaluates the derivative in a number of steps; 0 for others.

    >>> evaluations("rk4", 8), evaluations("dopri5", 8)
    (32, 0)
    """
    return fixed_tableau(method).stages * steps if has_fixed_steps(method) else 0


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


def nodes_of(times: Tensor, steps: int) -> tuple[Tensor, list[int]]:
    """Spread about `steps` steps over the requested times, at least one in each gap.

    Returns:
        Times of the grid, shape (S + 1,), and the places of the requested times in it.

    >>> nodes_of(torch.tensor([0.0, 0.5, 1.0]), 2)
    (tensor([0.0000, 0.5000, 1.0000]), [0, 1, 2])
    """
    if times.shape[0] == 2:  # without a look at the numbers, so that the compiler takes it whole
        way = torch.arange(steps, dtype=times.dtype, device=times.device) / steps
        return torch.cat([times[0] + (times[1] - times[0]) * way, times[1:]]), [0, steps]
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
    max_steps: int = 1000,
    gradient: Gradient = "backprop",
) -> Solution:
    """Solve an initial value problem.

    Args:
        derivative: maps a time and a state (tuple of tensors) to the rates of change. The time is a scalar tensor, or,
            with "dopri5" and "tsit5", one time for each sample, shape (n,).
        state: the state at `times[0]`, a tuple of tensors of shape (n, ...).
        times: requested times, shape (T,), strictly increasing or decreasing, T >= 2.
        method: "euler", "midpoint", "heun", "rk4" or "rk2:SHARE" (see `two_stages`) with fixed steps; "dopri5" or
            "tsit5", adaptive for each sample by itself; or "torchdiffeq:NAME" for any method of torchdiffeq.
        steps: steps between the first and the last time (fixed-step methods).
        grid: the nodes themselves, shape (S + 1,), instead of `steps`, for fixed-step methods of ours; only the ends
            are then returned.
        rtol: relative tolerance of a step (adaptive methods).
        atol: absolute tolerance of a step (adaptive methods).
        max_steps: steps that a sample may try ("dopri5", "tsit5"); at the cap it keeps its last state.
        gradient: "backprop" through the solve; "checkpoint", the same gradient with the memory of one evaluation,
            each made again in the backward pass (methods of ours); "adjoint", torchdiffeq's continuous adjoint.

    Returns:
        A `Solution` whose parts have shape (T, n, ...).

    Raises:
        ValueError: an unknown method, a gradient that it cannot give, fewer than two times, times out of order, a
            number of steps below one, or a tolerance that is not positive.

    Exponential decay, exp(-1) = 0.36788:

    >>> decay = lambda t, state: (-state[0],)
    >>> solve(decay, (torch.ones(1),), torch.tensor([0.0, 1.0])).state
    tensor([0.3679])
    """
    check_method(method)
    check_gradient(gradient, method)
    if grid is not None:
        if not has_fixed_steps(method):
            raise ValueError(f"a grid of steps needs a fixed-step method ({', '.join(FIXED)}), not {method!r}")
        times = torch.stack([grid[0], grid[-1]])
    if times.dim() != 1 or times.shape[0] < 2:
        raise ValueError(f"times must be one row of at least two numbers, got shape {tuple(times.shape)}")
    if steps < 1 or max_steps < 1:
        raise ValueError(f"steps must be at least 1, got {min(steps, max_steps)}")
    if rtol < 0 or atol <= 0:
        raise ValueError(f"tolerances must be positive, got rtol={rtol} and atol={atol}")

    if method.startswith(LIBRARY):
        from .library import library_solve

        name, adjoint = method.removeprefix(LIBRARY), gradient == "adjoint"
        return library_solve(derivative, state, times, name, steps=steps, rtol=rtol, atol=atol, adjoint=adjoint)
    recompute = gradient == "checkpoint"
    if method in ADAPTIVE:
        gaps = times.diff()
        if not bool((gaps > 0).all() or (gaps < 0).all()):
            raise ValueError(f"times must rise or fall, got {times.tolist()}")
        return adaptive_solve(
            derivative, state, times, ADAPTIVE[method], rtol=rtol, atol=atol, max_steps=max_steps, recompute=recompute
        )
    if grid is None:
        grid, kept = nodes_of(times, steps)
    else:
        kept = [0, grid.shape[0] - 1]
    path = list(fixed_steps(derivative, state, grid, fixed_tableau(method), recompute=recompute))
    parts = tuple(torch.stack([path[k][i] for k in kept]) for i in range(len(state)))
    taken = grid.shape[0] - 1
    return Solution(times, parts, nfe=evaluations(method, taken), accepted=taken, rejected=0)
