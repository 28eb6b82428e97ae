from typing import Any

import pytest
import torch

from ncode_gen.control import ControlledODE, NormalisedField, OpenController
from ncode_gen.solvers import SolveOptions


def stirred(channels=3, hidden=4):
    torch.manual_seed(0)
    field = NormalisedField(channels, hidden).double()
    control = field.initial_control().double() + 0.3 * torch.randn(4, field.control_size, dtype=torch.float64)
    return field, control


def test_it_is_the_branch_of_a_residual_block() -> None:
    field, control = stirred()
    x, t = torch.randn(4, 3, 5, 6, dtype=torch.float64), 0.7
    for i in range(4):
        gain, bias, inner_gain, inner_bias, time, outer_gain, outer_bias = (
            part[:, None, None] for part in control[i].split(field.sizes)
        )
        own = x[i]
        normal = (own - own.mean()) / (own.var(correction=0) + 1e-5).sqrt()
        maps = torch.nn.functional.silu(gain * normal + bias)
        maps = torch.nn.functional.silu(inner_gain * field.first(maps) + inner_bias + t * time)
        torch.testing.assert_close(field(t, x, control)[i], outer_gain * field.second(maps) + outer_bias)


def test_its_velocity_does_not_depend_on_the_scale_of_a_map() -> None:
    field, control = stirred()
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(field(0.2, 9 * x + 4, control), field(0.2, x, control), atol=1e-4, rtol=1e-4)


def test_states_under_one_control_and_times_of_their_own() -> None:
    field, control = stirred()
    x, t = torch.randn(4, 2, 3, 5, 6, dtype=torch.float64), torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)
    found = field(t, x, control)
    for i in range(4):
        for k in range(2):
            torch.testing.assert_close(found[i, k], field(float(t[i]), x[i : i + 1, k], control[i : i + 1])[0])
    torch.testing.assert_close(field(0.5, x, control[0]), field(0.5, x, control[:1].expand(4, -1)))


def test_a_flow_starts_as_the_identity_and_has_an_exact_divergence() -> None:
    field, control = stirred(2, 2)
    flow = ControlledODE(field, OpenController(lambda c: c), options=SolveOptions("midpoint", 2))
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    still = field.initial_control().double().expand(2, -1)
    torch.testing.assert_close(flow(x, still).state, x, rtol=0, atol=0)
    bound = field.bind(control[:2])
    _, divergence = bound.velocity_and_divergence(torch.tensor(0.4, dtype=torch.float64), x.unsqueeze(1))
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda state, i=i: field(0.4, state.view(1, 2, 3, 3), control[i : i + 1]).flatten(), x[i].flatten()
        )
        torch.testing.assert_close(divergence[i, 0], jacobian.trace())


@pytest.mark.parametrize("sizes, printed", [((0, 4), "channels and hidden"), ((2, 0), "hidden"), ((2, 2, 4), "odd")])
def test_impossible_sizes_are_refused(sizes: Any, printed: str) -> None:
    with pytest.raises(ValueError, match=printed):
        NormalisedField(*sizes)
