"""The coupled system of a state and its control, solved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..solvers import Derivative, Solution, State, check_method, solve
from .controllers import Controller
from .fields import Field

__all__ = ["ControlledODE", "DensityError", "FlowSolution"]


class DensityError(ValueError):
    """A density was asked of a map that is not a flow in the state."""


@dataclass(frozen=True)
class FlowSolution(Solution):
    """A `Solution` whose first component is the state x, augmentation left out, shape (T, n, d) or (T, n, K, d).

    Attributes:
        log_det: log |det dx(t)/dx(0)| in nats at every requested time, shape (T, n) or (T, n, K), if asked for.
        control: theta at every requested time, where it is a part of the ODE's state: shape (T, n, P), or (T, n, K, P)
            where it follows K states.
        augmented: the state with its extra dimensions, shape (T, n, d + a) or (T, n, K, d + a).
    """

    augmented: Tensor
    log_det: Tensor | None = None
    control: Tensor | None = None


@dataclass(frozen=True)
class Solver:
    """How one solve is done: method, steps (the module's own if None), or the nodes of the grid."""

    method: str
    steps: int | None
    grid: Tensor | None


class ControlledODE(nn.Module):
    """dx/dt = f(t, x, theta), with theta decided by a controller: any field, any controller.

    Args:
        field: f; it has no weights but theta.
        controller: what decides theta.
        augment: extra state dimensions that start at zero (ANODE); the field's dimension is d + augment.
        method: solver, see `ncode_gen.solvers.solve`.
        steps: steps on [0, 1] of a fixed-step solver.

    Raises:
        ValueError: an unknown method, steps below one, or a negative augmentation.

    Reflection in open loop, x(1) = -x(0), exactly:

    >>> from ncode_gen.control import ConstantField, OpenController
    >>> flow = ControlledODE(ConstantField(2), OpenController(lambda c: -2 * c))
    >>> flow(torch.tensor([[1.0, 2.0]])).state
    tensor([[-1., -2.]])
    """

    def __init__(
        self, field: Field, controller: Controller, *, augment: int = 0, method: str = "rk4", steps: int = 8
    ) -> None:
        super().__init__()
        if steps < 1 or augment < 0 or augment >= field.dim:
            raise ValueError(f"steps must be >= 1 and 0 <= augment < {field.dim}, got {steps} and {augment}")
        self.field, self.controller, self.augment = field, controller, augment
        self.method, self.steps = check_method(method), steps

    @property
    def dim(self) -> int:
        """Dimension d of the state, augmentation left out."""
        return self.field.dim - self.augment

    def check_density(self, *, conditioned: bool) -> None:
        """Raise a `DensityError` that says why, if x(0) -> x(1) has no density.

        Args:
            conditioned: whether the condition is something else than the initial state.
        """
        if self.controller.no_density is not None:
            raise DensityError(self.controller.no_density)
        if self.controller.conditional and not conditioned:
            raise DensityError(
                "theta = gamma(x0) gives every initial state a flow of its own, so x(0) -> x(1) may fold and has no "
                "density; give a condition that is not x0"
            )
        if self.augment:
            raise DensityError("an augmented state has no density in its first dimensions; set augment to 0")

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        times: Tensor | None = None,
        log_det: bool = False,
        method: str | None = None,
        steps: int | None = None,
        grid: Tensor | None = None,
    ) -> FlowSolution:
        """Solve from the first to the last of `times`.

        Args:
            x: states at the first time, shape (n, d), or (n, K, d) for K states under each sample's control.
            condition: what the control is made from, shape (n, c); x itself if None.
            times: requested times, shape (T,), by default 0 and 1; decreasing times solve backwards.
            log_det: whether to integrate the divergence.
            method: solver instead of the module's own.
            steps: steps instead of the module's own.
            grid: nodes of the steps, shape (S + 1,), instead of `times` and `steps`.

        Raises:
            DensityError: `log_det` of a map that is not a flow in x.
            ValueError: a wrong shape, method or number of steps.
        """
        if log_det:
            self.check_density(conditioned=condition is not None and condition is not x)
        if times is None:
            times = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
        return self._solve(x, condition, times, Solver(method or self.method, steps, grid), log_det)

    def inverse(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        log_det: bool = False,
        method: str | None = None,
        steps: int | None = None,
    ) -> FlowSolution:
        """Solve from time 1 back to time 0; arguments as in `forward`.

        Raises:
            DensityError: the map is not a flow in x, so it has no inverse.
            ValueError: a wrong shape, method or number of steps.
        """
        self.check_density(conditioned=condition is not None and condition is not x)
        solver = Solver(method or self.method, steps, None)
        back = torch.tensor([1.0, 0.0], dtype=x.dtype, device=x.device)
        theta = None
        if self.controller.moves:
            # Without feedback theta moves by itself, so theta(1) is found first.
            def drift(t: Tensor, now: State) -> State:
                return (self.controller.rate(t, x, now[0]),)

            start = self.controller.start(x if condition is None else condition)
            theta = self._integrate(drift, (start,), back.flip(0), solver).state
        return self._solve(x, condition, back, solver, log_det, theta)

    def velocity(self, t: float, x: Tensor, condition: Tensor, control: Tensor | None = None) -> Tensor:
        """Return dx/dt, shape (n, K, d), at points (n, K, d) under each sample's own control.

        Args:
            t: time.
            x: points, augmentation included.
            condition: what the control is made from, shape (n, c).
            control: theta at time t, shape (n, P), for a controller whose theta is a part of the ODE's state.

        Raises:
            ValueError: theta moves, and `control` is not given.
        """
        if self.controller.moves:
            if control is None:
                raise ValueError("theta is a part of the ODE's state here; give the control at time t")
            field = self.field.bind(control)
        else:
            field = self.controller.steer(self.field, condition)
        return field.velocity(torch.tensor(t, dtype=x.dtype, device=x.device), x)

    def _integrate(self, derivative: Derivative, state: State, times: Tensor, solver: Solver) -> Solution:
        steps = self.steps if solver.steps is None else solver.steps
        return solve(derivative, state, times, method=solver.method, steps=steps, grid=solver.grid)

    def _solve(
        self,
        x: Tensor,
        condition: Tensor | None,
        times: Tensor,
        solver: Solver,
        log_det: bool,
        theta: Tensor | None = None,
    ) -> FlowSolution:
        """Solve from states and a condition as the user gave them; `theta` at the first time, if not gamma's."""
        points, condition = self._checked(x, condition)
        n, particles, dim = points.shape
        state: State = (points,)
        controller = self.controller
        if not controller.moves:
            steered = controller.steer(self.field, condition)

            def derivative(t: Tensor, now: State) -> State:
                if log_det:
                    return steered.velocity_and_divergence(t, now[0])
                return (steered.velocity(t, now[0]),)
        else:
            if controller.follows_state and particles > 1:
                # Each particle pulls theta its own way, so each becomes a sample.
                state = (points.reshape(n * particles, 1, dim),)
                condition = condition.repeat_interleave(particles, 0)
            state = (*state, controller.start(condition) if theta is None else theta)

            def derivative(t: Tensor, now: State) -> State:
                bound = self.field.bind(now[1])
                rate = controller.rate(t, now[0][:, 0], now[1])
                if log_det:
                    velocity, divergence = bound.velocity_and_divergence(t, now[0])
                    return velocity, rate, divergence
                return bound.velocity(t, now[0]), rate

        if log_det:
            state = (*state, points.new_zeros(n, particles))
        return self._result(self._integrate(derivative, state, times, solver), x, log_det)

    def _checked(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return states (n, K, d + a) and a condition (n, c), or raise a ValueError that names the wrong shape."""
        if x.dim() not in (2, 3) or x.shape[-1] != self.dim:
            raise ValueError(f"states must have shape (n, {self.dim}) or (n, K, {self.dim}), got {tuple(x.shape)}")
        if condition is None:
            if x.dim() == 3 and self.controller.conditional:
                raise ValueError("with K states a sample, give a condition of shape (n, c)")
            condition = x
        elif condition.dim() != 2 or condition.shape[0] != x.shape[0]:
            raise ValueError(f"the condition must have shape ({x.shape[0]}, c), got {tuple(condition.shape)}")
        points = x if x.dim() == 3 else x.unsqueeze(1)
        if self.augment:
            points = torch.cat([points, points.new_zeros(*points.shape[:-1], self.augment)], -1)
        return points, condition

    def _result(self, solution: Solution, x: Tensor, log_det: bool) -> FlowSolution:
        """Give every part the leading shape of the states, (T, n) or (T, n, K)."""
        count, shape = solution.times.shape[0], x.shape[:-1]
        augmented = solution.parts[0].reshape(count, *shape, self.field.dim)
        parts = [augmented[..., : self.dim]]
        control = logarithm = None
        if self.controller.moves:
            control = solution.parts[1]
            if self.controller.follows_state:
                control = control.reshape(count, *shape, -1)
            parts.append(control)
        if log_det:
            logarithm = solution.parts[-1].reshape(count, *shape)
            parts.append(logarithm)
        return FlowSolution(
            times=solution.times,
            parts=tuple(parts),
            nfe=solution.nfe,
            accepted=solution.accepted,
            rejected=solution.rejected,
            augmented=augmented,
            log_det=logarithm,
            control=control,
        )

    def extra_repr(self) -> str:
        """Show the solver."""
        return f"method={self.method}, steps={self.steps}, augment={self.augment}"
