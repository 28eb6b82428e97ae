import threading
from typing import Any

import pytest
import torch

from ncode_gen.runtime.parts import in_parts


@pytest.fixture
def three_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_parts_are_done_in_order_without_gradients_and_leave_the_threads_as_they_were(three_cores: Any) -> None:
    rows, weights = torch.randn(300, 4), torch.randn(300, 1)
    linear = torch.nn.Linear(4, 2)
    found = in_parts(lambda some, weight: weight * linear(some), rows, weights, batch=50)
    assert not found.requires_grad and torch.get_num_threads() == 3
    torch.testing.assert_close(found, weights * linear(rows))


def test_each_core_does_a_part_of_its_own(three_cores: Any) -> None:
    openmp = torch.backends.openmp.is_available()  # without it the calling thread does all parts
    together = threading.Barrier(3 if openmp else 1, timeout=60)  # is passed only by so many at once

    def alone(part):
        together.wait()
        assert torch.get_num_threads() == (1 if openmp else 3)
        return part + 1

    assert torch.equal(in_parts(alone, torch.zeros(150), batch=50), torch.ones(150))
    assert torch.get_num_threads() == 3


def test_an_error_in_a_part_is_the_callers_and_leaves_the_threads_as_they_were(three_cores: Any) -> None:
    def fails(part):
        raise ValueError("wrong part")

    with pytest.raises(ValueError, match="wrong part"):
        in_parts(fails, torch.zeros(150), batch=50)
    assert torch.get_num_threads() == 3
