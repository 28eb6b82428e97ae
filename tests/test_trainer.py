import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ncode_gen.config import Recipe, section
from ncode_gen.data.sets import load_data
from ncode_gen.distributions import build_model
from ncode_gen.errors import UserError
from ncode_gen.runfolder.run import load_run
from ncode_gen.training.loop import train
from ncode_gen.training.step import learning_rate

CPU = torch.device("cpu")


def recipe_of(epochs=2, **sections):
    sections = {"flow": section("flow", hidden=8, steps=2), **sections}
    training = sections.pop("training", {})
    return Recipe(
        data=section("data", limit=256),
        latent=section("latent", dim=3),
        training=section("training", epochs=epochs, batch=64, **training),
        **sections,
    )


def fit(recipe, folder, **options):
    return train(recipe, load_data(recipe.data), folder, device=CPU, quiet=True, **options)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    fit(recipe_of(epochs=15), tmp_path)
    rows = rows_of(tmp_path)
    assert rows[-1]["validation_nats"] < rows[0]["validation_nats"] - 3
    assert rows[-1]["train_nats"] < rows[0]["train_nats"] - 3


@pytest.mark.parametrize(
    "sections",
    [
        {"flow": section("flow", loop="none")},
        {"flow": section("flow", loop="static", hidden=8)},
        {"flow": section("flow", loop="closed", hidden=8, grid="random")},
        {"flow": section("flow", method="torchdiffeq:rk4", steps=2, hidden=8)},
        {"prior": section("prior", kind="mixture", components=2)},
        {
            "objective": section("objective", kind="autoencoder"),
            "prior": section("prior", kind="mixture", components=2),
        },
        {
            "objective": section("objective", kind="autoencoder", stochastic_targets=True),
            "prior": section("prior", kind="mixture", components=2),
        },
        {
            "objective": section("objective", kind="autoencoder", latent_noise=0.3),
            "prior": section("prior", kind="mixture", components=2),
        },
        {"posterior": section("posterior", kind="iaf", hidden=8, transforms=2), "flow": section("flow", loop="none")},
        {"observation": section("observation", kind="refined", width=8, epochs=1)},
        {"observation": section("observation", kind="refined", loop="static", width=8, epochs=1)},
        {"training": {"precision": "bf16", "grad_clip": 0.0, "ema": 0.0, "warmup": 0.0}},
    ],
    ids=str,
)
def test_every_kind_of_model_trains(tmp_path: Path, sections: Any) -> None:
    recipe = recipe_of(epochs=2, **sections)
    model = fit(recipe, tmp_path)
    torch.manual_seed(recipe.seed)
    fresh = build_model(recipe, model.shape).state_dict()
    names = {name for name, _ in model.named_parameters()} - {"posterior.flow.controller.theta"}
    still = [name for name, value in model.state_dict().items() if name in names and torch.equal(value, fresh[name])]
    assert not still, "these weights did not move"
    first, second = (row["loss"] for row in rows_of(tmp_path)[:2])
    assert second < first
    samples = load_run(tmp_path).sample(4, torch.Generator().manual_seed(0))
    assert torch.equal(samples, model.sample(4, torch.Generator().manual_seed(0)))
    if model.prior.fitted_after:
        assert not torch.equal(model.prior.means, torch.zeros_like(model.prior.means))


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    weights = [fit(recipe_of(), tmp_path / name).state_dict() for name in ("a", "b")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_finished_run_takes_another_prior_without_training_again(tmp_path: Path) -> None:
    normal = fit(recipe_of(epochs=1, prior=section("prior", kind="normal")), tmp_path)
    mixture = fit(recipe_of(epochs=1, prior=section("prior", kind="mixture", components=3)), tmp_path, resume=True)
    assert len(rows_of(tmp_path)) == 1
    assert bool(mixture.prior.fitted) and load_run(tmp_path).prior.means.shape == (3, 3)
    weights = mixture.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in normal.state_dict().items())
    draws = load_run(tmp_path).prior.sample(9, torch.Generator().manual_seed(0))
    assert torch.equal(draws, mixture.prior.sample(9, torch.Generator().manual_seed(0)))


def refined_of(epochs=1, refined=2, **choices):
    return recipe_of(epochs, observation=section("observation", kind="refined", width=8, epochs=refined, **choices))


def test_a_refiner_learns_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    plain = fit(recipe_of(), tmp_path / "plain").state_dict()
    refined = fit(refined_of(2, 8), tmp_path / "refined")
    assert all(torch.equal(value, refined.state_dict()[key]) for key, value in plain.items())
    rows = rows_of(tmp_path / "refined")
    assert [row["epoch"] for row in rows] == list(range(1, 11)) and "flow_matching" not in rows[1]
    assert rows[-1]["validation_flow_matching"] < 0.95 * rows[2]["validation_flow_matching"]
    model = load_run(tmp_path / "refined")
    latents = model.prior.sample(3, torch.Generator().manual_seed(0))
    assert not torch.equal(model.sample_images(latents), model.decode(latents))


