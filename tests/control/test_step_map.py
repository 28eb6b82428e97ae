from typing import Any

import pytest
import torch

from ncode_gen.control import NCODE, DensityError
from ncode_gen.solvers import random_grid


def stirred(**options):
    torch.manual_seed(0)
    flow = NCODE(3, (8,), condition=5, **options).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


def condition_and_states(n=4, k=2):
    generator = torch.Generator().manual_seed(1)
    condition = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return condition, torch.randn(n, k, 3, generator=generator, dtype=torch.float64)


LOOPS = [
    {"loop": "static"},
    {"loop": "open"},
    {"loop": "closed"},
    {"loop": "closed", "feedback": "weights"},
]


@pytest.mark.parametrize("options", LOOPS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_it_is_the_log_determinant_of_the_computed_map(options: Any, method: str) -> None:
    flow = stirred(**options, method=method, steps=2, log_det_by="steps").requires_grad_(False)
    condition, x = condition_and_states()
    solution = flow(x, condition, log_det=True)
    for n in range(2):
        for k in range(2):

            def move(point, n=n):
                return flow(point.view(1, 1, 3), condition[n : n + 1]).state.view(3)

            jacobian = torch.autograd.functional.jacobian(move, x[n, k])
            torch.testing.assert_close(solution.log_det[-1, n, k], torch.linalg.slogdet(jacobian).logabsdet)


def test_it_meets_the_divergence_where_the_steps_are_fine() -> None:
    flow, (condition, x) = stirred(steps=64, log_det_by="steps"), condition_and_states()
    exact = flow(x, condition, log_det=True, energy=True, times=torch.linspace(0, 1, 3).double())
    integrated = flow(
        x,
        condition,
        log_det=True,
        energy=True,
        times=torch.linspace(0, 1, 3).double(),
        options=flow.options.but(log_det_by="divergence"),
    )
    for name in ("states", "log_det", "energy"):
        torch.testing.assert_close(getattr(exact, name), getattr(integrated, name), atol=2e-5, rtol=2e-5)
    assert exact.nfe == integrated.nfe


def test_inverse_and_uneven_grids() -> None:
    flow, (condition, x) = stirred(steps=64, log_det_by="steps"), condition_and_states()
    there = flow(x, condition, log_det=True)
    back = flow.inverse(there.state, condition, log_det=True)
    torch.testing.assert_close(back.log_det[-1], -there.log_det[-1], atol=1e-5, rtol=1e-5)
    grid = random_grid(64, generator=torch.Generator().manual_seed(0)).double()
    uneven = flow(x, condition, log_det=True, options=flow.options.but(grid=grid))
    torch.testing.assert_close(uneven.log_det, there.log_det, atol=1e-5, rtol=1e-5)


def test_it_has_gradients() -> None:
    flow, (condition, x) = stirred(steps=2, log_det_by="steps"), condition_and_states(2, 1)
    weights = list(flow.parameters())
    total = flow(x, condition, log_det=True).log_det[-1].sum()
    found = torch.autograd.grad(total, weights[0])[0]
    with torch.no_grad():
        weights[0].view(-1)[3] += 1e-6
        moved = flow(x, condition, log_det=True).log_det[-1].sum()
    assert found.view(-1)[3].item() == pytest.approx(((moved - total) / 1e-6).item(), rel=1e-3, abs=1e-6)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="fixed steps"):
        NCODE(2, method="dopri5", log_det_by="steps")
    with pytest.raises(ValueError, match="log_det_by must be"):
        NCODE(2, log_det_by="luck")  # type: ignore[arg-type]
    moving = stirred(dynamics=True, log_det_by="steps")
    condition, x = condition_and_states()
    with pytest.raises(ValueError, match="no part of the ODE's state"):
        moving(x, condition, log_det=True)
    with pytest.raises(ValueError, match="takes no noise"):
        stirred(log_det_by="steps")(x, condition, log_det=True, noise=torch.randn_like(x))
    with pytest.raises(DensityError):
        stirred(loop="closed", feedback="dynamic", log_det_by="steps")(x, condition, log_det=True)
