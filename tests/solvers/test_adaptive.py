import math
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncode_gen.control import NCODE, ControlledODE, MLPField, OpenController
from ncode_gen.solvers import Outcome, SolveOptions, solve

DOUBLE = torch.float64
UNIT = torch.tensor([0.0, 1.0], dtype=DOUBLE)
METHODS = ("dopri5", "tsit5")
FLOWS: dict[str, dict[str, Any]] = {
    "static": {"loop": "static"},
    "open": {"loop": "open"},
    "open, own dynamics": {"loop": "open", "dynamics": True},
    "closed, gain": {"loop": "closed"},
    "closed, weights": {"loop": "closed", "feedback": "weights", "gamma": (6,)},
    "closed, dynamic": {"loop": "closed", "feedback": "dynamic"},
    "low-rank": {"loop": "closed", "control": "low-rank"},
    "film": {"loop": "open", "control": "film", "activation": "softplus"},
    "deep": {"loop": "open", "hidden": (5, 7), "control": "last", "activation": "silu"},
}


def random_flow(name, dtype=DOUBLE, scale=0.6, **solver):
    flow = NCODE(**{"dim": 3, "hidden": (7,), "condition": 2, **FLOWS[name], **solver})
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return flow.to(dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FLOWS)
def test_states_and_gradients_agree_with_a_much_finer_solver(name: Any, method: Any) -> None:
    torch.manual_seed(3)
    flow = random_flow(name, scale=0.25)
    x, c = torch.randn(6, 3, dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)

    def states_and_gradients(**solver):
        start = x.clone().requires_grad_()
        solution = flow(start, c, options=flow.options.but(**solver))
        gradients = torch.autograd.grad(solution.state.square().mean(), (start, *flow.parameters()), allow_unused=True)
        return solution.state, *(g for g in gradients if g is not None)

    ours = states_and_gradients(method=method, rtol=1e-8, atol=1e-8)
    exact = states_and_gradients(method="torchdiffeq:dopri8", rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_stiff_field_is_solved_too(method: Any) -> None:
    torch.manual_seed(0)
    decay = torch.tensor([1.0, 30.0, 1000.0], dtype=DOUBLE)
    turn = torch.linalg.qr(torch.randn(4, 3, 3, dtype=DOUBLE))[0]
    matrices = turn @ torch.diag(-decay) @ turn.mT
    control = torch.cat([matrices, torch.zeros(4, 1, 3, dtype=DOUBLE)], 1).flatten(1).requires_grad_()
    solver = SolveOptions(method=method, rtol=1e-8, atol=1e-8, max_steps=5000)
    flow = ControlledODE(MLPField(3), OpenController(lambda c: c), options=solver)
    x = torch.randn(4, 3, dtype=DOUBLE)
    solution = flow(x, control)
    exact = (x.unsqueeze(1) @ torch.linalg.matrix_exp(matrices)).squeeze(1)
    torch.testing.assert_close(solution.state, exact, atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(solution.state.sum(), control)
    reference = control.detach().clone().requires_grad_()
    weights = reference.unflatten(1, (4, 3))[:, :3]
    (x.unsqueeze(1) @ torch.linalg.matrix_exp(weights)).sum().backward()
    torch.testing.assert_close(gradient[:, :9], reference.grad[:, :9], atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_requested_times_are_interpolated_forwards_and_backwards(method: Any) -> None:
    times = torch.linspace(0, 2, 23, dtype=DOUBLE)
    start = torch.rand(5, 1, dtype=DOUBLE)

    def derivative(t, state):
        return (-state[0] * torch.cos(t).unsqueeze(-1),)

    exact = start * torch.exp(-torch.sin(times)).view(-1, 1, 1)
    forwards = solve(derivative, (start,), times, SolveOptions(method=method, rtol=1e-9, atol=1e-9))
    torch.testing.assert_close(forwards.states, exact, atol=1e-7, rtol=0)
    backwards = solve(derivative, (exact[-1],), times.flip(0), SolveOptions(method=method, rtol=1e-9, atol=1e-9))
    torch.testing.assert_close(backwards.states.flip(0), exact, atol=1e-7, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_passes_through_every_requested_time(method: Any) -> None:
    torch.manual_seed(1)
    flow = random_flow("film", scale=0.4)
    times = torch.tensor([0.0, 0.3, 1.0], dtype=DOUBLE)

    def states(x, c):
        return flow(x, c, times=times, options=flow.options.but(method=method, rtol=1e-8, atol=1e-8)).states

    x, c = (torch.randn(2, k, dtype=DOUBLE, requires_grad=True) for k in (3, 2))
    assert torch.autograd.gradcheck(states, (x, c), atol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("method", METHODS)
def test_in_every_batch_a_sample_has_the_same_result_bit_for_bit(name: Any, method: Any) -> None:
    """Nine flows, two methods and 56 batches each: 1,008 random batches."""
    for seed in range(14):
        torch.manual_seed(seed)
        dtype = (torch.float32, DOUBLE)[seed % 2]
        flow = random_flow(name, dtype, rtol=1e-3, atol=1e-3, method=method, max_steps=15)
        n = int(torch.randint(2, 40, ()))
        x, c = torch.randn(n, 3, dtype=dtype), torch.randn(n, 2, dtype=dtype)
        with torch.no_grad():
            whole = flow(x, c)
            for _ in range(4):
                some = torch.randperm(n)[: int(torch.randint(1, n + 1, ()))]
                part = flow(x[some], c[some])
                assert torch.equal(part.state, whole.state[some])
                assert torch.equal(part.counts.accepted, whole.counts.accepted[some])


@pytest.mark.parametrize("name", FLOWS)
def test_with_fixed_steps_a_sample_depends_on_its_batch_by_rounding_only(name: Any) -> None:
    torch.manual_seed(0)
    flow = random_flow(name)
    x, c = torch.randn(30, 3, dtype=DOUBLE), torch.randn(30, 2, dtype=DOUBLE)
    with torch.no_grad():
        whole = flow(x, c).state
        for _ in range(112):  # nine flows: 1,008 batches
            some = torch.randperm(30)[: int(torch.randint(1, 31, ()))]
            torch.testing.assert_close(flow(x[some], c[some]).state, whole[some], atol=1e-9, rtol=1e-9)


def test_the_replay_under_autograd_returns_the_bits_of_the_search() -> None:
    torch.manual_seed(0)
    flow = random_flow("closed, weights", torch.float32, 0.5)
    x, c = torch.randn(40, 3), torch.randn(40, 2)
    times = torch.linspace(0, 1, 5)
    replayed = flow(x, c, times=times, options=flow.options.but(method="dopri5", rtol=1e-4))
    with torch.no_grad():
        searched = flow(x, c, times=times, options=flow.options.but(method="dopri5", rtol=1e-4))
    assert len(set(searched.counts.accepted.tolist())) > 1
    assert torch.equal(replayed.states, searched.states)


def blow_up(t, state):
    return (state[0] * state[0],)


@pytest.mark.parametrize("method", METHODS)
def test_each_sample_has_an_outcome_and_keeps_its_last_state(method: Any) -> None:
    start = torch.tensor([0.5, 2.0, math.nan, 0.0, 1e30, math.inf], requires_grad=True)
    solution = solve(blow_up, (start,), torch.tensor([0.0, 0.25, 1.0]), SolveOptions(method=method, max_steps=300))
    assert solution.outcomes[[0, 3]].tolist() == [Outcome.REACHED] * 2
    assert all(outcome != Outcome.REACHED for outcome in solution.outcomes[[1, 2, 4, 5]].tolist())
    assert solution.state[0].item() == pytest.approx(1.0, abs=1e-4)
    assert solution.states[1, 1].item() == pytest.approx(4.0, rel=1e-3)
    assert solution.state[1].item() > 1e3 and math.isfinite(solution.state[1].item())
    assert solution.status.startswith("incomplete: of 6 samples") and solution.reached.tolist()[0]
    solution.state[solution.reached].sum().backward()
    assert torch.isfinite(start.grad[[0, 3]]).all()


def test_at_the_step_cap_the_last_state_is_returned() -> None:
    def fast(t, state):
        return (-1e4 * state[0],)

    solution = solve(fast, (torch.ones(2, 1),), torch.tensor([0.0, 1.0]), SolveOptions(method="dopri5", max_steps=50))
    assert solution.status == "incomplete: of 2 samples, 2 stopped at the step cap"
    assert solution.accepted + solution.rejected == 50 and solution.nfe == 2 + 6 * 50
    assert solution.counts.accepted[0] > 0 and bool(torch.isfinite(solution.state).all())


@settings(max_examples=int(os.environ.get("NCODE_CASES", "60")), deadline=None)
@given(
    name=st.sampled_from(sorted(FLOWS)),
    method=st.sampled_from(METHODS),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e6, 1e20, 1e38]),
    poison=st.sampled_from([None, math.nan, math.inf, -math.inf, 1e30]),
    seed=st.integers(0, 10_000),
)
def test_no_field_and_no_number_raises_or_hangs(name: Any, method: Any, scale: Any, poison: Any, seed: Any) -> None:
    torch.manual_seed(seed)
    flow = random_flow(name, torch.float32, scale)
    x, c = torch.randn(5, 3), torch.randn(5, 2)
    if poison is not None:
        x[0, 1] = c[1, 0] = poison
    solution = flow(x, c, options=flow.options.but(method=method, max_steps=40, rtol=1e-3, atol=1e-3))
    assert solution.status and len(solution.outcomes) == 5
    assert bool(torch.isfinite(solution.state[solution.reached]).all())
    assert bool(torch.isfinite(solution.state[2:]).all())


def test_a_lost_sample_leaves_no_trace_in_shared_gradients() -> None:
    torch.manual_seed(0)
    flow = random_flow("closed, weights", torch.float32)
    x, c = torch.randn(5, 3), torch.randn(5, 2)
    broken = x.clone()
    broken[2] = math.nan
    gradients = []
    for start in (x, broken):
        solution = flow(start, c, options=flow.options.but(method="dopri5"))
        keep = torch.tensor([0, 1, 3, 4])
        gradients.append(torch.autograd.grad(solution.state[keep].sum(), flow.controller.gamma.head.weight)[0])
    torch.testing.assert_close(*gradients)


def test_tolerances_and_times_that_make_no_sense_are_refused() -> None:
    one = (torch.ones(1),)
    with pytest.raises(ValueError, match="tolerances"):
        solve(blow_up, one, UNIT, SolveOptions(method="dopri5", atol=0.0))
    with pytest.raises(ValueError, match="strictly increasing or strictly decreasing"):
        solve(blow_up, one, torch.tensor([0.0, 1.0, 0.5]), SolveOptions(method="dopri5"))
    with pytest.raises(ValueError, match="fixed-step method"):
        solve(blow_up, one, UNIT, SolveOptions(method="dopri5", grid=UNIT))
