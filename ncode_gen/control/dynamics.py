"""The rates of change of a controlled flow: of its state, its control, and what is measured along the path."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers import State
from .controllers import Controller
from .divergence import directional
from .field import Field, VectorField

__all__ = ["ControlDynamics", "CoupledDynamics"]


class ControlDynamics:
    """Derivative of a control that moves by itself, without the state it steers.

    Args:
        controller: what decides theta; it does not follow the state.
        summary: what it is shown of states, shape (n, s), which it does not look at.
    """

    def __init__(self, controller: Controller, summary: Tensor) -> None:
        self.controller, self.summary = controller, summary

    def __call__(self, t: Tensor, state: State) -> State:
        """Return theta' at a time, scalar or (n,)."""
        return (self.controller.rate(t, self.summary, state[0]),)

    def take(self, rows: Tensor) -> ControlDynamics:
        """Return the dynamics of some of the samples; `rows` is an index or a mask, shape (n,)."""
        return ControlDynamics(self.controller, self.summary[rows])

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the rates depend on."""
        return tuple(self.controller.parameters())


class CoupledDynamics:
    """Derivative of (x, [theta], [measures]) for a solver.

    Args:
        field: f.
        controller: what decides theta.
        steered: the field under a control that does not move; None if theta is a part of the state.
        measures: what is integrated along the path: of "log_det", "energy", "roughness", in that order.
        noise: directions e, shape (n, K, *event), for Hutchinson's estimates; None for the exact divergence.
        precision: dtype of the field's layers under automatic casting; None for that of the weights.
    """

    def __init__(
        self,
        field: Field,
        controller: Controller,
        steered: VectorField | None,
        measures: tuple[str, ...],
        noise: Tensor | None,
        precision: torch.dtype | None = None,
    ) -> None:
        self.field, self.controller, self.steered = field, controller, steered
        self.measures, self.noise, self.precision = measures, noise, precision

    def __call__(self, t: Tensor, state: State) -> State:
        """Return the rates of a state at a time, scalar or (n,)."""
        if t.dtype != state[0].dtype:  # of time stamps, which are kept in float64, a field sees the state's precision
            t = t.to(state[0].dtype)
        if self.precision is None:
            return self._rates(t, state)
        with torch.autocast(t.device.type, self.precision):
            return self._rates(t, state)

    def _rates(self, t: Tensor, state: State) -> State:
        x = state[0]
        if self.steered is not None:
            return self._measured(self.steered, t, x, ())
        rate = self.controller.rate(t, self.field.summary(x[:, 0]), state[1])
        return self._measured(self.field.bind(state[1]), t, x, (rate,))

    def _measured(self, bound: VectorField, t: Tensor, x: Tensor, rates: State) -> State:
        measured = {}
        if self.noise is not None and ("roughness" in self.measures or "log_det" in self.measures):
            velocity, slope = directional(lambda point: bound.velocity(t, point), x, self.noise)
            measured["log_det"] = (slope * self.noise).flatten(2).sum(-1)
            measured["roughness"] = slope.square().flatten(2).sum(-1)
        elif "log_det" in self.measures:
            velocity, measured["log_det"] = bound.velocity_and_divergence(t, x)
        else:
            velocity = bound.velocity(t, x)
        if "energy" in self.measures:
            measured["energy"] = velocity.square().flatten(2).sum(-1)
        return (velocity, *rates, *(measured[name] for name in self.measures))

    def without(self, measure: str) -> CoupledDynamics:
        """Return the dynamics that do not integrate a measure."""
        measures = tuple(name for name in self.measures if name != measure)
        return CoupledDynamics(self.field, self.controller, self.steered, measures, self.noise, self.precision)

    def take(self, rows: Tensor) -> CoupledDynamics:
        """Return the dynamics of some of the samples; `rows` is an index or a mask, shape (n,)."""
        steered = None if self.steered is None else self.steered.take(rows)
        noise = None if self.noise is None else self.noise[rows]
        return CoupledDynamics(self.field, self.controller, steered, self.measures, noise, self.precision)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the rates depend on."""
        if self.steered is not None:
            # What made the control is left out: its gradient comes through the control.
            return self.steered.tensors()
        return (*self.field.parameters(), *self.controller.parameters())
