"""How a controlled flow is solved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor

from ..solvers import ADAPTIVE, Gradient, check_gradient, check_method, evaluations, has_fixed_steps

__all__ = ["LogDet", "Solver", "SolverOptions"]

LogDet = Literal["divergence", "steps"]
REBUILT_BYTES = 256 << 20


class SolverOptions(TypedDict, total=False):
    """What one solve may do differently; None, or nothing, keeps the module's own."""

    method: str | None
    steps: int | None
    grid: Tensor | None
    rtol: float | None
    atol: float | None
    max_steps: int | None
    gradient: Gradient | Literal["auto"] | None
    log_det_by: LogDet | None
    precision: torch.dtype | None


@dataclass(frozen=True)
class Solver:
    """How a flow is solved; see `ncode_gen.solvers.solve`.

    Attributes:
        method: name of the solver.
        steps: steps on the whole interval (fixed-step methods).
        grid: nodes of the steps, shape (S + 1,), instead of `steps` and of the requested times.
        rtol: relative tolerance (adaptive methods).
        atol: absolute tolerance (adaptive methods).
        max_steps: steps that a sample may try ("dopri5", "tsit5").
        gradient: "backprop", "checkpoint", "adjoint"; "auto" takes "checkpoint" where theta is rebuilt at every
            evaluation and all the thetas of a solve would hold more than 256 MiB, else "backprop".
        log_det_by: how a log-determinant is found: "divergence" integrates the divergence, which is that of the ODE,
            and off by the error of a fixed-step method for the map that this makes; "steps" takes that map's own
            Jacobian, step by step, at d derivatives a step, so that no error of the solver can flatter a likelihood.
        precision: dtype of the field's layers under automatic casting; None for that of the weights. States, times and
            control stay in their own. Automatic casting around a solve has no effect on it.

    Raises:
        ValueError: an unknown method, a number of steps below one, a gradient that the method cannot give, or another
            precision than the weights' with an adaptive method.
    """

    method: str = "rk4"
    steps: int = 8
    grid: Tensor | None = None
    rtol: float = 1e-6
    atol: float = 1e-6
    max_steps: int = 1000
    gradient: Gradient | Literal["auto"] = "auto"
    log_det_by: LogDet = "divergence"
    precision: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.gradient != "auto":
            check_gradient(self.gradient, self.method)
        if self.log_det_by not in get_args(LogDet):
            raise ValueError(f'log_det_by must be "divergence" or "steps", got {self.log_det_by!r}')
        if self.log_det_by == "steps" and not has_fixed_steps(self.method):
            raise ValueError(f'log_det_by="steps" needs a method of fixed steps, got {self.method!r}')
        if self.steps < 1 or self.max_steps < 1:
            raise ValueError(f"steps must be >= 1, got {min(self.steps, self.max_steps)}")
        if self.precision is not None and self.method in ADAPTIVE:
            raise ValueError(f"{self.method} cannot meet its tolerances in {self.precision}; leave precision out")

    def choose_gradient(self, rebuilds: bool, controls: int) -> Gradient:
        """Return how gradients are found, where theta has `controls` numbers in all."""
        if self.gradient != "auto":
            return self.gradient
        if self.method == "torchdiffeq:scipy_solver":
            return "adjoint"  # it has no other gradients
        steps = self.steps if self.grid is None else self.grid.shape[0] - 1
        nfe = evaluations(self.method, steps)
        if self.method in ADAPTIVE:
            nfe = 64
        return "checkpoint" if rebuilds and 4 * nfe * controls > REBUILT_BYTES else "backprop"
