"""Times of a solve: one documented answer for every form, from every method."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from ncode_gen import NCODE
from ncode_gen.solvers import SolveOptions, as_times, random_grid, solve

METHODS = [
    *("euler", "midpoint", "heun", "rk4", "rk2:0.3", "dopri5", "tsit5"),
    *("torchdiffeq:dopri5", "torchdiffeq:dopri8", "torchdiffeq:rk4", "torchdiffeq:implicit_adams"),
    "torchdiffeq:scipy_solver",
]
FORMS: dict[str, Any] = {
    "integers": torch.tensor([0, 1, 2, 3]),
    "list": [0, 1, 2.0, 3],
    "tuple": (0, 1, 2, 3),
    "range": range(4),
    "array of integers": np.arange(4),
    "float32 array": np.arange(4, dtype=np.float32),
    "float64": torch.arange(4.0, dtype=torch.float64),
    "half": torch.arange(4.0).half(),
    "list of tensors": [torch.tensor(0), torch.tensor(1.0), 2, 3],
}
WRONG: dict[str, tuple[Any, str]] = {
    "equal": ([0.0, 1.0, 1.0], "strictly"),
    "unsorted": ([0.0, 2.0, 1.0], "strictly"),
    "back and forth": (torch.tensor([1.0, 0.0, 2.0]), "strictly"),
    "one": ([1.0], "at least two"),
    "none": ([], "at least two"),
    "scalar": (torch.tensor(1.0), "at least two"),
    "number": (1.0, "a list of at least two"),
    "rows": ([[0.0, 1.0]], "one row"),
    "infinite": ([0.0, math.inf], "finite"),
    "minus infinite": (np.array([-math.inf, 0.0]), "finite"),
    "NaN": (torch.tensor([0.0, math.nan]), "finite"),
    "text": ("ab", "a list of at least two"),
    "nothing": (None, "a list of at least two"),
    "truth": (torch.tensor([False, True]), "a list of at least two"),
    "complex": (torch.tensor([0j, 1j]), "a list of at least two"),
    "dates": (np.array(["2020", "2021"], dtype="datetime64[s]"), "a list of at least two"),
    "equal after rounding": (torch.tensor([1.7e9, 1.7e9 + 1]), "strictly"),
    "nanoseconds": ([1_700_000_000_000_000_000, 1_700_000_000_000_000_001], "too close together"),
}


def decay(t, state):
    return (-state[0],)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_times_means_the_same(form: Any, method: Any) -> None:
    found = solve(decay, (torch.ones(2),), FORMS[form], SolveOptions(method=method, steps=150))
    usual = solve(decay, (torch.ones(2),), torch.tensor([0.0, 1.0, 2.0, 3.0]), SolveOptions(method=method, steps=150))
    assert torch.equal(found.states, usual.states) and found.times.tolist() == [0, 1, 2, 3]
    accuracy = 5e-3 if method == "euler" else 2e-4
    torch.testing.assert_close(found.states[:, 0], torch.exp(-torch.arange(4.0)), atol=accuracy, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_wrong_times_are_refused_by_every_method_with_one_message(method: Any) -> None:
    for form, (times, message) in WRONG.items():
        with pytest.raises(ValueError, match=message):
            solve(decay, (torch.ones(2),), times, SolveOptions(method=method))
            pytest.fail(form)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stamps", [[1.7e9, 1.7e9 + 1, 1.7e9 + 3], [1_700_000_000, 1_700_000_001, 1_700_000_003]])
def test_time_stamps_are_solved_like_times_from_zero(stamps: Any, method: Any) -> None:
    """float32 has one number in 128 there."""
    for times in (stamps, np.array(stamps), torch.tensor(stamps, dtype=torch.float64)):
        found = solve(decay, (torch.ones(2),), times, SolveOptions(method=method, steps=60))
        near = solve(decay, (torch.ones(2),), [0.0, 1.0, 3.0], SolveOptions(method=method, steps=60))
        assert found.states.dtype == torch.float32
        torch.testing.assert_close(found.states, near.states, atol=2e-6, rtol=0)


def test_a_gap_of_one_float32_spacing_is_divided_into_steps() -> None:
    times = torch.tensor([1.7e9, 1.7e9 + 128])
    found = solve(lambda t, state: (-state[0] / 128,), (torch.ones(2),), times, SolveOptions(steps=8))
    assert found.state[0].item() == pytest.approx(math.exp(-1), abs=1e-4)
    flow = NCODE(2, hidden=(8,), time=False)
    for value in flow.parameters():
        torch.nn.init.normal_(value, std=0.3)
    x = torch.randn(3, 2)
    near = flow(x, times=[0.0, 1.0], options=flow.options.but(steps=4)).state
    torch.testing.assert_close(
        flow(x, times=[1.7e9, 1.7e9 + 1], options=flow.options.but(steps=4)).state, near, atol=1e-5, rtol=1e-5
    )


def test_wrong_times_are_refused_in_a_flow_a_grid_and_a_trajectory() -> None:
    flow = NCODE(2)
    x = torch.randn(3, 2)
    for times, message in WRONG.values():
        if times is not None:  # which means 0 and 1
            with pytest.raises(ValueError, match=message):
                flow(x, times=times)
            with pytest.raises(ValueError, match=message):
                solve(decay, (x,), [0.0, 1.0], SolveOptions(method="rk4", grid=times))
    for log_det_by in ("divergence", "steps"):
        with pytest.raises(ValueError, match="grid must be strictly"):
            flow(
                x,
                torch.zeros(3, 2),
                log_det=True,
                options=flow.options.but(grid=torch.tensor([0.0, 0.5, 0.5, 1.0]), log_det_by=log_det_by),
            )
    assert flow(x, times=[0, 1]).state.equal(flow(x).state)
    assert flow(x, options=flow.options.but(grid=[0, 0.5, 1])).state.equal(
        flow(x, options=flow.options.but(steps=2)).state
    )


def test_random_grids_of_no_step_or_without_order_are_refused() -> None:
    for arguments, message in (((0,), "at least 1"), ((2.5,), "whole number")):
        with pytest.raises(ValueError, match=message):
            random_grid(*arguments)
    for jitter in (1.5, -1.0, math.nan):
        with pytest.raises(ValueError, match="jitter"):
            random_grid(4, jitter=jitter)


GROWTH = torch.tensor([0.3, 0.8, 1.1], dtype=torch.float64)
WITH_GRADIENTS = [method for method in METHODS if method != "torchdiffeq:scipy_solver"]


@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_gradients_in_the_times_are_right(method: Any) -> None:
    """x' = x t: x(t) = exp((t^2 - s^2) / 2) x(s), so dx(t)/dt = t x(t), dx(t)/ds = -s x(t), and none in between."""
    times = GROWTH.clone().requires_grad_()
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    options = SolveOptions(method=method, steps=1000 if method == "euler" else 100, rtol=1e-9, atol=1e-9)
    found = solve(lambda t, s: (s[0] * t.reshape(-1, 1).expand(2, 1)[:, 0],), (x,), times, options)
    rough = {"euler": 2e-2, "midpoint": 1e-3, "heun": 1e-3, "rk2:0.3": 1e-3}.get(method, 1e-5)
    accuracy: dict[str, Any] = {"atol": rough, "rtol": rough}
    end = x.sum() * math.exp((1.1**2 - 0.3**2) / 2)
    last = torch.autograd.grad(found.state.sum(), times, retain_graph=True)[0]
    torch.testing.assert_close(last, torch.tensor([-0.3, 0.0, 1.1], dtype=torch.float64) * end, **accuracy)
    middle = torch.autograd.grad(found.states[1].sum(), times, retain_graph=True)[0]
    half = x.sum() * math.exp((0.8**2 - 0.3**2) / 2)
    torch.testing.assert_close(middle, torch.tensor([-0.3, 0.8, 0.0], dtype=torch.float64) * half, **accuracy)
    at_the_start = torch.autograd.grad(found.states[0].sum() + 0 * times.sum(), times)[0]
    assert at_the_start.tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", ["rk4", "dopri5", "torchdiffeq:dopri5"])
