import torch

from ncode_gen.autoencoder.parts import in_parts


def test_parts_are_done_in_order_without_gradients_and_leave_the_threads_as_they_were():
    cores = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        rows, weights = torch.randn(300, 4), torch.randn(300, 1)
        linear = torch.nn.Linear(4, 2)
        found = in_parts(lambda some, weight: weight * linear(some), rows, weights, batch=50)
        assert not found.requires_grad and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(cores)
    torch.testing.assert_close(found, weights * linear(rows))
