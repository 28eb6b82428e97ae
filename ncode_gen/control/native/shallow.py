"""Open-loop flows of one hidden layer, solved on a fixed grid by compiled code, sample by sample (see shallow.cpp).

An operator of torch with gradients, which `torch.compile` takes whole. Second derivatives go by the solve in plain
torch, and so do forward mode and the transforms of `torch.func`.
"""

import ctypes
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ...solvers import State, fixed_steps, fixed_tableau, is_plain
from ..activations import Activation
from ..field import Field
from ..layered import MLPField
from .build import load

ACTIVATIONS: tuple[Activation, ...] = ("tanh", "softplus", "silu")


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("samples", "points", "dim", "hidden", "sees_time", "activation")),
        *((name, ctypes.c_int32) for name in ("steps", "stages", "kept", "threads")),
        *((name, ctypes.c_void_p) for name in ("a", "b", "c", "nodes", "kept_nodes", "control", "state", "states")),
        *((name, ctypes.c_void_p) for name in ("log_dets", "inputs", "units", "grad_states", "grad_log_dets")),
        *((name, ctypes.c_void_p) for name in ("grad_control", "grad_state")),
    )


def shallow_field(field: Field, control: Tensor, state: Tensor) -> MLPField | None:
    """Return the field, if compiled code can solve it under a control (n, P) from a state (n, K, d); else None."""
    if type(field) is not MLPField or len(field.hidden) != 1:
        return None
    if field.control != "all" or len(field.gains) or control.shape[0] != state.shape[0]:
        return None
    plain = control.dim() == 2 and control.dtype == state.dtype == torch.float32
    if not plain or control.device.type != "cpu" or state.device.type != "cpu":
        return None
    if field.layers[0].products != "float32" or torch.is_autocast_enabled("cpu"):
        return None
    if torch.compiler.is_exporting() or not (torch.compiler.is_compiling() or is_plain(control, state)):
        return None  # a trace would hold the result as a constant, and a fake tensor has no memory
    # The operator has no rule for these; through it, a forward-mode derivative would silently be zero.
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return None
    return field if _available() else None


def _available() -> bool:
    return load("shallow") is not None


# What torch.compiler.assume_constant_result does, without its import of the whole compiler: under torch.compile the
# answer is taken as it is, instead of being traced.
vars(_available)["_dynamo_marked_constant"] = True


def shallow_solve(
    field: MLPField, control: Tensor, state: Tensor, nodes: Tensor, kept: list[int], method: str, *, log_det: bool
) -> tuple[Tensor, ...]:
    """Solve on a grid.

    Args:
        field: a field that `shallow_field` returned.
        control: packed weights, shape (n, P).
        state: initial states, shape (n, K, d).
        nodes: times of the grid, shape (S + 1,).
        kept: which nodes are returned, rising.
        method: a fixed-step method.
        log_det: whether the divergence is integrated.

    Returns:
        States, shape (T, n, K, d), and, if requested, log-determinants, shape (T, n, K).
    """
    save = torch.is_grad_enabled() and (control.requires_grad or state.requires_grad)
    # Outside of the compiler the operator's own dispatch would cost more than a small solve.
    run = _solve if torch.compiler.is_compiling() else _Eager.apply if save else _forward
    given = (control.contiguous(), state.contiguous(), nodes.to(state).contiguous())
    time = bool(field.layers[0].time)
    states, log_dets, _, _ = run(*given, kept, method, field.hidden[0], time, field.activation, log_det, save)
    return (states, log_dets) if log_det else (states,)


@cache
def _tableau(method: str) -> tuple[Tensor, Tensor, Tensor]:
    tableau = fixed_tableau(method)
    # For the whole process, so independent of the default device and dtype at its first use.
    rows = [[*row, *[0.0] * (tableau.stages - len(row))] for row in tableau.a]
    a, b, c = (torch.tensor(held, dtype=torch.float32, device="cpu") for held in (rows, tableau.b, tableau.c))
    return a, b, c


def _call(
    name: str,
    control: Tensor,
    state: Tensor,
    nodes: Tensor,
    kept: list[int],
    method: str,
    shape: tuple[int, bool, str],
    **buffers: Tensor | None,
) -> None:
    """Call the compiled code; buffers that are None or empty are not there."""
    hidden, time, activation = shape
    samples, points, dim = state.shape
    a, b, c = _tableau(method)
    places = (ctypes.c_int32 * len(kept))(*kept)
    given = {"a": a, "b": b, "c": c, "nodes": nodes, "control": control, "state": state, **buffers}
    pointers = {key: tensor.data_ptr() or None for key, tensor in given.items() if tensor is not None}
    problem = _Problem(
        samples=samples, points=points, dim=dim, hidden=hidden, sees_time=time,
        activation=ACTIVATIONS.index(activation), steps=len(nodes) - 1, stages=len(b), kept=len(kept),
        threads=torch.get_num_threads(), kept_nodes=ctypes.addressof(places), **pointers,
    )  # fmt: skip
    library = load("shallow")
    assert library is not None
    if getattr(library, name)(ctypes.byref(problem)):
        raise MemoryError(f"no memory for the scratch of a flow of {dim} dimensions and {hidden} units")


