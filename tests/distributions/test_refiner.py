from typing import Any

import pytest
import torch

from ncode_gen.config import Recipe, section
from ncode_gen.distributions import Pixelwise, Refiner, build_model


def random_refiner(shape=(1, 8, 8), dim=3, **options):
    """Return a refiner whose flow moves, as a trained one's does."""
    torch.manual_seed(0)
    refiner = Refiner(dim, shape, width=8, **options)
    with torch.no_grad():
        for parameter in refiner.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    refiner.fitted.fill_(True)
    return refiner.requires_grad_(False)


def refined_model():
    torch.manual_seed(0)
    recipe = Recipe(
        latent=section("latent", dim=3),
        flow=section("flow", hidden=8, steps=2),
        observation=section("observation", kind="refined", width=8),
    )
    model = build_model(recipe, (1, 8, 8)).eval().requires_grad_(False)
    model.observation.refiner = random_refiner()
    return model


def test_it_begins_as_mean_and_noise_of_the_residuals_deviation() -> None:
    torch.manual_seed(0)
    refiner = Refiner(3, (2, 8, 8), width=8, noise=0.5, steps=64)
    images, latents = torch.rand(50, 2, 8, 8), torch.randn(50, 3)
    residual = torch.randn(50, 2, 8, 8) * torch.tensor([0.01, 0.1]).view(2, 1, 1)
    refiner.take_scale(images, images - residual, latents)
    torch.testing.assert_close(refiner.residual_std.flatten(), torch.tensor([0.01, 0.1]), rtol=0.1, atol=0)
    noise = torch.randn(50, 2, 8, 8)
    means = torch.full_like(images, 0.5)
    torch.testing.assert_close(
        refiner.sample(means, latents, noise), means + refiner.residual_std * noise, atol=1e-3, rtol=0
    )
    field = refiner.flow.field
    refiner.requires_grad_(False)
    times = torch.rand(50)
    start = refiner.loss(images, images - residual, latents, noise, times)
    assert float(start.mean()) == pytest.approx(1.0, abs=0.1)
    with torch.no_grad():
        field.last.bias.fill_(0.5)
    assert float(refiner.loss(images, images - residual, latents, noise, times).mean()) > float(start.mean())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 9), (1, 28, 28), (3, 33, 18), (1, 1, 1)], ids=str)
def test_it_takes_images_of_any_size(shape: Any) -> None:
    refiner = random_refiner(shape)
    means, latents = torch.rand(2, *shape), torch.randn(2, 3)
    images = refiner.sample(means, latents, torch.randn(2, *shape))
    assert images.shape == means.shape and bool(((images >= 0) & (images <= 1)).all())


def test_the_loss_is_the_error_about_the_velocity_of_straight_lines() -> None:
    refiner = random_refiner(noise=0.25)
    images, means, latents = torch.rand(5, 1, 8, 8), torch.rand(5, 1, 8, 8), torch.randn(5, 3)
    noise, t = torch.randn(5, 1, 8, 8), torch.rand(5)
    refiner.residual_std.fill_(0.2)
    found = refiner.loss(images, means, latents, noise, t)
    start, end = 0.25 * noise, (images - means) / 0.2
    for i in range(5):
        point = (1 - t[i]) * start[i : i + 1] + t[i] * end[i : i + 1]
        condition = torch.cat([latents[i : i + 1], means[i : i + 1].flatten(1)], 1)
        velocity = refiner.flow.velocity(float(t[i]), point.unsqueeze(1), condition).squeeze(1)
        variance = (0.25 * (1 - t[i])) ** 2 + t[i] ** 2
        error = (velocity - (end[i] - start[i])).square().mean()
        torch.testing.assert_close(found[i], error * variance / 0.25**2)


def test_a_perfect_field_brings_every_mean_to_its_image() -> None:
    """With one image for all, flow matching has the exact solution v = (end - x) / (1 - t)."""
    torch.manual_seed(0)
    refiner = Refiner(2, (1, 4, 4), width=16, blocks=2, noise=1.0, steps=8)
    refiner.residual_std.fill_(0.4)
    image, optimiser = torch.rand(1, 1, 4, 4), torch.optim.Adam(refiner.parameters(), 3e-3)
    for _ in range(200):
        means, latents = torch.rand(32, 1, 4, 4), torch.randn(32, 2)
        loss = refiner.loss(
            image.expand(32, -1, -1, -1), means, latents, torch.randn(32, 1, 4, 4), torch.rand(32)
        ).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        drawn = refiner.sample(torch.rand(32, 1, 4, 4), torch.randn(32, 2), torch.randn(32, 1, 4, 4))
    assert float((drawn - image).square().mean()) < 0.1 * float((torch.rand(32, 1, 4, 4) - image).square().mean())


