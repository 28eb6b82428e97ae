"""Likelihoods of flows of pixels: bounds, costs, and a solver that does not stand."""

from typing import Any

import pytest
import torch

from ncode_gen.config import Recipe
from ncode_gen.data import TensorImages
from ncode_gen.distributions import LatentModel, build_model
from ncode_gen.metrics import pixel_likelihood, score_pixel_likelihood


def model_of() -> LatentModel:
    torch.manual_seed(0)
    recipe = Recipe.from_dict(
        {
            "latent": {"dim": 4},
            "flow": {"loop": "none"},
            "observation": {"kind": "flow", "width": 8, "middle": 1, "hidden": 8},
            "objective": {"kind": "matching"},
            "prior": {"kind": "normal"},
        }
    )
    return build_model(recipe, (1, 6, 6)).eval()


def images(n: int = 24) -> TensorImages:
    drawn = 128 + 25 * torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return TensorImages(drawn.round().clamp(0, 255).byte())


def test_solve_and_bound_agree_where_the_flow_is_exact_and_both_cost_the_code() -> None:
    model = model_of()
    model.observation.take_scale(images(500).first(500))
    found = score_pixel_likelihood(model, images(), 1, quiet=True)
    assert found.solved is not None and found.moved <= 1e-3
    assert found.bound.low < found.solved.value < found.bound.high
    assert found.rate.value > 0


def test_more_particles_never_score_worse() -> None:
    model = model_of()
    one, many = (score_pixel_likelihood(model, images(4), count, quiet=True) for count in (1, 4))
    assert one.solved is not None and many.solved is not None
    assert many.solved.value < one.solved.value + 0.02


def test_a_solve_that_does_not_stand_is_left_out_and_the_bound_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    values: Any = iter(float(i) for i in range(100))

    def moving(model: Any, batch: Any, *rest: Any) -> Any:
        rows = torch.full((len(batch),), next(values) * 100, dtype=torch.float64)
        return rows, torch.ones(len(batch), dtype=torch.float64)

    monkeypatch.setattr(pixel_likelihood, "_solved", moving)
    found = score_pixel_likelihood(model_of(), images(8), 1, quiet=True)
    assert found.solved is None and found.steps == pixel_likelihood.MOST_STEPS
    assert found.bound.value > 0 and found.rate.value == 1.0
