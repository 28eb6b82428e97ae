import pytest
import torch

from ncode_gen.distributions.priors import GaussianMixture, Prior, StandardNormal
from ncode_gen.errors import UserError
from ncode_gen.training.fit import fit_prior


def test_the_standard_normal_is_torchs() -> None:
    latents = torch.randn(5, 2, 3)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(latents).sum(-1)
    torch.testing.assert_close(StandardNormal(3).log_prob(latents), expected)


def test_an_unfitted_mixture_is_the_standard_normal() -> None:
    latents = torch.randn(5, 2, 3)
    torch.testing.assert_close(GaussianMixture(3, 4).log_prob(latents), StandardNormal(3).log_prob(latents))


def fitted():
    torch.manual_seed(0)
    centres = torch.tensor([[-3.0, 0.0], [3.0, 1.0]])
    latents = centres[torch.randint(2, (4000,))] + torch.randn(4000, 2) * torch.tensor([0.5, 1.0])
    prior = GaussianMixture(2, 2)
    prior.fit(latents)
    return prior, latents


def test_the_fitted_mixture_is_torchs_of_the_same_parameters_and_finds_the_centres() -> None:
    prior, latents = fitted()
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=prior.log_weights),
        torch.distributions.MultivariateNormal(prior.means, scale_tril=prior.gaussians.cholesky),
    ).log_prob(latents)
    torch.testing.assert_close(prior.log_prob(latents), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prior.means.sort(0).values, torch.tensor([[-3.0, 0.0], [3.0, 1.0]]), atol=0.1, rtol=0)


def test_samples_follow_the_mixture() -> None:
    prior, latents = fitted()
    drawn = prior.sample(20000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), latents.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), latents.T.cov(), atol=0.3, rtol=0)


def test_too_few_or_lost_latents_are_named() -> None:
    with pytest.raises(UserError, match="3 latents cannot fit"):
        GaussianMixture(2, 4).fit(torch.randn(3, 2))
    with pytest.raises(UserError, match="not finite"):
        GaussianMixture(2, 2).fit(torch.full((9, 2), float("nan")))


def test_the_number_of_components_is_chosen_and_loaded() -> None:
    torch.manual_seed(0)
    centres = 8 * torch.randn(5, 2)
    prior = GaussianMixture(2, 0)
    shares = []
    prior.fit(centres[torch.randint(5, (3000,))] + 0.3 * torch.randn(3000, 2), 0, shares.append)
    assert prior.components == 5 and shares[-1] <= 1
    loaded = GaussianMixture(2, 0)
    loaded.load_state_dict(prior.state_dict())
    latents = torch.randn(7, 2)
    assert loaded.components == 5 and torch.equal(loaded.log_prob(latents), prior.log_prob(latents))


class _Trained(Prior):
    """A Gaussian whose mean is found by updates, with nothing else of its own."""

    fitted_after, iterations = True, 1000

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.mean = 2, torch.nn.Parameter(torch.zeros(2))

    def log_prob(self, latents: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.distributions.Normal(self.mean, 1.0).log_prob(latents).sum(-1)
        return found

    def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.mean + torch.randn(n, self.dim, generator=generator)


def test_a_prior_with_updates_is_fitted_by_maximum_likelihood() -> None:
    prior, latents = _Trained().requires_grad_(False), torch.randn(3000, 2) + torch.tensor([0.1, -0.15])
    fit_prior(prior, latents)
    torch.testing.assert_close(prior.mean, latents.mean(0), atol=0.03, rtol=0)
