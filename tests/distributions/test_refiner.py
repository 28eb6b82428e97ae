import pytest
import torch

from ncode_gen.config.recipe import FlowRecipe, LatentRecipe, Recipe, RefinerRecipe
from ncode_gen.distributions import Refiner, build_model


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
    recipe = Recipe(latent=LatentRecipe(3), flow=FlowRecipe(hidden=8, steps=2), refiner=RefinerRecipe("flow", width=8))
    model = build_model(recipe, (1, 8, 8)).eval().requires_grad_(False)
    model.refiner = random_refiner()
    return model


def test_it_begins_as_picture_and_noise_of_the_spread_of_what_is_left_out():
    torch.manual_seed(0)
    refiner = Refiner(3, (2, 8, 8), width=8, noise=0.5, steps=64)
    images, latents = torch.rand(50, 2, 8, 8), torch.randn(50, 3)
    left_out = torch.randn(50, 2, 8, 8) * torch.tensor([0.01, 0.1]).view(2, 1, 1)
    refiner.take_scale(images, images - left_out, latents)
    torch.testing.assert_close(refiner.spread.flatten(), torch.tensor([0.01, 0.1]), rtol=0.1, atol=0)
    noise = torch.randn(50, 2, 8, 8)
    pictures = torch.full_like(images, 0.5)
    torch.testing.assert_close(refiner(pictures, latents, noise), pictures + refiner.spread * noise, atol=1e-3, rtol=0)
    field = refiner.flow.field
    refiner.requires_grad_(False)
    times = torch.rand(50)
    start = refiner.matching(images, images - left_out, latents, noise, times)
    assert float(start.mean()) == pytest.approx(1.0, abs=0.1)
    with torch.no_grad():
        field.last.bias.fill_(0.5)
    assert float(refiner.matching(images, images - left_out, latents, noise, times).mean()) > float(start.mean())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 9), (1, 28, 28), (3, 33, 18), (1, 1, 1)], ids=str)
def test_it_takes_images_of_any_size(shape):
    refiner = random_refiner(shape)
    pictures, latents = torch.rand(2, *shape), torch.randn(2, 3)
    images = refiner(pictures, latents, torch.randn(2, *shape))
    assert images.shape == pictures.shape and bool(((images >= 0) & (images <= 1)).all())


def test_matching_is_the_error_about_the_velocity_of_straight_lines():
    refiner = random_refiner(noise=0.25)
    images, pictures, latents = torch.rand(5, 1, 8, 8), torch.rand(5, 1, 8, 8), torch.randn(5, 3)
    noise, t = torch.randn(5, 1, 8, 8), torch.rand(5)
    refiner.spread.fill_(0.2)
    found = refiner.matching(images, pictures, latents, noise, t)
    start, end = 0.25 * noise, (images - pictures) / 0.2
    for i in range(5):
        point = (1 - t[i]) * start[i : i + 1] + t[i] * end[i : i + 1]
        condition = torch.cat([latents[i : i + 1], pictures[i : i + 1].flatten(1)], 1)
        velocity = refiner.flow.velocity(float(t[i]), point.unsqueeze(1), condition).squeeze(1)
        variance = (0.25 * (1 - t[i])) ** 2 + t[i] ** 2
        error = (velocity - (end[i] - start[i])).square().mean()
        torch.testing.assert_close(found[i], error * variance / 0.25**2)


def test_a_perfect_field_brings_every_picture_to_its_image():
    """With one image for all, flow matching has the exact solution v = (end - x) / (1 - t)."""
    torch.manual_seed(0)
    refiner = Refiner(2, (1, 4, 4), width=16, blocks=2, noise=1.0, steps=8)
    refiner.spread.fill_(0.4)
    image, optimiser = torch.rand(1, 1, 4, 4), torch.optim.Adam(refiner.parameters(), 3e-3)
    for _ in range(200):
        pictures, latents = torch.rand(32, 1, 4, 4), torch.randn(32, 2)
        loss = refiner.matching(
            image.expand(32, -1, -1, -1), pictures, latents, torch.randn(32, 1, 4, 4), torch.rand(32)
        ).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        drawn = refiner(torch.rand(32, 1, 4, 4), torch.randn(32, 2), torch.randn(32, 1, 4, 4))
    assert float((drawn - image).square().mean()) < 0.1 * float((torch.rand(32, 1, 4, 4) - image).square().mean())


