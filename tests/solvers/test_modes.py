"""Threads, automatic casting, tracing, other dtypes: never a wrong number."""

import copy
import functools
import io
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import ncode_gen
from ncode_gen import NCODE
from ncode_gen.solvers import SolveOptions, solve

from ..conftest import ROOT


def flow_of(**options):
    torch.manual_seed(0)
    flow = NCODE(3, hidden=(16,), gamma=(16,), **options)
    for value in flow.parameters():
        value.data += 0.1 * torch.randn_like(value)
    return flow


class State(torch.nn.Module):
    """A flow's last state, which is all that a trace can return."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow(x, x).state


X, OTHER = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))
THREADS = 8


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "rk4"])
def test_eight_threads_find_what_one_finds(method: str) -> None:
    flow = flow_of(method=method, rtol=1e-4, atol=1e-4)
    alone = [flow(x[None], x[None]).state for x in X]
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(2):
            together = list(pool.map(lambda x: flow(x[None], x[None]).state, X))
            assert all(map(torch.equal, alone, together))


def test_threads_that_sample_and_solve_at_once_find_what_they_find_one_after_the_other() -> None:
    model = ncode_gen.load(str(ROOT / "checkpoints" / "digits-ncode-open"))
    flow = flow_of(method="dopri5", rtol=1e-4, atol=1e-4)

    def adaptive(options):
        return options.but(method="tsit5", rtol=1e-4, atol=1e-4)

    def sampled() -> torch.Tensor:
        images = model.sample(40, torch.Generator().manual_seed(0))
        return torch.cat([images.flatten(), model.trajectory(images, adjust=adaptive).states.flatten()])

    def solved() -> Any:
        return flow(X, OTHER, log_det=True).state

    works = [sampled, solved] * (THREADS // 2)
    alone = [work() for work in works]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(lambda work: work(), works))
    assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["rk4", "dopri5", "torchdiffeq:dopri5", "torchdiffeq:rk4"])
def test_automatic_casting_does_not_reach_into_a_solve(method: str, dtype: Any) -> None:
    flow, layer = flow_of(method=method), torch.nn.Linear(3, 3)

    def derivative(t, state):
        return (torch.tanh(layer(state[0])),)

    plain = (
        flow(X, X),
        solve(derivative, (X,), [0, 1], SolveOptions(method=method)),
        flow.inverse(X, OTHER, log_det=True),
    )
    with torch.autocast("cpu", dtype):
        cast = (
            flow(X, X),
            solve(derivative, (X,), [0, 1], SolveOptions(method=method)),
            flow.inverse(X, OTHER, log_det=True),
        )
    for one, other in zip(plain, cast, strict=True):
        assert torch.equal(one.state, other.state) and one.nfe == other.nfe


def test_layers_cast_by_the_derivative_itself_leave_the_state_its_dtype() -> None:
    def derivative(t, state):
        return ((-state[0]).bfloat16(),)

    for method in ("rk4", "dopri5", "torchdiffeq:rk4"):
        found = solve(derivative, (torch.ones(3, 2),), [0, 1], SolveOptions(method=method, rtol=1e-2, atol=1e-2)).state
        assert found.dtype == torch.float32 and found[0, 0].item() == pytest.approx(math.exp(-1), abs=0.01)


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_a_graph_by_make_fx_works_for_other_inputs(mode: str) -> None:
    flow = flow_of()
    if mode == "real":
        graph: Any = make_fx(lambda x: flow(x, x).state)(X)
    else:
        given = dict(flow.named_parameters())
        held = make_fx(
            lambda values, x: torch.func.functional_call(State(flow), {f"flow.{k}": v for k, v in values.items()}, x),
            tracing_mode="fake",
        )(given, X)

        graph = functools.partial(held, given)

    torch.testing.assert_close(graph(OTHER), flow(OTHER, OTHER).state, atol=1e-5, rtol=1e-5)


def test_a_trace_and_an_export_work_for_other_inputs() -> None:
    model = State(flow_of())
    expected = model(OTHER)
    torch.testing.assert_close(torch.jit.trace(model, X)(OTHER), expected, atol=1e-5, rtol=1e-5)
    exported = torch.export.export(model, (X,))
    torch.testing.assert_close(exported.module()(OTHER), expected, atol=1e-5, rtol=1e-5)
    assert "ncode_gen" not in str(exported.graph)  # another program has not our operators


@pytest.mark.parametrize("method", ["dopri5", "torchdiffeq:dopri5"])
def test_adaptive_solves_say_that_they_cannot_be_traced(method: str) -> None:
    flow = flow_of(method=method)
    with pytest.raises(ValueError, match="chooses its steps by numbers"):
        torch.jit.trace(State(flow), X)
    with pytest.raises(ValueError, match="chooses its steps by numbers"):
        make_fx(lambda x: flow(x, x).state)(X)
    with FakeTensorMode(), pytest.raises(ValueError, match="chooses its steps by numbers"):
        NCODE(3, method=method)(torch.randn(5, 3))


def test_fake_and_meta_tensors_have_shapes_and_no_crash() -> None:
    with FakeTensorMode():
        assert NCODE(3)(torch.randn(5, 3)).state.shape == (5, 3)
    with torch.device("meta"):
        assert NCODE(3)(torch.randn(5, 3)).state.shape == (5, 3)
    flow = flow_of()  # what was computed meanwhile is not kept for later
    assert bool(flow(X, X).state.isfinite().all())


def test_a_mode_that_counts_operations_sees_them_and_changes_nothing() -> None:
    for method in ("rk4", "dopri5"):
        flow = flow_of(method=method)
        with FlopCounterMode(display=False) as counter:
            found = flow(X, X).state
        assert counter.get_total_flops() > 0 or method == "dopri5"
        torch.testing.assert_close(found, flow(X, X).state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_double_weights_take_double_states(method: str) -> None:
    flow = flow_of(method=method)
    twice = copy.deepcopy(flow).double()
    torch.testing.assert_close(twice(X.double(), X.double()).state.float(), flow(X, X).state, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"states are torch.float64, the weights of the flow torch.float32; convert"):
        flow(X.double())
    with pytest.raises(ValueError, match=r"condition are torch.float64"):
        flow(X, X.double())
    with pytest.raises(ValueError, match="real floating point"):
        flow(torch.ones(4, 3, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_are_solved_on_a_grid_and_refused_by_adaptive_methods(dtype: Any) -> None:
    flow = flow_of().to(dtype)
    found = flow(X.to(dtype), X.to(dtype)).state
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), flow_of()(X, X).state, atol=0.1, rtol=0.1)
    with pytest.raises(ValueError, match="cannot meet its tolerances"):
        flow(X.to(dtype), X.to(dtype), options=flow.options.but(method="dopri5"))


def test_another_default_dtype_changes_no_result() -> None:
    flow = flow_of()
    expected = flow(X, X).state
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(flow(X, X).state, expected)
        assert NCODE(3, method="rk2:0.25")(torch.randn(4, 3)).state.dtype == torch.float64
        single = NCODE(3, method="rk2:0.35").float()
        for value in single.parameters():
            torch.nn.init.normal_(value, std=0.3)
        # The tableau is kept for the process from its first use; it must not be in another precision.
        torch.testing.assert_close(
            single(X, X).state, single.double()(X.double(), X.double()).state.float(), atol=1e-4, rtol=1e-4
        )
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", ["rk4", "dopri5", "tsit5", "torchdiffeq:rk4"])
def test_no_samples_have_no_states(method: str) -> None:
    flow = flow_of(method=method)
    empty = torch.zeros(0, 3)
    assert flow(empty, empty).states.shape == (2, 0, 3)
    assert flow(empty, empty, log_det=False).status.startswith("ok")


@pytest.mark.parametrize("name", ["digits-ncode-open", "mnist-ncode-refined", "mnist-ncode-decoder"])
def test_a_model_answers_for_no_images(name: str) -> None:
    model = ncode_gen.load(Path("checkpoints") / name)
    images, latents = torch.zeros(0, *model.shape), torch.zeros(0, model.dim)
    for found in (model.reconstruct(images), model.decode(latents), model.sample_images(latents)):
        assert found.shape == images.shape
    assert model.encode(images).shape == model.sample_posterior(images).shape == latents.shape
    assert model.trajectory(images, [0, 1], decode=True).images.shape == (2, *images.shape)
    if not model.posterior.deterministic:
        assert model.log_likelihood(images, 2).shape == (0,)


def test_wrong_states_and_derivatives_are_named_by_every_method() -> None:
    x = torch.ones(4, 2)
    for method in ("rk4", "dopri5", "torchdiffeq:dopri5", "torchdiffeq:euler"):

        def run(derivative, state=(x,), method=method, **options):
            solve(derivative, state, [0.0, 1.0], SolveOptions(method=method, **options))

        def decay(t, s):
            return (-s[0],)

        for derivative, message in (
            (lambda t, s: -s[0], "must return a tuple of 1 tensors.*write"),
            (lambda t, s: (-s[0], s[0]), "must return a tuple of 1 tensors"),
            (lambda t, s: (), "must return a tuple of 1 tensors"),
            (lambda t, s: None, "must return a tuple of 1 tensors"),
            (lambda t, s: (-s[0][:, :1],), r"state's shape \(4, 2\), got a tensor of shape \(4, 1\)"),
            (lambda t, s: (-s[0][:1],), r"state's shape \(4, 2\), got a tensor of shape \(1, 2\)"),
            (lambda t, s: (1.0,), "real tensors of the state's shape"),
            (lambda t, s: (s[0] * 1j,), "a complex one"),
        ):
            with pytest.raises(ValueError, match=message):
                run(derivative)
        for state, message in (
            (x, "tuple of tensors, got a tensor"),
            ((), "tuple of tensors"),
            ((1.0,), "tuple of tensors"),
            ((x.long(),), "floating point"),
            ((x * 1j,), "must be real"),
            ((torch.tensor(1.0),), "same n"),
            ((x, torch.ones(3)), "same n"),
        ):
            with pytest.raises(ValueError, match=message):
                run(decay, state)
        for options, message in (
            ({"rtol": math.nan}, "positive"),
            ({"atol": math.nan}, "positive"),
            ({"atol": math.inf}, "positive"),
            ({"rtol": torch.tensor([1e-3, 1e-4])}, "one number"),
            ({"rtol": "small"}, "one number"),
            ({"steps": 2.5}, "whole number"),
            ({"max_steps": 0}, "at least 1"),
        ):
            with pytest.raises(ValueError, match=message):
                run(decay, **options)
        run(decay, rtol=torch.tensor(1e-4))
        run(lambda t, s: [-s[0]])  # a list is as clear as a tuple


def test_an_error_of_the_derivative_is_not_taken_for_the_solvers() -> None:
    def broken(t, state):
        raise ValueError("underflow in dt, says the user's own code")

    for method in ("rk4", "dopri5", "torchdiffeq:dopri5"):
        with pytest.raises(ValueError, match="user's own"):
            solve(broken, (torch.ones(2),), [0, 1], SolveOptions(method=method))


@pytest.mark.parametrize("method", ["torchdiffeq:dopri5", "torchdiffeq:bosh3", "torchdiffeq:scipy_solver"])
def test_where_torchdiffeq_gives_up_the_samples_are_lost_and_reported(method: str) -> None:
    blowing_up = solve(
        lambda t, s: (s[0] ** 2,), (torch.ones(3),), [0.0, 0.5, 2.0], SolveOptions(method=method, max_steps=200)
    )
    assert not bool(blowing_up.reached.any()) and "incomplete: of 3 samples" in blowing_up.status
    assert torch.equal(blowing_up.states[0], torch.ones(3))


SHIPPED = sorted(path.parent.name for path in (ROOT / "checkpoints").glob("*/recipe.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_published_models_are_pickled_copied_and_converted(name: Any) -> None:
    model = ncode_gen.load(Path("checkpoints") / name)
    images = model.sample(2, torch.Generator().manual_seed(0))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for same in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False), copy.deepcopy(model)):
        assert torch.equal(same.sample(2, torch.Generator().manual_seed(0)), images)
    if "refined" in name:  # its other parts are those of the autoencoder
        return
    twice = copy.deepcopy(model).double()
    torch.testing.assert_close(twice.sample(2, torch.Generator().manual_seed(0)).float(), images, atol=1e-3, rtol=1e-3)
    assert twice.reconstruct(images).dtype == torch.float64
    for half in (copy.deepcopy(model).bfloat16(), copy.deepcopy(model).half()):
        found = half.reconstruct(images)
        assert found.dtype == half.dtype and (found.float() - model.reconstruct(images)).abs().mean() < 0.02
        if not model.posterior.deterministic:
            with pytest.raises(ValueError, match="off by nats"):
                half.log_likelihood(images, 2)


def test_what_casting_made_half_is_taken_back() -> None:
    layer, flow = torch.nn.Linear(3, 3), flow_of()
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(X)
        assert half.dtype == torch.bfloat16
        found = flow(X, half).state
        solved = solve(lambda t, s: (torch.tanh(layer(s[0])),), (half,), [0, 1], SolveOptions(method="dopri5")).state
    assert found.dtype == solved.dtype == torch.float32
    torch.testing.assert_close(found, flow(X, half.float()).state)
    with pytest.raises(ValueError, match="cannot meet its tolerances"):
        solve(lambda t, s: (-s[0],), (half,), [0, 1], SolveOptions(method="dopri5"))


@pytest.mark.parametrize("name", ["digits-ncode-open", "mnist-ncode-decoder", "mnist-ncode-open-flow"])
def test_a_model_computes_the_same_under_casting(name: str) -> None:
    model = ncode_gen.load(Path("checkpoints") / name)
    images = model.sample(4, torch.Generator().manual_seed(0))

    def all_of_it():
        generator = torch.Generator().manual_seed(1)
        found = [model.sample(2, generator), model.encode(images), model.sample_posterior(images, generator)]
        found += [model.reconstruct(images), model.trajectory(images, [0, 1]).state]
        if not model.posterior.deterministic:
            found.append(model.log_likelihood(images, 4, generator))
        return found

    plain = all_of_it()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, plain, all_of_it()))


def test_a_control_of_another_shape_is_named() -> None:
    from ncode_gen.control import ConstantField, ControlledODE, OpenController

    for gamma, message in (
        (lambda c: c[:, :2], "takes 3 weights of control, got shape"),
        (lambda c: c[:1], "12 samples but 1 controls"),
        (lambda c: c.unsqueeze(1), "takes 3 weights of control, got shape"),
    ):
        for method in ("rk4", "dopri5"):
            with pytest.raises(ValueError, match=message):
                ControlledODE(ConstantField(3), OpenController(gamma))(
                    X, X, options=ControlledODE(ConstantField(3), OpenController(gamma)).options.but(method=method)
                )
