import math
from typing import Any

import pytest
import torch

from ncode_gen.control import (
    NCODE,
    AlgebraicController,
    ConstantField,
    ControlledODE,
    DensityError,
    DynamicController,
    LinearField,
    MLPField,
    OpenController,
    StaticController,
)
from ncode_gen.control.parameterisation import ControlledLayer
from ncode_gen.solvers import SolveOptions
from ncode_gen.solvers.options import Gradient

DOUBLE = torch.float64


def randomised(flow, scale=0.5):
    torch.manual_seed(1)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return flow.double()


def test_reflection_in_open_loop() -> None:
    flow = ControlledODE(ConstantField(3), OpenController(lambda c: -2 * c))
    x0 = torch.randn(7, 3)
    torch.testing.assert_close(flow(x0).state, -x0)


def test_reflection_in_closed_loop() -> None:
    controller = DynamicController(torch.zeros_like, lambda t, x, theta: -(math.pi**2) * x)
    flow = ControlledODE(ConstantField(3), controller, options=SolveOptions(steps=64))
    x0 = torch.randn(7, 3, dtype=DOUBLE)
    times = torch.linspace(0, 1, 9, dtype=DOUBLE)
    solution = flow(x0, times=times)
    expected = torch.cos(math.pi * times).view(-1, 1, 1) * x0
    torch.testing.assert_close(solution.states, expected, atol=1e-5, rtol=0)
    assert solution.control.shape == (9, 7, 3)


def test_a_linear_field_is_the_matrix_exponential() -> None:
    torch.manual_seed(0)
    field = LinearField(3)
    matrices = 0.5 * torch.randn(5, 3, 3, dtype=DOUBLE)
    control = torch.cat([matrices, torch.zeros(5, 1, 3, dtype=DOUBLE)], 1).flatten(1)
    flow = ControlledODE(field, OpenController(lambda c: c), options=SolveOptions(steps=64))
    x0 = torch.randn(5, 3, dtype=DOUBLE)
    solution = flow(x0, control, log_det=True)
    exponential = torch.linalg.matrix_exp(matrices)
    torch.testing.assert_close(solution.state, (x0.unsqueeze(1) @ exponential).squeeze(1), atol=1e-8, rtol=0)
    torch.testing.assert_close(solution.log_det[-1], matrices.diagonal(dim1=1, dim2=2).sum(1))


FLOWS = {
    "static": NCODE(3, (8,), "static", steps=64),
    "static, deep": NCODE(3, (8, 6), "static", steps=64),
    "open": NCODE(3, (8,), "open", condition=2, steps=64),
    "open, own dynamics": NCODE(3, (8,), "open", condition=2, dynamics=True, steps=64),
    "closed, gain": NCODE(3, (8,), "closed", condition=2, steps=64),
    "closed, weights": NCODE(3, (8,), "closed", feedback="weights", condition=2, gamma=(8,), steps=64),
}


@pytest.mark.parametrize("name", FLOWS)
def test_the_log_determinant_is_that_of_the_jacobian(name: Any) -> None:
    flow = randomised(FLOWS[name], 0.3)
    x0, c = torch.randn(4, 3, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    log_det = flow(x0, c, log_det=True).log_det[-1]
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda p, i=i: flow(p.view(1, 3), c[i : i + 1]).state.view(3), x0[i]
        )
        torch.testing.assert_close(log_det[i], jacobian.slogdet().logabsdet, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FLOWS)
