import torch

from ncode_gen.config.recipe import DataRecipe, LatentRecipe, ObjectiveRecipe, PriorRecipe, Recipe, RefinerRecipe
from ncode_gen.data.sets import load_data
from ncode_gen.distributions import build_model
from ncode_gen.training import refinement
from ncode_gen.training.refinement import RefinementStep, know_pictures, scale_refiner


def built(kind):
    torch.manual_seed(0)
    recipe = Recipe(
        data=DataRecipe(limit=128),
        latent=LatentRecipe(3),
        objective=ObjectiveRecipe(kind),
        prior=PriorRecipe("mixture", 2),
        refiner=RefinerRecipe("flow", width=8),
    )
    return recipe, build_model(recipe, (1, 8, 8)).eval().requires_grad_(False), load_data(recipe.data).train


def test_what_is_known_is_what_would_be_found_anew():
    recipe, model, images = built("autoencoder")
    known = know_pictures(model, images)
    assert known.latents.shape == (len(images), 3) and known.pictures.dtype == torch.float16
    numbers = torch.tensor([5, 2, 77])
    batch = next(images.batches(3, numbers))
    given = []
    for know in (lambda: known, lambda: None):
        step = RefinementStep(model.refiner.requires_grad_(True), model, recipe, know, compiled=False, tell=print)
        given.append(step.inputs(batch, 0.0, torch.Generator().manual_seed(0), numbers)[0][:3])
    for kept, anew in zip(*given, strict=True):
        torch.testing.assert_close(kept, anew, atol=1e-3, rtol=1e-3)


def test_nothing_is_kept_of_random_latents_or_of_more_than_memory_is_for(monkeypatch):
    assert know_pictures(*built("elbo")[1:]) is None
    monkeypatch.setattr(refinement, "IN_MEMORY", 1000)
    assert know_pictures(*built("autoencoder")[1:]) is None


def test_the_scale_is_that_of_what_is_left_out():
    _, model, images = built("elbo")
    scale_refiner(model.refiner, model, images, 0)
    everything = next(images.batches(len(images)))
    left_out = (everything - model.reconstruct(everything)).square().mean().sqrt()
    torch.testing.assert_close(model.refiner.spread.flatten(), left_out.view(1), rtol=0.3, atol=0)
