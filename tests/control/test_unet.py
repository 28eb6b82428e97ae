from typing import Any

import pytest
import torch

from ncode_gen.control import ControlledODE, OpenController, UNetField
from ncode_gen.solvers import SolveOptions


def moving_field(shape=(2, 6, 6), width=4, blocks=1):
    torch.manual_seed(0)
    field = UNetField(shape, width, blocks).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return field


def control_of(field, n):
    return 0.3 * torch.randn(n, field.control_size, dtype=torch.float64)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_at_first_noise_goes_to_noise_of_unit_variance(noise: float) -> None:
    field = UNetField((1, 9, 9), 8, noise=noise)
    flow = ControlledODE(field, OpenController(lambda c: c), options=SolveOptions("rk4", 64))
    start = noise * torch.randn(2, 1, 9, 9)
    torch.testing.assert_close(flow(start, torch.randn(2, field.control_size)).state, start / noise, atol=1e-4, rtol=0)


def test_what_is_known_is_the_regression_on_independent_ends() -> None:
    torch.manual_seed(0)
    field, n = UNetField((1, 4, 4), 4, noise=0.5), 200000
    start, end = 0.5 * torch.randn(n), torch.randn(n)
    for time in (0.0, 0.3, 0.8, 1.0):
        x, velocity = (1 - time) * start + time * end, end - start
        slope, uncertain, deviation = field.preconditioning(torch.tensor(time))
        assert float(slope) == pytest.approx(float((x * velocity).mean() / x.square().mean()), abs=0.02)
        assert float(uncertain) == pytest.approx(float((velocity - slope * x).std()), abs=0.02)
        assert float(deviation) == pytest.approx(float(x.std()), abs=0.02)


def test_every_sample_has_a_field_of_its_own() -> None:
    field = moving_field()
    x, control = torch.rand(4, 2, 6, 6).double(), control_of(field, 4)
    together = field(0.5, x, control)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], field(0.5, x[i : i + 1], control[i : i + 1]))
    assert not torch.allclose(field(0.5, x, control.flip(0)), together)


def test_states_under_one_control_and_times_of_their_own() -> None:
    field = moving_field()
    x, control = torch.rand(3, 2, 2, 6, 6).double(), control_of(field, 3)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    found = field(t, x, control)
    for i in range(3):
        for k in range(2):
            torch.testing.assert_close(found[i, k], field(float(t[i]), x[i : i + 1, k], control[i : i + 1])[0])
    shared = field(0.5, x, control[0])
    torch.testing.assert_close(shared, field(0.5, x, control[:1].expand(3, -1)))


def test_the_guide_is_what_pack_says() -> None:
    field = moving_field()
    modulations, images = torch.randn(2, field.modulations).double(), torch.rand(2, 2, 6, 6).double()
    control = field.pack(modulations, images)
    x = torch.rand(2, 2, 6, 6).double()
    slope, uncertain, deviation = field.preconditioning(torch.tensor(0.2).double())
    added = field.apply_network(torch.tensor(0.2).double(), x / deviation, images, modulations)
    torch.testing.assert_close(field(0.2, x, control), slope * x + uncertain * added)


def test_its_log_determinant_is_that_of_the_map() -> None:
    field = moving_field((1, 3, 3))
    condition = torch.randn(2, field.control_size, dtype=torch.float64)
    flow = ControlledODE(field, OpenController(lambda c: 0.3 * c), options=SolveOptions("rk4", 16))
    x = torch.rand(2, 1, 3, 3).double()
    found = flow(x, condition, log_det=True).log_det[-1]
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda p, i=i: flow(p.view(1, 1, 3, 3), condition[i : i + 1]).state.view(9), x[i].reshape(9)
        )
        torch.testing.assert_close(found[i], jacobian.slogdet()[1], atol=1e-4, rtol=1e-4)


def test_noise_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="noise must be above 0"):
        UNetField((1, 4, 4), noise=0.0)


@pytest.mark.parametrize("arguments", [((0, 4, 4), 8, 1), ((1, 4, 4), 0, 1), ((1, 4, 4), 8, 0)])
def test_sizes_below_one_are_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        UNetField(*arguments)