def test_the_inverse_undoes_the_flow(name: Any) -> None:
    flow = randomised(FLOWS[name], 0.3)
    x0, c = torch.randn(4, 3, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    torch.testing.assert_close(flow.inverse(flow(x0, c).state, c).state, x0, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", FLOWS)
def test_many_states_under_one_control_are_as_many_samples(name: Any) -> None:
    flow = randomised(FLOWS[name], 0.3)
    x0, c = torch.randn(4, 5, 3, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    together = flow(x0, c, log_det=True)
    apart = flow(x0.flatten(0, 1), c.repeat_interleave(5, 0), log_det=True)
    torch.testing.assert_close(together.state.flatten(0, 1), apart.state)
    torch.testing.assert_close(together.log_det.flatten(1), apart.log_det)


def test_many_states_pull_a_dynamic_control_apart() -> None:
    flow = randomised(NCODE(3, (8,), "closed", feedback="dynamic", condition=2), 0.3)
    x0, c = torch.randn(4, 5, 3, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    apart = flow(x0.flatten(0, 1), c.repeat_interleave(5, 0))
    together = flow(x0, c)
    torch.testing.assert_close(together.state.flatten(0, 1), apart.state)
    assert together.control.shape == (2, 4, 5, flow.field.control_size)
    assert together.status.startswith("ok")


def test_gain_feedback_is_a_closed_loop_through_the_weights() -> None:
    """The same field written the long way: theta = gamma(c, x, t) scales the rows of the last layer."""
    torch.manual_seed(0)
    closed, plain = MLPField(3, (8,), feedback=True), MLPField(3, (8,))
    control = torch.randn(4, closed.control_size, dtype=DOUBLE)
    mlp = control[:, : plain.control_size]
    gain = closed.gains[0].bind(control[:, plain.control_size :].split(closed.gains[0].parts, -1))

    def gamma(c, x, t):
        factor = 1 + torch.tanh(gain(t, x.unsqueeze(1)).squeeze(1))
        hidden = plain.layers[0]
        rows = mlp[:, hidden.size : hidden.size + 24].unflatten(1, (8, 3)) * factor.unsqueeze(2)
        return torch.cat([mlp[:, : hidden.size], rows.flatten(1), mlp[:, hidden.size + 24 :]], 1)

    x0 = torch.randn(4, 3, dtype=DOUBLE)
    short = ControlledODE(closed, OpenController(lambda c: control))(x0, x0.clone(), log_det=True)
    long = ControlledODE(plain, AlgebraicController(gamma))(x0, x0.clone(), log_det=True)
    torch.testing.assert_close(short.state, long.state)
    torch.testing.assert_close(short.log_det, long.log_det)


def test_the_flow_starts_as_the_identity_and_learns() -> None:
    for loop in ("open", "closed"):
        flow = NCODE(2, (16,), loop)
        x0 = torch.randn(9, 2)
        torch.testing.assert_close(flow(x0).state, x0)
        (flow(x0).state + x0).square().mean().backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in flow.parameters())


def test_augmentation_adds_dimensions_that_start_at_zero() -> None:
    flow = randomised(NCODE(2, (8,), "static", augment=3), 0.5)
    solution = flow(torch.randn(4, 2, dtype=DOUBLE))
    assert solution.state.shape == (4, 2)
    assert solution.augmented.shape == (2, 4, 5)
    assert not solution.augmented[0, :, 2:].any()


REFUSED = {
    "memory": (NCODE(2, loop="closed", feedback="dynamic", condition=2), True),
    "condition that is not x0": (NCODE(2, loop="open"), False),
    "augmented": (NCODE(2, loop="static", augment=1), True),
}


@pytest.mark.parametrize(("flow", "conditioned"), REFUSED.values(), ids=REFUSED)
def test_a_map_that_may_fold_has_no_density_and_says_why(flow: Any, conditioned: Any) -> None:
    x0 = torch.randn(4, 2)
    condition = torch.randn(4, 2) if conditioned else x0
    with pytest.raises(DensityError, match="has no density"):
        flow(x0, condition, log_det=True)
    with pytest.raises(DensityError):
        flow.inverse(x0, condition)


def test_gamma_of_no_hidden_layer_is_linear() -> None:
    flow = NCODE(2, (4,), "closed", feedback="weights", condition=3, gamma=())
    assert [type(part).__name__ for part in flow.controller.gamma.modules() if not list(part.children())] == [
        "Sequential", "ControlHead"
    ]  # fmt: skip
    assert flow.controller.gamma.head.in_features == 3 + 2 + 1
    assert flow(torch.randn(4, 2), torch.randn(4, 3)).state.shape == (4, 2)


def test_a_static_flow_has_a_density_without_any_condition() -> None:
    assert NCODE(2, loop="static")(torch.randn(4, 2), log_det=True).log_det.shape == (2, 4)


def test_wrong_shapes_are_named() -> None:
    flow = NCODE(2, loop="open", condition=3)
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        flow(torch.zeros(4, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"\(4, c\)"):
        flow(torch.zeros(4, 2), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="give a condition"):
        NCODE(2, loop="open")(torch.zeros(4, 3, 2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"loop": "ring"},
        {"feedback": "none"},
        {"control": "first"},
        {"feedback_control": "film"},
        {"loop": "closed", "feedback_control": "last"},
        {"control": "low-rank", "rank": 0},
        {"kernel": 2},
        {"gradient": "adjoint"},
        {"loop": "static", "dynamics": True},
        {"method": "rk9"},
        {"steps": 0},
        {"augment": -1},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|takes|belong|choose|needs"):
        NCODE(2, **wrong)


def test_the_whole_flow_compiles_as_one_graph() -> None:
    flow = NCODE(2, (8,), "closed", condition=3, steps=2)
    x0, c = torch.randn(4, 2), torch.randn(4, 3)

    def run(x, c, grid):
        solution = flow(x, c, log_det=True, options=flow.options.but(grid=grid))
        return solution.state, solution.log_det

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    grid = torch.linspace(0, 1, 3)
    for ours, theirs in zip(compiled(x0, c, grid), run(x0, c, grid), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_a_flow_is_compiled_by_its_name(gradient: Gradient) -> None:
    flow = NCODE(2, (8,), "closed", feedback="weights", condition=3, steps=2, gradient=gradient)
    x0, c = torch.randn(4, 2), torch.randn(4, 3)
    compiled = torch.compile(flow, fullgraph=True, backend="aot_eager")
    solution = compiled(x0, c)
    torch.testing.assert_close(solution.state, flow(x0, c).state)
    assert solution.nfe == 8


def test_static_controller_ignores_the_condition() -> None:
    flow = ControlledODE(MLPField(2, (4,)), StaticController(MLPField(2, (4,))))
    x0 = torch.randn(3, 2)
    torch.testing.assert_close(flow(x0, torch.randn(3, 9)).state, flow(x0).state)


def test_a_layer_that_is_called_can_be_hashed() -> None:
    # torch 2.11 looks a callable object up in a set while it compiles.
    layer = ControlledLayer(2, 3)
    bound = layer.bind(layer.initial().split(layer.parts))
    assert hash(bound) == hash(bound) and bound in {bound}
