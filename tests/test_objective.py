import pytest
import torch

from ncode_gen.config import Recipe, section
from ncode_gen.distributions import build_model
from ncode_gen.training.objective import mmd

IMAGES = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def loss_of(objective, particles=1, beta=1.0, **sections):
    sections = {"flow": section("flow", hidden=8, steps=2), **sections}
    recipe = Recipe(latent=section("latent", dim=3), objective=objective, **sections)
    recipe.check()
    torch.manual_seed(0)
    model = build_model(recipe, (1, 8, 8))
    with torch.no_grad():
        for parameter in model.posterior.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    noise = torch.randn(16, particles, 3, generator=torch.Generator().manual_seed(1))
    loss, nats = recipe.objective.build(model)(IMAGES, noise, torch.tensor(beta), torch.tensor([0.0, 0.5, 1.0]))
    return loss.item(), nats.item(), model, noise


def test_the_bound_is_the_loss_and_the_report() -> None:
    loss, nats, _, _ = loss_of(section("objective"))
    assert loss == pytest.approx(nats, rel=1e-5)


def test_more_particles_tighten_the_bound_and_the_report_stays_the_lower_one() -> None:
    loss, nats, model, noise = loss_of(section("objective", particles=8), particles=8)
    expected = -model.elbo_terms(IMAGES, noise).importance_bound.mean().item()
    assert loss == pytest.approx(expected, rel=1e-4) and loss < nats


def test_free_nats_cost_nothing() -> None:
    loss, nats, model, noise = loss_of(section("objective", free_nats=1000.0))
    fit = -model.elbo_terms(IMAGES, noise).reconstruction_log_prob.mean().item()
    assert loss == pytest.approx(fit + 1000, rel=1e-4) and nats < loss


def test_the_kinetic_penalty_is_the_energy() -> None:
    plain, _, _, _ = loss_of(section("objective"))
    loss, nats, model, noise = loss_of(section("objective", kinetic=2.0))
    energy = model.elbo_terms(IMAGES, noise, energy=True).energy.mean().item()
    assert energy > 0 and loss == pytest.approx(plain + 2 * energy, rel=1e-3) and nats == pytest.approx(plain, rel=1e-4)


def test_the_decoders_penalty_is_its_squared_norm() -> None:
    prior = section("prior", kind="mixture")
    plain, _, model, _ = loss_of(section("objective", kind="autoencoder"), prior=prior)
    loss, _, _, _ = loss_of(section("objective", kind="autoencoder", decoder_penalty=0.5), prior=prior)
    squares = sum(weight.square().sum().item() for weight in model.observation.decoder.parameters())
    assert loss == pytest.approx(plain + 0.5 * squares, rel=1e-4)


def test_latent_noise_moves_what_is_decoded() -> None:
    prior = section("prior", kind="mixture")
    loss, fit, model, noise = loss_of(
        section("objective", kind="autoencoder", latent_noise=9.0, latent_penalty=0.0), prior=prior
    )
    latents = model.encode(IMAGES)
    expected = -model.observation.log_prob(IMAGES, latents + 9 * noise[:, 0]).mean().item()
    assert loss == fit == pytest.approx(expected, rel=1e-5)
    assert fit != pytest.approx(-model.observation.log_prob(IMAGES, latents).mean().item(), rel=1e-4)


def test_wae_weighs_the_discrepancy() -> None:
    none = section("flow", loop="none")
    prior = section("prior", kind="normal")
    light, fit, _, _ = loss_of(section("objective", kind="wae", mmd_weight=1.0), prior=prior, flow=none)
    heavy, same, _, _ = loss_of(section("objective", kind="wae", mmd_weight=3.0), prior=prior, flow=none)
    assert fit == same and heavy - fit == pytest.approx(3 * (light - fit), rel=1e-3)


def test_the_discrepancy_tells_distributions_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(400, 4, generator=generator), torch.randn(400, 4, generator=generator)
    assert abs(mmd(a, b).item()) < 0.03
    assert mmd(a + 2, b).item() > 0.5


@pytest.mark.parametrize("loop", ["none", "open"])
def test_a_joint_flow_prior_is_trained_by_the_bound(loop: str) -> None:
    flow = section("flow", loop="none") if loop == "none" else section("flow", hidden=8, steps=2)
    recipe = Recipe(
        latent=section("latent", dim=3),
        flow=flow,
        prior=section("prior", kind="joint-flow", hidden=8, layers=1, steps=2),
    )
    recipe.check()
    torch.manual_seed(0)
    model = build_model(recipe, (1, 8, 8))
    loss, _ = recipe.objective.build(model)(IMAGES, torch.randn(16, 1, 3), torch.tensor(1.0), None)
    loss.backward()
    assert sum(parameter.grad.abs().sum().item() for parameter in model.prior.parameters()) > 0


@pytest.mark.parametrize(("loop", "augment"), [("static", 0), ("static", 2), ("none", 0)])
def test_where_no_control_carries_the_image_the_start_does(loop: str, augment: int) -> None:
    recipe = Recipe(
        latent=section("latent", dim=3),
        flow=section("flow", loop=loop, **({"augment": augment} if augment else {})),
        objective=section("objective", kind="autoencoder"),
    )
    recipe.check()
    latents = build_model(recipe, (1, 8, 8)).encode(IMAGES)
    assert latents.shape == (16, 3) and latents.std(0).min() > 0
