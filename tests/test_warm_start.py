"""Training that starts from the weights of another run."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ncode_gen import load
from ncode_gen.config import Recipe
from ncode_gen.data import load_data
from ncode_gen.errors import UserError
from ncode_gen.runfolder.records import read_record
from ncode_gen.runtime.signals import Interrupted
from ncode_gen.train import main
from ncode_gen.training import step as step_module
from ncode_gen.training import train

CPU = torch.device("cpu")


def recipe_of(epochs: int = 1, **changes: Any) -> Recipe:
    """Return a small flow of pixels on digits, 64 images of them."""
    sections = {
        "name": "warm",
        "data": {"limit": 64, **changes.pop("data", {})},
        "latent": {"dim": 16, "side": 4},
        "encoder": {"kind": "map", "width": 8, "features": 64},
        "flow": {"loop": "none"},
        "observation": {"kind": "flow", "width": 8, "middle": 1, "hidden": 8, "steps": 1},
        "objective": {"kind": "matching"},
        "prior": {"kind": "deep-flow", "width": 8, "layers": 1, "iterations": 2, "batch": 32},
        "training": {"epochs": epochs, "batch": 32, "lr": 1e-9},
    }
    return Recipe.from_dict(sections | changes)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    recipe = recipe_of(training={"epochs": 1, "batch": 32})
    train(recipe, load_data(recipe.data), folder, device=CPU, quiet=True)
    return folder


def trained(recipe: Recipe, folder: Path, init: str = "", *, resume: bool = False) -> dict[str, torch.Tensor]:
    splits = load_data(recipe.data)
    return train(recipe, splits, folder, device=CPU, quiet=True, init=init, resume=resume).state_dict()


def test_training_starts_from_the_weights_of_another_run(first: Path, tmp_path: Path) -> None:
    found, before = trained(recipe_of(), tmp_path, str(first)), load(first).state_dict()
    for name in ("encoder.body.0.weight", "observation.flow.field.first.weight"):
        torch.testing.assert_close(found[name], before[name], rtol=0, atol=1e-6)  # the rate is next to nothing
    environment = read_record(tmp_path / "environment.json")
    assert environment["init"] == str(first) and len(environment["init_digest"]) == 16


def test_what_has_another_shape_starts_anew_and_is_named(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(data={"classes": ["auto"]})
    train(recipe, load_data(recipe.data), tmp_path, device=CPU, init=str(first))
    said = " ".join("".join(capsys.readouterr()).split())
    assert "these start anew: " in said and "observation.flow.controller.gamma.label.weight" in said
    found, before = load(tmp_path).state_dict(), load(first).state_dict()
    torch.testing.assert_close(found["encoder.body.0.weight"], before["encoder.body.0.weight"], rtol=0, atol=1e-6)


def test_a_run_that_is_cut_off_goes_on_bit_for_bit(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(training={"epochs": 2, "batch": 32})
    whole = trained(recipe, tmp_path / "whole", str(first))
    real, calls = step_module.Step.__call__, []

    def stopping(step: Any, parts: Any, lr: float) -> Any:
        calls.append(lr)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(step, parts, lr)

    with monkeypatch.context() as patched:
        patched.setattr(step_module.Step, "__call__", stopping)
        with pytest.raises(Interrupted):
            trained(recipe, tmp_path / "cut", str(first))
    found = trained(recipe, tmp_path / "cut", str(first), resume=True)
    assert all(torch.equal(whole[name], value) for name, value in found.items())


def test_a_run_that_began_otherwise_is_not_started_again(first: Path, tmp_path: Path) -> None:
    trained(recipe_of(), tmp_path)
    with pytest.raises(UserError, match="began from no other run; leave --init out"):
        trained(recipe_of(2), tmp_path, str(first), resume=True)


@pytest.mark.parametrize(
    ("init", "message"),
    [("nowhere", "there is no run folder nowhere"), ("checkpoints/mnist-ncode-open", "no weight of the run")],
    ids=["no run", "nothing in common"],
)
def test_what_cannot_be_started_from_is_refused(init: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(recipe_of().to_toml())
    with pytest.raises(UserError, match=message):
        main([str(tmp_path / "own.toml"), "--out", str(tmp_path / "run"), "--init", init])
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_a_run_goes_on_without_the_one_that_it_began_from(first: Path, tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(first, source)
    trained(recipe_of(), folder, str(source))
    shutil.rmtree(source)
    trained(recipe_of(2), folder, str(source), resume=True)
    assert read_record(folder / "environment.json")["init"] == str(source)


def test_a_run_that_stopped_before_its_first_state_begins_from_the_same_weights(first: Path, tmp_path: Path) -> None:
    trained(recipe_of(), tmp_path, str(first))
    shutil.rmtree(tmp_path / "state")
    found, before = trained(recipe_of(), tmp_path, resume=True), load(first).state_dict()
    torch.testing.assert_close(found["encoder.body.0.weight"], before["encoder.body.0.weight"], rtol=0, atol=1e-6)
