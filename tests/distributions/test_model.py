import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from ncode_gen.config import Recipe, section
from ncode_gen.control import ControlledODE, DensityError, LinearField, OpenController
from ncode_gen.distributions import GaussianPosterior, LatentModel, Pixelwise, build_model
from ncode_gen.distributions.likelihoods import Likelihood
from ncode_gen.distributions.priors import StandardNormal
from ncode_gen.networks.blocks import pyramid
from ncode_gen.solvers import SolveOptions

LOOPS = {
    "none": section("flow", loop="none"),
    "static": section("flow", loop="static", hidden=8),
    "open": section("flow", loop="open", hidden=8),
    "open, gamma": section("flow", loop="open", hidden=8, gamma=4),
    "closed, gain": section("flow", loop="closed", hidden=8),
    "closed, weights": section("flow", loop="closed", feedback="weights", hidden=4, steps=1),
}


def small(flow=LOOPS["open"], **sections):
    return Recipe(latent=section("latent", dim=4), flow=flow, **sections)


def model_of(recipe, shape=(1, 8, 8)):
    torch.manual_seed(0)
    model = build_model(recipe, shape).eval()
    for parameter in model.posterior.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False)


@pytest.mark.parametrize("flow", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "logistic"])
def test_every_flow_and_likelihood_go_together(flow: Any, likelihood: str) -> None:
    model = model_of(small(flow, decoder=section("decoder"), likelihood=section("likelihood", kind=likelihood)))
    images = torch.rand(3, 1, 8, 8)
    assert model.sample(5).shape == (5, 1, 8, 8)
    assert model.reconstruct(images).shape == images.shape
    assert model.encode(images).shape == (3, 4)
    assert torch.isfinite(model.log_likelihood(images, particles=7)).all()
    trajectory = model.trajectory(images, torch.linspace(0, 1, 5), decode=True)
    assert trajectory.states.shape == (5, 3, 4)
    assert trajectory.images.shape == (5, 3, 1, 8, 8)
    torch.testing.assert_close(trajectory.state, model.encode(images), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 13, 20), (1, 5, 9), (3, 64, 64), (1, 8, 8)])
@pytest.mark.parametrize("kind", ["conv", "mlp"])
def test_networks_fit_images_of_any_size(shape: Any, kind: str) -> None:
    recipe = small(decoder=section("decoder", kind=kind, width=4))
    recipe = dataclasses.replace(recipe, encoder=section("encoder", kind=kind, width=4))
    assert model_of(recipe, shape).reconstruct(torch.rand(2, *shape)).shape == (2, *shape)
    assert max(pyramid(*shape[1:])[-1]) <= 8


def test_the_deterministic_autoencoder_starts_all_latents_at_one_point() -> None:
    recipe = small(
        LOOPS["open"], objective=section("objective", kind="autoencoder"), prior=section("prior", kind="mixture")
    )
    model = model_of(recipe)
    path = model.trajectory(torch.rand(3, 1, 8, 8)).states
    assert torch.equal(path[0, 0], path[0, 1])
    assert not torch.allclose(path[-1, 0], path[-1, 1])
    with pytest.raises(DensityError, match="deterministic"):
        model.log_likelihood(torch.rand(3, 1, 8, 8))


def test_a_dynamic_closed_loop_serves_the_autoencoder() -> None:
    recipe = small(
        section("flow", loop="closed", feedback="dynamic", hidden=4),
        objective=section("objective", kind="autoencoder"),
        prior=section("prior", kind="mixture"),
    )
    assert model_of(recipe).encode(torch.rand(3, 1, 8, 8)).shape == (3, 4)


