from typing import Any

import pytest
import torch

from ncode_gen.control import NCODE
from ncode_gen.solvers import SolveOptions

DOUBLE = torch.float64
LOOPS: dict[str, dict[str, Any]] = {
    "static": {"loop": "static"},
    "open": {"loop": "open"},
    "open, own dynamics": {"loop": "open", "dynamics": True},
    "closed, gain": {"loop": "closed", "control": "low-rank"},
    "closed, weights": {"loop": "closed", "feedback": "weights", "gamma": (6,)},
    "closed, dynamic": {"loop": "closed", "feedback": "dynamic"},
}
WAYS = {
    "backprop, fixed": {"method": "rk4", "steps": 200, "gradient": "backprop"},
    "checkpoint, fixed": {"method": "rk4", "steps": 200, "gradient": "checkpoint"},
    "backprop, adaptive": {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9, "gradient": "backprop"},
    "checkpoint, adaptive": {"method": "tsit5", "rtol": 1e-9, "atol": 1e-9, "gradient": "checkpoint"},
    "backprop, torchdiffeq": {"method": "torchdiffeq:rk4", "steps": 200, "gradient": "backprop"},
    "adjoint, torchdiffeq": {"method": "torchdiffeq:rk4", "steps": 200, "gradient": "adjoint"},
}


def random_flow(arguments):
    torch.manual_seed(0)
    flow = NCODE(**{"dim": 3, "hidden": (7,), "condition": 2, **arguments}).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return flow


@pytest.mark.parametrize("name", LOOPS)
def test_every_way_to_a_gradient_gives_the_same(name: Any) -> None:
    flow = random_flow(LOOPS[name])
    x, c = torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, 2, dtype=DOUBLE)
    found = {}
    for way, options in WAYS.items():
        start, condition = x.clone().requires_grad_(), c.clone().requires_grad_()
        loss = flow(start, condition, options=flow.options.but(**options)).state.square().sum()
        wanted = (start, condition, *flow.parameters())
        found[way] = torch.autograd.grad(loss, wanted, allow_unused=True)
    reference = found.pop("backprop, fixed")
    assert sum(gradient is not None for gradient in reference) >= 2
    for way, gradients in found.items():
        for mine, theirs in zip(reference, gradients, strict=True):
            if mine is not None and theirs is not None:
                torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6, msg=way)


def test_thetas_that_are_rebuilt_are_recomputed_when_they_would_fill_the_memory() -> None:
    options = SolveOptions(method="rk4", steps=4)
    small, large = 1000, (256 << 20) // (4 * 16) + 1
    assert options.with_gradient(True, small).gradient == "auto"
    assert options.with_gradient(True, large).gradient == "checkpoint"
    assert options.with_gradient(False, large).gradient == "auto"
    assert SolveOptions(gradient="backprop").with_gradient(True, large).gradient == "backprop"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "adjoint"}, "needs a method of torchdiffeq"),
        ({"method": "torchdiffeq:rk4", "gradient": "checkpoint"}, "needs one of our methods"),
        ({"gradient": "none"}, "gradient must be one of"),
    ],
)
def test_a_gradient_that_a_method_cannot_give_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NCODE(2, **options)


def test_hutchinson_estimates_the_divergence_and_its_mean_is_exact() -> None:
    flow = random_flow({"loop": "closed", "feedback": "weights", "gamma": (6,)})
    x, c = torch.randn(1, 3, dtype=DOUBLE), torch.randn(1, 2, dtype=DOUBLE)
    exact = flow(x, c, log_det=True).log_det[-1]
    # The mean over all signs of the noise is the trace itself.
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=DOUBLE)] * 3)
    many = flow(x.expand(8, 3), c.expand(8, 2), log_det=True, noise=signs)
    torch.testing.assert_close(many.log_det[-1].mean(), exact[0])
    assert many.log_det[-1].std() > 1e-4


def test_the_penalties_are_those_of_a_field_that_is_known() -> None:
    flow = NCODE(2, (), "static", steps=200).double()
    matrix = torch.tensor([[0.3, -0.5], [0.2, 0.1]], dtype=DOUBLE)
    with torch.no_grad():
        flow.controller.theta.copy_(torch.cat([matrix.flatten(), torch.zeros(2, dtype=DOUBLE)]))
    x = torch.randn(4, 2, dtype=DOUBLE)
    noise = torch.ones(4, 2, dtype=DOUBLE)
    solution = flow(x, energy=True, jacobian_penalty=True, noise=noise, times=torch.linspace(0, 1, 401, dtype=DOUBLE))
    speed = (solution.states @ matrix).square().sum(-1)
    torch.testing.assert_close(solution.energy[-1], torch.trapezoid(speed, solution.times, dim=0), atol=1e-5, rtol=0)
    torch.testing.assert_close(solution.jacobian_penalty[-1], (noise @ matrix).square().sum(-1))
    with pytest.raises(ValueError, match="give noise"):
        flow(x, jacobian_penalty=True)


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("control", ["all", "last", "low-rank", "film"])
@pytest.mark.parametrize("loop", LOOPS)
def test_any_loop_runs_on_any_field_and_any_parameterisation_and_learns(
    loop: Any, control: str, kernel: int | None
) -> None:
    torch.manual_seed(0)
    hidden = (4,)
    flow = NCODE(2, hidden, **{**LOOPS[loop], "control": control}, kernel=kernel, condition=5, steps=2)
    x = torch.randn(3, 2) if kernel is None else torch.randn(3, 2, 4, 4)
    solution = flow(x, torch.randn(3, 5))
    torch.testing.assert_close(solution.state, x)  # a flow starts as the identity
    (solution.state + 1).square().sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in flow.parameters())
