import pytest
import torch

from ncode_gen.config import Recipe, section
from ncode_gen.data.sets import load_data
from ncode_gen.distributions import build_model, likelihood_bounds
from ncode_gen.metrics import score_reconstruction, structural_similarity


def test_similarity_is_one_for_the_same_and_falls_with_noise() -> None:
    image = torch.rand(2, 3, 24, 24)
    torch.testing.assert_close(structural_similarity(image, image), torch.ones(2))
    little, much = ((image + s * torch.randn_like(image)).clamp(0, 1) for s in (0.05, 0.4))
    assert bool((structural_similarity(image, little) > structural_similarity(image, much)).all())


def test_similarity_of_flat_images_is_known() -> None:
    a, b = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert structural_similarity(a, b).item() == pytest.approx(expected, rel=1e-4)


def test_tiny_images_have_a_similarity_too() -> None:
    image = torch.rand(1, 1, 8, 8)
    assert structural_similarity(image, image).item() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["elbo", "autoencoder"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "logistic"])
def test_distortion_is_the_likelihood_of_targets_given_their_codes(kind: str, likelihood: str) -> None:
    torch.manual_seed(0)
    recipe = Recipe(
        latent=section("latent", dim=3),
        flow=section("flow", hidden=4, steps=2),
        decoder=section("decoder"),
        likelihood=section("likelihood", kind=likelihood),
        objective=section("objective", kind=kind),
    )
    model = build_model(recipe, (1, 8, 8)).eval().requires_grad_(False)
    images = load_data(section("data", name="digits")).test.head(200)
    drawn = score_reconstruction(model, images, stochastic_targets=True)
    again = score_reconstruction(model, images, stochastic_targets=True, batch=70)
    for key, score in drawn.items():
        assert again[key].value == pytest.approx(score.value, rel=1e-5)
    if kind == "elbo":
        bounds = likelihood_bounds(model, images.first(200), 64, torch.Generator().manual_seed(1))
        elbo = float(torch.cat([bound for bound, _ in bounds]).mean())
        assert drawn["distortion_nats"].value < -elbo  # which has the divergence from the prior too
        return
    mean = score_reconstruction(model, images, stochastic_targets=False)["distortion_nats"].value
    target = model.observation.likelihood.target(images.first(200))
    latents = model.posterior.encode(model.features(target))
    assert mean == pytest.approx(-float(model.observation.log_prob(target, latents).mean()), rel=1e-5)
    assert (mean == drawn["distortion_nats"].value) == (likelihood == "logistic")  # whose targets are the images