def test_a_finished_run_takes_a_refiner_another_one_and_none(tmp_path: Path) -> None:
    plain = fit(recipe_of(epochs=1), tmp_path).state_dict()
    first = fit(refined_of(), tmp_path, resume=True).state_dict()
    assert [row["epoch"] for row in rows_of(tmp_path)] == [1, 2, 3]
    longer = fit(refined_of(refined=3), tmp_path, resume=True).state_dict()
    assert not torch.equal(
        longer["observation.refiner.flow.field.last.weight"], first["observation.refiner.flow.field.last.weight"]
    )
    assert len(rows_of(tmp_path)) == 4
    other = fit(refined_of(refined=1, noise=0.5), tmp_path, resume=True)
    assert len(rows_of(tmp_path)) == 2 and other.observation.refiner.noise == 0.5
    none = fit(recipe_of(epochs=1), tmp_path, resume=True).state_dict()
    assert none.keys() == plain.keys() and len(rows_of(tmp_path)) == 1
    for found in (first, longer, other.state_dict(), none):
        assert all(torch.equal(value, found[key]) for key, value in plain.items())


def test_when_the_refiner_is_trained_the_epochs_of_the_rest_are_done(tmp_path: Path) -> None:
    fit(refined_of(2), tmp_path)
    with pytest.raises(UserError, match=r"training\.epochs cannot become 1"):
        fit(refined_of(1), tmp_path, resume=True)
    fit(refined_of(3), tmp_path, resume=True)  # more of the rest, and the refiner anew
    assert [row["epoch"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5]
    assert ["flow_matching" in row for row in rows_of(tmp_path)] == [False] * 3 + [True] * 2
    with pytest.raises(UserError, match="another model"):
        fit(recipe_of(epochs=3, flow=section("flow", hidden=9)), tmp_path, resume=True)


def test_a_captured_refiner_is_trained_as_a_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, runs = torch.compile, {}
    # The compiler itself takes a minute here; that the whole step can be captured is what may break.
    monkeypatch.setattr(torch, "compile", lambda loss, **options: real(loss, backend="eager", **options))
    for setting in ("off", "on"):
        recipe = refined_of(refined=1)
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, compile=setting))
        runs[setting] = train(recipe, load_data(recipe.data), tmp_path / setting, device=CPU).state_dict()
    assert capsys.readouterr().err.count("compiled the training step in") == 2
    for key in runs["off"]:
        torch.testing.assert_close(runs["off"][key], runs["on"][key], atol=2e-3, rtol=1e-2)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(recipe_of(epochs=1), tmp_path)
    with pytest.raises(UserError, match="another model"):
        fit(recipe_of(epochs=2, flow=section("flow", hidden=9)), tmp_path, resume=True)


def test_the_rate_rises_and_falls() -> None:
    rates = [learning_rate(1.0, 0.1, step, 100) for step in range(100)]
    assert max(rates) == 1.0 and rates[0] == 0.1 and rates[-1] < 0.001
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)


def test_a_compiled_step_trains_as_a_plain_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = fit(recipe_of(epochs=1), tmp_path / "plain").state_dict()
    recipe = recipe_of(epochs=1, training={"compile": "on"})
    compiled = train(recipe, load_data(recipe.data), tmp_path / "compiled", device=CPU).state_dict()
    assert "compiled the training step in" in capsys.readouterr().err
    for key in plain:
        torch.testing.assert_close(plain[key], compiled[key], atol=2e-3, rtol=1e-2)


def test_without_a_compiler_training_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments, **options):
        raise RuntimeError("no C++ compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    recipe = recipe_of(epochs=1, training={"compile": "on"})
    train(recipe, load_data(recipe.data), tmp_path, device=CPU)
    said = " ".join(capsys.readouterr().err.split())
    assert "compilation failed (RuntimeError: no C++ compiler here); training continues uncompiled" in said
    assert (tmp_path / "weights.safetensors").exists()


def test_pictures_and_curves_go_to_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(recipe_of(epochs=1), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()
    assert set(events["images"]) == {"samples", "reconstructions"}
    assert {"loss", "validation_nats", "nfe", "solver_gap_nats"} <= set(events["scalars"])


@pytest.mark.parametrize(
    "prior",
    [
        section("prior", kind="mixture", components=0),
        section("prior", kind="flow", components=0, hidden=8, layers=1, iterations=5),
    ],
    ids=["mixture", "flow"],
)
def test_a_prior_whose_size_is_chosen_is_saved_and_loaded(tmp_path: Path, prior: Any) -> None:
    model = fit(recipe_of(epochs=1, prior=prior), tmp_path)
    latents = torch.randn(5, 3)
    assert torch.equal(load_run(tmp_path).prior.log_prob(latents), model.prior.log_prob(latents))


def test_a_joint_prior_goes_on_from_its_state(tmp_path: Path) -> None:
    recipe = recipe_of(epochs=2, prior=section("prior", kind="joint-flow", hidden=8, layers=1))
    whole = fit(recipe, tmp_path / "whole").state_dict()
    again = fit(recipe, tmp_path / "whole", resume=True).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    assert whole["prior.flow.controller.theta"].abs().sum() > 0
