"""torchdiffeq's methods under our interface; imported only when one is asked for, since it brings scipy along."""

from __future__ import annotations

import torchdiffeq
from torch import Tensor
from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl.solvers import AdaptiveStepsizeODESolver, FixedGridODESolver

from .fixed import Derivative, State
from .solution import Solution

__all__ = ["library_methods", "library_solve"]


def library_methods() -> list[str]:
    """Return the names of torchdiffeq's methods."""
    return sorted(SOLVERS)


class _Counted:
    """A derivative that counts its evaluations."""

    def __init__(self, derivative: Derivative) -> None:
        self.derivative, self.nfe, self.accepted, self.rejected = derivative, 0, 0, 0

    def __call__(self, t: Tensor, state: State) -> State:
        self.nfe += 1
        return self.derivative(t, state)


class _CountedSteps(_Counted):
    """A derivative that torchdiffeq's adaptive solvers tell of their steps too."""

    def callback_accept_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.accepted += 1

    def callback_reject_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.rejected += 1


def library_solve(
    derivative: Derivative,
    state: State,
    times: Tensor,
    method: str,
    *,
    steps: int,
    rtol: float,
    atol: float,
    adjoint: bool = False,
) -> Solution:
    """Solve with torchdiffeq; `steps` sets the step size of its fixed-step methods.

    Args:
        derivative: as in `solve`; with `adjoint` it must name the tensors that it depends on by a method `tensors()`.
        state: initial state.
        times: requested times.
        method: name of a method of torchdiffeq.
        steps: steps of a fixed-step method.
        rtol: relative tolerance.
        atol: absolute tolerance.
        adjoint: whether gradients come from the continuous adjoint (`odeint_adjoint`), counts then of the forward
            solve.

    Raises:
        ValueError: `adjoint` with a derivative that does not name its tensors.
    """
    fixed = issubclass(SOLVERS[method], FixedGridODESolver)
    adaptive = issubclass(SOLVERS[method], AdaptiveStepsizeODESolver) and method != "scipy_solver"
    counted = _CountedSteps(derivative) if adaptive else _Counted(derivative)
    options: dict[str, object] | None = None
    if fixed:
        options = {"step_size": float((times[-1] - times[0]).abs() / steps)}
    elif method == "scipy_solver":
        options = {"solver": "LSODA"}
    settings = {"method": method, "rtol": rtol, "atol": atol, "options": options}
    if adjoint:
        if not hasattr(derivative, "tensors"):
            raise ValueError("the adjoint needs a derivative with a method tensors(), the tensors that it depends on")
        wanted = tuple(tensor for tensor in derivative.tensors() if tensor.requires_grad)
        parts = torchdiffeq.odeint_adjoint(counted, state, times, adjoint_params=wanted, **settings)
    else:
        parts = torchdiffeq.odeint(counted, state, times, **settings)
    accepted = steps if fixed else counted.accepted
    return Solution(times, tuple(parts), nfe=counted.nfe, accepted=accepted, rejected=counted.rejected)
