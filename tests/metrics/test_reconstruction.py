import pytest
import torch

from ncode_gen.metrics import structural_similarity


def test_similarity_is_one_for_the_same_and_falls_with_noise():
    image = torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(structural_similarity(image, image), torch.ones(2))
    little, much = ((image + s * torch.randn_like(image)).clamp(0, 1) for s in (0.05, 0.4))
    assert bool((structural_similarity(image, little) > structural_similarity(image, much)).all())


def test_similarity_of_flat_images_is_known():
    a, b = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert structural_similarity(a, b).item() == pytest.approx(expected, rel=1e-4)


def test_tiny_images_have_a_similarity_too():
    image = torch.rand(1, 1, 8, 8)
    assert structural_similarity(image, image).item() == pytest.approx(1)