def test_the_same_seed_gives_the_same_samples() -> None:
    model = model_of(small())
    one, two = (model.sample(6, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, model.sample(6, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 8, 8), r"shape \(n, 1, 8, 8\)"),
        (torch.rand(1, 8, 8), "shape"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "floating point"),
        (torch.full((2, 1, 8, 8), 255.0), r"lie in \[0, 1\]"),
        (torch.full((2, 1, 8, 8), float("nan")), "without NaN"),
    ],
)
def test_wrong_images_are_refused_with_the_reason(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(small()).encode(images)


class _Linear(Likelihood):
    """N(output, 0.5^2 I) on targets that are the images themselves: the marginal likelihood is known."""

    outputs, levels, noisy, protocol = 1, 1, False, "as they are"
    scale = 0.5

    def target(self, images, uniform=None):
        return images

    def log_prob(self, output, target):
        return torch.distributions.Normal(output, self.scale).log_prob(target).flatten(1).sum(1)

    def mean(self, output):
        return output


class _Flatten(nn.Module):
    def forward(self, images):
        return images.flatten(1)


def linear_gaussian(dim=2, pixels=6, exact=False):
    """A linear-Gaussian autoencoder; with `exact`, base and linear flow together give the true posterior."""
    torch.manual_seed(0)
    weight = torch.randn(pixels, dim)
    field = LinearField(dim)
    head = nn.Linear(pixels, field.control_size)
    posterior = GaussianPosterior(
        pixels, dim, ControlledODE(field, OpenController(head), options=SolveOptions(steps=64))
    )
    decoder = nn.Sequential(nn.Linear(dim, pixels), nn.Unflatten(1, (1, 1, pixels)))
    with torch.no_grad():
        decoder[0].weight.copy_(weight)
        decoder[0].bias.fill_(0.3)
        head.weight.mul_(0.1)
        if exact:
            precision = torch.eye(dim) + weight.T @ weight / _Linear.scale**2
            gain = torch.linalg.inv(precision) @ weight.T / _Linear.scale**2
            # The posterior is N(gain (u - 0.3), precision^-1): the flow e^A, A = -log(precision) / 2, makes its
            # covariance from the identity, and the base mean is pulled back through it.
            values, vectors = torch.linalg.eigh(precision)
            half_log = vectors @ torch.diag(-0.5 * values.log()) @ vectors.T
            back = torch.linalg.inv(torch.linalg.matrix_exp(half_log))
            head.weight.zero_()
            head.bias.copy_(torch.cat([half_log, torch.zeros(1, dim)]).flatten())
            posterior.base.weight.zero_()
            posterior.base.weight[:dim] = back @ gain
            posterior.base.bias.zero_()
            posterior.base.bias[:dim] = back @ gain @ torch.full((pixels,), -0.3)
    observation = Pixelwise(dim, (1, 1, pixels), decoder, _Linear())
    model = LatentModel(_Flatten(), posterior, observation, StandardNormal(dim))
    covariance = weight @ weight.T + _Linear.scale**2 * torch.eye(pixels)
    marginal = torch.distributions.MultivariateNormal(torch.full((pixels,), 0.3), covariance)
    return model.eval().requires_grad_(False), marginal


def test_the_importance_weighted_bound_rises_to_the_known_marginal_likelihood() -> None:
    model, marginal = linear_gaussian()
    images = torch.rand(200, 1, 1, 6)
    truth = marginal.log_prob(images.flatten(1)).mean().item()
    means = []
    for particles in (1, 10, 100, 2000):
        generator = torch.Generator().manual_seed(0)
        means.append(model.log_likelihood(images, particles, generator).mean().item())
    assert means == sorted(means)
    assert means[-1] <= truth + 0.05
    assert means[-1] == pytest.approx(truth, abs=0.1)


def test_with_the_true_posterior_one_particle_is_the_marginal_likelihood() -> None:
    model, marginal = linear_gaussian(exact=True)
    images = torch.rand(20, 1, 1, 6)
    truth = marginal.log_prob(images.flatten(1))
    torch.testing.assert_close(model.log_likelihood(images, particles=1), truth, atol=1e-3, rtol=0)


def test_the_density_of_the_posterior_integrates_to_one() -> None:
    torch.manual_seed(0)
    flow = section("flow", loop="closed", hidden=8, steps=32)
    model = model_of(Recipe(latent=section("latent", dim=1), flow=flow))
    features = model.features(torch.rand(1, 1, 8, 8))
    noise = torch.linspace(-6, 6, 4001).view(1, -1, 1)
    sampled = model.posterior.sample(features, noise)
    latents, log_q = sampled.latents, sampled.log_prob
    assert torch.trapezoid(log_q[0].exp(), latents[0, :, 0]).abs().item() == pytest.approx(1, abs=1e-3)


def test_particles_are_a_mean_over_weights() -> None:
    model = model_of(small())
    target, noise = torch.rand(2, 1, 8, 8).round(), torch.randn(2, 5, 4)
    terms = model.elbo_terms(target, noise)
    by_hand = torch.log(terms.log_weights.double().exp().mean(1)).float()
    torch.testing.assert_close(terms.importance_bound, by_hand, atol=1e-3, rtol=1e-4)
    assert bool((terms.elbo <= terms.importance_bound).all())
    assert math.isfinite(terms.elbo.sum())


@pytest.mark.parametrize("control", ["all", "last", "low-rank", "film"])
@pytest.mark.parametrize("loop", ["open", "closed"])
def test_a_fresh_autoencoder_gives_each_image_a_code_of_its_own(loop: str, control: str) -> None:
    torch.manual_seed(0)
    sections = {
        "objective": section("objective", kind="autoencoder"),
        "prior": section("prior", kind="mixture", components=2),
    }
    model = build_model(small(section("flow", loop=loop, hidden=8, control=control), **sections), (1, 8, 8)).eval()
    spread = model.encode(torch.rand(50, 1, 8, 8)).std(0)
    assert float(spread.min()) > 1e-3, spread
