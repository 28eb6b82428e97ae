"""One entrance to every solver: ours on a fixed grid and per sample, torchdiffeq's by name."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .adaptive import adaptive_solve
from .derivative import check_state, checked
from .fixed import Derivative, State, fixed_steps
from .grids import grid_of
from .modes import casting_to, in_own_precision, sees_numbers
from .options import LIBRARY, SolveOptions, evaluations
from .solution import Solution
from .tableaus import ADAPTIVE, fixed_tableau, has_fixed_steps
from .times import Times, as_times, attach_times


def solve(derivative: Derivative, state: State, times: Times, options: SolveOptions | None = None) -> Solution:
    """Solve an initial value problem.

    Args:
        derivative: maps a time and a state (tuple of tensors) to the rates of change, a tuple of tensors of the same
            shapes. The time is a scalar tensor, or, with "dopri5" and "tsit5", one time for each sample, shape (n,).
            Fixed-step methods of ours do not evaluate it at the first time, if its attribute `initial` has the rates.
        state: the state at `times[0]`, a tuple of floating-point tensors of shape (n, ...).
        times: requested times, a tensor, array or list of T >= 2 finite numbers, strictly increasing or decreasing.
            They are kept in the state's dtype, or in float64 where that cannot resolve them.
        options: the method, and what it needs to know.

    Returns:
        A `Solution` whose parts have shape (T, n, ...).

    All arithmetic is that of the state's dtype; automatic casting is switched off inside, and a state in half precision
    that comes of it is taken to float32. Gradients flow to the state, to what the
    derivative depends on, and to the times: through the steps of a fixed-step method, of the exact solution (and of
    first order only) with the others.

    Raises:
        ValueError: times of another form, a state or a derivative of another form, an adaptive solve in half precision
            or where torch traces instead of computing, an adjoint without the tensors that the derivative depends on.

    Exponential decay, exp(-1) = 0.36788:

    >>> decay = lambda t, state: (-state[0],)
    >>> solve(decay, (torch.ones(1),), torch.tensor([0.0, 1.0])).state
    tensor([0.3679])
    """
    options = options or SolveOptions()
    state = check_state(state)
    if casting_to(state[0]) is not None:  # half precision that comes of automatic casting was not the user's choice
        state = tuple(part.float() if part.dtype in (torch.float16, torch.bfloat16) else part for part in state)
    if options.adjoint and not hasattr(derivative, "tensors"):
        if options.gradient == "adjoint":
            raise ValueError("the adjoint needs a derivative with a method tensors(), the tensors that it depends on")
        options = options.but(gradient="backprop")
    derivative, method = checked(derivative), options.method
    with in_own_precision(state[0]):
        if has_fixed_steps(method):
            return _solve_on_grid(derivative, state, times, options)
        wanted = as_times(times, state[0], steps=options.steps if method.startswith(LIBRARY) else 1)
        _check_adaptive(state, method)

        def run(start: State, at: Tensor) -> Solution:
            if method in ADAPTIVE:
                return adaptive_solve(derivative, start, at, ADAPTIVE[method], options)
            from .library import library_solve

            return library_solve(derivative, start, at, method.removeprefix(LIBRARY), options)

        if wanted.requires_grad and torch.is_grad_enabled():
            return _differentiable_in_times(run, derivative, state, wanted, each=method in ADAPTIVE)
        return run(state, wanted.detach())


def _solve_on_grid(derivative: Derivative, state: State, times: Times, options: SolveOptions) -> Solution:
    wanted, nodes, kept = grid_of(times, state[0], options.steps, options.grid)
    recompute = options.gradient == "checkpoint"
    path = list(fixed_steps(derivative, state, nodes, fixed_tableau(options.method), recompute=recompute))
    parts = tuple(torch.stack([path[k][i] for k in kept]) for i in range(len(state)))
    taken = nodes.shape[0] - 1
    nfe = evaluations(options.method, taken)
    if getattr(derivative, "initial", None) is not None:
        nfe -= 1
    return Solution(wanted, parts, nfe=nfe, accepted=taken, rejected=0)


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