def test_a_film_ends_with_the_image():
    refiner = random_refiner(steps=8)
    pictures, latents, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 3), torch.randn(2, 1, 8, 8)
    film = refiner.film(pictures, latents, noise, torch.linspace(0, 1, 9))
    assert film.shape == (9, 2, 1, 8, 8)
    torch.testing.assert_close(film[0], (pictures + noise).clamp(0, 1))
    torch.testing.assert_close(film[-1], refiner(pictures, latents, noise), atol=1e-5, rtol=1e-5)
    late = refiner.film(pictures, latents, noise, torch.tensor([1.0]))
    assert late.shape == (1, 2, 1, 8, 8)
    assert torch.equal(refiner.film(pictures, latents, noise, torch.zeros(1))[0], film[0])


def test_in_half_precision_layers_round_and_states_do_not():
    model, latents = refined_model(), torch.randn(6, 3)
    times = torch.linspace(0, 1, 3)

    def drawn():
        generator = torch.Generator().manual_seed(0)
        return model.draw_images(latents, generator), model.refinement(latents, times, generator)

    whole = drawn()
    model.compute_in(torch.bfloat16)
    for half, exact in zip(drawn(), whole, strict=True):
        assert half.dtype == torch.float32 and not torch.equal(half, exact)
        torch.testing.assert_close(half, exact, atol=0.05, rtol=0)
    model.compute_in(None)
    assert all(torch.equal(again, exact) for again, exact in zip(drawn(), whole, strict=True))


def test_a_step_looks_ahead_as_far_as_it_is_told():
    pictures, latents, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 3), torch.randn(2, 1, 8, 8)
    refiner = random_refiner(steps=1, stage=0.3)
    condition = torch.cat([latents, pictures.flatten(1)], 1)

    def velocity(t, x):
        return refiner.flow.velocity(t, x.unsqueeze(1), condition).squeeze(1)

    first = velocity(0.0, noise)
    second = velocity(0.3, noise + 0.3 * first)
    end = noise + first + (second - first) / 0.6
    torch.testing.assert_close(refiner(pictures, latents, noise), (pictures + end).clamp(0, 1))


def test_where_pictures_are_means_the_network_is_not_asked_at_noise():
    pictures, latents, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 3), torch.randn(2, 1, 8, 8)
    refiner = random_refiner(steps=1, stage=0.3, centred=True)
    condition = torch.cat([latents, pictures.flatten(1)], 1)
    asked = []
    refiner.flow.field.last.register_forward_hook(lambda *_: asked.append(1))
    drawn = refiner(pictures, latents, noise)
    assert len(asked) == refiner.evaluations(1) == 1
    ahead = refiner.flow.velocity(0.3, 0.7 * noise.unsqueeze(1), condition).squeeze(1)
    torch.testing.assert_close(drawn, (pictures + (ahead + noise) / 0.6).clamp(0, 1))
    refiner(pictures, latents, noise, steps=3)
    assert len(asked) == 2 + refiner.evaluations(3) and random_refiner().evaluations(3) == 6


@pytest.mark.parametrize(("loop", "decides"), [("open", True), ("static", False)])
def test_what_latents_decide_beside_their_pictures(loop, decides):
    pictures, noise = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    refiner = random_refiner(loop=loop)
    one, other = (refiner(pictures, latents, noise) for latents in torch.randn(2, 2, 3))
    assert torch.equal(one, other) != decides
    assert not torch.allclose(one, refiner(pictures.flip(0), torch.randn(2, 3), noise), atol=1e-3)


def test_samples_are_refined_and_do_not_depend_on_the_batch():
    model = refined_model()
    one, two = (model.sample(5, torch.Generator().manual_seed(0), batch=batch) for batch in (5, 2))
    torch.testing.assert_close(one, two)
    plain = model.sample(5, torch.Generator().manual_seed(0), refine=False)
    assert not torch.allclose(one, plain)
    latents = model.prior.sample(5, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain, model.decode(latents))
    model.refiner.fitted.fill_(False)
    assert torch.equal(model.sample(5, torch.Generator().manual_seed(0)), plain)
    assert model.refinement(latents, torch.linspace(0, 1, 3)) is None


def test_likelihoods_know_nothing_of_it():
    model = refined_model()
    images = torch.rand(3, 1, 8, 8)
    with_it = model.log_likelihood(images, 4, torch.Generator().manual_seed(0))
    model.refiner = None
    assert torch.equal(with_it, model.log_likelihood(images, 4, torch.Generator().manual_seed(0)))
