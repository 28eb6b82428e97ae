from typing import Any

import pytest
import torch

from ncode_gen.control import ConstantField, ConvField, LinearField, MLPField

FIELDS = [
    MLPField(3, (8,)),
    MLPField(3, (8,), time=False, activation="softplus"),
    MLPField(3, (8,), activation="silu"),
    MLPField(3, (8, 5)),
    MLPField(3, (8,), feedback=True),
    MLPField(3, (8,), feedback=True, time=False, activation="silu"),
    MLPField(3, (8, 5), feedback=True),
    MLPField(3, (8,), control="film"),
    MLPField(3, (8,), control="low-rank", rank=2),
    MLPField(3, (8,), control="last"),
    MLPField(3, (8, 5), control="low-rank"),
    *(MLPField(3, (8,), control=rung, feedback=True) for rung in ("film", "low-rank", "last")),
    *(MLPField(3, (8,), feedback=True, feedback_control=rung) for rung in ("film", "low-rank", "shared")),
    MLPField(3, (8, 5), control="film", feedback=True, feedback_control="all"),
    MLPField(3, (), feedback=True),
    LinearField(3, control="film"),
    LinearField(3, control="low-rank"),
    LinearField(3),
    ConstantField(3),
]

for field in FIELDS:
    field.double()


def control_for(field, samples=None):
    torch.manual_seed(0)
    shape = (field.control_size,) if samples is None else (samples, field.control_size)
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("field", FIELDS, ids=repr)
@pytest.mark.parametrize("shared", [True, False])
def test_the_divergence_is_the_trace_of_the_jacobian(field: Any, shared: bool) -> None:
    control = control_for(field, None if shared else 4)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    t = torch.tensor(0.3, dtype=torch.float64)
    velocity, divergence = field.bind(control).velocity_and_divergence(t, x)
    torch.testing.assert_close(velocity, field.bind(control).velocity(t, x))
    for i in range(4):
        own = control if shared else control[i : i + 1]
        for k in range(2):
            jacobian = torch.autograd.functional.jacobian(
                lambda p, own=own: field(t, p.view(1, 3), own).view(3), x[i, k]
            )
            torch.testing.assert_close(divergence[i, k], jacobian.trace())


@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_one_control_for_all_is_the_same_as_the_same_control_for_each(field: Any) -> None:
    control = control_for(field)
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(field(0.5, x, control), field(0.5, x, control.expand(5, -1).contiguous()))


@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_a_sample_does_not_depend_on_its_batch(field: Any) -> None:
    control = control_for(field, 6)
    x = torch.randn(6, 3, dtype=torch.float64)
    whole = field(0.5, x, control)
    torch.testing.assert_close(whole[2:3], field(0.5, x[2:3], control[2:3]))
    order = torch.randperm(6)
    torch.testing.assert_close(whole[order], field(0.5, x[order], control[order]))


@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_the_initial_control_is_at_rest(field: Any) -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    moved = field(0.5, x, field.initial_control().double())
    torch.testing.assert_close(moved, torch.zeros_like(x))


def test_the_control_is_viewed_and_not_copied() -> None:
    field = MLPField(3, (8,))
    control = torch.randn(2, field.control_size)
    for layer in field.bind(control).layers:
        assert layer.weight.untyped_storage().data_ptr() == control.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("x", "control", "message"),
    [((4, 2), (4, 59), "3 dimensions"), ((4, 3), (4, 58), "weights of control"), ((4, 3), (5, 67), "4 samples but 5")],
)
def test_wrong_sizes_are_named(x: Any, control: Any, message: str) -> None:
    field = MLPField(3, (8,))
    assert field.control_size == 67
    with pytest.raises(ValueError, match=message):
        field(0.0, torch.zeros(x), torch.zeros(control))


@pytest.mark.parametrize("arguments", [(0, (8,)), (3, (8, 0))])
def test_impossible_fields_are_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match="needs dim"):
        MLPField(*arguments)


CONVOLUTIONS = [
    ConvField(2, (4,)),
    ConvField(2, (4,), time=False, activation="silu", feedback=True),
    ConvField(2, ()),
    ConvField(2, (), feedback=True),
    ConvField(2, (4, 3), feedback=True),
    *(
        ConvField(2, (4,), control="film", feedback=True, feedback_control=rung)
        for rung in ("all", "low-rank", "shared")
    ),
    ConvField(2, (4,), feedback=True, feedback_control="film"),
    *(ConvField(2, (4,), control=rung, feedback=True) for rung in ("film", "low-rank", "last")),
    ConvField(2, (4,), kernel=1),
]
for field in CONVOLUTIONS:
    field.double()


@pytest.mark.parametrize("field", CONVOLUTIONS, ids=repr)
@pytest.mark.parametrize("shared", [True, False])
def test_the_divergence_on_feature_maps_is_the_trace_of_the_jacobian(field: Any, shared: bool) -> None:
    control = control_for(field, None if shared else 3)
    x = torch.randn(3, 2, 2, 3, 4, dtype=torch.float64)
    t = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    velocity, divergence = field.bind(control).velocity_and_divergence(t, x)
    torch.testing.assert_close(velocity, field.bind(control).velocity(t, x))
    for i in range(3):
        own = control if shared else control[i : i + 1]
        for k in range(2):
            jacobian = torch.autograd.functional.jacobian(
                lambda p, own=own, i=i: field(t[i], p.view(1, 2, 3, 4), own).flatten(), x[i, k].flatten()
            )
            torch.testing.assert_close(divergence[i, k], jacobian.trace())


def test_a_convolutional_field_is_that_of_the_library() -> None:
    field = ConvField(2, (4,), time=False)
    control = torch.randn(field.control_size)
    pieces = zip(field.layers, control.split([76, 74]), strict=True)
    first, second = (layer.bind(piece.split(layer.parts, -1)) for layer, piece in pieces)
    x = torch.randn(5, 2, 6, 7)
    kernel = first.weight.t().reshape(4, 2, 3, 3), second.weight.t().reshape(2, 4, 3, 3)
    hidden = torch.tanh(torch.nn.functional.conv2d(x, kernel[0], first.bias, padding=1))
    expected = torch.nn.functional.conv2d(hidden, kernel[1], second.bias, padding=1)
    torch.testing.assert_close(field(0.0, x, control), expected)


@pytest.mark.parametrize("field", [*FIELDS[:4], *FIELDS[8:]], ids=repr)
def test_each_sample_may_have_its_own_time(field: Any) -> None:
    control, x = control_for(field, 4), torch.randn(4, 3, dtype=torch.float64)
    t = torch.rand(4, dtype=torch.float64)
    together = field(t, x, control)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], field(t[i], x[i : i + 1], control[i : i + 1]))


def test_products_in_bfloat16_keep_state_and_time() -> None:
    exact, coarse = MLPField(3, (8,)), MLPField(3, (8,), products="bfloat16")
    control, x = torch.randn(4, exact.control_size), torch.randn(4, 3)
    moved = coarse(0.3, x, control)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, exact(0.3, x, control), rtol=0.1, atol=0.1)


def test_sizes_and_cost_are_shown() -> None:
    shown = repr(MLPField(3, (8,), control="low-rank", rank=2))
    assert "control_size=63 (0.2 KiB a sample), shared_size=48" in shown and "multiplications=92 a point" in shown
