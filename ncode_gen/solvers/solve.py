"""One entrance to every solver: ours on a fixed grid and per sample, torchdiffeq's by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .adaptive import adaptive_solve
from .derivative import check_state, checked
from .fixed import Derivative, State, fixed_steps
from .grids import as_count, grid_of
from .modes import casting_to, in_own_precision, sees_numbers
from .solution import Solution
from .tableaus import ADAPTIVE, FIXED, TWO_STAGES, fixed_tableau, has_fixed_steps
from .times import Times, as_times, attach_times

__all__ = [
    "METHODS",
    "Gradient",
    "check_gradient",
    "check_method",
    "evaluations",
    "solve",
]

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


def solve(
    derivative: Derivative,
    state: State,
    times: Times,
    *,
    method: str = "rk4",
    steps: int = 8,
    grid: Times | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    max_steps: int = 1000,
    gradient: Gradient = "backprop",
) -> Solution:
    """Solve an initial value problem.

    Args:
        derivative: maps a time and a state (tuple of tensors) to the rates of change, a tuple of tensors of the same
            shapes. The time is a scalar tensor, or, with "dopri5" and "tsit5", one time for each sample, shape (n,).
        state: the state at `times[0]`, a tuple of floating-point tensors of shape (n, ...).
        times: requested times, a tensor, array or list of T >= 2 finite numbers, strictly increasing or decreasing.
            They are kept in the state's dtype, or in float64 where that cannot resolve them.
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

    All arithmetic is that of the state's dtype; automatic casting is switched off inside, and a state in half precision
    that comes of it is taken to float32. Gradients flow to the state, to what the
    derivative depends on, and to the times: through the steps of a fixed-step method, of the exact solution (and of
    first order only) with the others.

    Raises:
        ValueError: an unknown method, a gradient that it cannot give, times of another form, a number of steps below
            one, a tolerance that is no positive number, a state or a derivative of another form, an adaptive solve in
            half precision or where torch traces instead of computing.

    Exponential decay, exp(-1) = 0.36788:

    >>> decay = lambda t, state: (-state[0],)
    >>> solve(decay, (torch.ones(1),), torch.tensor([0.0, 1.0])).state
    tensor([0.3679])
    """
    check_method(method)
    check_gradient(gradient, method)
    state = check_state(state)
    if casting_to(state[0]) is not None:  # half precision that comes of automatic casting was not the user's choice
        state = tuple(part.float() if part.dtype in (torch.float16, torch.bfloat16) else part for part in state)
    steps, max_steps = as_count(steps, "steps"), as_count(max_steps, "max_steps")
    rtol, atol = _tolerance(rtol, "rtol"), _tolerance(atol, "atol")
    if atol == 0:
        raise ValueError("tolerances must be positive, got atol=0")
    if gradient == "adjoint" and not hasattr(derivative, "tensors"):
        raise ValueError("the adjoint needs a derivative with a method tensors(), the tensors that it depends on")
    derivative = checked(derivative)
    fixed = has_fixed_steps(method)
    if grid is not None and not fixed:
        raise ValueError(f"a grid of steps needs a fixed-step method ({', '.join(FIXED)}), not {method!r}")
    with in_own_precision(state[0]):
        if fixed:
            return _solve_on_grid(derivative, state, times, method, steps, grid, recompute=gradient == "checkpoint")
        asked = as_times(times, state[0], steps=steps if method.startswith(LIBRARY) else 1)
        _check_adaptive(state, method)

        def run(start: State, at: Tensor) -> Solution:
            if method in ADAPTIVE:
                tableau, again = ADAPTIVE[method], gradient == "checkpoint"
                return adaptive_solve(
                    derivative, start, at, tableau, rtol=rtol, atol=atol, max_steps=max_steps, recompute=again
                )
            from .library import library_solve

            name, adjoint = method.removeprefix(LIBRARY), gradient == "adjoint"
            return library_solve(
                derivative, start, at, name, steps=steps, rtol=rtol, atol=atol, max_steps=max_steps, adjoint=adjoint
            )

        if asked.requires_grad and torch.is_grad_enabled():
            return _differentiable_in_times(run, derivative, state, asked, each=method in ADAPTIVE)
        return run(state, asked.detach())


def _solve_on_grid(
    derivative: Derivative,
    state: State,
    times: Times,
    method: str,
    steps: int,
    grid: Times | None,
    *,
    recompute: bool,
) -> Solution:
    asked, nodes, kept = grid_of(times, state[0], steps, grid)
    path = list(fixed_steps(derivative, state, nodes, fixed_tableau(method), recompute=recompute))
    parts = tuple(torch.stack([path[k][i] for k in kept]) for i in range(len(state)))
    taken = nodes.shape[0] - 1
    return Solution(asked, parts, nfe=evaluations(method, taken), accepted=taken, rejected=0)


def _differentiable_in_times(
    run: Callable[[State, Tensor], Solution], derivative: Derivative, state: State, times: Tensor, *, each: bool
) -> Solution:
    """Solve, and give the result the gradients of the exact solution in the times.

    Args:
        run: solves from a state at times without gradients.
        derivative: the rates.
        state: the state at the first time.
        times: requested times, with gradients.
        each: whether the derivative takes a time for each sample.
    """
    count = state[0].shape[0]

    def rates(k: int, at: State) -> State:
        with torch.no_grad():
            return derivative(times[k].detach().expand(count) if each else times[k].detach(), at)

    first = rates(0, state)
    start = tuple(attach_times(part, times[0], -rate) for part, rate in zip(state, first, strict=True))
    solution = run(start, times.detach())
    path: list[State] = [state]
    for k in range(1, times.shape[0]):
        here = tuple(part[k] for part in solution.parts)
        found = rates(k, here)
        if solution.outcomes is not None:  # a sample that is lost stands still
            there = solution.reached
            found = tuple(torch.where(there.view(-1, *[1] * (r.dim() - 1)), r, torch.zeros_like(r)) for r in found)
        path.append(tuple(attach_times(part, times[k], rate) for part, rate in zip(here, found, strict=True)))
    parts = tuple(torch.stack([there[i] for there in path]) for i in range(len(state)))
    return replace(solution, times=times, parts=parts)


def _tolerance(value: float, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be one number, the same for all components, got {value!r:.80}") from None
    if not 0 <= number < math.inf:
        raise ValueError(f"tolerances must be positive and finite, got {name}={number}")
    return number


def _check_adaptive(state: State, method: str) -> None:
    if any(part.dtype in (torch.float16, torch.bfloat16) for part in state):
        raise ValueError(
            f"{method} cannot meet its tolerances in {state[0].dtype}; give a float32 state, or use rk4 or another "
            "fixed-step method"
        )
    if state[0].numel() and not torch.compiler.is_compiling() and not sees_numbers(state[0]):
        raise ValueError(
            f"{method} chooses its steps by numbers, which are not there while torch traces; use rk4 or another "
            "fixed-step method"
        )
