import pytest
import torch
from torchvision.utils import make_grid

from ncode_gen.data.pictures import picture_grid, tiled, to_bytes


def test_pixels_are_rounded_and_not_truncated() -> None:
    values = torch.tensor([0.0, 0.9999, 127.6 / 255, 127.4 / 255, 1.0, 2.0, -1.0])
    assert to_bytes(values).tolist() == [0, 255, 128, 127, 255, 255, 0]


def test_a_grid_is_readable_even_for_tiny_images() -> None:
    assert picture_grid(torch.rand(4, 1, 8, 8)).size == (2 * 60 + 4, 2 * 60 + 4)


@pytest.mark.parametrize(("n", "channels", "columns"), [(5, 1, 3), (7, 3, 3), (2, 3, 8)])
def test_images_are_laid_out_as_torchvision_does(n: int, channels: int, columns: int) -> None:
    images = torch.rand(n, channels, 4, 5)
    assert torch.equal(tiled(images, columns, 2, 0.5), make_grid(images, columns, padding=2, pad_value=0.5))
