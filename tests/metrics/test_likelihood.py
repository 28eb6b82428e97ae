import pytest
import torch

from ncode_gen.config import Recipe, section
from ncode_gen.control import DensityError
from ncode_gen.data.images import TensorImages
from ncode_gen.distributions import build_model, likelihood_bounds
from ncode_gen.metrics import score_likelihood
from ncode_gen.metrics.likelihood import refine_steps

IMAGES = TensorImages(torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte())


def model_of(flow, scale=0.4):
    torch.manual_seed(0)
    model = build_model(Recipe(latent=section("latent", dim=4), flow=flow), (1, 8, 8)).eval().requires_grad_(False)
    if model.posterior.flow is not None:
        for parameter in model.posterior.flow.parameters():
            torch.nn.init.normal_(parameter, std=scale)
    return model


def test_a_coarse_solver_is_found_out() -> None:
    """A strong flow solved by one Euler step scores otherwise than the flow itself, and both values are printed."""
    model = model_of(section("flow", method="euler", steps=1, hidden=16))
    scores = score_likelihood(model, IMAGES, 8, quiet=True)
    assert scores.moved < 0.05
    assert scores.solver.startswith("rk4 x ") and scores.coarse_solver == "euler x 1"
    assert abs(scores.nll_gap) > 0.05
    steps = int(scores.solver.removeprefix("rk4 x "))
    again = likelihood_bounds(
        model,
        IMAGES.first(40),
        8,
        torch.Generator().manual_seed(0),
        adjust=lambda own: own.but(method="rk4", steps=2 * steps),
    )
    assert torch.cat([bound for _, bound in again]).mean().item() == pytest.approx(-scores.nll.value, abs=0.05)


def test_random_numbers_do_not_depend_on_how_many_are_handled_at_a_time() -> None:
    model = model_of(section("flow", hidden=16))

    def bounds(budget):
        parts = list(likelihood_bounds(model, IMAGES.first(40), 8, torch.Generator().manual_seed(0), budget=budget))
        return len(parts), torch.cat([torch.stack(part) for part in parts], 1)

    (few, whole), (many, pieces) = bounds(0), bounds(24)
    assert (few, many) == (1, 14)
    torch.testing.assert_close(pieces, whole, atol=1e-3, rtol=1e-5)


def test_a_gentle_flow_needs_no_more_than_one_doubling() -> None:
    steps, moved = refine_steps(model_of(section("flow", steps=4, hidden=16), 0.05), IMAGES.first(40), 0)
    assert steps == 8 and moved < 0.05


def test_a_flow_too_stiff_to_score_is_not_scored() -> None:
    with pytest.raises(ValueError, match="too stiff"):
        refine_steps(model_of(section("flow", steps=128, hidden=64), 40.0), IMAGES.first(8), 0)


def test_without_a_flow_there_is_nothing_to_refine() -> None:
    scores = score_likelihood(model_of(section("flow", loop="none")), IMAGES, 4, quiet=True)
    assert scores.solver == "none" and scores.moved == 0 and scores.nll_gap == 0
    assert scores.nll.value < -scores.elbo.value
    assert scores.bits_per_dim.value == pytest.approx(scores.nll.value / (64 * 0.6931472), rel=1e-5)


def test_a_deterministic_autoencoder_has_no_likelihood() -> None:
    recipe = Recipe(
        latent=section("latent", dim=4),
        objective=section("objective", kind="autoencoder"),
        prior=section("prior", kind="mixture"),
    )
    with pytest.raises(DensityError):
        score_likelihood(build_model(recipe, (1, 8, 8)), IMAGES, 4, quiet=True)