def _saved_shape(state: Tensor, nodes: Tensor, method: str, hidden: int) -> tuple[list[int], list[int]]:
    """Return the shapes of what the backward pass needs: the inputs and the units of every evaluation."""
    samples, points, dim = state.shape
    lanes = _lanes(dim)
    lead = [samples, points, (nodes.shape[0] - 1) * fixed_tableau(method).stages]
    return [*lead, -(-dim // lanes) * lanes], [*lead, -(-hidden // lanes) * lanes]


def _lanes(dim: int) -> int:
    library = load("shallow")
    assert library is not None
    lanes: int = library.lanes(int(dim))
    return lanes


def _outputs(
    state: Tensor, nodes: Tensor, kept: list[int], method: str, hidden: int, log_det: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, units = _saved_shape(state, nodes, method, hidden) if save else ([0], [0])
    return (
        state.new_empty(len(kept), *state.shape),
        state.new_empty(len(kept), *state.shape[:2]) if log_det else state.new_empty(0),
        state.new_empty(inputs),
        state.new_empty(units),
    )


def _forward(
    control: Tensor,
    state: Tensor,
    nodes: Tensor,
    kept: list[int],
    method: str,
    hidden: int,
    time: bool,
    activation: str,
    log_det: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return states, log-determinants, and the inputs and units of all evaluations."""
    states, log_dets, inputs, units = _outputs(state, nodes, kept, method, hidden, log_det, save)
    _call(
        "shallow_forward", control, state, nodes, kept, method, (hidden, time, activation),
        states=states, log_dets=log_dets, inputs=inputs, units=units,
    )  # fmt: skip
    return states, log_dets, inputs, units


_solve = torch.library.custom_op("ncode_gen::shallow_solve", _forward, mutates_args=())


@_solve.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, state, nodes, kept, method, hidden, _, _, log_det, save = inputs
    return _outputs(state, nodes, kept, method, hidden, log_det, save)


def _backward(
    grad_states: Tensor,
    grad_log_dets: Tensor,
    control: Tensor,
    state: Tensor,
    nodes: Tensor,
    inputs: Tensor,
    units: Tensor,
    kept: list[int],
    method: str,
    hidden: int,
    time: bool,
    activation: str,
    weights: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the control, empty unless `weights`, and of the state."""
    grad_control = torch.empty_like(control) if weights else control.new_empty(0)
    grad_state = torch.empty_like(state)
    _call(
        "shallow_backward", control, state, nodes, kept, method, (hidden, time, activation),
        inputs=inputs, units=units, grad_states=grad_states.contiguous(), grad_log_dets=grad_log_dets.contiguous(),
        grad_control=grad_control, grad_state=grad_state,
    )  # fmt: skip
    return grad_control, grad_state


_solve_backward = torch.library.custom_op("ncode_gen::shallow_solve_backward", _backward, mutates_args=())


@_solve_backward.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    control, state, weights = inputs[2], inputs[3], inputs[-1]
    return torch.empty_like(control) if weights else control.new_empty(0), torch.empty_like(state)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    control, state, nodes, *ctx.how = inputs
    ctx.save_for_backward(control, state, nodes, output[2], output[3])


def _gradients(
    backward: Callable[..., tuple[Tensor, Tensor]], ctx: Any, grad_states: Tensor, grad_log_dets: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    control, state, nodes, inputs, units = ctx.saved_tensors
    kept, method, hidden, time, activation, log_det, _ = ctx.how
    if torch.is_grad_enabled():  # create_graph: what is derived again has to be plain torch
        outputs = _plain(control, state, nodes, kept, method, hidden, time, activation, log_det)
        wanted = [part for part in (control, state) if part.requires_grad]
        found = iter(
            torch.autograd.grad(outputs, wanted, [grad_states, grad_log_dets][: len(outputs)], create_graph=True)
        )
        gradients: list[Tensor | None] = [next(found) if part.requires_grad else None for part in (control, state)]
    else:
        weights = ctx.needs_input_grad[0]
        grad_control, grad_state = backward(
            grad_states, grad_log_dets, control, state, nodes, inputs, units, kept, method, hidden, time, activation,
            weights,
        )  # fmt: skip
        gradients = [grad_control if weights else None, grad_state]
    return (*gradients, None, None, None, None, None, None, None, None)


_solve.register_autograd(partial(_gradients, _solve_backward), setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The operator without its dispatch."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _forward(*inputs)
        _setup(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return _gradients(_backward, ctx, *cotangents)


def _plain(
    control: Tensor,
    state: Tensor,
    nodes: Tensor,
    kept: list[int],
    method: str,
    hidden: int,
    time: bool,
    activation: Activation,
    log_det: bool,
) -> tuple[Tensor, ...]:
    """Do what the operator does, in plain torch."""
    bound = MLPField(state.shape[-1], (hidden,), time=time, activation=activation).bind(control)

    def derivative(t: Tensor, now: State) -> State:
        return bound.velocity_and_divergence(t, now[0]) if log_det else (bound.velocity(t, now[0]),)

    start: State = (state, state.new_zeros(state.shape[:2])) if log_det else (state,)
    path = list(fixed_steps(derivative, start, nodes, fixed_tableau(method)))
    return tuple(torch.stack([path[k][i] for k in kept]) for i in range(len(start)))
