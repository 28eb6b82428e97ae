"""torchdiffeq's methods under our interface; imported only when one is used, since it imports scipy."""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ..runtime.imports import import_plainly
from .fixed import Derivative, State
from .grids import nodes_of
from .options import SolveOptions, library_solvers
from .solution import Outcome, Solution

WITHOUT_GRADIENTS = "scipy_solver"
EVALUATIONS_A_STEP = 20  # of scipy's solvers, which count no steps


@functools.cache
def _library() -> Any:
    return import_plainly("torchdiffeq")


class _Counted:
    """A derivative that counts its evaluations, and remembers what it raised itself."""

    def __init__(self, derivative: Derivative, most: float = math.inf) -> None:
        self.derivative, self.most, self.nfe, self.accepted, self.rejected = derivative, most, 0, 0, 0
        self.error: Exception | None = None

    def __call__(self, t: Tensor, state: State) -> State:
        self.nfe += 1
        if self.nfe > self.most:
            raise RuntimeError("max_num_steps exceeded")
        try:
            return self.derivative(t, state)
        except Exception as error:
            self.error = error
            raise


class _CountedSteps(_Counted):
    """A derivative that torchdiffeq's adaptive solvers report their steps to."""

    def callback_accept_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.accepted += 1

    def callback_reject_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.rejected += 1


def library_solve(
    derivative: Derivative,
    state: State,
    times: Tensor,
    method: str,
    options: SolveOptions,
) -> Solution:
    """Solve with torchdiffeq, on our grid with its fixed-step methods.

    Where torchdiffeq gives up (the step underflows, or too many are tried) every sample is lost: its state is NaN after
    the first time, and `outcomes` say why.

    Args:
        derivative: as in `solve`; with the adjoint it names the tensors that it depends on by a method `tensors()`.
        state: initial state.
        times: requested times, without gradients.
        method: name of a method of torchdiffeq.
        options: steps of a fixed-step method on the whole interval; tolerances, and steps between two requested times
            that an adaptive method may take; whether gradients come from the continuous adjoint (`odeint_adjoint`),
            counts then of the forward solve.

    Raises:
        ValueError: gradients through "scipy_solver" without the adjoint.
    """
    library, kind = _library(), library_solvers()[method]
    steps, max_steps, adjoint = options.steps, options.max_steps, options.adjoint
    bases = import_plainly("torchdiffeq._impl.solvers")
    fixed = issubclass(kind, bases.FixedGridODESolver)
    adaptive = issubclass(kind, bases.AdaptiveStepsizeODESolver) and method != WITHOUT_GRADIENTS
    most = EVALUATIONS_A_STEP * max_steps * (len(times) - 1) if method == WITHOUT_GRADIENTS else math.inf
    counted = _CountedSteps(derivative) if adaptive else _Counted(derivative, most)
    span = float((times[-1] - times[0]).abs())

    def grid(_: object, __: object, t: Tensor) -> Tensor:
        return nodes_of(t, max(1, round(steps * float((t[-1] - t[0]).abs()) / span)))[0]

    own: dict[str, object] = {"max_num_steps": max_steps}
    if fixed:
        own = {"grid_constructor": grid}
    elif method == WITHOUT_GRADIENTS:
        own = {"solver": "LSODA"}
        if not adjoint and torch.is_grad_enabled():
            rates = derivative(times[0], state)
            if any(part.requires_grad for part in (*state, *rates)):
                raise ValueError('torchdiffeq:scipy_solver has no gradients of its own; use gradient="adjoint"')
    settings = {"method": method, "rtol": options.rtol, "atol": options.atol, "options": own}
    try:
        if adjoint:
            wanted = tuple(tensor for tensor in derivative.tensors() if tensor.requires_grad)  # type: ignore[attr-defined]
            parts = library.odeint_adjoint(counted, state, times, adjoint_params=wanted, **settings)
        else:
            parts = library.odeint(counted, state, times, **settings)
    except (AssertionError, RuntimeError, ValueError) as error:
        if counted.error is not None or not _gave_up(error):
            raise
        return _lost(state, times, counted, error)
    taken = nodes_of(times, steps)[1][-1] if fixed else counted.accepted
    return Solution(times, tuple(parts), nfe=counted.nfe, accepted=taken, rejected=counted.rejected)


def _gave_up(error: Exception) -> bool:
    """Return whether torchdiffeq, or scipy below it, cannot continue; its other errors are mistakes."""
    text = str(error).lower()
    return any(word in text for word in ("underflow in dt", "non-finite", "max_num_steps", "invalid for input of size"))


def _lost(state: State, times: Tensor, counted: _Counted, error: Exception) -> Solution:
    """Return the solution of a solve that broke off."""
    why = Outcome.STEP_CAP if "max_num_steps" in str(error) else Outcome.STEP_TOO_SMALL
    outcomes = torch.full((len(state[0]),), int(why), dtype=torch.int8, device=state[0].device)
    parts = tuple(torch.stack([part, *[part * torch.nan] * (len(times) - 1)]) for part in state)
    return Solution(times, parts, counted.nfe, counted.accepted, counted.rejected, outcomes=outcomes)
