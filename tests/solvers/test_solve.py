import math
from typing import Any

import pytest
import torch

from ncode_gen.solvers import SolveOptions, check_method, random_grid, solve


def decay(t, state):
    return (-state[0],)


def growth(t, state):
    return (state[0] * t,)


UNIT = torch.tensor([0.0, 1.0], dtype=torch.float64)
ONE = torch.ones(3, dtype=torch.float64)


ORDERS = [("euler", 1, 1), ("midpoint", 2, 2), ("heun", 2, 2), ("rk2:0.35", 2, 2), ("rk4", 4, 4)]


@pytest.mark.parametrize(("method", "order", "stages"), ORDERS)
def test_the_error_falls_with_the_order_of_the_method(method: Any, order: Any, stages: Any) -> None:
    errors = []
    for steps in (8, 16):
        solution = solve(growth, (ONE,), UNIT, SolveOptions(method=method, steps=steps))
        assert solution.nfe == stages * steps
        errors.append(abs(solution.state[0].item() - math.exp(0.5)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("method", ["torchdiffeq:dopri5", "torchdiffeq:rk4", "torchdiffeq:scipy_solver"])
def test_the_methods_of_torchdiffeq_are_there_by_name(method: str) -> None:
    solution = solve(decay, (ONE,), UNIT, SolveOptions(method=method, steps=16, rtol=1e-8, atol=1e-8))
    assert solution.state[0].item() == pytest.approx(math.exp(-1), abs=1e-6)
    assert solution.nfe > 0


def test_ours_agrees_with_torchdiffeq_on_the_same_grid() -> None:
    ours = solve(growth, (ONE,), UNIT, SolveOptions(method="midpoint", steps=5))
    theirs = solve(growth, (ONE,), UNIT, SolveOptions(method="torchdiffeq:midpoint", steps=5))
    torch.testing.assert_close(ours.state, theirs.state)
    assert ours.nfe == theirs.nfe


def test_requested_times_are_met_forwards_and_backwards() -> None:
    times = torch.tensor([0.0, 0.1, 0.7, 1.0], dtype=torch.float64)
    forwards = solve(decay, (ONE,), times, SolveOptions(steps=20))
    torch.testing.assert_close(forwards.states[:, 0], torch.exp(-times), atol=1e-7, rtol=0)
    backwards = solve(decay, (forwards.state,), times.flip(0), SolveOptions(steps=20))
    torch.testing.assert_close(backwards.states.flip(0), forwards.states, atol=1e-6, rtol=0)


def test_a_given_grid_is_used_as_it_is() -> None:
    grid = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
    by_hand = ONE * (1 - 0.2) * (1 - 0.8)
    torch.testing.assert_close(solve(decay, (ONE,), UNIT, SolveOptions(method="euler", grid=grid)).state, by_hand)


def test_random_grids_rise_and_keep_their_ends() -> None:
    for seed in range(50):
        grid = random_grid(6, generator=torch.Generator().manual_seed(seed))
        assert grid[0] == 0 and grid[-1] == 1 and bool((grid.diff() > 0).all())


def test_a_lost_sample_is_reported_and_does_not_touch_the_others() -> None:
    start = torch.tensor([1.0, float("nan")])
    solution = solve(decay, (start,), torch.tensor([0.0, 1.0]))
    assert solution.status == "incomplete: of 2 samples, 1 left the finite numbers"
    assert solution.state[0].item() == pytest.approx(math.exp(-1), abs=1e-4)


def test_gradients_through_the_solve_are_exact() -> None:
    start = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: solve(growth, (x.sin(),), UNIT, SolveOptions(steps=3)).state, start)


@pytest.mark.parametrize("name", ["rk5", "torchdiffeq:none", ""])
def test_an_unknown_method_is_answered_with_those_that_exist(name: str) -> None:
    with pytest.raises(ValueError, match="choose one of"):
        check_method(name)


@pytest.mark.parametrize("name", ["rk2:", "rk2:x", "rk2:0", "rk2:1.5", "rk2:nan"])
def test_a_second_stage_must_lie_in_its_step(name: str) -> None:
    with pytest.raises(ValueError, match=r"second stage must lie|needs a number"):
        check_method(name)


def test_wrong_times_and_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        solve(decay, (ONE,), UNIT, SolveOptions(steps=0))
    with pytest.raises(ValueError, match="at least two"):
        solve(decay, (ONE,), UNIT[:1])
