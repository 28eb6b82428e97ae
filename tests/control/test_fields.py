import pytest
import torch

from ncode_gen.control import ConstantField, GainFeedbackField, LinearField, MLPField

FIELDS = [
    MLPField(3, (8,)),
    MLPField(3, (8,), time=False, activation="softplus"),
    MLPField(3, (8,), activation="silu"),
    MLPField(3, (8, 5)),
    GainFeedbackField(3, 8),
    GainFeedbackField(3, 8, time=False, activation="silu"),
    LinearField(3),
    ConstantField(3),
]


def control_for(field, samples=None):
    torch.manual_seed(0)
    shape = (field.control_size,) if samples is None else (samples, field.control_size)
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("field", FIELDS, ids=repr)
@pytest.mark.parametrize("shared", [True, False])
def test_the_divergence_is_the_trace_of_the_jacobian(field, shared):
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
def test_one_control_for_all_is_the_same_as_the_same_control_for_each(field):
    control = control_for(field)
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(field(0.5, x, control), field(0.5, x, control.expand(5, -1).contiguous()))


@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_a_sample_does_not_depend_on_its_batch(field):
    control = control_for(field, 6)
    x = torch.randn(6, 3, dtype=torch.float64)
    whole = field(0.5, x, control)
    torch.testing.assert_close(whole[2:3], field(0.5, x[2:3], control[2:3]))
    order = torch.randperm(6)
    torch.testing.assert_close(whole[order], field(0.5, x[order], control[order]))


@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_the_initial_control_is_at_rest(field):
    x = torch.randn(5, 3)
    torch.testing.assert_close(field(0.5, x, field.initial_control()), torch.zeros(5, 3))


def test_the_control_is_viewed_and_not_copied():
    field = MLPField(3, (8,))
    control = torch.randn(2, field.control_size)
    for layer in field.layers(control):
        assert layer.weight.untyped_storage().data_ptr() == control.untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("x", "control", "message"),
    [((4, 2), (4, 59), "3 dimensions"), ((4, 3), (4, 58), "weights of control"), ((4, 3), (5, 67), "4 samples but 5")],
)
def test_wrong_sizes_are_named(x, control, message):
    field = MLPField(3, (8,))
    assert field.control_size == 67
    with pytest.raises(ValueError, match=message):
        field(0.0, torch.zeros(x), torch.zeros(control))


@pytest.mark.parametrize("arguments", [(0, (8,)), (3, ()), (3, (8, 0))])
def test_impossible_fields_are_refused(arguments):
    with pytest.raises(ValueError, match="needs dim"):
        MLPField(*arguments)
