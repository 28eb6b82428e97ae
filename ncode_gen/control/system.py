"""The coupled system of a state and its control, solved."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..solvers import (
    ADAPTIVE,
    Solution,
    State,
    Times,
    as_times,
    batch_invariant,
    casting_to,
    evaluations,
    grid_of,
    has_fixed_steps,
    in_own_precision,
    solve,
)
from .controllers import Controller
from .dynamics import ControlDynamics, CoupledDynamics
from .field import Field
from .native import shallow_field, shallow_solve
from .solver import Solver, SolverOptions
from .step_map import solve_with_step_maps

__all__ = ["ControlledODE", "DensityError", "FlowSolution"]


class DensityError(ValueError):
    """A density was asked of a map that is not a flow in the state."""


@dataclass(frozen=True, kw_only=True)
class FlowSolution(Solution):
    """A `Solution` whose first component is the state x, augmentation left out.

    Attributes:
        augmented: the state with its extra dimensions, shape (T, n, *event) or (T, n, K, *event).
        log_det: log |det dx(t)/dx(0)| in nats at every requested time, shape (T, n) or (T, n, K), if asked for.
        energy: integral of |dx/dt|^2 up to every requested time, of the shape of `log_det`, if asked for.
        roughness: integral of the squared Frobenius norm of the Jacobian, likewise, estimated, if asked for.
        control: theta at every requested time, where it is a part of the ODE's state: shape (T, n, P), or (T, n, K, P)
            where it follows K states.
    """

    augmented: Tensor
    log_det: Tensor | None = None
    energy: Tensor | None = None
    roughness: Tensor | None = None
    control: Tensor | None = None


def _exactly(solver: Solver) -> AbstractContextManager[None]:
    """Per-sample adaptive solves promise the same bits in every batch, and so gamma has to keep that promise too."""
    return batch_invariant() if solver.method in ADAPTIVE else nullcontext()


def _ends(x: Tensor, first: float, last: float) -> Tensor:
    """Return two times for states; on the CPU, so that a look at them waits for no device, unless compiled."""
    device = x.device if torch.compiler.is_compiling() else "cpu"
    return torch.tensor([first, last], dtype=x.dtype, device=device)


class ControlledODE(nn.Module):
    """dx/dt = f(t, x, theta), with theta decided by a controller: any field, any controller.

    Args:
        field: f.
        controller: what decides theta.
        augment: extra state dimensions (channels) that start at zero (ANODE); the field's are d + augment.
        solver: how solves are done, unless a call says otherwise.

    Attributes:
        unfinished: samples of the last per-sample adaptive solve that did not reach their last time.

    Raises:
        ValueError: a negative augmentation, or one that leaves no dimension.

    Reflection in open loop, x(1) = -x(0), exactly:

    >>> from ncode_gen.control import ConstantField, OpenController
    >>> flow = ControlledODE(ConstantField(2), OpenController(lambda c: -2 * c))
    >>> flow(torch.tensor([[1.0, 2.0]])).state
    tensor([[-1., -2.]])
    """

    def __init__(self, field: Field, controller: Controller, *, augment: int = 0, solver: Solver | None = None) -> None:
        super().__init__()
        if augment < 0 or augment >= field.dim:
            raise ValueError(f"the augmentation must be >= 0 and < {field.dim}, got {augment}")
        self.field, self.controller, self.augment = field, controller, augment
        self.solver = solver or Solver()
        self.unfinished = 0

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
        times: Times | None = None,
        log_det: bool = False,
        energy: bool = False,
        roughness: bool = False,
        noise: Tensor | None = None,
        **options: Unpack[SolverOptions],
    ) -> FlowSolution:
        """Solve from the first to the last of `times`.

        Args:
            x: states at the first time, shape (n, *event), or (n, K, *event) for K states under each sample's control;
                an event is a vector (d,) or a feature map (C, H, W).
            condition: what the control is made from, shape (n, c); x itself if None.
            times: requested times, a tensor, array or list of T numbers, by default 0 and 1; see `solvers.solve`.
                Decreasing times solve backwards.
            log_det: whether to integrate the divergence.
            energy: whether to integrate |dx/dt|^2, the kinetic penalty of Finlay et al., "How to train your neural
                ODE", ICML 2020, equation 11.
            roughness: whether to integrate the squared Frobenius norm of the Jacobian (same source), estimated as
                |J e|^2 with the noise e.
            noise: e, of the shape of `x`, augmentation included, of mean zero and unit covariance, fixed through the
                solve. With it the divergence is Hutchinson's estimate e' J e; without it exact.
            **options: what differs from the module's own solver, see `SolverOptions`.

        Raises:
            DensityError: `log_det` of a map that is not a flow in x.
            ValueError: a wrong shape, dtype, method or number of steps, times of another form than `solve` takes, or
                `roughness` without noise.
        """
        if log_det:
            self.check_density(conditioned=condition is not None and condition is not x)
        if roughness and noise is None:
            raise ValueError("the roughness is estimated along noise; give noise of the shape of the states")
        times = _ends(x, 0.0, 1.0) if times is None else as_times(times, x, steps=self.solver.steps)
        measures = {"log_det": log_det, "energy": energy, "roughness": roughness}
        return self._solve(x, condition, times, self._solver(options), measures, noise)

    def inverse(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        log_det: bool = False,
        noise: Tensor | None = None,
        **options: Unpack[SolverOptions],
    ) -> FlowSolution:
        """Solve from time 1 back to time 0; arguments as in `forward`.

        Raises:
            DensityError: the map is not a flow in x, so it has no inverse.
            ValueError: a wrong shape, method or number of steps.
        """
        self.check_density(conditioned=condition is not None and condition is not x)
        solver = self._solver(options)
        back = _ends(x, 1.0, 0.0)
        theta = None
        if self.controller.moves:
            # Without feedback theta moves by itself, so theta(1) is found first.
            with _exactly(solver), in_own_precision(x):
                start = self.controller.start(x if condition is None else condition)
                alone = ControlDynamics(self.controller, start)
                theta = self._integrate(alone, (start,), back.flip(0), solver, start.numel()).state
        return self._solve(x, condition, back, solver, {"log_det": log_det}, noise, theta)

    def velocity(self, t: float, x: Tensor, condition: Tensor, control: Tensor | None = None) -> Tensor:
        """Return dx/dt at states (n, K, *event) under each sample's own control, of the shape of `x`.

        Args:
            t: time.
            x: states, augmentation included.
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

    def _solver(self, options: SolverOptions) -> Solver:
        """Return the module's solver with what one call does differently."""
        given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        return replace(self.solver, **given) if given else self.solver

    def _integrate(self, derivative: Any, state: State, times: Tensor, solver: Solver, controls: int) -> Solution:
        return solve(
            derivative,
            state,
            times,
            method=solver.method,
            steps=solver.steps,
            grid=solver.grid,
            rtol=solver.rtol,
            atol=solver.atol,
            max_steps=solver.max_steps,
            gradient=solver.choose_gradient(self.controller.rebuilds, controls),
        )

    def _solve(
        self,
        x: Tensor,
        condition: Tensor | None,
        times: Tensor,
        solver: Solver,
        measures: dict[str, bool],
        noise: Tensor | None,
        theta: Tensor | None = None,
    ) -> FlowSolution:
        """Solve from states and a condition as the user gave them; `theta` at the first time, if not gamma's."""
        # What layers under automatic casting gave is taken back to the dtype of the weights.
        if casting_to(x) is not None:
            x = self._uncast(x)
            condition, noise = (None if part is None else self._uncast(part) for part in (condition, noise))
        with in_own_precision(x):
            return self._solve_in_own_precision(x, condition, times, solver, measures, noise, theta)

    def _solve_in_own_precision(
        self,
        x: Tensor,
        condition: Tensor | None,
        times: Tensor,
        solver: Solver,
        measures: dict[str, bool],
        noise: Tensor | None,
        theta: Tensor | None,
    ) -> FlowSolution:
        points, condition = self._checked(x, condition)
        n, particles, *event = points.shape
        if noise is not None:
            if noise.numel() != points.numel():
                raise ValueError(f"noise must have the shape of the states, {tuple(points.shape)}, got {noise.shape}")
            noise = noise.reshape(points.shape)
        with _exactly(solver):
            controller = self.controller
            wanted = tuple(name for name, on in measures.items() if on)
            totals = tuple(points.new_zeros(n, particles) for _ in wanted)
            if controller.moves:
                if controller.follows_state and particles > 1:
                    # Each particle pulls theta its own way, so each becomes a sample.
                    points = points.reshape(n * particles, 1, *event)
                    noise = None if noise is None else noise.reshape(points.shape)
                    condition = condition.repeat_interleave(particles, 0)
                    totals = tuple(total.reshape(-1, 1) for total in totals)
                start = controller.start(condition) if theta is None else theta
                self.field.check_control(start, len(points))
                state: State = (points, start.expand(len(points), -1), *totals)
                dynamics = CoupledDynamics(self.field, controller, None, wanted, noise, solver.precision)
            else:
                if type(controller).steer is Controller.steer:  # one theta for the whole solve
                    control = controller.start(condition)
                    self.field.check_control(control, n)
                    fast = self._solve_natively(control, points, times, solver, wanted, noise)
                    if fast is not None:
                        return self._result(fast, x, wanted)
                    steered = self.field.bind(control)
                else:
                    steered = controller.steer(self.field, condition)
                state = (points, *totals)
                dynamics = CoupledDynamics(self.field, controller, steered, wanted, noise, solver.precision)
            if "log_det" in wanted and solver.log_det_by == "steps":
                solution = solve_with_step_maps(dynamics, state, times, solver)
            else:
                controls = points.shape[0] * points.shape[1] * self.field.control_size
                solution = self._integrate(dynamics, state, times, solver, controls)
                if solution.outcomes is not None:
                    self.unfinished = int((~solution.reached).sum())
        return self._result(solution, x, wanted)

    def _solve_natively(
        self,
        control: Tensor,
        points: Tensor,
        times: Tensor,
        solver: Solver,
        wanted: tuple[str, ...],
        noise: Tensor | None,
    ) -> Solution | None:
        """Solve by compiled code where it knows the field and all that is wanted; else return None."""
        if not has_fixed_steps(solver.method) or solver.gradient not in ("auto", "backprop") or noise is not None:
            return None
        if "log_det" in wanted and solver.log_det_by == "steps":
            return None
        if "energy" in wanted or solver.precision is not None:
            return None
        field = shallow_field(self.field, control, points)
        if field is None:
            return None
        times, nodes, kept = grid_of(times, points, solver.steps, solver.grid)
        if nodes.requires_grad or nodes.dtype != points.dtype:  # float64 where float32 cannot resolve the times
            return None
        parts = shallow_solve(field, control, points, nodes, kept, solver.method, log_det="log_det" in wanted)
        taken = nodes.shape[0] - 1
        return Solution(times, parts, nfe=evaluations(solver.method, taken), accepted=taken, rejected=0)

    def _checked(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return states (n, K, *event) and a condition (n, c), or raise a ValueError that names the wrong shape."""
        axes = self.field.axes
        if x.dim() not in (axes + 1, axes + 2) or x.shape[-axes] != self.dim:
            event = f"{self.dim}" if axes == 1 else f"{self.dim}, H, W"
            raise ValueError(f"states must have shape (n, {event}) or (n, K, {event}), got {tuple(x.shape)}")
        if condition is None:
            if x.dim() == axes + 2 and self.controller.conditional:
                raise ValueError("with K states a sample, give a condition of shape (n, c)")
            condition = x.flatten(1)
        elif condition.dim() != 2 or condition.shape[0] != x.shape[0]:
            raise ValueError(f"the condition must have shape ({x.shape[0]}, c), got {tuple(condition.shape)}")
        self._check_dtype(x, condition)
        points = x if x.dim() == axes + 2 else x.unsqueeze(1)
        if self.augment:
            extra = points.new_zeros(*points.shape[:2], self.augment, *points.shape[3:])
            points = torch.cat([points, extra], 2)
        return points, condition

    def _uncast(self, given: Tensor) -> Tensor:
        half = given.dtype in (torch.float16, torch.bfloat16)
        return given.to(self._dtype(torch.float32)) if half else given

    def _dtype(self, default: torch.dtype) -> torch.dtype:
        """Return the dtype of the weights; the default where there are none."""
        for part in (self.controller, self.field):  # where the first weight is near
            for weight in part.parameters():
                return weight.dtype
        return default

    def _check_dtype(self, x: Tensor, condition: Tensor) -> None:
        """Raise a ValueError where states or condition have another dtype than the weights."""
        for what, given in (("states", x), ("condition", condition)):
            if not given.is_floating_point():
                raise ValueError(f"{what} must be real floating point, got {given.dtype}")
        own = self._dtype(x.dtype)
        for what, given in (("states", x), ("condition", condition)):
            if given.dtype != own:
                raise ValueError(
                    f"the {what} are {given.dtype}, the weights of the flow {own}; convert one of them, such as "
                    f"{what}.to({own}) or flow.to({given.dtype})"
                )

    def _result(self, solution: Solution, x: Tensor, wanted: tuple[str, ...]) -> FlowSolution:
        """Give every part the leading shape of the states, (T, n) or (T, n, K)."""
        axes = self.field.axes
        lead = (solution.times.shape[0], *x.shape[: x.dim() - axes])
        augmented = solution.parts[0].reshape(*lead, *solution.parts[0].shape[3:])
        parts = [augmented.narrow(len(lead), 0, self.dim)]
        control = None
        if self.controller.moves:
            control = solution.parts[1]
            if self.controller.follows_state:
                control = control.reshape(*lead, -1)
            parts.append(control)
        totals = [part.reshape(lead) for part in solution.parts[len(parts) :]]
        return FlowSolution(
            times=solution.times,
            parts=(*parts, *totals),
            nfe=solution.nfe,
            accepted=solution.accepted,
            rejected=solution.rejected,
            outcomes=solution.outcomes,
            counts=solution.counts,
            augmented=augmented,
            control=control,
            **dict(zip(wanted, totals, strict=True)),
        )

    def extra_repr(self) -> str:
        """Show the solver."""
        return f"method={self.solver.method}, steps={self.solver.steps}, augment={self.augment}"
