"""How an ordinary differential equation is solved: one object, checked once, passed whole."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from ..runtime.imports import import_plainly
from .grids import as_count
from .tableaus import ADAPTIVE, FIXED, TWO_STAGES, fixed_tableau, has_fixed_steps
from .times import Times

LIBRARY = "torchdiffeq:"
METHODS = (*FIXED, *ADAPTIVE)
Gradient = Literal["auto", "backprop", "checkpoint", "adjoint"]
LogDet = Literal["divergence", "steps"]
RECOMPUTED_BYTES = 256 << 20
ADAPTIVE_EVALUATIONS = 64  # about, of an adaptive solve


@functools.cache
def library_solvers() -> dict[str, type]:
    """Return torchdiffeq's solvers by the names of their methods."""
    return dict(import_plainly("torchdiffeq._impl.odeint").SOLVERS)


def check_method(method: str) -> str:
    """Return `method` if a solver has that name.

    Raises:
        ValueError: no solver has that name, and the message lists those that exist; or "rk2:ALPHA" with a number that
            is not above 0 and at most 1.

    >>> check_method("rk4")
    'rk4'
    """
    if has_fixed_steps(method):
        fixed_tableau(method)
        return method
    if method in ADAPTIVE:
        return method
    names = [*METHODS, f"{TWO_STAGES}ALPHA"]
    if method.startswith(LIBRARY):
        names = [LIBRARY + name for name in sorted(library_solvers())]
        if method in names:
            return method
    else:
        names.append(f"{LIBRARY}NAME")
    raise ValueError(f"no solver is called {method!r}; choose one of {', '.join(names)}")


def evaluations(method: str, steps: int) -> int:
    """Return how often a fixed-step method of ours evaluates the derivative in a number of steps; 0 for others.

    >>> evaluations("rk4", 8), evaluations("dopri5", 8)
    (32, 0)
    """
    return fixed_tableau(method).stages * steps if has_fixed_steps(method) else 0


@dataclass(frozen=True)
class SolveOptions:
    """How an equation is solved.

    Attributes:
        method: "euler", "midpoint", "heun", "rk4" or "rk2:ALPHA" (see `two_stages`) with fixed steps; "dopri5" or
            "tsit5", adaptive for each sample by itself; or "torchdiffeq:NAME" for any method of torchdiffeq.
        steps: steps between the first and the last time (fixed-step methods).
        grid: the nodes of the steps, shape (S + 1,), instead of `steps` and of the requested times, for fixed-step
            methods of ours; only the ends are then returned.
        rtol: relative tolerance of a step (adaptive methods).
        atol: absolute tolerance of a step (adaptive methods).
        max_steps: steps that a sample may try ("dopri5", "tsit5"); at the cap it keeps its last state.
        gradient: "backprop" through the solve; "checkpoint", the same gradient with the memory of one evaluation, each
            made again in the backward pass (methods of ours); "adjoint", torchdiffeq's continuous adjoint. "auto" takes
            "checkpoint" where a flow's control is computed again at every evaluation and all controls of a solve would
            hold more than 256 MiB, else "backprop".
        log_det_by: how the log-determinant of a flow is found: "divergence" integrates the divergence, which is that of
            the ODE, and off by the error of a fixed-step method for the map that this makes; "steps" takes that map's
            own Jacobian, step by step, at d derivatives a step, so that no error of the solver improves a likelihood.
        precision: dtype of a flow's field under automatic casting; None for that of the weights. States, times and
            control stay in their own. Automatic casting around a solve has no effect on it.

    Raises:
        ValueError: an unknown method, a gradient that it cannot give, a number of steps below one, a tolerance that is
            no positive number, a grid for an adaptive method, or a precision for one.

    >>> SolveOptions("rk4", steps=4).but(steps=8).steps
    8
    """

    method: str = "rk4"
    steps: int = 8
    grid: Times | None = None
    rtol: float = 1e-6
    atol: float = 1e-6
    max_steps: int = 1000
    gradient: Gradient = "auto"
    log_det_by: LogDet = "divergence"
    precision: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_method(self.method)
        for name in ("steps", "max_steps"):
            object.__setattr__(self, name, as_count(getattr(self, name), name))
        for name in ("rtol", "atol"):
            object.__setattr__(self, name, _tolerance(getattr(self, name), name))
        if self.atol == 0:
            raise ValueError("tolerances must be positive, got atol=0")
        fixed = has_fixed_steps(self.method)
        if self.grid is not None and not fixed:
            raise ValueError(f"a grid of steps needs a fixed-step method ({', '.join(FIXED)}), not {self.method!r}")
        if self.log_det_by not in get_args(LogDet):
            raise ValueError(f'log_det_by must be "divergence" or "steps", got {self.log_det_by!r}')
        if self.log_det_by == "steps" and not fixed:
            raise ValueError(f'log_det_by="steps" needs a method of fixed steps, got {self.method!r}')
        if self.precision is not None and self.method in ADAPTIVE:
            raise ValueError(f"{self.method} cannot meet its tolerances in {self.precision}; leave precision out")
        self._check_gradient()

    def _check_gradient(self) -> None:
        if self.gradient not in get_args(Gradient):
            raise ValueError(f"gradient must be one of {', '.join(get_args(Gradient))}, got {self.gradient!r}")
        library = self.method.startswith(LIBRARY)
        if self.gradient == "adjoint" and not library:
            example = f'"{LIBRARY}rk4"'
            raise ValueError(
                f'gradient "adjoint" needs a method of torchdiffeq, such as {example}, not {self.method!r}'
            )
        if self.gradient == "checkpoint" and library:
            known = ", ".join(METHODS)
            raise ValueError(f'gradient "checkpoint" needs one of our methods ({known}), not {self.method!r}')

    def but(self, **changes: Any) -> SolveOptions:
        """Return the options with some of them changed."""
        return dataclasses.replace(self, **changes)

    def with_gradient(self, recomputes: bool, controls: int) -> SolveOptions:
        """Return the options with the gradient that "auto" takes for a flow, whose control has so many numbers in all.

        Args:
            recomputes: whether the control is computed again at every evaluation.
            controls: numbers of all controls.
        """
        if self.gradient != "auto" or not recomputes:
            return self
        steps = self.steps if self.grid is None else len(self.grid) - 1
        nfe = ADAPTIVE_EVALUATIONS if self.method in ADAPTIVE else evaluations(self.method, steps)
        return self.but(gradient="checkpoint") if 4 * nfe * controls > RECOMPUTED_BYTES else self

    @property
    def adjoint(self) -> bool:
        """Whether gradients come from the continuous adjoint; scipy's solvers have no other ones."""
        return self.gradient == "adjoint" or (self.gradient == "auto" and self.method == f"{LIBRARY}scipy_solver")


def _tolerance(value: float, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be one number, the same for all components, got {value!r:.80}") from None
    if not 0 <= number < math.inf:
        raise ValueError(f"tolerances must be positive and finite, got {name}={number}")
    return number
