from types import SimpleNamespace

import pytest
import torch

from ncode_gen.config import Recipe, section
from ncode_gen.data import load_data
from ncode_gen.distributions import build_model
from ncode_gen.runtime.workers import ALONE
from ncode_gen.training import phases
from ncode_gen.training.phases import RefinerPhase, cache_reconstructions, scale_refiner


def context_of(kind):
    torch.manual_seed(0)
    recipe = Recipe(
        data=section("data", limit=128),
        latent=section("latent", dim=3),
        objective=section("objective", kind=kind),
        prior=section("prior", kind="mixture", components=2),
        observation=section("observation", kind="refined", width=8),
    )
    model = build_model(recipe, (1, 8, 8)).eval().requires_grad_(False)
    return SimpleNamespace(
        recipe=recipe, average=model, splits=load_data(recipe.data), quiet=True, callback=lambda: None, batch=16,
        device=torch.device("cpu"), workers=ALONE, precision=None, log=print,
    )  # fmt: skip


def test_what_is_cached_is_what_would_be_found_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    context, given = context_of("autoencoder"), []
    known = cache_reconstructions(context)
    assert known[0].shape == (len(context.splits.train), 3) and known[1].dtype == torch.float16
    numbers = torch.tensor([5, 2, 77])
    batch = next(context.splits.train.batches(3, numbers))
    for cached in (known, None):
        monkeypatch.setattr(phases, "cache_reconstructions", lambda _, cached=cached: cached)
        phase = RefinerPhase(context)
        phase.begin(resumed=False)
        given.append(phase.arguments(batch, numbers)[0][:3])
    for kept, anew in zip(*given, strict=True):
        torch.testing.assert_close(kept, anew, atol=1e-3, rtol=1e-3)


def test_nothing_is_cached_of_random_latents_or_of_more_than_memory_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_reconstructions(context_of("elbo")) is None
    monkeypatch.setattr(phases, "IN_MEMORY", 1000)
    assert cache_reconstructions(context_of("autoencoder")) is None


def test_the_scale_is_that_of_the_residual() -> None:
    context = context_of("elbo")
    model, images = context.average, context.splits.train
    scale_refiner(model.observation.refiner, model, images, 0)
    everything = next(images.batches(len(images)))
    residual = (everything - model.reconstruct(everything)).square().mean().sqrt()
    torch.testing.assert_close(model.observation.refiner.residual_std.flatten(), residual.view(1), rtol=0.3, atol=0)
