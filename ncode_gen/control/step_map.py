"""The exact log-determinant of what a fixed-step method computes, step by step."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..solvers import (
    Solution,
    SolveOptions,
    State,
    Tableau,
    checked,
    evaluations,
    fixed_tableau,
    grid_of,
    runge_kutta_step,
)
from .dynamics import BoundDynamics


def _log_abs_det(step: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return log |det| of the Jacobian of a map of states (n, K, *event), each on its own, shape (n, K)."""
    size = x[0, 0].numel()
    basis = torch.eye(size, dtype=x.dtype, device=x.device).view(size, 1, 1, *x.shape[2:])

    def column(direction: Tensor) -> Tensor:
        moved: Tensor = torch.func.jvp(step, (x,), (direction.expand_as(x),))[1]
        return moved

    columns = torch.func.vmap(column)(basis)  # (D, n, K, *event)
    jacobian = columns.flatten(3).permute(1, 2, 3, 0)
    logabsdet: Tensor = torch.linalg.slogdet(jacobian).logabsdet
    return logabsdet


def solve_with_step_maps(dynamics: BoundDynamics, state: State, times: Tensor, options: SolveOptions) -> Solution:
    """Solve on a fixed grid, with the log-determinant of each step's own map.

    While every step is invertible the density that this gives is that of the computed samples, however coarse the grid.

    Args:
        dynamics: rates of (x, measures), the first of which is "log_det".
        state: (x, measures) at the first time.
        times: requested times, shape (T,).
        options: a fixed-step method.

    Raises:
        ValueError: the divergence would be estimated along noise.
    """
    if dynamics.measures.noise is not None:
        raise ValueError('log_det_by="steps" is exact and takes no noise; use "divergence" for Hutchinson\'s estimate')
    times, nodes, kept = grid_of(times, state[0], options.steps, options.grid)
    tableau, bound = fixed_tableau(options.method), dynamics.bound
    rest = checked(BoundDynamics(bound, dynamics.measures.without("log_det")))
    x, total, *others = state
    path: list[State] = [(x, total, *others)]
    for i in range(nodes.shape[0] - 1):
        start, size = nodes[i], nodes[i + 1] - nodes[i]
        total = total + _log_abs_det(_step(bound.velocity, start, size, tableau), x)
        x, *others = runge_kutta_step(rest, start, size, (x, *others), tableau)
        path.append((x, total, *others))
    parts = tuple(torch.stack([path[k][part] for k in kept]) for part in range(len(state)))
    taken = nodes.shape[0] - 1
    return Solution(times, parts, nfe=evaluations(options.method, taken), accepted=taken, rejected=0)


def _step(
    velocity: Callable[[Tensor, Tensor], Tensor], start: Tensor, size: Tensor, tableau: Tableau
) -> Callable[[Tensor], Tensor]:
    """Return the map of one step."""

    def move(x: Tensor) -> Tensor:
        return runge_kutta_step(checked(lambda t, state: (velocity(t, state[0]),)), start, size, (x,), tableau)[0]

    return move
