from pathlib import Path
from typing import Any

import pytest
import torch

from ncode_gen.config import Recipe, section
from ncode_gen.data.images import TensorImages
from ncode_gen.distributions import build_model
from ncode_gen.figures import draw_gallery
from ncode_gen.figures.trajectories import principal_plane


def images(n=30, channels=1):
    return TensorImages(torch.randint(0, 256, (n, channels, 8, 8)).byte())


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(latent=section("latent", dim=1)),
        Recipe(flow=section("flow", loop="closed")),
        Recipe(flow=section("flow", loop="closed", feedback="weights", hidden=4, steps=1)),
        Recipe(
            flow=section("flow", loop="closed", feedback="dynamic", hidden=4),
            objective=section("objective", kind="autoencoder"),
            prior=section("prior", kind="mixture"),
        ),
    ],
    ids=["open", "one dimension", "closed", "closed, weights", "autoencoder"],
)
def test_every_model_with_a_flow_has_all_pictures(tmp_path: Path, recipe: Any) -> None:
    model = build_model(recipe, (1, 8, 8)).eval().requires_grad_(False)
    files = draw_gallery(model, images(), tmp_path, title="test")
    assert [file.stem for file in files] == [
        "samples", "reconstructions", "interpolations", "trajectories", "filmstrip", "animation"
    ]  # fmt: skip
    assert all(file.stat().st_size > 1000 for file in files)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(decoder=section("decoder", kind="ncode", width=4), flow=section("flow", loop="none")),
        Recipe(flow=section("flow", loop="static", augment=2), objective=section("objective", kind="autoencoder")),
        Recipe(posterior=section("posterior", kind="iaf", transforms=1), flow=section("flow", loop="none")),
        Recipe(prior=section("prior", kind="joint-flow", layers=1, hidden=8)),
    ],
    ids=["ncode decoder", "anode", "iaf", "flow prior"],
)
def test_every_kind_of_model_has_figures(tmp_path: Path, recipe: Any) -> None:
    recipe.check()
    model = build_model(recipe, (1, 8, 8)).eval().requires_grad_(False)
    names = {file.stem for file in draw_gallery(model, images(), tmp_path, title="test")}
    assert {"samples", "reconstructions", "interpolations"} <= names
    assert ("decoder-trajectory" in names) == (recipe.decoder.kind == "ncode")
    assert ("trajectories" in names) == (recipe.flow.loop in ("static", "open"))


def test_without_a_flow_there_are_no_trajectories(tmp_path: Path) -> None:
    model = build_model(Recipe(flow=section("flow", loop="none")), (3, 8, 8)).eval().requires_grad_(False)
    assert len(draw_gallery(model, images(3, 3), tmp_path, title="test")) == 3


def test_the_plane_holds_the_two_strongest_directions() -> None:
    points = torch.randn(500, 4) * torch.tensor([0.1, 5.0, 0.1, 2.0])
    _, plane, shares = principal_plane(points)
    assert plane[0].abs().argmax() == 1 and plane[1].abs().argmax() == 3
    assert shares.sum() > 0.98
