"""The back ends of a solve: compiled code, step maps, or a solver."""

from torch import Tensor

from ..solvers import Solution, SolveOptions, State, evaluations, grid_of, has_fixed_steps, solve
from .dynamics import BoundDynamics, Dynamics, Measures
from .field import Field
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
    if "log_det" in dynamics.measures.names and options.log_det_by == "steps":
        if not isinstance(dynamics, BoundDynamics):
            raise ValueError('log_det_by="steps" needs a control that is no part of the ODE\'s state; use "divergence"')
        return solve_with_step_maps(dynamics, state, times, options)
    return solve(dynamics, state, times, options)


def solve_natively(
    field: Field, control: Tensor, points: Tensor, times: Tensor, options: SolveOptions, measures: Measures
) -> Solution | None:
    """Solve by compiled code where it knows the field and all that is wanted; else return None.

    Args:
        field: the field.
        control: its control, constant in time, (n, P).
        points: states (n, K, *event).
        times: requested times, shape (T,).
        options: how.
        measures: what is integrated along the path.
    """
    log_det = "log_det" in measures.names
    if not has_fixed_steps(options.method) or options.gradient not in ("auto", "backprop"):
        return None
    if "energy" in measures.names or measures.noise is not None or measures.precision is not None:
        return None
    if log_det and options.log_det_by == "steps":
        return None
    shallow = shallow_field(field, control, points)
    if shallow is None:
        return None
    wanted, nodes, kept = grid_of(times, points, options.steps, options.grid)
    if nodes.requires_grad or nodes.dtype != points.dtype:  # float64 where float32 cannot resolve the times
        return None
    parts = shallow_solve(shallow, control, points, nodes, kept, options.method, log_det=log_det)
    taken = nodes.shape[0] - 1
    return Solution(wanted, parts, nfe=evaluations(options.method, taken), accepted=taken, rejected=0)
