"""The rates of change of a controlled flow: of its state, its control, and what is measured along the path."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..solvers import State
from .controllers import DynamicController
from .divergence import directional
from .field import Field, VectorField


class ControlDynamics:
    """Derivative of a control in open loop, without the state that it drives.

    Args:
        controller: what decides theta.
    """

    def __init__(self, controller: DynamicController) -> None:
        self.controller = controller

    def __call__(self, t: Tensor, state: State) -> State:
        """Return theta' at a time, scalar or (n,)."""
        return (self.controller.rate(t, state[0], state[0]),)

    def select(self, rows: Tensor) -> ControlDynamics:
        """Return the dynamics of some of the samples."""
        return self

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the rates depend on."""
        return tuple(self.controller.parameters())


@dataclass(frozen=True, eq=False)
class Measures:
    """What is integrated along a path beside the state.

    Attributes:
        names: of "log_det", "energy", "jacobian_penalty", in that order.
        noise: directions e, shape (n, K, *event), for Hutchinson's estimates; None for the exact divergence.
        precision: dtype of the field's layers under automatic casting; None for that of the weights.
    """

    names: tuple[str, ...] = ()
    noise: Tensor | None = None
    precision: torch.dtype | None = None

    def rates(self, bound: VectorField, t: Tensor, x: Tensor) -> State:
        """Return the velocity of a vector field and the rate of each measure, at a time, scalar or (n,)."""
        if t.dtype != x.dtype:  # of time stamps, which are kept in float64, a field gets the state's precision
            t = t.to(x.dtype)
        if self.precision is None:
            return self._rates(bound, t, x)
        with torch.autocast(t.device.type, self.precision):
            return self._rates(bound, t, x)

    def _rates(self, bound: VectorField, t: Tensor, x: Tensor) -> State:
        measured = {}
        if self.noise is not None and ("jacobian_penalty" in self.names or "log_det" in self.names):
            velocity, slope = directional(lambda point: bound.velocity(t, point), x, self.noise)
            measured["log_det"] = (slope * self.noise).flatten(2).sum(-1)
            measured["jacobian_penalty"] = slope.square().flatten(2).sum(-1)
        elif "log_det" in self.names:
            velocity, measured["log_det"] = bound.velocity_and_divergence(t, x)
        else:
            velocity = bound.velocity(t, x)
        if "energy" in self.names:
            measured["energy"] = velocity.square().flatten(2).sum(-1)
        return (velocity, *(measured[name] for name in self.names))

    def without(self, name: str) -> Measures:
        """Return the measures but one."""
        return replace(self, names=tuple(other for other in self.names if other != name))

    def select(self, rows: Tensor) -> Measures:
        """Return those of some of the samples; `rows` is an index or a mask, shape (n,)."""
        return self if self.noise is None else replace(self, noise=self.noise[rows])


class BoundDynamics:
    """Derivative of (x, [measures]) for a solver, under a control that is no part of the ODE's state.

    Args:
        bound: the field under its control.
        measures: what is integrated along the path.
        velocity: dx/dt at the first time, where it is known without an evaluation and nothing is measured.
    """

    def __init__(self, bound: VectorField, measures: Measures, velocity: Tensor | None = None) -> None:
        self.bound, self.measures = bound, measures
        self.initial = None if velocity is None else (velocity,)

    def __call__(self, t: Tensor, state: State) -> State:
        """Return the rates of a state at a time, scalar or (n,)."""
        return self.measures.rates(self.bound, t, state[0])

    def select(self, rows: Tensor) -> BoundDynamics:
        """Return the dynamics of some of the samples; `rows` is an index or a mask, shape (n,)."""
        return BoundDynamics(self.bound.select(rows), self.measures.select(rows))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the rates depend on; the gradient of what made the control comes through it."""
        return self.bound.tensors()


class CoupledDynamics:
    """Derivative of (x, theta, [measures]) for a solver.

    Args:
        field: f.
        controller: what decides theta.
        measures: what is integrated along the path.
    """

    def __init__(self, field: Field, controller: DynamicController, measures: Measures) -> None:
        self.field, self.controller, self.measures = field, controller, measures

    def __call__(self, t: Tensor, state: State) -> State:
        """Return the rates of a state at a time, scalar or (n,)."""
        x, theta = state[0], state[1]
        velocity, *measured = self.measures.rates(self.field.bind(theta), t, x)
        at = t if t.dtype == x.dtype else t.to(x.dtype)
        return (velocity, self.controller.rate(at, self.field.summary(x[:, 0]), theta), *measured)

    def select(self, rows: Tensor) -> CoupledDynamics:
        """Return the dynamics of some of the samples; `rows` is an index or a mask, shape (n,)."""
        return CoupledDynamics(self.field, self.controller, self.measures.select(rows))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the rates depend on."""
        return (*self.field.parameters(), *self.controller.parameters())


Dynamics = BoundDynamics | CoupledDynamics
