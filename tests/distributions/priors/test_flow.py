import math
from typing import Any

import pytest
import torch

from ncode_gen.distributions.priors import FlowPrior, GaussianMixture, StandardNormal
from ncode_gen.errors import UserError
from ncode_gen.training import fit_prior


def ring(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    return 3 * points + 0.3 * torch.randn(n, 2, generator=generator)


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    prior = FlowPrior(2, hidden=64, iterations=600, components=4)
    fit_prior(prior, ring(4000))
    return prior


def stirred(**options):
    torch.manual_seed(0)
    prior = FlowPrior(3, hidden=8, joint=True, **options)
    with torch.no_grad():
        for parameter in prior.flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior.requires_grad_(False)


def test_before_it_is_fitted_it_is_the_standard_normal() -> None:
    latents = torch.randn(5, 2, 3)
    prior = FlowPrior(3, hidden=8)
    torch.testing.assert_close(prior.log_prob(latents), StandardNormal(3).log_prob(latents))
    assert prior.active_flow is None and not any(p.requires_grad for p in prior.parameters())


@pytest.mark.parametrize("layers", [1, 2])
def test_the_density_is_that_of_the_map(layers: int) -> None:
    prior = stirred(layers=layers, steps=32).double()
    noise = torch.randn(4, 3, dtype=torch.float64)

    def move(x):
        return prior.flow(x.view(1, 1, 3)).state.view(3)

    latents = torch.stack([move(x) for x in noise])
    jacobians = torch.stack([torch.autograd.functional.jacobian(move, x) for x in noise])
    expected = StandardNormal(3).log_prob(noise) - torch.linalg.slogdet(jacobians).logabsdet
    torch.testing.assert_close(prior.log_prob(latents), expected, atol=1e-4, rtol=1e-4)


def test_particles_and_grids_do_not_change_the_density() -> None:
    prior = stirred(steps=32)
    latents = torch.randn(5, 2, 3)
    whole = prior.log_prob(latents)
    assert whole.shape == (5, 2)
    torch.testing.assert_close(prior.log_prob(latents[3, 1]), whole[3, 1], atol=1e-4, rtol=1e-4)
    uneven = torch.cat([torch.linspace(0, 0.2, 20), torch.linspace(0.2, 1, 40)[1:]])
    torch.testing.assert_close(
        prior.with_options(prior.flow.options.but(grid=uneven)).log_prob(latents), whole, atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(
        prior.with_options(prior.flow.options.but(steps=64)).log_prob(latents), whole, atol=1e-3, rtol=1e-3
    )


def test_a_fitted_flow_follows_the_latents(fitted: Any) -> None:
    held_out = ring(2000, seed=1)
    mixture = GaussianMixture(2, 4)
    mixture.fit(ring(4000))
    assert fitted.log_prob(held_out).mean() > mixture.log_prob(held_out).mean() + 0.02
    drawn = fitted.sample(4000, torch.Generator().manual_seed(0))
    assert drawn.norm(dim=1).mean() == pytest.approx(3.0, abs=0.35)
    torch.testing.assert_close(drawn.T.cov(), held_out.T.cov(), atol=0.8, rtol=0)


@torch.no_grad()
def test_many_latents_are_sampled_as_in_one_solve() -> None:
    """Those of the base follow from a seed, and the map takes them one by one as it takes all."""
    prior, n = stirred(), 2345
    drawn = prior.sample(n, torch.Generator().manual_seed(0))
    base = prior.base.sample(n, torch.Generator().manual_seed(0))
    for number in (0, 1, 1000, n - 1):
        alone = prior.flow(base[number].view(1, 1, -1)).state.view(-1)
        torch.testing.assert_close((drawn[number] - prior.centre) / prior.scale, alone, atol=1e-5, rtol=1e-5)
    # And the density says the same: its mean over samples is the mean over other samples of the same prior.
    halves = [prior.log_prob(half).mean() for half in drawn.chunk(2)]
    torch.testing.assert_close(halves[0], halves[1], atol=0.2, rtol=0)


def test_equal_seeds_give_equal_flows_and_what_is_saved_is_loaded() -> None:
    first, second, other = (FlowPrior(2, hidden=8, iterations=5, components=2) for _ in range(3))
    second.load_state_dict(first.state_dict())
    other.load_state_dict(first.state_dict())
    shares = []
    fit_prior(first, ring(300), 3, shares.append)
    fit_prior(second, ring(300), 3)
    fit_prior(other, ring(300), 4)
    latents = ring(9)
    assert torch.equal(first.log_prob(latents), second.log_prob(latents))
    assert not torch.equal(first.log_prob(latents), other.log_prob(latents))
    assert shares == sorted(shares) and shares[-1] == 1
    fresh = FlowPrior(2, hidden=8, components=2)
    fresh.load_state_dict(first.state_dict())
    assert torch.equal(fresh.log_prob(latents), first.log_prob(latents))


def test_too_few_or_lost_latents_are_named() -> None:
    with pytest.raises(UserError, match="1 latents cannot fit"):
        FlowPrior(2, hidden=4).fit(torch.randn(1, 2))
    with pytest.raises(UserError, match="not finite"):
        FlowPrior(2, hidden=4).fit(torch.full((9, 2), float("nan")))
