"""One solve of a controlled flow, by whatever back end can do it: compiled code, step maps, or a solver."""

from torch import Tensor

from ..solvers import Solution, SolveOptions, State, evaluations, grid_of, has_fixed_steps, solve
from .dynamics import BoundDynamics, Dynamics
from .native import shallow_field, shallow_solve
from .step_map import solve_with_step_maps


def solve_dynamics(dynamics: Dynamics, state: State, times: Tensor, options: SolveOptions) -> Solution:
    """Solve the dynamics of a flow.

    Args:
        dynamics: the rates of `state`.
        state: (x, [theta], [measures]) at the first time, each of shape (n, ...).
        times: requested times, shape (T,).
        options: how.

    Raises:
        ValueError: log-determinants by step maps of a control that is a part of the ODE's state; or see `solve`.
    """
    wants_log_det = "log_det" in dynamics.measures.names
    if wants_log_det and options.log_det_by == "steps":
        if not isinstance(dynamics, BoundDynamics):
            raise ValueError('log_det_by="steps" needs a control that is no part of the ODE\'s state; use "divergence"')
        return solve_with_step_maps(dynamics, state, times, options)
    if isinstance(dynamics, BoundDynamics):
        found = _solve_natively(dynamics, state, times, options, log_det=wants_log_det)
        if found is not None:
            return found
    return solve(dynamics, state, times, options)


def _solve_natively(
    dynamics: BoundDynamics, state: State, times: Tensor, options: SolveOptions, *, log_det: bool
) -> Solution | None:
    """Solve by compiled code where it knows the field and all that is wanted; else return None."""
    measures, points = dynamics.measures, state[0]
    if not has_fixed_steps(options.method) or options.gradient not in ("auto", "backprop"):
        return None
    if "energy" in measures.names or measures.noise is not None or measures.precision is not None:
        return None
    field = shallow_field(dynamics.bound, points)
    if field is None:
        return None
    wanted, nodes, kept = grid_of(times, points, options.steps, options.grid)
    if nodes.requires_grad or nodes.dtype != points.dtype:  # float64 where float32 cannot resolve the times
        return None
    parts = shallow_solve(field, dynamics.bound.control, points, nodes, kept, options.method, log_det=log_det)
    taken = nodes.shape[0] - 1
    return Solution(wanted, parts, nfe=evaluations(options.method, taken), accepted=taken, rejected=0)
