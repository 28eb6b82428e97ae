import math
from typing import Any

import pytest
import torch

from ncode_gen.distributions import Bernoulli, DiscretisedLogistic, Gaussian


def test_a_discretised_logistic_sums_to_one_over_its_levels() -> None:
    likelihood = DiscretisedLogistic()
    levels = (torch.arange(256, dtype=torch.float64) / 255).view(256, 1, 1, 1)
    for centre, log_scale in ((0.0, 0.0), (3.0, -2.0), (-8.0, 3.0), (8.0, -7.0)):
        output = torch.tensor([centre, log_scale], dtype=torch.float64).view(1, 2, 1, 1).expand(256, 2, 1, 1)
        total = likelihood.log_prob(output, levels).exp().sum().item()
        assert total == pytest.approx(1, abs=1e-6)


def test_a_bernoulli_sums_to_one() -> None:
    output = torch.full((2, 1, 1, 1), 0.7)
    target = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    assert Bernoulli().log_prob(output, target).exp().sum().item() == pytest.approx(1)


def test_dynamic_binarisation_keeps_the_mean() -> None:
    images = torch.full((1, 1, 200, 200), 0.3)
    target = Bernoulli().target(images, torch.rand(images.shape))
    assert set(target.unique().tolist()) == {0.0, 1.0}
    assert target.mean().item() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(), DiscretisedLogistic()])
def test_the_mean_target_is_the_mean_of_the_targets(likelihood: Any) -> None:
    images = (torch.arange(6) / 5).view(1, 1, 2, 3)
    drawn = likelihood.target(images.expand(20000, 1, 2, 3), torch.rand(20000, 1, 2, 3))
    torch.testing.assert_close(drawn.mean(0, keepdim=True), likelihood.target(images), atol=0.02, rtol=0)


def test_the_gaussian_is_a_density_over_bins() -> None:
    likelihood = Gaussian().double()
    x = torch.linspace(-3, 4, 20001, dtype=torch.float64).view(-1, 1, 1, 1)
    density = likelihood.log_prob(torch.zeros_like(x), x).exp()
    assert torch.trapezoid(density.view(-1), x.view(-1)).item() * 256 == pytest.approx(1, abs=1e-6)


def test_dequantised_levels_stay_in_their_bins() -> None:
    levels = torch.arange(256).view(256, 1, 1, 1) / 255
    target = Gaussian().target(levels, torch.rand(levels.shape))
    assert torch.equal((target * 256).floor().view(-1), torch.arange(256.0))


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(), DiscretisedLogistic()])
def test_extreme_outputs_stay_finite(likelihood: Any) -> None:
    for value in (-1e4, 0.0, 1e4):
        output = torch.full((2, likelihood.outputs, 3, 3), value, requires_grad=True)
        target = likelihood.target(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 3, 3), torch.rand(2, 1, 3, 3))
        score = likelihood.log_prob(output, target).sum()
        score.backward()
        assert math.isfinite(score.item()) and bool(torch.isfinite(output.grad).all())