def test_a_trajectory_ends_with_the_image() -> None:
    refiner = random_refiner(steps=8)
    means, latents, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 3), torch.randn(2, 1, 8, 8)
    path = refiner.trajectory(means, latents, noise, torch.linspace(0, 1, 9))
    assert path.shape == (9, 2, 1, 8, 8)
    torch.testing.assert_close(path[0], (means + noise).clamp(0, 1))
    torch.testing.assert_close(path[-1], refiner.sample(means, latents, noise), atol=1e-5, rtol=1e-5)
    late = refiner.trajectory(means, latents, noise, torch.tensor([1.0]))
    assert late.shape == (1, 2, 1, 8, 8)
    assert torch.equal(refiner.trajectory(means, latents, noise, torch.zeros(1))[0], path[0])


def test_in_half_precision_layers_round_and_states_do_not() -> None:
    model, latents = refined_model(), torch.randn(6, 3)
    times = torch.linspace(0, 1, 3)

    def drawn():
        generator = torch.Generator().manual_seed(0)
        return (
            model.sample_images(latents, generator),
            model.image_trajectories(latents, times, generator)["refiner"],
        )

    whole = drawn()
    model.compute_in(torch.bfloat16)
    for half, exact in zip(drawn(), whole, strict=True):
        assert half.dtype == torch.float32 and not torch.equal(half, exact)
        torch.testing.assert_close(half, exact, atol=0.05, rtol=0)
    model.compute_in(None)
    assert all(torch.equal(again, exact) for again, exact in zip(drawn(), whole, strict=True))


def test_a_step_looks_ahead_as_far_as_it_is_reported() -> None:
    means, latents, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 3), torch.randn(2, 1, 8, 8)
    refiner = random_refiner(steps=1, alpha=0.3)
    condition = torch.cat([latents, means.flatten(1)], 1)

    def velocity(t, x):
        return refiner.flow.velocity(t, x.unsqueeze(1), condition).squeeze(1)

    first = velocity(0.0, noise)
    second = velocity(0.3, noise + 0.3 * first)
    end = noise + first + (second - first) / 0.6
    torch.testing.assert_close(refiner.sample(means, latents, noise), (means + end).clamp(0, 1))


def test_of_residuals_of_mean_zero_the_network_is_not_evaluated_at_noise() -> None:
    means, latents, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 3), torch.randn(2, 1, 8, 8)
    refiner = random_refiner(steps=1, alpha=0.3, zero_mean_residual=True)
    condition = torch.cat([latents, means.flatten(1)], 1)
    evaluated = []
    refiner.flow.field.last.register_forward_hook(lambda *_: evaluated.append(1))
    drawn = refiner.sample(means, latents, noise)
    assert len(evaluated) == refiner.evaluations(1) == 1
    ahead = refiner.flow.velocity(0.3, 0.7 * noise.unsqueeze(1), condition).squeeze(1)
    torch.testing.assert_close(drawn, (means + (ahead + noise) / 0.6).clamp(0, 1))
    refiner.flow.options = refiner.flow.options.but(steps=3)
    refiner.sample(means, latents, noise)
    assert len(evaluated) == 2 + refiner.evaluations(3) and random_refiner().evaluations(3) == 6


@pytest.mark.parametrize(("loop", "decides"), [("open", True), ("static", False)])
def test_what_latents_decide_beside_their_means(loop: str, decides: bool) -> None:
    means, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    refiner = random_refiner(loop=loop)
    one, other = (refiner.sample(means, latents, noise) for latents in torch.randn(2, 2, 3))
    assert torch.equal(one, other) != decides
    assert not torch.allclose(one, refiner.sample(means.flip(0), torch.randn(2, 3), noise), atol=1e-3)


def test_samples_are_refined_and_do_not_depend_on_the_batch() -> None:
    model = refined_model()
    one, two = (model.sample(5, torch.Generator().manual_seed(0), batch=batch) for batch in (5, 2))
    torch.testing.assert_close(one, two)
    plain = model.sample(5, torch.Generator().manual_seed(0), refine=False)
    assert not torch.allclose(one, plain)
    latents = model.prior.sample(5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain, model.decode(latents))
    model.observation.refiner.fitted.fill_(False)
    assert torch.equal(model.sample(5, torch.Generator().manual_seed(0)), plain)
    assert model.image_trajectories(latents, torch.linspace(0, 1, 3)) == {}


def test_likelihoods_know_nothing_of_it() -> None:
    model = refined_model()
    images = torch.rand(3, 1, 8, 8)
    with_it = model.log_likelihood(images, 4, torch.Generator().manual_seed(0))
    model.observation = Pixelwise(3, model.shape, model.observation.decoder, model.observation.likelihood)
    assert torch.equal(with_it, model.log_likelihood(images, 4, torch.Generator().manual_seed(0)))
