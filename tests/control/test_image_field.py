"""Fields on images: what they refuse, and their features."""

from typing import Any

import pytest
import torch

from ncode_gen.control import DenseUNetField, ResidualField
from ncode_gen.control.image_field import best_linear_velocity, fine_features


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"control": ()}, "control must be of"),
        ({"control": ("gain",)}, "control must be of"),
        ({"side": 0}, "sizes must be at least 1"),
        ({"width": 0}, "width and blocks must be at least 1"),
    ],
)
def test_what_is_no_field_is_refused(keys: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseUNetField((1, 8, 8), **keys)


@pytest.mark.parametrize("field", [DenseUNetField((1, 8, 8), width=8, middle=1), ResidualField(5, 8, 2)])
def test_a_new_field_is_the_best_linear_one(field: Any) -> None:
    """At its start a flow is that of a standard normal end, which leaves every state where it is at t = 1/2."""
    shape = (3, 1, 8, 8) if field.axes == 3 else (3, 5)
    x, t = torch.randn(shape), torch.tensor([0.0, 0.5, 1.0])
    slope = best_linear_velocity(t)[0]
    assert torch.allclose(slope, torch.tensor([-1.0, 0.0, 1.0]))
    velocity = field(t, x, field.initial_control().expand(3, -1))
    torch.testing.assert_close(velocity, slope.view(-1, *[1] * (x.dim() - 1)) * x)


def test_fine_features_tell_neighbouring_levels_apart_and_fade_in_noise() -> None:
    step = torch.tensor(0.02)
    levels = step * torch.arange(4.0).view(4, 1, 1, 1)
    clean = fine_features(torch.tensor(1.0), levels, step).flatten(1)
    assert all((clean[i] - clean[j]).norm() > 0.5 for i in range(4) for j in range(i))
    assert fine_features(torch.tensor(0.5), levels, step).abs().max() < 1e-6


def test_sizes_that_cannot_be_halved_are_padded_inside() -> None:
    field = DenseUNetField((2, 13, 19), side=3, width=8, middle=1)
    assert field(0.3, torch.randn(2, 2, 13, 19), torch.randn(2, field.control_size)).shape == (2, 2, 13, 19)
