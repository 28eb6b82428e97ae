"""The coupled system of a state and its control, solved."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..solvers import (
    ADAPTIVE,
    Solution,
    SolveOptions,
    State,
    Times,
    as_times,
    batch_invariant,
    casting_to,
    in_own_precision,
    solve,
)
from .backends import solve_dynamics, solve_natively
from .controllers import Controller, DynamicController
from .dynamics import BoundDynamics, ControlDynamics, CoupledDynamics, Dynamics, Measures
from .field import Field
from .inputs import check_dtypes, checked_inputs, uncast, weights_dtype


class DensityError(ValueError):
    """A density was requested of a map that has none."""


@dataclass(frozen=True, kw_only=True)
class FlowSolution(Solution):
    """A `Solution` whose first component is the state x, augmentation left out.

    Attributes:
        augmented: the state with its extra dimensions, shape (T, n, *event) or (T, n, K, *event).
        log_det: log |det dx(t)/dx(0)| in nats at every requested time, shape (T, n) or (T, n, K), if requested.
        energy: integral of |dx/dt|^2 up to every requested time, of the shape of `log_det`, if requested.
        jacobian_penalty: integral of the squared Frobenius norm of the Jacobian, likewise, estimated, if requested.
        control: theta at every requested time, where it is a part of the ODE's state: shape (T, n, P), or (T, n, K, P)
            where it follows K states.
    """

    augmented: Tensor
    log_det: Tensor | None = None
    energy: Tensor | None = None
    jacobian_penalty: Tensor | None = None
    control: Tensor | None = None


def _exactly(options: SolveOptions) -> AbstractContextManager[None]:
    """Per-sample adaptive solves promise the same bits in every batch, and so gamma has to keep that promise too."""
    return batch_invariant() if options.method in ADAPTIVE else nullcontext()


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
        options: how solves are done, unless a call says otherwise.

    Raises:
        ValueError: a negative augmentation, or one that leaves no dimension.

    Reflection in open loop, x(1) = -x(0), exactly:

    >>> from ncode_gen.control import ConstantField, OpenController
    >>> flow = ControlledODE(ConstantField(2), OpenController(lambda c: -2 * c))
    >>> flow(torch.tensor([[1.0, 2.0]])).state
    tensor([[-1., -2.]])
    """

    def __init__(
        self, field: Field, controller: Controller, *, augment: int = 0, options: SolveOptions | None = None
    ) -> None:
        super().__init__()
        if augment < 0 or augment >= field.dim:
            raise ValueError(f"the augmentation must be >= 0 and < {field.dim}, got {augment}")
        self.field, self.controller, self.augment = field, controller, augment
        self.options = options or SolveOptions()

    @property
    def dim(self) -> int:
        """Dimension d of the state, augmentation left out."""
        return self.field.dim - self.augment

    def check_density(self, *, conditioned: bool) -> None:
        """Raise a `DensityError` that says why, if x(0) -> x(1) has no density.

        Args:
            conditioned: whether the condition is something else than the initial state.
        """
        if isinstance(self.controller, DynamicController) and self.controller.closed_loop:
            raise DensityError(
                "in a dynamic closed loop theta remembers the path, so x(0) -> x(1) may fold and has no density; use a "
                "static, open (on a condition that is not x0) or algebraic closed loop"
            )
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
        jacobian_penalty: bool = False,
        noise: Tensor | None = None,
        velocity: Tensor | None = None,
        options: SolveOptions | None = None,
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
            jacobian_penalty: whether to integrate the squared Frobenius norm of the Jacobian (same source), estimated
                as |J e|^2 with the noise e.
            noise: e, of the shape of `x`, augmentation included, of mean zero and unit covariance, fixed through the
                solve. With it the divergence is Hutchinson's estimate e' J e; without it exact.
            velocity: dx/dt at the first time, of the shape of `x`, where it is known: fixed-step methods then evaluate
                the field once less. Only for a control that is no part of the ODE's state, and without measures.
            options: how to solve; the flow's own options if None.

        Raises:
            DensityError: `log_det` of a map that is not a flow in x.
            ValueError: a wrong shape or dtype, times of another form than `solve` takes, or `jacobian_penalty` without
                noise.
        """
        if log_det:
            self.check_density(conditioned=condition is not None and condition is not x)
        if jacobian_penalty and noise is None:
            raise ValueError("the Jacobian penalty is estimated along noise; give noise of the shape of the states")
        options = options or self.options
        times = _ends(x, 0.0, 1.0) if times is None else as_times(times, x, steps=options.steps)
        measures = {"log_det": log_det, "energy": energy, "jacobian_penalty": jacobian_penalty}
        names = tuple(name for name, wanted in measures.items() if wanted)
        if velocity is not None and (names or isinstance(self.controller, DynamicController)):
            raise ValueError(
                "a known velocity is that of x alone: ask for no measures, and use a control without dynamics"
            )
        return self._solve(x, condition, times, options, Measures(names, noise, options.precision), velocity=velocity)

    def inverse(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        log_det: bool = False,
        noise: Tensor | None = None,
        options: SolveOptions | None = None,
    ) -> FlowSolution:
        """Solve from time 1 back to time 0; arguments as in `forward`.

        Raises:
            DensityError: the map is not a flow in x, so it has no inverse.
            ValueError: a wrong shape.
        """
        self.check_density(conditioned=condition is not None and condition is not x)
        options = options or self.options
        back, theta = _ends(x, 1.0, 0.0), None
        if isinstance(self.controller, DynamicController):
            # In open loop theta does not depend on x, so theta(1) is found first.
            with _exactly(options), in_own_precision(x):
                start = self.controller.start(x if condition is None else condition)
                own = options.with_gradient(True, start.numel())
                theta = solve(ControlDynamics(self.controller), (start,), back.flip(0), own).state
        measures = Measures(("log_det",) if log_det else (), noise, options.precision)
        return self._solve(x, condition, back, options, measures, theta)

    def velocity(self, t: float, x: Tensor, condition: Tensor, control: Tensor | None = None) -> Tensor:
        """Return dx/dt at states (n, K, *event) under each sample's own control, of the shape of `x`.

        Args:
            t: time.
            x: states, augmentation included.
            condition: what the control is made from, shape (n, c).
            control: theta at time t, shape (n, P), for a controller whose theta is a part of the ODE's state.

        Raises:
            ValueError: theta has dynamics, and `control` is not given.
        """
        if isinstance(self.controller, DynamicController) and control is None:
            raise ValueError("theta is a part of the ODE's state here; give the control at time t")
        bound = self.controller.bind(self.field, condition) if control is None else self.field.bind(control)
        return bound.velocity(torch.tensor(t, dtype=x.dtype, device=x.device), x)

    def _solve(
        self,
        x: Tensor,
        condition: Tensor | None,
        times: Tensor,
        options: SolveOptions,
        measures: Measures,
        theta: Tensor | None = None,
        velocity: Tensor | None = None,
    ) -> FlowSolution:
        """Solve from states and a condition as the user gave them; `theta` at the first time, if not gamma's."""
        noise = measures.noise
        # What layers under automatic casting gave is taken back to the dtype of the weights.
        if casting_to(x) is not None:
            own = weights_dtype(self, torch.float32)
            x = uncast(x, own)
            condition, noise = (None if part is None else uncast(part, own) for part in (condition, noise))
        with in_own_precision(x), _exactly(options):
            points, condition = checked_inputs(
                x, condition, self.field.axes, self.dim, conditional=self.controller.conditional
            )
            check_dtypes(weights_dtype(self, x.dtype), states=x, condition=condition)
            if self.augment:
                extra = points.new_zeros(*points.shape[:2], self.augment, *points.shape[3:])
                points = torch.cat([points, extra], 2)
            if noise is not None:
                if noise.numel() != points.numel():
                    raise ValueError(
                        f"noise must have the shape of the states, {tuple(points.shape)}, got {noise.shape}"
                    )
                measures = Measures(measures.names, noise.reshape(points.shape), measures.precision)
            solution = self._solve_checked(points, condition, times, options, measures, theta, velocity)
        return self._result(solution, x, measures.names)

    def _solve_checked(
        self,
        points: Tensor,
        condition: Tensor,
        times: Tensor,
        options: SolveOptions,
        measures: Measures,
        theta: Tensor | None,
        velocity: Tensor | None,
    ) -> Solution:
        """Solve from checked states (n, K, *event)."""
        field, controller = self.field, self.controller
        totals = tuple(points.new_zeros(points.shape[:2]) for _ in measures.names)
        if isinstance(controller, DynamicController):
            dynamics: Dynamics
            dynamics, state = _coupled(field, controller, points, condition, measures, totals, theta)
        else:
            state, constant = (points, *totals), controller.constant(field, condition)
            if constant is not None:
                found = solve_natively(field, constant, points, times, options, measures)
                if found is not None:
                    return found
            bound = controller.bind(field, condition) if constant is None else field.bind(constant)
            dynamics = BoundDynamics(bound, measures, None if velocity is None else velocity.reshape(points.shape))
        recomputes = controller.closed_loop or isinstance(controller, DynamicController)
        controls = points.shape[0] * points.shape[1] * field.control_size
        return solve_dynamics(dynamics, state, times, options.with_gradient(recomputes, controls))

    def _result(self, solution: Solution, x: Tensor, names: tuple[str, ...]) -> FlowSolution:
        """Give every part the leading shape of the states, (T, n) or (T, n, K)."""
        axes = self.field.axes
        lead = (solution.times.shape[0], *x.shape[: x.dim() - axes])
        augmented = solution.parts[0].reshape(*lead, *solution.parts[0].shape[3:])
        parts = [augmented.narrow(len(lead), 0, self.dim)]
        control = None
        if isinstance(self.controller, DynamicController):
            control = solution.parts[1]
            if self.controller.closed_loop:
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
            **dict(zip(names, totals, strict=True)),
        )

    def extra_repr(self) -> str:
        """Show the solver."""
        return f"method={self.options.method}, steps={self.options.steps}, augment={self.augment}"


def _coupled(
    field: Field,
    controller: DynamicController,
    points: Tensor,
    condition: Tensor,
    measures: Measures,
    totals: tuple[Tensor, ...],
    theta: Tensor | None,
) -> tuple[Dynamics, State]:
    """Return the dynamics of states and theta together, and what they start from."""
    if controller.closed_loop and points.shape[1] > 1:
        # Each particle drives theta its own way, so each becomes a sample.
        condition = condition.repeat_interleave(points.shape[1], 0)
        points = points.flatten(0, 1).unsqueeze(1)
        noise = None if measures.noise is None else measures.noise.reshape(points.shape)
        measures = Measures(measures.names, noise, measures.precision)
        totals = tuple(total.reshape(-1, 1) for total in totals)
    start = field.checked_control(controller.start(condition) if theta is None else theta, len(points))
    return CoupledDynamics(field, controller, measures), (points, start.expand(len(points), -1), *totals)