def test_gradients_in_the_times_of_a_flow_are_those_of_its_field(method: str) -> None:
    torch.manual_seed(0)
    flow = NCODE(2, hidden=(8,), method=method, rtol=1e-8, atol=1e-8, steps=64).double()
    for value in flow.parameters():
        torch.nn.init.normal_(value, std=0.3)
    x, ends = torch.randn(3, 2, dtype=torch.float64), [torch.tensor(0.1), torch.tensor(0.9, requires_grad=True)]
    solution = flow(x, times=ends)  # a list of tensors keeps their gradients
    slope = torch.autograd.grad(solution.state.sum(), ends[1])[0]
    velocity = flow.velocity(0.9, solution.state.unsqueeze(1), x).sum()
    assert slope.item() == pytest.approx(velocity.item(), rel=1e-5)


def test_second_derivatives_in_the_times_of_adaptive_solves_are_refused() -> None:
    times = torch.tensor([0.0, 1.0], requires_grad=True)
    state = solve(
        lambda t, s: (s[0] * t[:, None],), (torch.ones(2, 1),), times, SolveOptions(method="dopri5")
    ).state.sum()
    first = torch.autograd.grad(state, times, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        torch.autograd.grad(first.sum(), times)


def test_scipy_gives_gradients_by_the_adjoint_or_says_so() -> None:
    with pytest.raises(ValueError, match='use gradient="adjoint"'):
        solve(decay, (torch.ones(2, requires_grad=True),), [0, 1], SolveOptions(method="torchdiffeq:scipy_solver"))
    flow = NCODE(2, method="torchdiffeq:scipy_solver")
    flow(torch.randn(3, 2)).state.sum().backward()
    assert any(bool(value.grad.abs().sum() > 0) for value in flow.parameters() if value.grad is not None)


def test_times_take_the_dtype_that_resolves_them() -> None:
    like = torch.zeros(1)
    assert as_times([0, 0.1], like).dtype == torch.float32
    assert as_times([0, 0.1], like.double()).dtype == torch.float64
    assert as_times([0, 0.1], like.bfloat16()).dtype == torch.float32
    assert as_times([1000.1, 1000.2], like).dtype == torch.float64  # the gap would be off by 6e-4
    assert as_times(torch.tensor([0.0, 1.0]), like, steps=2_000_000).dtype == torch.float64
