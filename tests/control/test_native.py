"""Compiled solves against the same solves in plain torch, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ncode_gen import NCODE
from ncode_gen.control import MLPField, backends
from ncode_gen.control.activations import Activation
from ncode_gen.control.native import build, shallow_field, shallow_solve
from ncode_gen.control.native.shallow import ACTIVATIONS, _plain


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("n", "k", "dim", "hidden", "time", "log_det", "method"),
    [
        (5, 1, 2, 7, True, True, "rk4"),
        (4, 3, 16, 16, True, True, "heun"),
        (3, 2, 17, 33, True, False, "midpoint"),
        (2, 1, 64, 130, False, True, "euler"),
        (1, 1, 1, 1, True, True, "rk4"),
    ],
)
def test_states_densities_and_gradients(
    activation: Activation, n: int, k: int, dim: int, hidden: int, time: bool, log_det: bool, method: str
) -> None:
    field = MLPField(dim, (hidden,), time=time, activation=activation)
    control = (torch.randn(n, field.control_size) / dim**0.5).requires_grad_()
    state = torch.randn(n, k, dim, requires_grad=True)
    nodes = torch.tensor([0.0, 0.2, 0.55, 1.0])
    kept = [0, 1, 3]
    assert shallow_field(field, control, state) is field
    found = shallow_solve(field, control, state, nodes, kept, method, log_det=log_det)
    exact_inputs = [part.detach().double().requires_grad_() for part in (control, state)]
    exact = _plain(exact_inputs[0], exact_inputs[1], nodes.double(), kept, method, hidden, time, activation, log_det)
    weights = [torch.randn_like(part) for part in found]
    gradients = torch.autograd.grad(found, (control, state), weights)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, [weight.double() for weight in weights])
    for got, wanted in zip((*found, *gradients), (*exact, *exact_gradients), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-6 * float(wanted.detach().abs().max() + 1))


def _flow() -> tuple[NCODE, Tensor, Tensor]:
    flow = NCODE(3, (9,), loop="open", condition=4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.normal_(0, 0.3)
    return flow, torch.randn(6, 3), torch.randn(6, 4)


def _without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "shallow_field", lambda *_: None)


def test_every_transform_sees_the_same_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    flow, x, condition = _flow()
    x.requires_grad_()

    def run(x: Tensor) -> Tensor:
        state: Tensor = flow(x, condition).state
        return state

    def second() -> Tensor:
        (gradient,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(gradient.square().sum(), x)
        return again

    def everything() -> list[Tensor]:
        tangent = torch.ones_like(x)
        return [
            run(x).detach(),
            second(),
            torch.func.jvp(run, (x,), (tangent,))[1].detach(),
            torch.func.jacrev(run)(x).detach(),
            torch.func.vmap(run)(torch.stack([x, 2 * x])).detach(),
        ]

    fast = everything()
    _without(monkeypatch)
    for got, wanted in zip(fast, everything(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_sample_is_the_same_in_every_batch() -> None:
    field, nodes, rows = MLPField(3, (9,)), torch.linspace(0, 1, 5), torch.randperm(6)[:2]
    control, state = torch.randn(6, field.control_size), torch.randn(6, 1, 3)
    whole = shallow_solve(field, control, state, nodes, [4], "rk4", log_det=True)
    part = shallow_solve(field, control[rows], state[rows], nodes, [4], "rk4", log_det=True)
    for got, wanted in zip(part, whole, strict=True):
        assert torch.equal(got, wanted[:, rows])


def test_the_compiler_takes_the_operator_with_its_gradients() -> None:
    flow, x, condition = _flow()

    def measures(run: Callable[..., Any]) -> list[Tensor]:
        solution = run(x, condition, log_det=True)
        value = solution.state.square().sum() + solution.log_det[-1].sum()
        return [value.detach(), *torch.autograd.grad(value, list(flow.parameters()))]

    compiled = torch.compile(flow, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(measures(compiled), measures(flow), strict=True):
        torch.testing.assert_close(got, wanted)


def test_times_that_want_a_gradient_get_it() -> None:
    flow, x, condition = _flow()
    for name in ("grid", "times"):
        given = torch.linspace(0, 1, 3 if name == "grid" else 2).requires_grad_()
        (gradient,) = torch.autograd.grad(
            (
                flow(x, condition, times=given)
                if name == "times"
                else flow(x, condition, options=flow.options.but(grid=given))
            ).state.sum(),
            given,
        )
        assert gradient.abs().sum() > 0


def test_no_samples_and_strided_grids() -> None:
    flow, x, condition = _flow()
    assert flow(x[:0], condition[:0]).state.shape == (0, 3)
    grid = torch.linspace(0, 1, 9)
    torch.testing.assert_close(
        flow(x, condition, options=flow.options.but(grid=grid[::2])).state,
        flow(x, condition, options=flow.options.but(steps=4)).state,
    )


def test_numbers_that_went_wrong_are_kept() -> None:
    flow, x, condition = _flow()
    x[0, 0], x[1, 1] = torch.nan, torch.inf
    state = flow(x, condition).state
    assert state[0].isnan().any()
    assert state[2:].isfinite().all()


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    build.load.cache_clear()
    monkeypatch.setenv("CXX", "false")
    try:
        with pytest.warns(UserWarning, match="could not be compiled by false"):
            assert build.load("shallow") is None
        flow, x, condition = _flow()
        assert flow(x, condition).state.isfinite().all()
    finally:
        build.load.cache_clear()


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    build.load.cache_clear()
    monkeypatch.setenv("NCODE_GEN_NATIVE", "0")
    try:
        assert build.load("shallow") is None
    finally:
        build.load.cache_clear()
