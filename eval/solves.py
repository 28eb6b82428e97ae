"""The same initial value problem as ours and as others solve it, for the study of speed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

from ncode_gen import NCODE
from ncode_gen.control import ControlledODE, MLPField, OpenController
from ncode_gen.solvers import SolveOptions, solve

__all__ = ["Call", "closed", "contenders", "problem"]

Call = Callable[[Tensor, Tensor], Tensor]


def contenders(dim: int, hidden: int, steps: int) -> dict[str, Call]:
    """Return functions from a control (n, P) and states (n, d) to the states at time 1."""
    field = MLPField(dim, (hidden,), time=False)
    whole = ControlledODE(field, OpenController(lambda control: control), options=SolveOptions("rk4", steps))
    times = torch.tensor([0.0, 1.0])

    def loop(control: Tensor, x: Tensor) -> Tensor:
        bound = field.bind(control)
        state = (x.unsqueeze(1),)
        return solve(
            lambda t, now: (bound.velocity(t, now[0]),), state, times, SolveOptions(steps=steps)
        ).state.squeeze(1)

    class Right(torch.nn.Module):
        """The right-hand side as torchdiffeq's users write it: the control is an attribute."""

        def __init__(self, control: Tensor) -> None:
            super().__init__()
            self.control = torch.nn.Parameter(control) if isinstance(control, torch.nn.Parameter) else control
            self.bound = field.bind(control)

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.bound.velocity(t, x.unsqueeze(1)).squeeze(1)

    def library(method: str, **options: Any) -> Call:
        def run(control: Tensor, x: Tensor) -> Tensor:
            found: Tensor = torchdiffeq.odeint(Right(control), x, times, method=method, **options)[-1]
            return found

        return run

    def adjoint(control: Tensor, x: Tensor) -> Tensor:
        found: Tensor = torchdiffeq.odeint_adjoint(
            Right(control), x, times, method="rk4", options={"step_size": 1 / steps}, adjoint_params=(control,)
        )[-1]
        return found

    compiled: Call = torch.compile(loop, fullgraph=True, dynamic=False)
    found: dict[str, Call] = {
        "ncode_gen": lambda control, x: whole(x, control).state,
        "plain loop": loop,
        "compiled loop": compiled,
        "torchdiffeq rk4": library("rk4", options={"step_size": 1 / steps}),
        "torchdiffeq dopri5": library("dopri5", rtol=1e-4, atol=1e-4),
        "odeint_adjoint rk4": adjoint,
    }
    if (others := _torchode(field)) is not None:
        found["torchode dopri5"] = others
    return found


def _torchode(field: MLPField) -> Call | None:
    try:
        torchode = importlib.import_module("torchode")
    except ImportError:
        return None

    def run(control: Tensor, x: Tensor) -> Tensor:
        bound = field.bind(control)
        term = torchode.ODETerm(lambda t, now: bound.velocity(t, now.unsqueeze(1)).squeeze(1))
        controller = torchode.IntegralController(atol=1e-4, rtol=1e-4, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
        times = torch.tensor([[0.0, 1.0]]).expand(len(x), 2)
        found: Tensor = solver.solve(torchode.InitialValueProblem(y0=x, t_eval=times)).ys[:, -1]
        return found

    return run


def problem(dim: int, hidden: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a random control, states and a cotangent."""
    torch.manual_seed(0)
    size = MLPField(dim, (hidden,), time=False).control_size
    control = (torch.randn(batch, size) / dim**0.5).requires_grad_()
    return control, torch.randn(batch, dim, requires_grad=True), torch.randn(batch, dim)


def closed(gradient: Any, dim: int, hidden: int, steps: int, batch: int) -> tuple[Call, tuple[Tensor, Tensor, Tensor]]:
    """Return a closed loop that rebuilds all weights at every evaluation, and what it is given."""
    torch.manual_seed(0)
    flow = NCODE(dim, (hidden,), "closed", feedback="weights", gamma=(32,), condition=dim, steps=steps)

    def call(condition: Tensor, x: Tensor) -> Tensor:
        found: Tensor = flow(x, condition, options=flow.options.but(gradient=gradient)).state
        return found

    return call, (torch.randn(batch, dim, requires_grad=True), torch.randn(batch, dim, requires_grad=True),
                  torch.randn(batch, dim))  # fmt: skip
