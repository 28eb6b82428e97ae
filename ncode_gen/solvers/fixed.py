"""Explicit Runge-Kutta methods on a given grid, in a loop that `torch.compile` takes whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

__all__ = ["TABLEAUS", "Derivative", "State", "Tableau", "fixed_steps", "runge_kutta_step"]

State = tuple[Tensor, ...]
Derivative = Callable[[Tensor, State], State]


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau of an explicit method: stage weights `a`, result weights `b`, stage times `c`."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    @property
    def stages(self) -> int:
        """Evaluations of the derivative in a step."""
        return len(self.b)


TABLEAUS = {
    "euler": Tableau(a=((),), b=(1.0,), c=(0.0,)),
    "midpoint": Tableau(a=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5)),
    "rk4": Tableau(a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), c=(0.0, 0.5, 0.5, 1.0)),
}


def _advance(state: State, slopes: list[State], weights: tuple[float, ...], step: Tensor) -> State:
    moved = []
    for i, part in enumerate(state):
        terms = [w * slope[i] for w, slope in zip(weights, slopes, strict=True) if w != 0.0]
        if terms:
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            moved.append(part + step.to(part.dtype) * total)
        else:
            moved.append(part)
    return tuple(moved)


def runge_kutta_step(derivative: Derivative, t: Tensor, step: Tensor, state: State, tableau: Tableau) -> State:
    """Take one explicit Runge-Kutta step.

    Args:
        derivative: maps a time (scalar tensor) and a state to the state's rate of change.
        t: time at the start of the step, scalar.
        step: signed length of the step, scalar.
        state: tuple of tensors.
        tableau: the method's coefficients.

    Returns:
        The state at `t + step`.
    """
    slopes: list[State] = []
    for weights, c in zip(tableau.a, tableau.c, strict=True):
        slopes.append(derivative(t + c * step, _advance(state, slopes, weights, step)))
    return _advance(state, slopes, tableau.b, step)


def fixed_steps(derivative: Derivative, state: State, grid: Tensor, tableau: Tableau) -> Iterator[State]:
    """Yield the state at each node of `grid`, the initial one first.

    Args:
        derivative: as in `runge_kutta_step`.
        state: initial state, a tuple of tensors.
        grid: times of the nodes, shape (steps + 1,), increasing or decreasing.
        tableau: the method's coefficients.
    """
    yield state
    for i in range(grid.shape[0] - 1):
        state = runge_kutta_step(derivative, grid[i], grid[i + 1] - grid[i], state, tableau)
        yield state
